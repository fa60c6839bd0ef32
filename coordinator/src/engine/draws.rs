//! The coordinator's draws: one secret of the chain for each, never used twice, and public anchors before the first.

use lockstep_protocol::limits::DRAWS_PER_CHAIN;
use lockstep_protocol::machine::{DrawChain, DrawSecret};

use crate::store::{SECRET_BYTES, Write};

/// Where the draws stand. Everything that it changes comes out as writes of the transaction in which it is used.
#[derive(Debug)]
pub(super) struct Draws {
    secret: [u8; SECRET_BYTES],
    /// The number of the next draw.
    next: u64,
    /// The chain that it belongs to.
    chain: DrawChain,
    /// How many chains have their anchors in the log. That of the next chain comes when half of a chain is used, so that
    /// it is signed and seen before its chain begins.
    anchored: u64,
}

impl Draws {
    /// Goes on with draw `next`. Takes a fraction of a second.
    pub fn new(secret: [u8; SECRET_BYTES], next: u64, anchored: u64) -> Self {
        let chain = DrawChain::new(&secret, chain_of(next));
        Self { secret, next, chain, anchored }
    }

    /// Writes the anchors that are due into the log.
    pub fn anchor(&mut self, writes: &mut Vec<Write>) {
        while self.anchored <= u64::from(chain_of(self.next + u64::from(DRAWS_PER_CHAIN / 2))) {
            let chain = u32::try_from(self.anchored).expect("chains are counted in 32 bits");
            let anchor = if chain == self.chain.chain() {
                self.chain.anchor()
            } else {
                DrawChain::new(&self.secret, chain).anchor()
            };
            writes.push(Write::Anchored { chain, anchor });
            self.anchored += 1;
        }
    }

    /// The secret of the next draw.
    pub fn take(&mut self, writes: &mut Vec<Write>) -> DrawSecret {
        self.anchor(writes);
        let number = self.next;
        if chain_of(number) != self.chain.chain() {
            self.chain = DrawChain::new(&self.secret, chain_of(number));
        }
        self.next += 1;
        writes.push(Write::Draws(self.next));
        self.chain.secret(number).expect("the chain is that of the draw")
    }
}

fn chain_of(number: u64) -> u32 {
    u32::try_from(number / u64::from(DRAWS_PER_CHAIN)).expect("fewer draws than 2^32 chains have")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchors(writes: &[Write]) -> Vec<u32> {
        let chain = |write: &Write| match write {
            Write::Anchored { chain, .. } => Some(*chain),
            _ => None,
        };
        writes.iter().filter_map(chain).collect()
    }

    #[test]
    fn no_secret_is_used_twice_and_every_chain_is_anchored_before_it_begins() {
        let length = u64::from(DRAWS_PER_CHAIN);
        let mut writes = Vec::new();
        let mut draws = Draws::new([3; 32], length - 2, 0);
        draws.anchor(&mut writes);
        assert_eq!(anchors(&writes), [0, 1]);
        let taken: Vec<_> = (0..4).map(|_| draws.take(&mut writes)).collect();
        assert!(taken.iter().map(|secret| secret.number).eq(length - 2..length + 2));
        assert_eq!(anchors(&writes), [0, 1], "the next one is due in the middle of the chain");
        assert!(matches!(writes.last(), Some(Write::Draws(next)) if *next == length + 2));
        // After a restart it goes on behind them, and says nothing twice.
        let mut later = Vec::new();
        let mut draws = Draws::new([3; 32], length + 2, 2);
        draws.anchor(&mut later);
        assert!(later.is_empty());
        assert_eq!(draws.take(&mut later).number, length + 2);
    }
}
