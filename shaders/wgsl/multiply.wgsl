// Product, element by element (SPEC 5.14).

import package::shared::clamped::count;
import package::shared::wide::{multiply_signed, round_shift, saturate_i32};
import package::shared::grid::thread_index;

struct Params {
    elements: u32,
    shift: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<i32>;
@group(0) @binding(2) var<storage, read> b: array<i32>;
@group(0) @binding(4) var<storage, read_write> out: array<i32>;

@compute @workgroup_size(128)
fn multiply(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = thread_index(group, groups, lane);
    if i >= params.elements {
        return;
    }
    let product = saturate_i32(round_shift(multiply_signed(a[i], b[i]), params.shift));
    out[i] = product.value;
    count(product.clamped);
}
