// Rotary position embedding (SPEC 5.13). A thread makes the two codes of one word.

import package::shared::clamped::count;
import package::shared::codes::pack;
import package::shared::wide::{Saturated, add, is_negative, multiply_signed, round_shift, saturate_code, subtract, widen};
import package::shared::grid::thread_index;

struct Params {
    elements: u32,
    heads: u32,
    head_dim: u32,
    rotary_dim: u32,
    // Words of a row of codes.
    stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<i32>;
// Of each row its cosines and sines in Q30, in turn.
@group(0) @binding(2) var<storage, read> angles: array<i32>;
// One for each head.
@group(0) @binding(3) var<storage, read> shifts: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<u32>;

/// The rotated element of a row, before it saturates.
fn rotated(row: u32, c: u32) -> vec2<u32> {
    let at = row * params.heads * params.head_dim + c;
    let j = c % params.head_dim;
    let half = params.rotary_dim / 2u;
    let shift = shifts[c / params.head_dim];
    if j >= params.rotary_dim {
        return round_shift(widen(input[at]), shift);
    }
    let angle = row * params.rotary_dim + 2u * (j % half);
    let cosine = angles[angle];
    let sine = angles[angle + 1u];
    if j < half {
        let sum = subtract(multiply_signed(input[at], cosine), multiply_signed(input[at + half], sine));
        return round_shift(sum, 30u + shift);
    }
    let sum = add(multiply_signed(input[at - half], sine), multiply_signed(input[at], cosine));
    // Each product is within 2^62, and only 2^62 twice leaves two words: it becomes 2^63 - 1.
    let most = vec2<u32>(0xffffffffu, 0x7fffffffu);
    return round_shift(select(sum, most, sum.x == 0u && sum.y == 0x80000000u), 30u + shift);
}

/// A code of a row; 0 beyond its end.
fn code(row: u32, c: u32) -> Saturated {
    if c >= params.heads * params.head_dim {
        return Saturated(0, 0u);
    }
    return saturate_code(rotated(row, c));
}

@compute @workgroup_size(128)
fn rope(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = thread_index(group, groups, lane);
    if i >= params.elements {
        return;
    }
    let row = i / params.stride;
    let c = 2u * (i % params.stride);
    let low = code(row, c);
    let high = code(row, c + 1u);
    out[i] = pack(low.value, high.value);
    count(low.clamped + high.clamped);
}
