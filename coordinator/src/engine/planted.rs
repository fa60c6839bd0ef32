//! Planted jobs: a job that was audited is run once more under a fresh nonce, to see whether its worker answers as the
//! audited runs did. A first run with other roots is audited whatever the draw says, so that a dispute finds out who was
//! wrong. Workers that ran the job before know its tokens again; to all others it is a job like any.

use std::sync::Arc;

use lockstep_protocol::ids::{Nonce, Root};
use lockstep_protocol::job::{Job, RequestInput};
use lockstep_protocol::machine::JobSpec;
use lockstep_protocol::receipt::Receipt;

/// The job to plant after one that ended with this receipt, and with these roots, if any. `random` decides, and makes the nonce.
pub(super) fn planted(
    spec: &JobSpec,
    (receipt, roots): (&Receipt, &[Root]),
    per_mille: u16,
    random: &[u8; 40],
) -> Option<JobSpec> {
    let (ticket, nonce) = random.split_first_chunk::<8>()?;
    let drawn = (u128::from(u64::from_le_bytes(*ticket)) * 1_000) >> 64 < u128::from(per_mille);
    let agreed = receipt.check().is_ok_and(|standing| standing.matched > 0 && standing.mismatched == 0);
    if !drawn || !agreed || spec.planted.is_some() {
        return None;
    }
    let nonce = Nonce::from_bytes(nonce.try_into().ok()?);
    let request = RequestInput::Tokens(spec.job.tokens.clone()).hash(&nonce);
    let job = Job { nonce, request, ..(*spec.job).clone() };
    Some(JobSpec { job: Arc::new(job), planted: Some(roots.to_vec()), ..spec.clone() })
}
