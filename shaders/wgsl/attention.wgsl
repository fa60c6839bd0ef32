// Scaled dot-product attention with block-wise exact softmax (SPEC 5.7): `blocks`, a workgroup for each row, head and block of
// 256 positions, and then `combine`, a workgroup for each row and head. No sum depends on an order, so prefill and decode are
// the same computation, and nothing here knows how long a sequence is.

import package::shared::clamped::count;
import package::shared::codes::{code_of, high_code, low_code};
import package::shared::fixed::{reciprocal, softmax_weight};
import package::shared::reduce::{maximum, sum};
@if(subgroups) import package::shared::subgroup::is_first;
import package::shared::wide::{add, bit_length, multiply_word, round_shift, saturate_i32, shift_left, widen};

struct Params {
    // Query heads, and how many share keys and values.
    heads: u32,
    sharing: u32,
    head_dim: u32,
    // Codes of a row of queries, and of a row of keys or values.
    query_stride: u32,
    key_stride: u32,
    // First row of this dispatch, that from which on queries and output are bound, and blocks that are set aside for each row.
    first: u32,
    base: u32,
    blocks: u32,
    // Number of the keys and values that this dispatch reads.
    source: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> queries: array<u32>;
// Four codes an element; a row is whole elements.
@group(0) @binding(2) var<storage, read> keys: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read> values: array<u32>;
// Of each row how many positions it sees, and where its sequence starts in the table.
@group(0) @binding(5) var<storage, read> rows: array<vec2<u32>>;
// Of each block of a sequence the number of the keys and values where it lies, and the row of its first position there.
@group(0) @binding(6) var<storage, read> table: array<vec2<u32>>;
// Shift of scores and shift of values of each head.
@group(0) @binding(7) var<storage, read> shifts: array<vec2<u32>>;
// Of each row, head and block: reference, sum of weights, then low and high words of the weighted sums.
@group(0) @binding(8) var<storage, read_write> partials: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<i32>;

/// Where a block's sums are; `row` counts from the first of the dispatch.
fn partial(row: u32, head: u32, block: u32) -> u32 {
    return ((row * params.heads + head) * params.blocks + block) * (2u + 2u * params.head_dim);
}

// High and low byte of each code of the query.
var<workgroup> query_high: array<u32, 512>;
var<workgroup> query_low: array<u32, 512>;
var<workgroup> weights: array<u32, 256>;
var<workgroup> largest: atomic<i32>;
var<workgroup> total: atomic<u32>;
// Sums of products with high and low bytes of weights, by channel.
var<workgroup> sums_high: array<atomic<u32>, 512>;
var<workgroup> sums_low: array<atomic<u32>, 512>;

/// Raises the largest score to one of them.
@if(!subgroups)
fn raise(score: i32) {
    atomicMax(&largest, score);
}

/// Raises the largest score to one of them.
@if(subgroups)
fn raise(score: i32) {
    let most = subgroupMax(score);
    if is_first() {
        atomicMax(&largest, most);
    }
}

/// Adds to the sum of weights.
@if(!subgroups)
fn add_weight(weight: u32) {
    atomicAdd(&total, weight);
}

/// Adds to the sum of weights.
@if(subgroups)
fn add_weight(weight: u32) {
    let sum = subgroupAdd(weight);
    if is_first() {
        atomicAdd(&total, sum);
    }
}

/// The dot product of the query with the key that starts at a code. 256 products of a byte and a code stay within 2^31.
fn dot_product(start: u32) -> vec2<u32> {
    var dot = vec2<u32>(0u, 0u);
    for (var begin = 0u; begin < params.head_dim; begin += 256u) {
        let end = min(begin + 256u, params.head_dim);
        var sums = vec2<u32>(0u, 0u);
        var c = begin;
        if start % 4u == 0u {
            for (; c + 4u <= end; c += 4u) {
                let four = keys[(start + c) / 4u];
                sums += of_code(c, low_code(four.x)) + of_code(c + 1u, high_code(four.x));
                sums += of_code(c + 2u, low_code(four.y)) + of_code(c + 3u, high_code(four.y));
            }
        }
        for (; c < end; c += 1u) {
            let at = start + c;
            sums += of_code(c, code_of(keys[at / 4u][at / 2u % 2u], at));
        }
        dot = add(dot, add(shift_left(widen(bitcast<i32>(sums.x)), 8u), widen(bitcast<i32>(sums.y))));
    }
    return dot;
}

/// A code of a key times the high and the low byte of the query's.
fn of_code(c: u32, key: i32) -> vec2<u32> {
    return vec2<u32>(query_high[c], query_low[c]) * bitcast<u32>(key);
}

@compute @workgroup_size(256)
fn blocks(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let block = group.x;
    let head = group.y;
    let row = params.first + group.z;
    let visible = rows[row].x;
    if block * 256u >= visible {
        return;
    }
    let place = table[rows[row].y + block];
    if place.x != params.source {
        return;
    }
    let seen = min(visible - block * 256u, 256u);
    let dim = params.head_dim;
    let query = (row - params.base) * params.query_stride + head * dim;
    for (var c = lane; c < dim; c += 256u) {
        let code = code_of(queries[(query + c) >> 1u], query + c);
        query_high[c] = bitcast<u32>(code >> 8u);
        query_low[c] = bitcast<u32>(code) & 0xffu;
        atomicStore(&sums_high[c], 0u);
        atomicStore(&sums_low[c], 0u);
    }
    if lane == 0u {
        atomicStore(&largest, bitcast<i32>(0x80000000u));
        atomicStore(&total, 0u);
    }
    workgroupBarrier();
    let first = place.y * params.key_stride + head / params.sharing * dim;
    // Of a position that is not seen: no score is below it.
    var score = bitcast<i32>(0x80000000u);
    if lane < seen {
        let exact = round_shift(dot_product(first + lane * params.key_stride), shifts[head].x);
        let saturated = saturate_i32(exact);
        score = saturated.value;
        count(saturated.clamped);
    }
    raise(score);
    workgroupBarrier();
    let most = atomicLoad(&largest);
    let above = select(0u, 1u, (bitcast<u32>(most) & 0xfffffu) != 0u);
    let reference = bitcast<i32>(bitcast<u32>(most >> 20u) + above);
    var weight = 0u;
    if lane < seen {
        weight = softmax_weight(reference, score);
        weights[lane] = weight;
    }
    add_weight(weight);
    workgroupBarrier();
    sum_values(first, seen, lane);
    workgroupBarrier();
    let to = partial(group.z, head, block);
    if lane == 0u {
        partials[to] = bitcast<u32>(reference);
        partials[to + 1u] = atomicLoad(&total);
    }
    for (var c = lane; c < dim; c += 256u) {
        let high = shift_left(widen(bitcast<i32>(atomicLoad(&sums_high[c]))), 8u);
        let weighted = add(high, widen(bitcast<i32>(atomicLoad(&sums_low[c]))));
        partials[to + 2u + 2u * c] = weighted.x;
        partials[to + 3u + 2u * c] = weighted.y;
    }
}

/// Adds the weighted values of a block up: as many threads to a channel as there are.
fn sum_values(first: u32, seen: u32, lane: u32) {
    let dim = params.head_dim;
    let channels = min(dim, 256u);
    let threads = 256u / channels;
    let part = lane / channels;
    if part >= threads {
        return;
    }
    for (var c = lane % channels; c < dim; c += 256u) {
        var high = 0u;
        var low = 0u;
        for (var j = part; j < seen; j += threads) {
            let at = first + j * params.key_stride + c;
            let value = bitcast<u32>(code_of(values[at >> 1u], at));
            high += (weights[j] >> 8u) * value;
            low += (weights[j] & 0xffu) * value;
        }
        atomicAdd(&sums_high[c], high);
        atomicAdd(&sums_low[c], low);
    }
}

/// A block's sum with 8 guard bits, at a reference that is as far above its own.
fn aligned(sum: vec2<u32>, distance: u32) -> vec2<u32> {
    return round_shift(shift_left(sum, 8u), min(distance, 63u));
}

@compute @workgroup_size(128)
fn combine(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group.x;
    let row = params.first + group.y;
    let count_of_blocks = (rows[row].x + 255u) / 256u;
    let dim = params.head_dim;
    let own = partial(group.y, head, 0u);
    let next = 2u + 2u * dim;
    var most = 0u;
    for (var b = lane; b < count_of_blocks; b += 128u) {
        // Counted from the lowest i32, references are unsigned.
        most = max(most, partials[own + b * next] ^ 0x80000000u);
    }
    let reference = maximum(lane, most) ^ 0x80000000u;
    var of_lane = vec2<u32>(0u, 0u);
    for (var b = lane; b < count_of_blocks; b += 128u) {
        let at = own + b * next;
        of_lane = add(of_lane, aligned(vec2<u32>(partials[at + 1u], 0u), reference - partials[at]));
    }
    let weight = sum(lane, of_lane);
    let inverse = reciprocal(weight);
    let drop = max(bit_length(weight), 16u) - 16u;
    for (var c = lane; c < dim; c += 128u) {
        var weighted = vec2<u32>(0u, 0u);
        for (var b = 0u; b < count_of_blocks; b += 1u) {
            let at = own + b * next;
            let sum_of_block = vec2<u32>(partials[at + 2u + 2u * c], partials[at + 3u + 2u * c]);
            weighted = add(weighted, aligned(sum_of_block, reference - partials[at]));
        }
        let quotient = multiply_word(round_shift(weighted, drop), inverse);
        let y = round_shift(quotient, 31u + shifts[head].y);
        out[((row - params.base) * params.heads + head) * dim + c] = saturate_i32(y).value;
    }
}
