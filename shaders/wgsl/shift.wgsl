// Fewer fractional bits (SPEC 5.15).

import package::shared::fixed::round_shift_word;
import package::shared::grid::thread_index;

struct Params {
    elements: u32,
    shift: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<i32>;
@group(0) @binding(4) var<storage, read_write> out: array<i32>;

@compute @workgroup_size(128)
fn shift(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = thread_index(group, groups, lane);
    if i >= params.elements {
        return;
    }
    out[i] = round_shift_word(input[i], params.shift);
}
