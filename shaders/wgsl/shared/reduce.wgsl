// Reductions over the 128 threads of a workgroup. Sums wrap and are exact, so their order is of no account.

import package::shared::wide::add;

var<workgroup> parts: array<vec2<u32>, 128>;

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
