// Integers of 64 bits in two words, the low one first, two's complement (SPEC 3). Everything wraps at 2^64.
//
// All arithmetic of all shaders is on u32, which wraps on every device; i32 is only compared, shifted and converted. Every
// shift is by a constant or by an amount that is masked to five bits. A test of this crate holds both. Only the variant
// `int64`, for adapters that have it, multiplies in 64 bits.

fn widen(a: i32) -> vec2<u32> {
    return vec2<u32>(bitcast<u32>(a), bitcast<u32>(a >> 31u));
}

fn add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn subtract(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn negate(a: vec2<u32>) -> vec2<u32> {
    return subtract(vec2<u32>(0u, 0u), a);
}

fn is_negative(a: vec2<u32>) -> bool {
    return bitcast<i32>(a.y) < 0;
}

/// Unsigned.
fn less(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

/// The whole product of two words.
@if(int64)
fn multiply(a: u32, b: u32) -> vec2<u32> {
    let product = u64(a) * u64(b);
    return vec2<u32>(u32(product), u32(product >> 32u));
}

/// The whole product of two words.
@if(!int64)
fn multiply(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let low_high = (a & 0xffffu) * (b >> 16u);
    let high_low = (a >> 16u) * (b & 0xffffu);
    let middle = (low >> 16u) + (low_high & 0xffffu) + (high_low & 0xffffu);
    let high = (a >> 16u) * (b >> 16u) + (low_high >> 16u) + (high_low >> 16u) + (middle >> 16u);
    return vec2<u32>((low & 0xffffu) | (middle << 16u), high);
}

fn multiply_signed(a: i32, b: i32) -> vec2<u32> {
    let p = multiply(bitcast<u32>(a), bitcast<u32>(b));
    return vec2<u32>(p.x, p.y - (bitcast<u32>(a >> 31u) & bitcast<u32>(b)) - (bitcast<u32>(b >> 31u) & bitcast<u32>(a)));
}

/// A signed word times an unsigned one.
fn multiply_mixed(a: i32, b: u32) -> vec2<u32> {
    let p = multiply(bitcast<u32>(a), b);
    return vec2<u32>(p.x, p.y - (bitcast<u32>(a >> 31u) & b));
}

/// Two words times an unsigned one, modulo 2^64.
fn multiply_word(a: vec2<u32>, b: u32) -> vec2<u32> {
    let p = multiply(a.x, b);
    return vec2<u32>(p.x, p.y + a.y * b);
}

/// For an amount below 64.
fn shift_left(a: vec2<u32>, amount: u32) -> vec2<u32> {
    if amount == 0u {
        return a;
    }
    if amount >= 32u {
        return vec2<u32>(0u, a.x << (amount & 31u));
    }
    return vec2<u32>(a.x << (amount & 31u), (a.y << (amount & 31u)) | (a.x >> ((32u - amount) & 31u)));
}

/// Unsigned, for an amount below 64.
fn shift_right(a: vec2<u32>, amount: u32) -> vec2<u32> {
    if amount == 0u {
        return a;
    }
    if amount >= 32u {
        return vec2<u32>(a.y >> (amount & 31u), 0u);
    }
    return vec2<u32>((a.x >> (amount & 31u)) | (a.y << ((32u - amount) & 31u)), a.y >> (amount & 31u));
}

/// Signed, for an amount below 64.
fn shift_right_signed(a: vec2<u32>, amount: u32) -> vec2<u32> {
    let high = bitcast<i32>(a.y);
    if amount == 0u {
        return a;
    }
    if amount >= 32u {
        return vec2<u32>(bitcast<u32>(high >> (amount & 31u)), bitcast<u32>(high >> 31u));
    }
    let low = (a.x >> (amount & 31u)) | (a.y << ((32u - amount) & 31u));
    return vec2<u32>(low, bitcast<u32>(high >> (amount & 31u)));
}

/// `a / 2^amount`, rounded half up; 0 from 63 on (SPEC 3.1).
fn round_shift(a: vec2<u32>, amount: u32) -> vec2<u32> {
    if amount == 0u {
        return a;
    }
    if amount >= 63u {
        return vec2<u32>(0u, 0u);
    }
    let twice = shift_right_signed(a, amount - 1u);
    return add(shift_right_signed(twice, 1u), vec2<u32>(twice.x & 1u, 0u));
}

/// Bits of an unsigned number: 0 of 0.
fn bit_length(a: vec2<u32>) -> u32 {
    if a.y != 0u {
        return 64u - countLeadingZeros(a.y);
    }
    return 32u - countLeadingZeros(a.x);
}

/// The floor of an unsigned quotient, for a divisor of at least 1.
fn divide(a: vec2<u32>, divisor: u32) -> vec2<u32> {
    var quotient = vec2<u32>(0u, 0u);
    var rest = 0u;
    for (var i = 0u; i < 64u; i += 1u) {
        let bit = shift_right(a, 63u - i).x & 1u;
        let carry = rest >> 31u;
        rest = (rest << 1u) | bit;
        quotient = shift_left(quotient, 1u);
        if carry == 1u || rest >= divisor {
            rest -= divisor;
            quotient.x |= 1u;
        }
    }
    return quotient;
}

/// `floor((2*sum + n) / (2*n))`, the mean rounded half up, for a sum within 2^62 and `n` from 1 to 2^30.
fn mean(sum: vec2<u32>, n: u32) -> vec2<u32> {
    let twice = add(shift_left(sum, 1u), vec2<u32>(n, 0u));
    if is_negative(twice) {
        return negate(divide(add(negate(twice), vec2<u32>(2u * n - 1u, 0u)), 2u * n));
    }
    return divide(twice, 2u * n);
}

/// A value brought into the range of its type, and 1 where that changed it.
struct Saturated {
    value: i32,
    clamped: u32,
}

fn saturate_i32(a: vec2<u32>) -> Saturated {
    let low = bitcast<i32>(a.x);
    if a.y == bitcast<u32>(low >> 31u) {
        return Saturated(low, 0u);
    }
    return Saturated(select(0x7fffffff, bitcast<i32>(0x80000000u), is_negative(a)), 1u);
}

/// Clamps to the range of a code (SPEC 2.5).
fn saturate_code(a: vec2<u32>) -> Saturated {
    let wide = saturate_i32(a);
    let value = clamp(wide.value, -32639, 32639);
    return Saturated(value, select(0u, 1u, value != wide.value || wide.clamped == 1u));
}
