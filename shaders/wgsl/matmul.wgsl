// Matrix product (SPEC 5.3): exact sums of products of 8-bit digits.
//
// A code of an activation is q = 256*h + l + 128 with two signed digits, h its high byte and l its low byte with the top bit
// flipped, so that every 16-bit number has them. 8-bit weights are a digit; 16-bit weights have two, likewise. What the two
// 128 add follows from the sums of codes, which come with rows and weights. A reduction has at most 16,384 terms, so every sum
// of digit products stays within 2^29.
//
// `vector` reads the weights once for up to 8 rows, `tiled` makes 64 by 64 elements in a workgroup.

import package::shared::clamped::count;
import package::shared::codes::pack;
import package::shared::fixed::{distance, rescale};
@if(subgroups) import package::shared::subgroup::is_first;
import package::shared::wide::{Saturated, add, saturate_code, saturate_i32, shift_left, subtract, widen};

/// Digits of a weight, 1 or 2.
override digits: u32 = 1u;
/// Whether the output is 16-bit codes, saturating at ±32,639, and not i32.
override to_codes: bool = false;
/// Rows that `vector` makes at a time, 1 to 8: a constant, so that their sums stay in registers.
override few: u32 = 1u;

struct Params {
    // Rows of this dispatch, and weight rows of this part of the matrix.
    rows: u32,
    cols: u32,
    // Terms of a sum, and fours of words that hold a digit of each.
    terms: u32,
    steps: u32,
    // The column of the part's first weight row, and elements (or words of codes) of an output row.
    first: u32,
    stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// 16-bit codes, eight of them an element, `[rows][2 * steps]`.
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;
// Of each row the exponent and the sum of its codes.
@group(0) @binding(2) var<storage, read> x_scales: array<vec2<i32>>;
// Digits, 16 of them an element, `[cols][digits][steps]`, the high digits first.
@group(0) @binding(3) var<storage, read> weights: array<vec4<u32>>;
// Of each weight row mantissa, shift, sum of its codes, and bias.
@group(0) @binding(5) var<storage, read> scales: array<vec4<i32>>;
@group(0) @binding(4) var<storage, read_write> out: array<u32>;

/// The high digits of four codes.
fn high_digits(codes: vec2<u32>) -> u32 {
    let low = ((codes.x >> 8u) & 0xffu) | ((codes.x >> 16u) & 0xff00u);
    return low | ((codes.y & 0xff00u) << 8u) | (codes.y & 0xff000000u);
}

/// The low digits of four codes.
fn low_digits(codes: vec2<u32>) -> u32 {
    let low = (codes.x & 0xffu) | ((codes.x >> 8u) & 0xff00u);
    return (low | ((codes.y & 0xffu) << 16u) | ((codes.y << 8u) & 0xff000000u)) ^ 0x80808080u;
}

fn products(a: u32, b: u32) -> u32 {
    return bitcast<u32>(dot4I8Packed(a, b));
}

/// Sums of products of digits of 2, 1 and 0 high digits; with 8-bit weights the first is that of high digits.
fn exact(sums: vec3<u32>, sum_of_row: i32, sum_of_weight: i32) -> vec2<u32> {
    let low = widen(bitcast<i32>(sums.z));
    if digits == 1u {
        let both = add(shift_left(widen(bitcast<i32>(sums.x)), 8u), low);
        return add(both, shift_left(widen(sum_of_weight), 7u));
    }
    let high = add(shift_left(widen(bitcast<i32>(sums.x)), 16u), shift_left(widen(bitcast<i32>(sums.y)), 8u));
    let of_codes = shift_left(add(widen(sum_of_row), widen(sum_of_weight)), 7u);
    return subtract(add(add(high, low), of_codes), vec2<u32>(params.terms << 14u, 0u));
}

fn element(row: u32, col: u32, sums: vec3<u32>) -> Saturated {
    let of_row = x_scales[row];
    let of_weight = scales[col];
    let a = exact(sums, of_row.y, of_weight.z);
    let s = distance(of_weight.y, of_row.x);
    let y = add(rescale(a, bitcast<u32>(of_weight.x), s), widen(of_weight.w));
    if to_codes {
        return saturate_code(y);
    }
    return saturate_i32(y);
}

/// Writes two neighbours, the first of which has an even column.
fn write(row: u32, col: u32, first: vec3<u32>, second: vec3<u32>) {
    if row >= params.rows || col >= params.cols {
        return;
    }
    let both = col + 1u < params.cols;
    let y = element(row, col, first);
    var z = Saturated(0, 0u);
    if both {
        z = element(row, col + 1u, second);
    }
    let at = params.first + col;
    if to_codes {
        out[row * params.stride + at / 2u] = pack(y.value, z.value);
    } else {
        out[row * params.stride + at] = bitcast<u32>(y.value);
        if both {
            out[row * params.stride + at + 1u] = bitcast<u32>(z.value);
        }
    }
    count(y.clamped + z.clamped);
}

/// Of up to 8 rows by 4 weight rows, the three sums of each.
var<workgroup> sums: array<atomic<u32>, 96>;

fn place(row: u32, col: u32) -> u32 {
    return (row * 4u + col) * 3u;
}

fn sums_of(row: u32, col: u32) -> vec3<u32> {
    let at = place(row, col);
    return vec3<u32>(atomicLoad(&sums[at]), atomicLoad(&sums[at + 1u]), atomicLoad(&sums[at + 2u]));
}

/// Adds to the sums of a row and a weight row.
fn add_to(at: u32, part: vec3<u32>) {
    atomicAdd(&sums[at], part.x);
    if digits == 2u {
        atomicAdd(&sums[at + 1u], part.y);
    }
    atomicAdd(&sums[at + 2u], part.z);
}

/// Adds what a thread made of a row to the sums; all threads call it.
@if(!subgroups)
fn collect(row: u32, col: u32, total: vec3<u32>) {
    add_to(place(row, col), total);
}

/// Adds what a thread made of a row to the sums; all threads call it. Threads of a subgroup mostly share a weight row.
@if(subgroups)
fn collect(row: u32, col: u32, total: vec3<u32>) {
    let last = subgroupMax(col);
    for (var c = subgroupMin(col); c <= last; c += 1u) {
        let part = subgroupAdd(select(vec3<u32>(0u, 0u, 0u), total, col == c));
        if is_first() {
            add_to(place(row, c), part);
        }
    }
}

/// 32 threads share each of 4 weight rows; a workgroup along y takes `few` rows.
@compute @workgroup_size(128)
fn vector(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_row = group.y * few;
    let own = lane / 32u;
    let col = group.x * 4u + own;
    var totals: array<vec3<u32>, 8>;
    if col < params.cols {
        for (var step = lane % 32u; step < params.steps; step += 32u) {
            let at = col * digits * params.steps + step;
            let high = weights[at];
            var low = high;
            if digits == 2u {
                low = weights[at + params.steps];
            }
            for (var r = 0u; r < few; r += 1u) {
                // The last row stands in for those that are not there.
                let start = (min(first_row + r, params.rows - 1u) * params.steps + step) * 2u;
                let first = x[start];
                let second = x[start + 1u];
                var total = totals[r];
                total = more(total, high_digits(first.xy), low_digits(first.xy), high.x, low.x);
                total = more(total, high_digits(first.zw), low_digits(first.zw), high.y, low.y);
                total = more(total, high_digits(second.xy), low_digits(second.xy), high.z, low.z);
                total = more(total, high_digits(second.zw), low_digits(second.zw), high.w, low.w);
                totals[r] = total;
            }
        }
    }
    for (var r = 0u; r < few; r += 1u) {
        collect(r, own, totals[r]);
    }
    workgroupBarrier();
    if lane < 2u * few {
        let r = lane / 2u;
        let pair = lane % 2u * 2u;
        write(first_row + r, group.x * 4u + pair, sums_of(r, pair), sums_of(r, pair + 1u));
    }
}

/// Sums with the products of four more codes and weights.
fn more(total: vec3<u32>, h: u32, l: u32, high: u32, low: u32) -> vec3<u32> {
    if digits == 1u {
        return total + vec3<u32>(products(h, high), 0u, products(l, high));
    }
    return total + vec3<u32>(products(h, high), products(h, low) + products(l, high), products(l, low));
}

// 32 terms of 64 rows and of 64 weight rows, four terms a word: `[8][64]`, with four words more from one word to the next, so
// that neither writing nor reading meets in one bank.
const APART = 68u;
var<workgroup> row_high: array<u32, 544>;
var<workgroup> row_low: array<u32, 544>;
var<workgroup> weight_high: array<u32, 544>;
var<workgroup> weight_low: array<u32, 544>;

/// Loads two steps of 64 rows and 64 weight rows. What lies beyond an edge becomes zeros or is not written out.
fn load(first_row: u32, first_col: u32, step: u32, lane: u32) {
    let row = first_row + lane / 4u;
    let eight = step * 2u + lane % 4u;
    var codes = vec4<u32>(0u, 0u, 0u, 0u);
    if row < params.rows && eight < params.steps * 2u {
        codes = x[row * params.steps * 2u + eight];
    }
    let at = lane % 4u * 2u * APART + lane / 4u;
    row_high[at] = high_digits(codes.xy);
    row_low[at] = low_digits(codes.xy);
    row_high[at + APART] = high_digits(codes.zw);
    row_low[at + APART] = low_digits(codes.zw);
    let digit = lane / 128u;
    let own = lane % 128u / 2u;
    let half = lane % 2u;
    var words = vec4<u32>(0u, 0u, 0u, 0u);
    if digit < digits && first_col + own < params.cols && step + half < params.steps {
        words = weights[((first_col + own) * digits + digit) * params.steps + step + half];
    }
    for (var i = 0u; i < 4u; i += 1u) {
        let to = (half * 4u + i) * APART + own;
        if digit == 0u {
            weight_high[to] = words[i];
        } else {
            weight_low[to] = words[i];
        }
    }
}

/// The column, within the tile, of the cth of a thread: neighbours of two, so that threads side by side read words side by side.
fn column(thread: u32, c: u32) -> u32 {
    return c / 2u * 32u + thread * 2u + c % 2u;
}

/// Each thread makes 4 rows by 4 columns.
@compute @workgroup_size(16, 16)
fn tiled(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) thread: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first_row = group.y * 64u;
    let first_col = group.x * 64u;
    var totals: array<vec3<u32>, 16>;
    for (var step = 0u; step < params.steps; step += 2u) {
        load(first_row, first_col, step, lane);
        workgroupBarrier();
        for (var word = 0u; word < 8u; word += 1u) {
            var high: array<u32, 4>;
            var low: array<u32, 4>;
            for (var c = 0u; c < 4u; c += 1u) {
                high[c] = weight_high[word * APART + column(thread.x, c)];
                low[c] = weight_low[word * APART + column(thread.x, c)];
            }
            for (var r = 0u; r < 4u; r += 1u) {
                let h = row_high[word * APART + thread.y * 4u + r];
                let l = row_low[word * APART + thread.y * 4u + r];
                for (var c = 0u; c < 4u; c += 1u) {
                    totals[r * 4u + c] = more(totals[r * 4u + c], h, l, high[c], low[c]);
                }
            }
        }
        workgroupBarrier();
    }
    for (var r = 0u; r < 4u; r += 1u) {
        for (var c = 0u; c < 4u; c += 2u) {
            let row = first_row + thread.y * 4u + r;
            write(row, first_col + column(thread.x, c), totals[r * 4u + c], totals[r * 4u + c + 1u]);
        }
    }
}
