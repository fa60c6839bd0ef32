//! The check of a job's draws: that the coordinator was bound to what it drew with.

use super::{Entry, LogError, LogProof};
use crate::commitment::ChainHead;
use crate::ids::Digest;
use crate::machine::{DrawSecret, DrawSubject, check_draw};
use crate::receipt::Receipt;

/// A draw whose secret was committed to before the job was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckedDraw {
    /// Which of the coordinator's draws it was, from 0.
    pub number: u64,
    /// Whether it was made before the job started.
    pub lockstep: bool,
    /// What was drawn, 0 to 999: an audit follows if it is below the policy's per-mille. `None` where the draw was made
    /// about a run that the receipt does not have, because it was taken back.
    pub ticket: Option<u16>,
    /// How many audits followed.
    pub auditors: u8,
}

impl LogProof {
    /// Checks every draw about the receipt's job: its chain was anchored in the log before, its secret is the one of
    /// that chain for this draw, and it came when it had to. Receipt and proof must have been checked, also against each
    /// other ([`LogProof::check_receipt`]).
    ///
    /// # Errors
    /// [`LogError::Missing`] for an anchor, [`LogError::Causality`], [`LogError::Draw`].
    pub fn check_draws(&self, receipt: &Receipt) -> Result<Vec<CheckedDraw>, LogError> {
        let mut draws: Vec<CheckedDraw> = Vec::new();
        for leaf in &self.entries {
            let Entry::Drawn { lockstep, secret, auditors, .. } = leaf.entry else {
                continue;
            };
            let number = secret.number;
            let (chain, anchor) = self.anchor(&secret, leaf.index)?;
            self.check_time(lockstep, leaf.index)?;
            let wrong = LogError::Draw { number };
            if draws.iter().any(|draw| draw.number == number) {
                return Err(wrong);
            }
            let subject = if lockstep {
                Some(DrawSubject::Lockstep(receipt.job.id()))
            } else {
                self.first_head(receipt).map(DrawSubject::FirstRun)
            };
            let ticket = match subject {
                Some(subject) => {
                    check_draw(&secret, chain, &anchor, subject, &receipt.job.nonce).map(|draw| Some(draw.ticket()))
                }
                None => secret.leads_to(chain, &anchor).then_some(None),
            };
            draws.push(CheckedDraw { number, lockstep, ticket: ticket.ok_or(wrong)?, auditors });
        }
        Ok(draws)
    }

    /// The one anchor of a secret's chain, which stands before the draw.
    fn anchor(&self, secret: &DrawSecret, drawn: u64) -> Result<(u32, Digest), LogError> {
        let number = secret.number;
        let wanted = DrawSecret::chain_of(number).ok_or(LogError::Draw { number })?;
        let anchors = self.entries.iter().filter_map(|leaf| match leaf.entry {
            Entry::Anchored { chain, anchor } if chain == wanted => Some((leaf.index, anchor)),
            _ => None,
        });
        match anchors.collect::<Vec<_>>()[..] {
            [] => Err(LogError::Missing { what: format!("the anchor of draw {number}") }),
            [(index, anchor)] if index < drawn => Ok((wanted, anchor)),
            [_] => Err(LogError::Causality { what: format!("draw {number}") }),
            // A coordinator with two anchors chose between two secrets.
            _ => Err(LogError::Draw { number }),
        }
    }

    /// A draw comes after the job; that of a lockstep audit before any assignment, the other one after the first result.
    fn check_time(&self, lockstep: bool, drawn: u64) -> Result<(), LogError> {
        let first =
            |fits: fn(&Entry) -> bool| self.entries.iter().find(|leaf| fits(&leaf.entry)).map(|leaf| leaf.index);
        let after = |index: Option<u64>| index.is_some_and(|index| index < drawn);
        let submitted = first(|entry| matches!(entry, Entry::Submitted { .. }));
        let assigned = first(|entry| matches!(entry, Entry::Assigned { .. }));
        let ran = first(|entry| matches!(entry, Entry::Result { .. }));
        let in_time = if lockstep { after(submitted) && !after(assigned) } else { after(ran) };
        if in_time { Ok(()) } else { Err(LogError::Causality { what: "a draw".to_owned() }) }
    }

    /// The chain head of the run whose result came first, where the receipt has it.
    fn first_head(&self, receipt: &Receipt) -> Option<ChainHead> {
        let first = self.entries.iter().find_map(|leaf| match leaf.entry {
            Entry::Result { receipt, .. } => Some(receipt),
            _ => None,
        })?;
        let mut runs = std::iter::once(&receipt.worker).chain(&receipt.audits).map(|run| &run.receipt);
        runs.find(|run| run.digest() == first).map(|run| run.head)
    }
}
