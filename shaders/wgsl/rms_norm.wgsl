// RMSNorm (SPEC 5.6). A workgroup takes a row, or a part of one where a row has several: `cols` is what is normalised as one.

import package::shared::clamped::count;
import package::shared::fixed::{inverse_root, magnitude};
import package::shared::normalize::{divide_by_root, gain, row_scale, scale_element, scaled_epsilon, square};
import package::shared::reduce::{maximum, sum};
import package::shared::wide::{add, saturate_i32};
import package::shared::grid::group_index;

struct Params {
    rows: u32,
    cols: u32,
    shift: u32,
    epsilon_mantissa: u32,
    epsilon_shift: i32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<i32>;
@group(0) @binding(2) var<storage, read> scales: array<i32>;
@group(0) @binding(4) var<storage, read_write> out: array<i32>;

@compute @workgroup_size(128)
fn rms_norm(
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
    let scale = row_scale(maximum(lane, most));
    var squares = vec2<u32>(0u, 0u);
    for (var c = lane; c < params.cols; c += 128u) {
        squares = add(squares, square(scale_element(input[start + c], scale)));
    }
    let epsilon = scaled_epsilon(params.epsilon_mantissa, params.epsilon_shift, scale);
    let root = inverse_root(add(sum(lane, squares), epsilon));
    for (var c = lane; c < params.cols; c += 128u) {
        let unit = divide_by_root(scale_element(input[start + c], scale), root);
        let y = saturate_i32(gain(unit, scales[c], params.shift));
        out[start + c] = y.value;
        count(y.clamped);
    }
}
