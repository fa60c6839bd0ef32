//! Which jobs are audited, and by whom: drawn, and checkable later.

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::commitment::ChainHead;
use crate::domain::Domain;
use crate::ids::{Digest, NodeId, Nonce};
use crate::limits::MAX_AUDITORS;

/// How a job is audited. No worker ever sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditPolicy {
    /// Of 1,000 such jobs, how many are audited on average: 0 to 1,000.
    pub per_mille: u16,
    /// How many other workers run an audited job, 1 to [`MAX_AUDITORS`].
    pub auditors: u8,
    /// Whether the client gets its answer only when the audits have ended.
    pub hold: bool,
}

impl AuditPolicy {
    /// Whether the numbers are in range.
    pub fn is_valid(&self) -> bool {
        self.per_mille <= 1_000 && (1..=MAX_AUDITORS).contains(&usize::from(self.auditors))
    }
}

impl AuditPolicy {
    /// What satisfies both policies.
    pub fn stricter(self, other: Self) -> Self {
        Self {
            per_mille: self.per_mille.max(other.per_mille),
            auditors: self.auditors.max(other.auditors),
            hold: self.hold || other.hold,
        }
    }
}

impl Canonical for AuditPolicy {
    const MIN_BYTES: usize = 4;
    fn encode(&self, writer: &mut Writer) {
        writer.u16(self.per_mille);
        writer.u8(self.auditors);
        writer.bool(self.hold);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let policy = Self { per_mille: reader.u16()?, auditors: reader.u8()?, hold: reader.bool()? };
        if policy.is_valid() { Ok(policy) } else { Err(DecodeError::InvalidValue { what: "audit policy" }) }
    }
}

/// The outcome of a draw: whether, and by which order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditDraw {
    /// 32 bytes from which everything about the audit follows.
    pub seed: Digest,
}

/// Draws. `secret` is the coordinator's and committed to beforehand; `head` is the first run's signed
/// chain head, which must be durable before the draw is made; `nonce` is the client's. So neither
/// worker nor client can steer the draw, and the coordinator can't without being seen to.
pub fn audit_draw(secret: &[u8; 32], head: &ChainHead, nonce: &Nonce) -> AuditDraw {
    let mut writer = Writer::new();
    writer.raw(secret);
    head.encode(&mut writer);
    nonce.encode(&mut writer);
    AuditDraw { seed: Domain::AuditDraw.hash(&writer.into_bytes()) }
}

impl AuditDraw {
    /// How many audits this draw means under a policy.
    pub fn auditors(&self, policy: &AuditPolicy) -> u8 {
        let (first, _) = self.seed.as_bytes().split_first_chunk().expect("a digest has 32 bytes");
        let ticket = (u128::from(u64::from_le_bytes(*first)) * 1_000) >> 64;
        if ticket < u128::from(policy.per_mille) { policy.auditors } else { 0 }
    }

    /// A worker's rank among the possible auditors: the lowest is asked first.
    pub fn rank(&self, node: &NodeId) -> Digest {
        let mut writer = Writer::new();
        self.seed.encode(&mut writer);
        node.encode(&mut writer);
        Domain::AuditorRank.hash(&writer.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_audits_is_the_policys() {
        let policy = |per_mille| AuditPolicy { per_mille, auditors: 2, hold: false };
        let draws: Vec<_> = (0_u32..4_000)
            .map(|index| {
                let mut nonce = [0; 32];
                nonce[..4].copy_from_slice(&index.to_le_bytes());
                let head = ChainHead::from_bytes([1; 32]);
                audit_draw(&[2; 32], &head, &Nonce::from_bytes(nonce))
            })
            .collect();
        let audited = |per_mille| draws.iter().filter(|draw| draw.auditors(&policy(per_mille)) == 2).count();
        assert_eq!((audited(0), audited(1_000)), (0, 4_000));
        assert!((900..1_100).contains(&audited(250)), "{}", audited(250));
    }

    #[test]
    fn a_draw_depends_on_secret_head_and_nonce() {
        let draw =
            |a: u8, b: u8, c: u8| audit_draw(&[a; 32], &ChainHead::from_bytes([b; 32]), &Nonce::from_bytes([c; 32]));
        let base = draw(1, 2, 3);
        assert_eq!(base, draw(1, 2, 3));
        assert!([draw(9, 2, 3), draw(1, 9, 3), draw(1, 2, 9)].iter().all(|other| *other != base));
    }
}
