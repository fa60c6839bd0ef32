//! A measure of how often something may happen: a bucket that fills at a steady rate.

use std::time::{Duration, Instant};

/// Holds so many tokens at most, and gets so many a second.
#[derive(Debug)]
pub struct Bucket {
    capacity: u64,
    per_second: u64,
    tokens: u64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(capacity: u64, per_second: u64) -> Self {
        Self { capacity, per_second, tokens: capacity, filled: Instant::now() }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self) -> bool {
        self.take_at(Instant::now())
    }

    /// Whether nothing was taken for so long that it does not matter any more.
    pub fn is_full(&mut self) -> bool {
        self.fill(Instant::now());
        self.tokens == self.capacity
    }

    fn take_at(&mut self, now: Instant) -> bool {
        self.fill(now);
        let taken = self.tokens > 0;
        self.tokens -= u64::from(taken);
        taken
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = u64::try_from(now.saturating_duration_since(self.filled).as_millis()).unwrap_or(u64::MAX);
        let gained = elapsed.saturating_mul(self.per_second) / 1_000;
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(gained).min(self.capacity);
            // The rest of a token that has not come yet is kept as time.
            self.filled += Duration::from_millis(gained.saturating_mul(1_000) / self.per_second);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut bucket = Bucket::new(3, 2);
        let start = bucket.filled;
        let at = |ms| start + Duration::from_millis(ms);
        let taken = |bucket: &mut Bucket, ms, tries| (0..tries).filter(|_| bucket.take_at(at(ms))).count();
        assert_eq!(taken(&mut bucket, 0, 10), 3);
        assert_eq!(taken(&mut bucket, 400, 10), 0);
        assert_eq!(taken(&mut bucket, 1_000, 10), 2);
        assert_eq!(taken(&mut bucket, 1_499, 10), 0);
        assert_eq!(taken(&mut bucket, 60_000, 10), 3);
    }
}
