// LayerNorm (SPEC 5.5). A workgroup takes a row.

import package::shared::clamped::count;
import package::shared::fixed::{inverse_root, magnitude};
import package::shared::normalize::{divide_by_root, gain, row_scale, scale_element, scaled_epsilon, square};
import package::shared::reduce::{maximum, sum};
import package::shared::wide::{add, mean, saturate_i32, widen};
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
@group(0) @binding(3) var<storage, read> bias: array<i32>;
@group(0) @binding(4) var<storage, read_write> out: array<i32>;

/// A scaled element without the mean: below 2^31, since the mean is nearer than the farthest other element.
fn centred(at: u32, scale: i32, middle: u32) -> i32 {
    return bitcast<i32>(bitcast<u32>(scale_element(input[at], scale)) - middle);
}

@compute @workgroup_size(128)
fn layer_norm(
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
    var total = vec2<u32>(0u, 0u);
    for (var c = lane; c < params.cols; c += 128u) {
        total = add(total, widen(scale_element(input[start + c], scale)));
    }
    let middle = mean(sum(lane, total), params.cols).x;
    var squares = vec2<u32>(0u, 0u);
    for (var c = lane; c < params.cols; c += 128u) {
        squares = add(squares, square(centred(start + c, scale, middle)));
    }
    let epsilon = scaled_epsilon(params.epsilon_mantissa, params.epsilon_shift, scale);
    let root = inverse_root(add(sum(lane, squares), epsilon));
    for (var c = lane; c < params.cols; c += 128u) {
        let unit = divide_by_root(centred(start + c, scale, middle), root);
        let y = saturate_i32(add(gain(unit, scales[c], params.shift), widen(bias[c])));
        out[start + c] = y.value;
        count(y.clamped);
    }
}
