//! Pauses between connections: doubling, capped, and spread so that workers don't come back all at once.

use std::time::Duration;

/// Where the pauses stand.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// A connection was good: the next pause is the first one again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next pause: between half of it and the whole, drawn at random.
    pub fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = whole.saturating_mul(2).min(self.longest);
        Self::spread(whole)
    }

    /// Between half of a pause and the whole, drawn at random.
    pub fn spread(whole: Duration) -> Duration {
        let mut draw = [0; 2];
        // Without randomness the pause is whole.
        let share = getrandom::fill(&mut draw).map_or(u16::MAX, |()| u16::from_le_bytes(draw));
        whole / 2 + (whole / 2).mul_f64(f64::from(share) / f64::from(u16::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        for whole in [100, 200, 350, 350] {
            let pause = backoff.pause();
            assert!(pause >= Duration::from_millis(whole) / 2 && pause <= Duration::from_millis(whole), "{pause:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(100));
    }
}
