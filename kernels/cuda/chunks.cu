// BLAKE3 chaining values of the chunks of rows, so that a commitment needs 32 bytes from the device for each KiB. A
// thread hashes one chunk. The tree above the chunks is the host's.
#include "block.cuh"
#include "params.cuh"

constexpr u32 CHUNK_WORDS = 256;
constexpr u32 CHUNK_START = 1, CHUNK_END = 2;

__device__ inline u32 rotate_right(u32 x, u32 by) { return x >> by | x << (32 - by); }

__device__ inline void mix(u32 &a, u32 &b, u32 &c, u32 &d, u32 x, u32 y) {
    a += b + x;
    d = rotate_right(d ^ a, 16);
    c += d;
    b = rotate_right(b ^ c, 12);
    a += b + y;
    d = rotate_right(d ^ a, 8);
    c += d;
    b = rotate_right(b ^ c, 7);
}

__device__ inline void round_of(u32 (&s)[16], const u32 (&m)[16]) {
    mix(s[0], s[4], s[8], s[12], m[0], m[1]);
    mix(s[1], s[5], s[9], s[13], m[2], m[3]);
    mix(s[2], s[6], s[10], s[14], m[4], m[5]);
    mix(s[3], s[7], s[11], s[15], m[6], m[7]);
    mix(s[0], s[5], s[10], s[15], m[8], m[9]);
    mix(s[1], s[6], s[11], s[12], m[10], m[11]);
    mix(s[2], s[7], s[8], s[13], m[12], m[13]);
    mix(s[3], s[4], s[9], s[14], m[14], m[15]);
}

__device__ inline void permute(u32 (&m)[16]) {
    const u32 p[16] = {m[2], m[6], m[3], m[10], m[7], m[0], m[4], m[13], m[1], m[11], m[12], m[5], m[9], m[14], m[15], m[8]};
#pragma unroll
    for (u32 i = 0; i < 16; i++) m[i] = p[i];
}

// One block of 64 bytes into the chaining value.
__device__ inline void compress(u32 (&cv)[8], u32 (&m)[16], u64 counter, u32 flags) {
    u32 s[16] = {cv[0],      cv[1],      cv[2],      cv[3],      cv[4],        cv[5],                cv[6], cv[7],
                 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, (u32)counter, (u32)(counter >> 32), 64,    flags};
#pragma unroll
    for (u32 round = 0; round < 7; round++) {
        round_of(s, m);
        permute(m);
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) cv[i] = s[i] ^ s[i + 8];
}

KERNEL(chunks, BLOCK_THREADS, ChunksParams) {
    const u64 index = (u64)blockIdx.x * BLOCK_THREADS + thread_index();
    const u64 row = index / p.row_chunks;
    const u32 chunk = (u32)(index % p.row_chunks);
    if (row >= p.rows) return;
    const i32 *input = p.input + row * p.cols;
    u32 cv[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    for (u32 block = 0; block < CHUNK_WORDS / 16; block++) {
        u32 m[16];
        const u32 first = chunk * CHUNK_WORDS + block * 16;
#pragma unroll
        for (u32 i = 0; i < 16; i++) m[i] = first + i < p.cols ? (u32)input[first + i] : 0;
        const u32 flags = (block == 0 ? CHUNK_START : 0) | (block == CHUNK_WORDS / 16 - 1 ? CHUNK_END : 0);
        compress(cv, m, p.counters[row] + chunk, flags);
    }
    for (u32 i = 0; i < 8; i++) p.values[index * 8 + i] = cv[i];
}
