// How many elements a layer clamped: 64 bits in two words.

@group(0) @binding(15) var<storage, read_write> clamped: array<atomic<u32>, 2>;

fn count(n: u32) {
    if n == 0u {
        return;
    }
    let before = atomicAdd(&clamped[0], n);
    if before + n < before {
        atomicAdd(&clamped[1], 1u);
    }
}
