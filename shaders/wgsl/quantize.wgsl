// Rows of i32 to block floating point rows (SPEC 5.2). A workgroup takes a row.

import package::shared::codes::pack;
import package::shared::fixed::{magnitude, round_shift_word};
import package::shared::reduce::{maximum, sum};
import package::shared::grid::group_index;

struct Params {
    rows: u32,
    cols: u32,
    // Words of a row of codes.
    stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<i32>;
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;
// Of each row the exponent and the sum of its codes.
@group(0) @binding(5) var<storage, read_write> scales: array<vec2<i32>>;

/// The smallest exponent for which the largest magnitude is a code (SPEC 3.3).
fn row_exponent(most: u32) -> u32 {
    let bits = 32u - countLeadingZeros(most);
    var e = max(bits, 15u) - 15u;
    // Rounding up may take one more.
    if e > 0u && (most >> (e & 31u)) + ((most >> ((e - 1u) & 31u)) & 1u) > 32639u {
        e += 1u;
    } else if e == 0u && most > 32639u {
        e = 1u;
    }
    return e;
}

/// A code of the row that starts at `start`; 0 beyond its end.
fn code(start: u32, c: u32, exponent: u32) -> i32 {
    if c >= params.cols {
        return 0;
    }
    return round_shift_word(input[start + c], exponent);
}

@compute @workgroup_size(128)
fn quantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_index(group, groups);
    if row >= params.rows {
        return;
    }
    let start = row * params.cols;
    var most = 0u;
    for (var c = lane; c < params.cols; c += 128u) {
        most = max(most, magnitude(input[start + c]));
    }
    let exponent = row_exponent(maximum(lane, most));
    var total = 0u;
    for (var w = lane; w < params.stride; w += 128u) {
        let low = code(start, 2u * w, exponent);
        let high = code(start, 2u * w + 1u, exponent);
        codes[row * params.stride + w] = pack(low, high);
        total += bitcast<u32>(low) + bitcast<u32>(high);
    }
    let of_row = sum(lane, vec2<u32>(total, 0u));
    if lane == 0u {
        scales[row] = vec2<i32>(bitcast<i32>(exponent), bitcast<i32>(of_row.x));
    }
}
