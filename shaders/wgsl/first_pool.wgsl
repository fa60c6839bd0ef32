// The first position of each sequence (SPEC 5.11).

import package::shared::grid::thread_index;

struct Params {
    elements: u32,
    cols: u32,
    // First sequence of this dispatch, the row from which on the input is bound, and output rows that are bound before the first.
    first: u32,
    base: u32,
    skip: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<i32>;
// First and last row, exclusive, of each sequence.
@group(0) @binding(2) var<storage, read> spans: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> out: array<i32>;

@compute @workgroup_size(128)
fn first_pool(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = thread_index(group, groups, lane);
    if i >= params.elements {
        return;
    }
    let row = spans[params.first + i / params.cols].x - params.base;
    out[params.skip * params.cols + i] = input[row * params.cols + i % params.cols];
}
