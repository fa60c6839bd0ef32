//! A measure of how often something may happen: a bucket that fills at a steady rate.

use std::time::{Duration, Instant};

/// How many tokens come in which time, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many, at least 1.
    pub tokens: u64,
    /// In this time, at least a millisecond.
    pub every: Duration,
}

/// Holds so many tokens at most, and gets some at a steady rate.
#[derive(Debug)]
pub struct Bucket {
    capacity: u64,
    rate: Rate,
    tokens: u64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket that gets so many tokens a second.
    pub fn new(capacity: u64, per_second: u64) -> Self {
        Self::filling(capacity, Rate { tokens: per_second, every: Duration::from_secs(1) }, Instant::now())
    }

    /// A bucket that is full now.
    pub fn filling(capacity: u64, rate: Rate, now: Instant) -> Self {
        Self { capacity, rate, tokens: capacity, filled: now }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self) -> bool {
        self.take_at(1, Instant::now()).is_ok()
    }

    /// Takes so many tokens, if they are there; otherwise none.
    ///
    /// # Errors
    /// How long it takes until they are there. That is never, if they are more than the bucket holds.
    pub fn take_at(&mut self, count: u64, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        if let Some(rest) = self.tokens.checked_sub(count) {
            self.tokens = rest;
            return Ok(());
        }
        let missing = count - self.tokens;
        let since = now.saturating_duration_since(self.filled);
        Err(self.time_of(missing).saturating_sub(since))
    }

    /// Puts tokens back that were taken for nothing.
    pub fn give_back(&mut self, count: u64) {
        self.tokens = self.tokens.saturating_add(count).min(self.capacity);
    }

    /// Whether nothing was taken for so long that it does not matter any more.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens == self.capacity
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled).as_millis();
        let gained = elapsed.saturating_mul(self.rate.tokens.into()) / self.rate.every.as_millis().max(1);
        let gained = u64::try_from(gained).unwrap_or(u64::MAX);
        if gained >= self.capacity - self.tokens {
            (self.tokens, self.filled) = (self.capacity, now.max(self.filled));
        } else if gained > 0 {
            self.tokens += gained;
            // The rest of a token that has not come yet is kept as time.
            self.filled += self.time_of(gained);
        }
    }

    /// How long so many tokens take, in whole milliseconds.
    fn time_of(&self, tokens: u64) -> Duration {
        let ms =
            u128::from(tokens).saturating_mul(self.rate.every.as_millis()).div_ceil(self.rate.tokens.max(1).into());
        Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
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
        let taken = |bucket: &mut Bucket, ms, tries| (0..tries).filter(|_| bucket.take_at(1, at(ms)).is_ok()).count();
        assert_eq!(taken(&mut bucket, 0, 10), 3);
        assert_eq!(taken(&mut bucket, 400, 10), 0);
        assert_eq!(taken(&mut bucket, 1_000, 10), 2);
        assert_eq!(taken(&mut bucket, 1_499, 10), 0);
        assert_eq!(taken(&mut bucket, 60_000, 10), 3);
    }

    #[test]
    fn whoever_takes_too_much_is_told_how_long_to_wait() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let minute = Rate { tokens: 600, every: Duration::from_secs(60) };
        let mut bucket = Bucket::filling(600, minute, start);
        assert_eq!(bucket.take_at(500, start), Ok(()));
        bucket.give_back(300);
        assert_eq!(bucket.take_at(400, start), Ok(()));
        bucket.give_back(u64::MAX);
        assert!(bucket.is_full(start) && bucket.take_at(500, start).is_ok());
        assert_eq!(bucket.take_at(150, start), Err(Duration::from_secs(5)), "nothing of it is taken");
        assert_eq!(bucket.take_at(100, start), Ok(()));
        assert_eq!(bucket.take_at(10, at(250)), Err(Duration::from_millis(750)));
        assert_eq!((bucket.take_at(10, at(999)).is_err(), bucket.take_at(10, at(1_000))), (true, Ok(())));
        assert_eq!(bucket.take_at(u64::MAX, at(1_000)), Err(Duration::from_millis(u64::MAX)));
        assert!(!bucket.is_full(at(60_999)) && bucket.is_full(at(61_000)));
        // A clock that was set back fills nothing.
        assert_eq!(bucket.take_at(600, start), Ok(()));
        assert!(bucket.take_at(1, start).is_err());
    }

    #[test]
    fn no_number_is_too_large() {
        let start = Instant::now();
        let fast = Rate { tokens: u64::MAX, every: Duration::from_millis(1) };
        let mut bucket = Bucket::filling(u64::MAX, fast, start);
        assert_eq!(bucket.take_at(u64::MAX, start), Ok(()));
        let later = start + Duration::from_secs(1 << 30);
        assert!(bucket.is_full(later));
        assert_eq!(bucket.take_at(u64::MAX, later), Ok(()));
    }
}
