//! The coordinator's secrets for draws: a chain of hashes, of which the end is made public before the first draw.
//!
//! The secrets of a chain are used from its anchor backwards, one for each draw. Whoever holds the anchor and later one
//! of the secrets sees that it was fixed beforehand: it hashes down to the anchor. No secret tells anything of those
//! that are used after it.

use serde::{Deserialize, Serialize};

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::domain::Domain;
use crate::ids::Digest;
use crate::limits::{DRAW_CHECKPOINT, DRAWS_PER_CHAIN};

/// The secret of one draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrawSecret {
    /// Counts the coordinator's draws, from 0; below 2^32 chains of [`DRAWS_PER_CHAIN`].
    pub number: u64,
    /// The secret.
    pub secret: Digest,
}

impl DrawSecret {
    /// The chain that draw `number` belongs to; `None` where it has none.
    pub fn chain_of(number: u64) -> Option<u32> {
        u32::try_from(number / u64::from(DRAWS_PER_CHAIN)).ok()
    }

    /// How many hashes lead from the secret to the anchor of its chain: 1 to [`DRAWS_PER_CHAIN`].
    pub fn steps(&self) -> u32 {
        steps(self.number)
    }

    /// Whether the secret belongs to the chain with this number and anchor. Takes [`DrawSecret::steps`] hashes.
    pub fn leads_to(&self, chain: u32, anchor: &Digest) -> bool {
        Self::chain_of(self.number) == Some(chain) && descend(self.secret, self.steps()) == *anchor
    }
}

impl Canonical for DrawSecret {
    const MIN_BYTES: usize = 8 + 32;
    fn encode(&self, writer: &mut Writer) {
        writer.u64(self.number);
        self.secret.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let secret = Self { number: reader.u64()?, secret: reader.value()? };
        if Self::chain_of(secret.number).is_none() {
            return Err(DecodeError::InvalidValue { what: "number of a draw" });
        }
        Ok(secret)
    }
}

/// One chain of secrets, with every [`DRAW_CHECKPOINT`]th of them at hand.
#[derive(Clone)]
pub struct DrawChain {
    chain: u32,
    /// The anchor, then the secrets that are 1, 2, ... times [`DRAW_CHECKPOINT`] steps above it.
    checkpoints: Vec<Digest>,
}

/// Shows no secret.
impl std::fmt::Debug for DrawChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DrawChain({} {})", self.chain, self.anchor())
    }
}

impl DrawChain {
    /// Makes a chain out of the coordinator's secret for draws, which is the same for all its chains. Takes
    /// [`DRAWS_PER_CHAIN`] hashes, a fraction of a second.
    pub fn new(secret: &[u8; 32], chain: u32) -> Self {
        let mut writer = Writer::new();
        writer.raw(secret);
        writer.u32(chain);
        let mut at = Domain::DrawChain.hash(&writer.into_bytes());
        let mut checkpoints = vec![at];
        for _ in 0..DRAWS_PER_CHAIN / DRAW_CHECKPOINT {
            at = descend(at, DRAW_CHECKPOINT);
            checkpoints.push(at);
        }
        checkpoints.reverse();
        Self { chain, checkpoints }
    }

    /// Which chain it is, from 0.
    pub fn chain(&self) -> u32 {
        self.chain
    }

    /// What all its secrets hash down to: public before the first of them is used.
    pub fn anchor(&self) -> Digest {
        self.checkpoints[0]
    }

    /// The secret of a draw; `None` where the draw belongs to another chain. Takes fewer than [`DRAW_CHECKPOINT`]
    /// hashes.
    pub fn secret(&self, number: u64) -> Option<DrawSecret> {
        if DrawSecret::chain_of(number) != Some(self.chain) {
            return None;
        }
        let steps = steps(number);
        let above = steps.div_ceil(DRAW_CHECKPOINT);
        let secret = descend(self.checkpoints[above as usize], above * DRAW_CHECKPOINT - steps);
        Some(DrawSecret { number, secret })
    }
}

fn steps(number: u64) -> u32 {
    let index = number % u64::from(DRAWS_PER_CHAIN);
    u32::try_from(index).expect("it is below the length of a chain, which has 32 bits") + 1
}

/// So many steps down a chain.
fn descend(secret: Digest, steps: u32) -> Digest {
    (0..steps).fold(secret, |secret, _| Domain::DrawChain.hash(secret.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::{from_bytes, to_bytes};

    #[test]
    fn every_secret_leads_to_the_anchor_of_its_chain_and_to_no_other() {
        let chain = DrawChain::new(&[7; 32], 3);
        let first = 3 * u64::from(DRAWS_PER_CHAIN);
        let step = u64::from(DRAW_CHECKPOINT);
        let last = first + u64::from(DRAWS_PER_CHAIN) - 1;
        for number in [first, first + 1, first + step - 1, first + step, first + step + 1, last] {
            let secret = chain.secret(number).unwrap();
            assert_eq!(u64::from(secret.steps()), number - first + 1);
            assert!(secret.leads_to(3, &chain.anchor()), "{number}");
            assert!(!secret.leads_to(4, &chain.anchor()));
            assert!(!DrawSecret { number: number ^ 1, ..secret }.leads_to(3, &chain.anchor()));
            assert_eq!(from_bytes(&to_bytes(&secret)), Ok(secret));
        }
        assert_eq!((chain.secret(first - 1), chain.secret(last + 1)), (None, None));
        assert_eq!(DrawSecret::chain_of(u64::MAX), None);
        assert_ne!(chain.anchor(), DrawChain::new(&[7; 32], 4).anchor());
        assert_ne!(chain.anchor(), DrawChain::new(&[8; 32], 3).anchor());
    }

    #[test]
    fn a_secret_hashes_to_the_one_before_it() {
        let chain = DrawChain::new(&[1; 32], 0);
        for number in [0, 1_022, 1_023, 1_024, 2_047] {
            let (before, after) = (chain.secret(number).unwrap(), chain.secret(number + 1).unwrap());
            assert_eq!(Domain::DrawChain.hash(after.secret.as_bytes()), before.secret);
        }
        assert_eq!(Domain::DrawChain.hash(chain.secret(0).unwrap().secret.as_bytes()), chain.anchor());
    }

    #[test]
    fn a_chain_shows_no_secret() {
        let chain = DrawChain::new(&[1; 32], 0);
        assert_eq!(format!("{chain:?}"), format!("DrawChain(0 {})", chain.anchor()));
    }
}
