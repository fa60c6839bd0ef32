//! The coordinator's one clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lockstep_protocol::ids::Millis;
use lockstep_protocol::limits::CLOCK_RESERVE_MS;

/// Milliseconds since the Unix epoch that never go back: not when the system's clock is set back, and, through
/// [`Clock::reserve`], not over restarts either. It follows the system's clock as it was at the start.
#[derive(Debug)]
pub struct Clock {
    base: Millis,
    start: Instant,
    reserved: Millis,
}

impl Clock {
    /// A clock that starts at or after `last`, the newest time that was ever reserved.
    pub fn start(last: Millis) -> Self {
        Self { base: last.max(wall()), start: Instant::now(), reserved: Millis(0) }
    }

    /// The time.
    pub fn now(&self) -> Millis {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.base.plus(elapsed)
    }

    /// Lets time pass at once.
    #[cfg(test)]
    pub fn advance(&mut self, ms: u64) {
        self.base = self.base.plus(ms);
    }

    /// The time to write down before one at or after `now` is used in a durable record; `None` while an earlier
    /// reservation covers it.
    pub fn reserve(&mut self, now: Millis) -> Option<Millis> {
        if now < self.reserved {
            return None;
        }
        self.reserved = now.plus(CLOCK_RESERVE_MS);
        Some(self.reserved)
    }

    /// How long it is until a time.
    pub fn until(&self, at: Millis) -> Duration {
        Duration::from_millis(at.since(self.now()))
    }
}

/// The system's clock.
pub fn wall() -> Millis {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_goes_on_after_the_last_reservation() {
        let mut first = Clock::start(Millis(0));
        let now = first.now();
        assert!(now >= Millis(1_600_000_000_000));
        let reserved = first.reserve(now).unwrap();
        assert_eq!(first.reserve(now.plus(1)), None);
        // The system's clock was set back by a century: the restarted clock is not.
        let far = reserved.plus(3_000_000_000_000);
        let second = Clock::start(far);
        assert!(second.now() >= far);
    }
}
