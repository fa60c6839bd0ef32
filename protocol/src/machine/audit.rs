//! Which jobs are audited, and by whom: drawn, and checkable later.

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::commitment::ChainHead;
use crate::domain::Domain;
use crate::ids::{Digest, JobId, NodeId, Nonce};
use crate::limits::MAX_AUDITORS;
use crate::machine::draw::DrawSecret;

/// How a job is audited. No worker ever sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditPolicy {
    /// Of 1,000 such jobs, how many are audited on average: 0 to 1,000.
    pub per_mille: u16,
    /// How many other workers run an audited job, 1 to [`MAX_AUDITORS`].
    pub auditors: u8,
    /// Whether the client wants no answer rather than one whose audits are missing. Only a client asks for that: without
    /// it a job whose auditors are not there ends without them. In either case no answer leaves before the job has ended.
    pub hold: bool,
    /// Whether each run must be by another operator than all others: an auditor whose operator the coordinator does not
    /// know is none, nor is anybody for a run of an unknown operator.
    pub distinct_operators: bool,
    /// Whether auditors run beside the first worker, so that the job can stop at the first difference: they are drawn
    /// before the job starts ([`lockstep_draw`]).
    pub lockstep: bool,
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
            distinct_operators: self.distinct_operators || other.distinct_operators,
            lockstep: self.lockstep || other.lockstep,
        }
    }
}

impl Canonical for AuditPolicy {
    const MIN_BYTES: usize = 6;
    fn encode(&self, writer: &mut Writer) {
        writer.u16(self.per_mille);
        writer.u8(self.auditors);
        writer.bool(self.hold);
        writer.bool(self.distinct_operators);
        writer.bool(self.lockstep);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let policy = Self {
            per_mille: reader.u16()?,
            auditors: reader.u8()?,
            hold: reader.bool()?,
            distinct_operators: reader.bool()?,
            lockstep: reader.bool()?,
        };
        if policy.is_valid() { Ok(policy) } else { Err(DecodeError::InvalidValue { what: "audit policy" }) }
    }
}

/// The outcome of a draw: whether, and by which order of preference, with what it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditDraw {
    /// 32 bytes from which everything about the audit follows.
    pub seed: Digest,
    /// The coordinator's secret, used for this draw alone.
    pub secret: DrawSecret,
    /// Whether it was made before the job started ([`lockstep_draw`]).
    pub lockstep: bool,
}

/// Draws after the first run. `secret` is the coordinator's and was committed to beforehand; `head` is the first run's
/// signed chain head, which must be durable before the draw is made; `nonce` is the client's. So neither worker nor
/// client can steer the draw, and the coordinator can't without being seen to.
pub fn audit_draw(secret: &DrawSecret, head: &ChainHead, nonce: &Nonce) -> AuditDraw {
    AuditDraw { seed: seed(Domain::AuditDraw, secret, head, nonce), secret: *secret, lockstep: false }
}

/// Draws before the job starts, from its id, for audits that run beside the first worker.
pub fn lockstep_draw(secret: &DrawSecret, job: JobId, nonce: &Nonce) -> AuditDraw {
    AuditDraw { seed: seed(Domain::LockstepDraw, secret, &job, nonce), secret: *secret, lockstep: true }
}

fn seed(domain: Domain, secret: &DrawSecret, about: &impl Canonical, nonce: &Nonce) -> Digest {
    let mut writer = Writer::new();
    secret.secret.encode(&mut writer);
    about.encode(&mut writer);
    nonce.encode(&mut writer);
    domain.hash(&writer.into_bytes())
}

/// What a draw was made about: what has to be known to check it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrawSubject {
    /// A job that had not started.
    Lockstep(JobId),
    /// The first run of a job, by its chain head.
    FirstRun(ChainHead),
}

/// The draw that a coordinator must have made with a secret that it shows later; `None` where the secret is not of the
/// chain that the coordinator committed to.
pub fn check_draw(
    secret: &DrawSecret,
    chain: u32,
    anchor: &Digest,
    subject: DrawSubject,
    nonce: &Nonce,
) -> Option<AuditDraw> {
    secret.leads_to(chain, anchor).then(|| match subject {
        DrawSubject::Lockstep(job) => lockstep_draw(secret, job, nonce),
        DrawSubject::FirstRun(head) => audit_draw(secret, &head, nonce),
    })
}

impl Canonical for AuditDraw {
    const MIN_BYTES: usize = 32 + DrawSecret::MIN_BYTES + 1;
    fn encode(&self, writer: &mut Writer) {
        self.seed.encode(writer);
        self.secret.encode(writer);
        writer.bool(self.lockstep);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { seed: reader.value()?, secret: reader.value()?, lockstep: reader.bool()? })
    }
}

