//! How many moves of disputes may come from where.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use lockstep_protocol::limits::{HTTP_MOVE_BURST, HTTP_MOVES_PER_SECOND, MAX_MOVE_ADDRESSES};

use crate::sessions::bucket::Bucket;

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub IpAddr);

/// The measures of all addresses. Where there are too many, the rest share one: nobody's is dropped, or an address could
/// be made to start again by many others.
#[derive(Debug, Default)]
pub struct Moves {
    measures: Mutex<BTreeMap<Option<IpAddr>, Bucket>>,
}

impl Moves {
    /// Whether one more move may come from an address.
    pub fn take(&self, address: IpAddr) -> bool {
        let mut measures = self.measures.lock().unwrap_or_else(PoisonError::into_inner);
        if measures.len() >= MAX_MOVE_ADDRESSES {
            // Who did not come for a while needs no measure.
            measures.retain(|_, bucket| !bucket.is_full());
        }
        let is_known = measures.contains_key(&Some(address));
        let whose = Some(address).filter(|_| is_known || measures.len() < MAX_MOVE_ADDRESSES);
        let new = || Bucket::new(HTTP_MOVE_BURST, HTTP_MOVES_PER_SECOND);
        measures.entry(whose).or_insert_with(new).take()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_address_does_not_spend_what_others_may() {
        let moves = Moves::default();
        let address = |number: u32| IpAddr::V4(Ipv4Addr::from(number));
        let taken = (0..10 * HTTP_MOVE_BURST).filter(|_| moves.take(address(1))).count() as u64;
        assert!((HTTP_MOVE_BURST..10 * HTTP_MOVE_BURST).contains(&taken), "{taken}");
        assert!(moves.take(address(2)));
        (0..2 * MAX_MOVE_ADDRESSES as u32).for_each(|number| {
            moves.take(address(number));
        });
        let kept = moves.measures.lock().unwrap().len();
        assert!(kept <= MAX_MOVE_ADDRESSES + 1, "{kept}");
    }
}
