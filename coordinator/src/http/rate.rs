//! How much may come from where.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockstep_protocol::limits::{HTTP_MOVE_BURST, HTTP_MOVES_PER_SECOND, MAX_MOVE_ADDRESSES};

use crate::sessions::bucket::{Bucket, Rate};

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub IpAddr);

/// Whom requests are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// The holder of an API key, by the key's place in the list.
    Key(usize),
    /// Whoever uses an address, where no keys are asked for.
    Address(IpAddr),
}

/// The measures of all clients. Where there are too many, the rest share one: nobody's is dropped, or a client could
/// be made to start again by many others.
#[derive(Debug)]
pub struct Measures {
    measures: Mutex<BTreeMap<Option<Client>, Bucket>>,
    burst: u64,
    rate: Rate,
}

impl Measures {
    /// So many at once, and so many a second.
    pub fn new(burst: u64, per_second: u64) -> Self {
        Self::filling(burst, Rate { tokens: per_second, every: Duration::from_secs(1) })
    }

    /// So many a minute, all of them at once if need be.
    pub fn per_minute(count: u64) -> Self {
        Self::filling(count, Rate { tokens: count, every: Duration::from_secs(60) })
    }

    fn filling(burst: u64, rate: Rate) -> Self {
        Self { measures: Mutex::default(), burst, rate }
    }

    /// Those of disputes' moves.
    pub fn of_moves() -> Self {
        Self::new(HTTP_MOVE_BURST, HTTP_MOVES_PER_SECOND)
    }

    /// Whether one more may come from a client.
    pub fn take(&self, client: Client) -> bool {
        self.take_at(client, 1, Instant::now()).is_ok()
    }

    /// Whether so many more may come from a client: then they count.
    ///
    /// # Errors
    /// How long it takes until they may. That is never, if they are more than may come at once.
    pub fn take_at(&self, client: Client, count: u64, now: Instant) -> Result<(), Duration> {
        let mut measures = self.lock();
        if measures.len() >= MAX_MOVE_ADDRESSES {
            // Who did not come for a while needs no measure.
            measures.retain(|_, bucket| !bucket.is_full(now));
        }
        let is_known = measures.contains_key(&Some(client));
        let whose = Some(client).filter(|_| is_known || measures.len() < MAX_MOVE_ADDRESSES);
        let full = || Bucket::filling(self.burst, self.rate, now);
        measures.entry(whose).or_insert_with(full).take_at(count, now)
    }

    /// Gives back what was counted for a client and came to nothing. Where clients share a measure it stays as it is.
    pub fn give_back(&self, client: Client, count: u64) {
        if let Some(bucket) = self.lock().get_mut(&Some(client)) {
            bucket.give_back(count);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Option<Client>, Bucket>> {
        self.measures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn each_client_has_its_own_minute() {
        let (minute, start) = (Measures::per_minute(1_000), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let (a, b) = (Client::Key(0), Client::Key(1));
        assert_eq!(minute.take_at(a, 1_000, start), Ok(()));
        assert_eq!(minute.take_at(a, 100, start), Err(Duration::from_secs(6)));
        assert_eq!(minute.take_at(b, 900, start), Ok(()));
        assert_eq!(minute.take_at(a, 100, at(6_000)), Ok(()));
        assert!(minute.take_at(a, 1, at(6_000)).is_err() && minute.take_at(b, 200, at(6_000)).is_ok());
        assert!(minute.take_at(a, 1_001, at(10_000_000)).is_err(), "more than a minute has");
    }

    #[test]
    fn a_client_does_not_spend_what_others_may() {
        let moves = Measures::of_moves();
        let address = |number: u32| Client::Address(IpAddr::V4(Ipv4Addr::from(number)));
        let taken = (0..10 * HTTP_MOVE_BURST).filter(|_| moves.take(address(1))).count() as u64;
        assert!((HTTP_MOVE_BURST..10 * HTTP_MOVE_BURST).contains(&taken), "{taken}");
        assert!(moves.take(address(2)) && moves.take(Client::Key(1)));
        (0..2 * MAX_MOVE_ADDRESSES as u32).for_each(|number| {
            moves.take(address(number));
        });
        let kept = moves.measures.lock().unwrap().len();
        assert!(kept <= MAX_MOVE_ADDRESSES + 1, "{kept}");
    }
}
