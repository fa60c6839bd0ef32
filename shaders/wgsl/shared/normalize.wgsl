// What LayerNorm, RMSNorm and L2 normalisation share: rows scaled to 30 bits, and division by a root (SPEC 5.5).

import package::shared::wide::{bit_length, multiply_mixed, multiply_signed, round_shift, shift_left};
import package::shared::fixed::{Root, round_shift_word};

/// `30 - bit_length(most)`, from -2 to 30.
fn row_scale(most: u32) -> i32 {
    return bitcast<i32>(30u - bit_length(vec2<u32>(most, 0u)));
}

/// `x * 2^scale`, rounded half up: within 2^30.
fn scale_element(x: i32, scale: i32) -> i32 {
    if scale >= 0 {
        return x << (bitcast<u32>(scale) & 31u);
    }
    return round_shift_word(x, 0u - bitcast<u32>(scale));
}

/// `round(c / 2^8)^2`.
fn square(c: i32) -> vec2<u32> {
    let h = round_shift_word(c, 8u);
    return multiply_signed(h, h);
}

/// The epsilon term at the scale of sums of squares: `mantissa * 2^(2*(scale - 8) - shift)`, at most 2^62.
fn scaled_epsilon(mantissa: u32, shift: i32, scale: i32) -> vec2<u32> {
    let left = bitcast<i32>(2u * (bitcast<u32>(scale) - 8u) - bitcast<u32>(shift));
    if mantissa == 0u {
        return vec2<u32>(0u, 0u);
    }
    if left > 30 {
        return vec2<u32>(0u, 0x40000000u);
    }
    if left >= 0 {
        return shift_left(vec2<u32>(mantissa, 0u), bitcast<u32>(left));
    }
    return round_shift(vec2<u32>(mantissa, 0u), 0u - bitcast<u32>(left));
}

/// `round(c * 2^22 / sqrt(w))`, from the inverse root of `w`.
fn divide_by_root(c: i32, root: Root) -> i32 {
    return bitcast<i32>(round_shift(multiply_mixed(c, root.r), 24u + bitcast<u32>(root.p)).x);
}

/// `unit * scale / 2^shift`, rounded half up.
fn gain(unit: i32, scale: i32, shift: u32) -> vec2<u32> {
    return round_shift(multiply_signed(unit, scale), shift);
}
