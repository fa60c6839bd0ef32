//! Deterministic test data: a small generator and the patterns that break kernels.

/// SplitMix64: every seed gives a full, platform-independent sequence.
#[derive(Clone, Debug)]
pub struct SplitMix(u64);

impl SplitMix {
    /// A generator seeded by a name, so that a case's data depends on nothing but its own name.
    pub fn named(name: &str) -> Self {
        // FNV-1a.
        let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325, step))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `low..=high`. The bias of the remainder does not matter here.
    pub fn range(&mut self, low: i64, high: i64) -> i64 {
        let width = high.wrapping_sub(low) as u64;
        if width == u64::MAX {
            return self.next_u64() as i64;
        }
        low.wrapping_add((self.next_u64() % (width + 1)) as i64)
    }
}

/// How a tensor is filled. `limit` below is the largest magnitude that the tensor may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// All zeros.
    Zeros,
    /// All at the lower limit.
    Lowest,
    /// All at the upper limit.
    Highest,
    /// All the same small number.
    Equal,
    /// Small numbers and, in each row, one that is ten thousand times larger.
    Spike,
    /// Small numbers.
    Small,
    /// Any number.
    Full,
    /// Rows of different magnitudes, edges among them.
    Mixed,
}

impl Pattern {
    /// Every pattern.
    pub const ALL: [Self; 8] =
        [Self::Zeros, Self::Lowest, Self::Highest, Self::Equal, Self::Spike, Self::Small, Self::Full, Self::Mixed];

    /// Name, as in the names of cases.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zeros => "zeros",
            Self::Lowest => "lowest",
            Self::Highest => "highest",
            Self::Equal => "equal",
            Self::Spike => "spike",
            Self::Small => "small",
            Self::Full => "full",
            Self::Mixed => "mixed",
        }
    }

    /// Values of `[rows, cols]` in `low..=high`.
    pub fn fill(self, rng: &mut SplitMix, rows: usize, cols: usize, low: i64, high: i64) -> Vec<i64> {
        let small = 1_000.min(high);
        let mut values = Vec::with_capacity(rows * cols);
        for _ in 0..rows {
            let spike = rng.range(0, cols as i64 - 1) as usize;
            let bits = rng.range(0, 63 - i64::from(high.leading_zeros())) as u32;
            for i in 0..cols {
                values.push(match self {
                    Self::Zeros => 0,
                    Self::Lowest => low,
                    Self::Highest => high,
                    Self::Equal => 77.min(high),
                    Self::Spike if i == spike => small.saturating_mul(10_000).min(high),
                    Self::Spike | Self::Small => rng.range((-small).max(low), small),
                    Self::Full => rng.range(low, high),
                    Self::Mixed => match rng.range(0, 15) {
                        0 => low,
                        1 => high,
                        2 => 0,
                        _ => rng.range((-1 << bits).max(low), (1 << bits).min(high)),
                    },
                });
            }
        }
        values
    }

    /// Values over the whole range of `i32`.
    pub fn i32s(self, rng: &mut SplitMix, rows: usize, cols: usize) -> Vec<i32> {
        self.fill(rng, rows, cols, i32::MIN.into(), i32::MAX.into()).into_iter().map(|v| v as i32).collect()
    }
}
