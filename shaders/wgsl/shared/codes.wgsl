// 16-bit codes, two in a word, the first one low.

/// The first code of a word.
fn low_code(word: u32) -> i32 {
    return bitcast<i32>(word << 16u) >> 16u;
}

/// The second code of a word.
fn high_code(word: u32) -> i32 {
    return bitcast<i32>(word) >> 16u;
}

fn pack(low: i32, high: i32) -> u32 {
    return (bitcast<u32>(low) & 0xffffu) | (bitcast<u32>(high) << 16u);
}

/// The code of an odd or even index out of its word.
fn code_of(word: u32, index: u32) -> i32 {
    return select(low_code(word), high_code(word), (index & 1u) == 1u);
}
