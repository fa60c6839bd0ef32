// Sum of embedding rows (SPEC 5.1). The host copies the rows that the positions name, so that a table may be larger than
// any binding.

import package::shared::clamped::count;
import package::shared::codes::code_of;
import package::shared::fixed::rescale;
import package::shared::wide::{saturate_i32, widen};
import package::shared::grid::thread_index;

struct Params {
    elements: u32,
    cols: u32,
    rows: u32,
    tables: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// 16-bit codes, `[tables][rows][cols]`.
@group(0) @binding(1) var<storage, read> codes: array<u32>;
// Mantissa and shift, `[tables][rows]`.
@group(0) @binding(2) var<storage, read> scales: array<vec2<i32>>;
@group(0) @binding(4) var<storage, read_write> out: array<i32>;

@compute @workgroup_size(128)
fn embed(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = thread_index(group, groups, lane);
    if i >= params.elements {
        return;
    }
    let row = i / params.cols;
    // Eight numbers of ±2^62 leave two words, so the sum has three.
    var sum = vec2<u32>(0u, 0u);
    var above = 0u;
    for (var t = 0u; t < params.tables; t += 1u) {
        let at = t * params.elements + i;
        let scale = scales[t * params.rows + row];
        let y = rescale(widen(code_of(codes[at >> 1u], at)), bitcast<u32>(scale.x), scale.y);
        let low = sum.x + y.x;
        let carry = select(0u, 1u, low < y.x);
        let high = sum.y + y.y;
        let carried = high + carry;
        above += bitcast<u32>(bitcast<i32>(y.y) >> 31u);
        above += select(0u, 1u, high < y.y) + select(0u, 1u, carried < carry);
        sum = vec2<u32>(low, carried);
    }
    // A sum that two words hold keeps its value; the sign of another is in the third.
    let sign = bitcast<u32>(bitcast<i32>(above) >> 31u);
    let far = above != bitcast<u32>(bitcast<i32>(sum.y) >> 31u);
    let y = saturate_i32(select(sum, vec2<u32>(0u, sign ^ 0x7fffffffu), far));
    out[i] = y.value;
    count(y.clamped);
}
