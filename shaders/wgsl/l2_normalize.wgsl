// Scaling to unit length (SPEC 5.12). A workgroup takes a row.

import package::shared::fixed::{inverse_root, magnitude};
import package::shared::normalize::{divide_by_root, row_scale, scale_element, square};
import package::shared::reduce::{maximum, sum};
import package::shared::wide::add;
import package::shared::grid::group_index;

struct Params {
    rows: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<i32>;
@group(0) @binding(4) var<storage, read_write> out: array<i32>;

@compute @workgroup_size(128)
fn l2_normalize(
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
    let root = inverse_root(sum(lane, squares));
    for (var c = lane; c < params.cols; c += 128u) {
        out[start + c] = divide_by_root(scale_element(input[start + c], scale), root);
    }
}
