// Places in a dispatch of 128 threads a workgroup, whose workgroups are counted along x and then y: a single axis of a
// dispatch ends at 65,535.

/// Number of a workgroup.
fn group_index(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.y * groups.x + group.x;
}

/// Number of a thread.
fn thread_index(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 {
    return group_index(group, groups) * 128u + lane;
}