impl AuditDraw {
    /// A number from 0 to 999, each as likely as the others: the job is audited if it is below the policy's per-mille.
    pub fn ticket(&self) -> u16 {
        let (first, _) = self.seed.as_bytes().split_first_chunk().expect("a digest has 32 bytes");
        let ticket = (u128::from(u64::from_le_bytes(*first)) * 1_000) >> 64;
        u16::try_from(ticket).expect("it is below 1,000")
    }

    /// How many audits this draw means under a policy.
    pub fn auditors(&self, policy: &AuditPolicy) -> u8 {
        if self.ticket() < policy.per_mille { policy.auditors } else { 0 }
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
    use crate::canonical::{from_bytes, to_bytes};
    use crate::machine::draw::DrawChain;

    const POLICY: AuditPolicy =
        AuditPolicy { per_mille: 250, auditors: 2, hold: false, distinct_operators: false, lockstep: false };

    fn secret(byte: u8) -> DrawSecret {
        DrawSecret { number: 5, secret: Digest::from_bytes([byte; 32]) }
    }

    fn head(byte: u8) -> ChainHead {
        ChainHead::from_bytes([byte; 32])
    }

    fn nonce(byte: u8) -> Nonce {
        Nonce::from_bytes([byte; 32])
    }

    #[test]
    fn the_share_of_audits_is_the_policys() {
        let draws: Vec<_> = (0_u32..4_000)
            .map(|index| {
                let mut nonce = [0; 32];
                nonce[..4].copy_from_slice(&index.to_le_bytes());
                audit_draw(&secret(2), &head(1), &Nonce::from_bytes(nonce))
            })
            .collect();
        let audited = |per_mille| {
            let policy = AuditPolicy { per_mille, ..POLICY };
            draws.iter().filter(|draw| draw.auditors(&policy) == 2).count()
        };
        assert_eq!((audited(0), audited(1_000)), (0, 4_000));
        assert!((900..1_100).contains(&audited(250)), "{}", audited(250));
        assert!(draws.iter().all(|draw| draw.ticket() < 1_000));
    }

    #[test]
    fn a_draw_depends_on_secret_subject_nonce_and_time() {
        let draw = |a: u8, b: u8, c: u8| audit_draw(&secret(a), &head(b), &nonce(c)).seed;
        let base = draw(1, 2, 3);
        assert_eq!(base, draw(1, 2, 3));
        let before = |b: u8| lockstep_draw(&secret(1), JobId::from_bytes([b; 32]), &nonce(3)).seed;
        let others = [draw(9, 2, 3), draw(1, 9, 3), draw(1, 2, 9), before(2), before(9)];
        assert!(others.iter().all(|other| *other != base));
        assert_ne!(before(2), before(9));
    }

    #[test]
    fn anybody_can_check_a_draw_once_its_secret_is_shown() {
        let chain = DrawChain::new(&[4; 32], 0);
        let secret = chain.secret(2_000).unwrap();
        let draw = audit_draw(&secret, &head(1), &nonce(3));
        let check = |secret: &DrawSecret, subject| check_draw(secret, 0, &chain.anchor(), subject, &nonce(3));
        assert_eq!(check(&secret, DrawSubject::FirstRun(head(1))), Some(draw));
        assert_ne!(check(&secret, DrawSubject::FirstRun(head(2))), Some(draw));
        let job = JobId::from_bytes([1; 32]);
        let before = check(&secret, DrawSubject::Lockstep(job)).unwrap();
        assert_eq!(before, lockstep_draw(&secret, job, &nonce(3)));
        // A secret that fits the coordinator better is none of the chain.
        let other = DrawSecret { secret: Digest::from_bytes([1; 32]), ..secret };
        assert_eq!(check(&other, DrawSubject::FirstRun(head(1))), None);
        let later = DrawSecret { number: 2_001, ..secret };
        assert_eq!(check(&later, DrawSubject::FirstRun(head(1))), None);
        for draw in [draw, before] {
            assert_eq!(from_bytes(&to_bytes(&draw)), Ok(draw));
        }
    }

    #[test]
    fn the_stricter_policy_satisfies_both() {
        let a = AuditPolicy { per_mille: 10, auditors: 3, hold: true, ..POLICY };
        let b = AuditPolicy { distinct_operators: true, lockstep: true, ..POLICY };
        let both = AuditPolicy { per_mille: 250, auditors: 3, hold: true, distinct_operators: true, lockstep: true };
        assert_eq!((a.stricter(b), b.stricter(a)), (both, both));
        assert_eq!(from_bytes(&to_bytes(&both)), Ok(both));
        assert!(from_bytes::<AuditPolicy>(&to_bytes(&AuditPolicy { per_mille: 1_001, ..both })).is_err());
    }
}
