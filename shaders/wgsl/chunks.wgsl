// BLAKE3 chaining values of the 1 KiB chunks of rows, each row padded with zeros to whole chunks (SPEC 10.1), so that a
// commitment needs 32 bytes from the device for each chunk. A thread hashes one chunk; the tree above is the host's.

import package::shared::grid::thread_index;

struct Params {
    chunks: u32,
    cols: u32,
    row_chunks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<u32>;
// Of each row the number of its first chunk, 64 bits.
@group(0) @binding(2) var<storage, read> counters: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> values: array<vec4<u32>>;

const IV_LOW = vec4<u32>(0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au);
const IV_HIGH = vec4<u32>(0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u);

/// Four rows of the state, four columns each.
struct State {
    a: vec4<u32>,
    b: vec4<u32>,
    c: vec4<u32>,
    d: vec4<u32>,
}

/// The sixteen words of a block.
struct Block {
    a: vec4<u32>,
    b: vec4<u32>,
    c: vec4<u32>,
    d: vec4<u32>,
}

fn rotate(x: vec4<u32>, right: u32) -> vec4<u32> {
    return (x >> vec4<u32>(right & 31u)) | (x << vec4<u32>((32u - right) & 31u));
}

/// The quarter round of all four columns.
fn mix(s: State, x: vec4<u32>, y: vec4<u32>) -> State {
    var a = s.a + s.b + x;
    var d = rotate(s.d ^ a, 16u);
    var c = s.c + d;
    var b = rotate(s.b ^ c, 12u);
    a += b + y;
    d = rotate(d ^ a, 8u);
    c += d;
    b = rotate(b ^ c, 7u);
    return State(a, b, c, d);
}

/// Columns, and then diagonals.
fn round(s: State, m: Block) -> State {
    var t = mix(s, vec4<u32>(m.a.xz, m.b.xz), vec4<u32>(m.a.yw, m.b.yw));
    t = State(t.a, t.b.yzwx, t.c.zwxy, t.d.wxyz);
    t = mix(t, vec4<u32>(m.c.xz, m.d.xz), vec4<u32>(m.c.yw, m.d.yw));
    return State(t.a, t.b.wxyz, t.c.zwxy, t.d.yzwx);
}

fn permute(m: Block) -> Block {
    return Block(
        vec4<u32>(m.a.z, m.b.z, m.a.w, m.c.z),
        vec4<u32>(m.b.w, m.a.x, m.b.x, m.d.y),
        vec4<u32>(m.a.y, m.c.w, m.d.x, m.b.y),
        vec4<u32>(m.c.y, m.d.z, m.d.w, m.c.x),
    );
}

/// Four words of a row that starts at `start`; zeros beyond its end.
fn words(start: u32, col: u32) -> vec4<u32> {
    var four = vec4<u32>(0u, 0u, 0u, 0u);
    for (var i = 0u; i < 4u; i += 1u) {
        if col + i < params.cols {
            four[i] = input[start + col + i];
        }
    }
    return four;
}

@compute @workgroup_size(128)
fn chunks(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let chunk = thread_index(group, groups, lane);
    if chunk >= params.chunks {
        return;
    }
    let row = chunk / params.row_chunks;
    let nth = chunk % params.row_chunks;
    let first = counters[row];
    let low = first.x + nth;
    let high = first.y + select(0u, 1u, low < nth);
    var value_low = IV_LOW;
    var value_high = IV_HIGH;
    for (var block = 0u; block < 16u; block += 1u) {
        let col = nth * 256u + block * 16u;
        let start = row * params.cols;
        var m = Block(words(start, col), words(start, col + 4u), words(start, col + 8u), words(start, col + 12u));
        // The first block of a chunk, and the last.
        let flags = select(0u, 1u, block == 0u) | select(0u, 2u, block == 15u);
        var s = State(value_low, value_high, IV_LOW, vec4<u32>(low, high, 64u, flags));
        for (var i = 0u; i < 7u; i += 1u) {
            s = round(s, m);
            m = permute(m);
        }
        value_low = s.a ^ s.c;
        value_high = s.b ^ s.d;
    }
    values[2u * chunk] = value_low;
    values[2u * chunk + 1u] = value_high;
}
