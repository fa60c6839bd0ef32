// Drawing a token (SPEC 5.17). A workgroup takes a point: it adjusts the logits, turns them into weights, narrows the weights
// down by bisection, and draws. Whether the generation ends with the token is for the host to tell: it is about text.

import package::shared::fixed::exp2_negative;
import package::shared::grid::group_index;
import package::shared::reduce::{maximum, parts, sum};
import package::shared::wide::{add, divide, less, multiply, round_shift, shift_left, shift_right, subtract};

struct Params {
    points: u32,
    cols: u32,
}

/// What a point is sampled by.
struct Settings {
    // Factor of distances: a product shifted right, or left where that is negative (SPEC 5.17.3).
    mantissa: u32,
    shift: i32,
    // 1 takes the likeliest token.
    greedy: u32,
    // How many tokens are kept; 0 keeps all.
    top_k: u32,
    // Share of the weight that is kept, in ten-thousandths; 10,000 keeps all.
    top_p: u32,
    // Least weight that min-p keeps.
    least: u32,
    draw_low: u32,
    draw_high: u32,
    // Ten-thousandths, at least 1.
    repetition_penalty: u32,
    // Adjustments of this point.
    first: u32,
    end: u32,
}

/// What is done to one logit.
struct Adjustment {
    token: u32,
    // 1 where the repetition penalty applies.
    seen: u32,
    // Added before it: 64 bits.
    bias_low: u32,
    bias_high: u32,
    // Taken off after it: 96 bits.
    off_low: u32,
    off_middle: u32,
    off_high: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<i32>;
@group(0) @binding(2) var<storage, read> settings: array<Settings>;
@group(0) @binding(3) var<storage, read> adjustments: array<Adjustment>;
@group(0) @binding(4) var<storage, read_write> out: array<u32>;
// Of each point its adjusted logits, and then its weights.
@group(0) @binding(5) var<storage, read_write> rows: array<u32>;

/// 96 bits in three words, the low one first, two's complement.
fn add_96(a: vec3<u32>, b: vec3<u32>) -> vec3<u32> {
    let low = add(a.xy, b.xy);
    return vec3<u32>(low, a.z + b.z + select(0u, 1u, less(low, a.xy)));
}

fn negate_96(a: vec3<u32>) -> vec3<u32> {
    return add_96(~a, vec3<u32>(1u, 0u, 0u));
}

fn multiply_96(a: vec2<u32>, b: u32) -> vec3<u32> {
    let low = multiply(a.x, b);
    let high = add(multiply(a.y, b), vec2<u32>(low.y, 0u));
    return vec3<u32>(low.x, high);
}

/// The floor of an unsigned quotient, for a divisor from 1 to 2^33.
fn divide_96(a: vec3<u32>, divisor: vec2<u32>) -> vec3<u32> {
    var quotient = vec3<u32>(0u, 0u, 0u);
    var rest = vec2<u32>(0u, 0u);
    for (var i = 0u; i < 96u; i += 1u) {
        let bit = (a[2u - i / 32u] >> ((31u - i % 32u) & 31u)) & 1u;
        rest = add(shift_left(rest, 1u), vec2<u32>(bit, 0u));
        quotient = add_96(quotient, quotient);
        if !less(rest, divisor) {
            rest = subtract(rest, divisor);
            quotient.x |= 1u;
        }
    }
    return quotient;
}

/// `a / b` rounded half up, for `b` from 1; `negative` is the sign of `a`.
fn divide_rounded(a: vec3<u32>, negative: bool, b: u32) -> vec3<u32> {
    let twice = add_96(a, a);
    let divisor = shift_left(vec2<u32>(b, 0u), 1u);
    let half = vec3<u32>(b, 0u, 0u);
    if !negative {
        return divide_96(add_96(twice, half), divisor);
    }
    let beyond = add_96(twice, negate_96(half));
    if bitcast<i32>(beyond.z) < 0 || (beyond.x | beyond.y | beyond.z) == 0u {
        return vec3<u32>(0u, 0u, 0u);
    }
    // The ceiling of what is beyond a half.
    let up = subtract(divisor, vec2<u32>(1u, 0u));
    return negate_96(divide_96(add_96(beyond, vec3<u32>(up, 0u)), divisor));
}

/// A logit with its bias and penalties (SPEC 5.17.1).
fn adjusted(logit: i32, by: Adjustment, penalty: u32) -> i32 {
    let sign = bitcast<u32>(logit >> 31u);
    let bias = vec3<u32>(by.bias_low, by.bias_high, bitcast<u32>(bitcast<i32>(by.bias_high) >> 31u));
    var y = add_96(vec3<u32>(bitcast<u32>(logit), sign, sign), bias);
    if by.seen == 1u {
        let negative = bitcast<i32>(y.z) < 0;
        let magnitude = select(y, negate_96(y), negative).xy;
        let factor = select(10000u, penalty, negative);
        y = divide_rounded(multiply_96(magnitude, factor), negative, select(penalty, 10000u, negative));
    }
    y = add_96(y, negate_96(vec3<u32>(by.off_low, by.off_middle, by.off_high)));
    let low = bitcast<i32>(y.x);
    let same = bitcast<u32>(low >> 31u);
    if y.y == same && y.z == same {
        return low;
    }
    return select(0x7fffffff, bitcast<i32>(0x80000000u), bitcast<i32>(y.z) < 0);
}

/// The weight of a logit that is as far below the largest (SPEC 5.17.4).
fn weight(difference: u32, by: Settings) -> u32 {
    let product = multiply(difference, by.mantissa);
    var distance = shift_left(product, (0u - bitcast<u32>(min(by.shift, 0))) & 31u);
    if by.shift >= 0 {
        distance = round_shift(product, bitcast<u32>(by.shift));
    } else if product.y >= 0x10000000u {
        // Farther than any weight reaches; a shift of three bits might lose the highest.
        return 0u;
    }
    let whole = shift_right(distance, 20u);
    if whole.y != 0u || whole.x > 30u {
        return 0u;
    }
    return bitcast<u32>(exp2_negative(distance.x & 0xfffffu)) >> (whole.x & 31u);
}

/// Number (or sum) of the weights of a row that reach a threshold.
fn measure(start: u32, lane: u32, threshold: u32, counting: bool) -> vec2<u32> {
    var own = vec2<u32>(0u, 0u);
    for (var i = lane; i < params.cols; i += 128u) {
        let w = rows[start + i];
        if w >= threshold {
            own = add(own, vec2<u32>(select(w, 1u, counting), 0u));
        }
    }
    return sum(lane, own);
}

/// The largest threshold whose measure is at least `need`; 0 where none is (SPEC 5.17.5). Weights are at most 2^30.
fn threshold(start: u32, lane: u32, need: vec2<u32>, counting: bool) -> u32 {
    var found = 0u;
    for (var bit = 0u; bit < 31u; bit += 1u) {
        let candidate = found | (0x40000000u >> (bit & 31u));
        if !less(measure(start, lane, candidate, counting), need) {
            found = candidate;
        }
    }
    return found;
}

/// The high 64 bits of a draw times a total below 2^49.
fn target_of(low: u32, high: u32, total: vec2<u32>) -> vec2<u32> {
    let cross = multiply_96(total, low);
    let whole = multiply_96(total, high);
    return add_96(whole, vec3<u32>(cross.yz, 0u)).yz;
}

/// The first token at which the sum of the weights that reach a threshold exceeds a target: each thread takes the sum of its
/// own stretch of tokens, and the one in whose stretch it is looks closer.
fn find(start: u32, lane: u32, least: u32, goal: vec2<u32>) -> u32 {
    let stretch = (params.cols + 127u) / 128u;
    let begin = min(lane * stretch, params.cols);
    let end = min(begin + stretch, params.cols);
    var own = vec2<u32>(0u, 0u);
    for (var i = begin; i < end; i += 1u) {
        own = add(own, vec2<u32>(select(0u, rows[start + i], rows[start + i] >= least), 0u));
    }
    parts[lane] = own;
    workgroupBarrier();
    var before = vec2<u32>(0u, 0u);
    for (var other = 0u; other < lane; other += 1u) {
        before = add(before, parts[other]);
    }
    workgroupBarrier();
    var found = 0u;
    if !less(goal, before) && less(goal, add(before, own)) {
        for (var i = begin; i < end; i += 1u) {
            before = add(before, vec2<u32>(select(0u, rows[start + i], rows[start + i] >= least), 0u));
            if less(goal, before) {
                found = i;
                break;
            }
        }
    }
    return maximum(lane, found);
}

/// The share of a sum that top-p keeps: the ceiling of ten-thousandths, at least 1.
fn share(p: u32, kept: vec2<u32>) -> vec2<u32> {
    let up = add(multiply_96(kept, p).xy, vec2<u32>(9999u, 0u));
    let needed = divide(up, 10000u);
    return select(needed, vec2<u32>(1u, 0u), needed.x == 0u && needed.y == 0u);
}

@compute @workgroup_size(128)
fn sample(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let point = group_index(group, groups);
    if point >= params.points {
        return;
    }
    let by = settings[point];
    let start = point * params.cols;
    for (var i = lane; i < params.cols; i += 128u) {
        rows[start + i] = bitcast<u32>(logits[start + i]);
    }
    storageBarrier();
    for (var a = by.first + lane; a < by.end; a += 128u) {
        let adjustment = adjustments[a];
        let logit = logits[start + adjustment.token];
        rows[start + adjustment.token] = bitcast<u32>(adjusted(logit, adjustment, by.repetition_penalty));
    }
    storageBarrier();
    var most = 0u;
    for (var i = lane; i < params.cols; i += 128u) {
        // Counted from the lowest i32, logits are unsigned.
        most = max(most, rows[start + i] ^ 0x80000000u);
    }
    let largest = maximum(lane, most);
    if by.greedy == 1u {
        var first = params.cols;
        for (var i = lane; i < params.cols && first == params.cols; i += 128u) {
            if (rows[start + i] ^ 0x80000000u) == largest {
                first = i;
            }
        }
        // The lowest index is the one that is farthest from the end.
        let farthest = maximum(lane, params.cols - first);
        if lane == 0u {
            out[point] = params.cols - farthest;
        }
        return;
    }
    for (var i = lane; i < params.cols; i += 128u) {
        rows[start + i] = weight(largest - (rows[start + i] ^ 0x80000000u), by);
    }
    storageBarrier();
    var least = 0u;
    if by.top_k > 0u && by.top_k < params.cols {
        least = threshold(start, lane, vec2<u32>(by.top_k, 0u), true);
    }
    if by.top_p < 10000u {
        let kept = measure(start, lane, least, false);
        least = threshold(start, lane, share(by.top_p, kept), false);
    }
    least = max(least, by.least);
    let total = measure(start, lane, least, false);
    let token = find(start, lane, least, target_of(by.draw_low, by.draw_high, total));
    if lane == 0u {
        out[point] = token;
    }
}
