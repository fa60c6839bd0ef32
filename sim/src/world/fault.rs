//! Runs that their workers take back: those of faulty machines, and those of cheats who pretend to have one.

use lockstep_protocol::ids::{JobId, LeaseEpoch};
use lockstep_protocol::machine::table::Stage;

use super::cast::Role;
use super::party::Up;
use super::{Event, Held, World};
use crate::adversary::Adversary;

/// Somebody with a faulty machine runs a job again within so long, if at all.
const NOTICES_MS: u64 = 20_000;
/// A cheat looks again after so long whether its run is about to be found out.
const LOOKS_MS: u64 = 100;

impl World {
    /// Whoever may find its run wrong later looks at it then.
    pub(super) fn expect_notice(&mut self, party: usize, job: JobId, epoch: LeaseEpoch) {
        let after = match self.parties[party].role {
            Role::Faulty if self.parties[party].is_spoilt(job) && self.random.per_mille(600) => {
                self.random.within(1..=NOTICES_MS)
            }
            Role::Cheat(Adversary::Pretender) => LOOKS_MS,
            _ => return,
        };
        self.after(after, Event::Notice(party, job, epoch));
    }

    /// A party looks at a run of its own.
    pub(super) fn notice(&mut self, party: usize, job: JobId, epoch: LeaseEpoch) -> Held {
        match self.parties[party].role {
            Role::Faulty => {
                if self.parties[party].is_spoilt(job) {
                    self.parties[party].notice();
                }
                self.retract(party, job, epoch)
            }
            _ if self.is_over_for(job) => Ok(()),
            _ if self.is_audited(job) => self.retract(party, job, epoch),
            _ => {
                self.after(LOOKS_MS, Event::Notice(party, job, epoch));
                Ok(())
            }
        }
    }

    /// Takes a run back.
    fn retract(&mut self, party: usize, job: JobId, epoch: LeaseEpoch) -> Held {
        let said = self.parties[party].retract(job, epoch);
        self.say(party, said)
    }

    /// Says again what a party takes back: that it was heard, nobody tells it.
    pub(super) fn retract_again(&mut self, party: usize) -> Held {
        let said = self.parties[party].retractions();
        self.say(party, said)
    }

    fn say(&mut self, party: usize, said: Vec<Up>) -> Held {
        said.into_iter().try_for_each(|up| self.send_up(party, 0, up))
    }

    fn is_over_for(&self, job: JobId) -> bool {
        self.store.ended.contains(&job)
    }

    /// Whether audits of a job are on: what no worker knows. A cheat here is told.
    fn is_audited(&self, job: JobId) -> bool {
        let view = self.coordinator.as_ref().and_then(|coordinator| coordinator.machine().job(&job));
        view.is_some_and(|view| matches!(view.stage, Stage::Auditing | Stage::Disputing) && view.runs > 0)
    }
}
