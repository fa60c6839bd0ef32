//! How much may come from where.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use lockstep_protocol::limits::{HTTP_MOVE_BURST, HTTP_MOVES_PER_SECOND, MAX_MOVE_ADDRESSES};

use crate::sessions::bucket::Bucket;

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
    per_second: u64,
}

impl Measures {
    /// So many at once, and so many a second.
    pub fn new(burst: u64, per_second: u64) -> Self {
        Self { measures: Mutex::default(), burst, per_second }
    }

    /// Those of disputes' moves.
    pub fn of_moves() -> Self {
        Self::new(HTTP_MOVE_BURST, HTTP_MOVES_PER_SECOND)
    }

    /// Whether one more may come from a client.
    pub fn take(&self, client: Client) -> bool {
        let mut measures = self.measures.lock().unwrap_or_else(PoisonError::into_inner);
        if measures.len() >= MAX_MOVE_ADDRESSES {
            // Who did not come for a while needs no measure.
            measures.retain(|_, bucket| !bucket.is_full());
        }
        let is_known = measures.contains_key(&Some(client));
        let whose = Some(client).filter(|_| is_known || measures.len() < MAX_MOVE_ADDRESSES);
        measures.entry(whose).or_insert_with(|| Bucket::new(self.burst, self.per_second)).take()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

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
