// Reductions within a subgroup, for the variant `subgroups`. Every thread of the workgroup calls them; which of them share a
// subgroup, and how many, is the device's affair and changes no result.

import package::shared::wide::add;

/// Whether this thread is the one of its subgroup that speaks for it.
fn is_first() -> bool {
    return subgroupExclusiveAdd(1u) == 0u;
}

/// Sums of sixteen bits at a time, each of at most 128 numbers, put together: modulo 2^64.
fn joined(low: vec2<u32>, high: vec2<u32>) -> vec2<u32> {
    let first = add(vec2<u32>(low.x, 0u), vec2<u32>(high.x << 16u, high.x >> 16u));
    return add(first, vec2<u32>(0u, low.y + (high.y << 16u)));
}

/// The sum of two-word numbers, which wraps.
fn sum_wide(value: vec2<u32>) -> vec2<u32> {
    let low = subgroupAdd(value & vec2<u32>(0xffffu));
    let high = subgroupAdd(value >> vec2<u32>(16u));
    return joined(low, high);
}
