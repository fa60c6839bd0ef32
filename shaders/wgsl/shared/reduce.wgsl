// Reductions over the 128 threads of a workgroup, called by all of them. Sums wrap and are exact, so their order is of no
// account. The variant `subgroups` reduces within each subgroup first; it does not matter which threads make up one.

import package::shared::wide::add;
@if(subgroups) import package::shared::subgroup::{is_first, joined, sum_wide};

var<workgroup> parts: array<vec2<u32>, 128>;

@if(!subgroups)
fn sum(lane: u32, value: vec2<u32>) -> vec2<u32> {
    parts[lane] = value;
    workgroupBarrier();
    for (var half = 64u; half > 0u; half >>= 1u) {
        if lane < half {
            parts[lane] = add(parts[lane], parts[lane + half]);
        }
        workgroupBarrier();
    }
    let total = parts[0];
    workgroupBarrier();
    return total;
}

@if(!subgroups)
fn maximum(lane: u32, value: u32) -> u32 {
    parts[lane].x = value;
    workgroupBarrier();
    for (var half = 64u; half > 0u; half >>= 1u) {
        if lane < half {
            parts[lane].x = max(parts[lane].x, parts[lane + half].x);
        }
        workgroupBarrier();
    }
    let largest = parts[0].x;
    workgroupBarrier();
    return largest;
}

// What the subgroups came to: a sum by sixteen bits of it, or a maximum.
@if(subgroups)
var<workgroup> of_subgroups: array<atomic<u32>, 4>;

@if(subgroups)
fn sum(lane: u32, value: vec2<u32>) -> vec2<u32> {
    if lane < 4u {
        atomicStore(&of_subgroups[lane], 0u);
    }
    workgroupBarrier();
    let own = sum_wide(value);
    if is_first() {
        atomicAdd(&of_subgroups[0], own.x & 0xffffu);
        atomicAdd(&of_subgroups[1], own.x >> 16u);
        atomicAdd(&of_subgroups[2], own.y & 0xffffu);
        atomicAdd(&of_subgroups[3], own.y >> 16u);
    }
    workgroupBarrier();
    let low = vec2<u32>(atomicLoad(&of_subgroups[0]), atomicLoad(&of_subgroups[2]));
    let high = vec2<u32>(atomicLoad(&of_subgroups[1]), atomicLoad(&of_subgroups[3]));
    workgroupBarrier();
    return joined(low, high);
}

@if(subgroups)
fn maximum(lane: u32, value: u32) -> u32 {
    if lane == 0u {
        atomicStore(&of_subgroups[0], 0u);
    }
    workgroupBarrier();
    let own = subgroupMax(value);
    if is_first() {
        atomicMax(&of_subgroups[0], own);
    }
    workgroupBarrier();
    let largest = atomicLoad(&of_subgroups[0]);
    workgroupBarrier();
    return largest;
}
