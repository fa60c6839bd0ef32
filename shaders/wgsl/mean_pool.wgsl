// Mean over the positions of each sequence (SPEC 5.10). A workgroup takes 16 columns of a sequence, and 8 rows at a time.

import package::shared::reduce::parts;
import package::shared::wide::{add, mean, widen};
import package::shared::grid::group_index;

struct Params {
    sequences: u32,
    cols: u32,
    // Workgroups of a sequence.
    pieces: u32,
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
fn mean_pool(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let piece = group_index(group, groups);
    let sequence = piece / params.pieces;
    if sequence >= params.sequences {
        return;
    }
    let c = piece % params.pieces * 16u + lane % 16u;
    let span = spans[params.first + sequence] - vec2<u32>(params.base);
    var total = vec2<u32>(0u, 0u);
    if c < params.cols {
        for (var row = span.x + lane / 16u; row < span.y; row += 8u) {
            total = add(total, widen(input[row * params.cols + c]));
        }
    }
    parts[lane] = total;
    workgroupBarrier();
    if lane < 16u && c < params.cols {
        for (var other = lane + 16u; other < 128u; other += 16u) {
            total = add(total, parts[other]);
        }
        out[(params.skip + sequence) * params.cols + c] = bitcast<i32>(mean(total, span.y - span.x).x);
    }
}
