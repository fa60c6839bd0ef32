// Scalar fixed-point arithmetic that ops share (SPEC 3).

import package::shared::wide::{bit_length, divide, multiply, multiply_mixed, multiply_word, negate, is_negative, round_shift, shift_left, shift_right, less, add};

/// Distance between a sum's format and its output's, for a shift of 16 bits and any exponent: beyond ±127 nothing changes.
fn distance(shift: i32, exponent: i32) -> i32 {
    // A shift has 16 bits, so an exponent beyond this decides alone.
    let near = clamp(exponent, -100000, 100000);
    return clamp(bitcast<i32>(bitcast<u32>(shift) - bitcast<u32>(near)), -127, 127);
}

/// `a * m / 2^s` with one rounding; left shifts saturate at ±2^62 (SPEC 3.2). For `|a| < 2^46` and `m < 2^16`.
fn rescale(a: vec2<u32>, m: u32, s: i32) -> vec2<u32> {
    let p = multiply_word(a, m);
    if s >= 0 {
        return round_shift(p, min(bitcast<u32>(s), 63u));
    }
    let left = min(0u - bitcast<u32>(s), 62u);
    let negative = is_negative(p);
    let magnitude = select(p, negate(p), negative);
    if magnitude.x == 0u && magnitude.y == 0u {
        return p;
    }
    var y = vec2<u32>(0u, 0x40000000u);
    if bit_length(magnitude) + left <= 62u {
        y = shift_left(magnitude, left);
    }
    return select(y, negate(y), negative);
}

/// `a / 2^amount`, rounded half up, for an amount below 32.
fn round_shift_word(a: i32, amount: u32) -> i32 {
    if amount == 0u {
        return a;
    }
    let twice = a >> ((amount - 1u) & 31u);
    return bitcast<i32>(bitcast<u32>(twice >> 1u) + bitcast<u32>(twice & 1));
}

/// `|a|`, at most 2^31.
fn magnitude(a: i32) -> u32 {
    return select(bitcast<u32>(a), 0u - bitcast<u32>(a), a < 0);
}

/// Normalised reciprocal of `v > 0`: the floor of `2^62 / x`, where `x` is the top 32 bits of `v` (SPEC 3.4).
fn reciprocal(v: vec2<u32>) -> u32 {
    let n = bit_length(v);
    var x = v.x << ((32u - n) & 31u);
    if n >= 32u {
        x = shift_right(v, n - 32u).x;
    }
    return divide(vec2<u32>(0u, 0x40000000u), x).x;
}

/// An inverse square root: `r * 2^-(46 + p)`.
struct Root {
    r: u32,
    p: i32,
}

/// Normalised inverse square root; zeros of 0 (SPEC 3.5).
fn inverse_root(v: vec2<u32>) -> Root {
    if v.x == 0u && v.y == 0u {
        return Root(0u, 0);
    }
    // floor((n - 31) / 2), by a shift that rounds down.
    let p = bitcast<i32>(bit_length(v) - 31u) >> 1u;
    var x = shift_left(v, 2u * (0u - bitcast<u32>(min(p, 0)))).x;
    if p >= 0 {
        x = shift_right(v, 2u * bitcast<u32>(p)).x;
    }
    var r = 0u;
    for (var i = 0u; i < 32u; i += 1u) {
        let candidate = r | (0x80000000u >> (i & 31u));
        if fits_root(candidate, x) {
            r = candidate;
        }
    }
    return Root(r, p);
}

/// Whether `r * r * x <= 2^92`.
fn fits_root(r: u32, x: u32) -> bool {
    let square = multiply(r, r);
    let low = multiply(square.x, x);
    let high = add(multiply(square.y, x), vec2<u32>(low.y, 0u));
    // The product is `low.x + 2^32 * high`; 2^92 is `2^32 * 2^60`.
    let limit = vec2<u32>(0u, 1u << 28u);
    return less(high, limit) || (high.x == 0u && high.y == limit.y && low.x == 0u);
}

/// One step of Horner's rule: `c + round(p * f / 2^20)`, for `|p| <= 2^30` and `f < 2^20`.
fn horner(p: i32, f: u32, c: i32) -> i32 {
    return bitcast<i32>(bitcast<u32>(c) + round_shift(multiply_mixed(p, f), 20u).x);
}

/// `2^-f` in Q30 for `f < 2^20` in Q20 (SPEC 3.6).
fn exp2_negative(f: u32) -> i32 {
    var p = horner(7335765, f, -57148512);
    p = horner(p, f, 257114789);
    p = horner(p, f, -744171352);
    return horner(p, f, 1073741824);
}

/// The softmax weight of a score in Q20 against a reference in whole units that is not below it (SPEC 3.7).
fn softmax_weight(reference: i32, score: i32) -> u32 {
    let whole = bitcast<u32>(reference) - bitcast<u32>(score >> 20u);
    if whole > 32u {
        return 0u;
    }
    let d = (whole << 20u) - (bitcast<u32>(score) & 0xfffffu);
    let n = d >> 20u;
    if n > 16u {
        return 0u;
    }
    return min(bitcast<u32>(round_shift_word(exp2_negative(d & 0xfffffu), 15u + n)), 32767u);
}
