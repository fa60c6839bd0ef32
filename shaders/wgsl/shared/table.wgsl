// A function that rises to 1, tabulated in Q31 at 1,025 places, times its argument (SPEC 4.3).

import package::shared::wide::{add, multiply, multiply_mixed, round_shift, shift_left, shift_right};
import package::shared::fixed::magnitude;

@group(0) @binding(3) var<storage, read> entries: array<u32, 1025>;

/// The function at `|x|`; `steps` is the binary logarithm of the entries per unit.
fn at_magnitude(x: i32, frac: u32, steps: u32) -> u32 {
    let fine = steps + 16u;
    let a = vec2<u32>(magnitude(x), 0u);
    var t = shift_right(a, max(frac, fine) - fine);
    if frac <= fine {
        t = shift_left(a, fine - frac);
    }
    let index = shift_right(t, 16u);
    if index.y != 0u || index.x >= 1024u {
        return 0x80000000u;
    }
    let low = entries[index.x];
    let rise = multiply(entries[index.x + 1u] - low, t.x & 0xffffu);
    return low + shift_right(add(rise, vec2<u32>(0x8000u, 0u)), 16u).x;
}

/// `x * f(x)`, rounded half up, where `f(-x) = 1 - f(x)`.
fn times(x: i32, frac: u32, steps: u32) -> i32 {
    let f = at_magnitude(x, frac, steps);
    let of_sign = select(f, 0x80000000u - f, x < 0);
    return bitcast<i32>(round_shift(multiply_mixed(x, of_sign), 31u).x);
}
