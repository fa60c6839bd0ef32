//! Between the coordinator and its parties: sessions that come and go, and what either side does with what it hears.

use std::sync::Arc;

use lockstep_model::package::Package;
use lockstep_protocol::ids::{JobId, LeaseEpoch, NodeId};
use lockstep_protocol::machine::{Capabilities, Input, Streamed};
use lockstep_protocol::messages::{Ask, FailureCode};

use super::cast::Role;
use super::check::is_right;
use super::coordinator::Task;
use super::crew::ROOM;
use super::party::{Down, Said, Up};
use super::{Broken, CONNECT_MS, Event, Held, TURNED_AWAY_MS, World};
use crate::adversary::{Adversary, Inconsistent};
use crate::models;
use crate::network::LONGEST_OUTAGE_MS;

/// A job stream arrives in at most so many pieces.
const MOST_PIECES: u64 = 4;

impl World {
    /// A party notices that its session is over, and comes again.
    pub(super) fn hang_up(&mut self, party: usize, pause: u64) {
        if self.parties[party].session.take().is_some() {
            self.after(pause, Event::Join(party));
        }
    }

    /// A session breaks.
    pub(super) fn interrupt(&mut self, party: usize) -> Held {
        let pause = self.random.within(50..=CONNECT_MS);
        self.disconnect(party, pause)
    }

    /// A session ends: both sides notice.
    pub(super) fn disconnect(&mut self, party: usize, pause: u64) -> Held {
        let Some(session) = self.parties[party].session else {
            return Ok(());
        };
        self.hang_up(party, pause);
        let node = self.parties[party].id();
        if let Some(coordinator) = &mut self.coordinator
            && coordinator.sessions.get(&node) == Some(&session)
        {
            coordinator.sessions.remove(&node);
            coordinator.tasks.push_back(Task::Machine(Input::WorkerLeft { node }));
        }
        Ok(())
    }

    pub(super) fn join(&mut self, party: usize) -> Held {
        if self.parties[party].session.is_some() {
            return Ok(());
        }
        let node = self.parties[party].id();
        let Some(coordinator) = &mut self.coordinator else {
            self.after(CONNECT_MS, Event::Join(party));
            return Ok(());
        };
        self.sessions += 1;
        coordinator.sessions.insert(node, self.sessions);
        self.parties[party].session = Some(self.sessions);
        let capabilities = Capabilities {
            macs_per_second: 0,
            max_in_flight: 2,
            models: models::every().map(Package::model_id).collect(),
            operator: (self.direction.list)(self.parties[party].operator, party),
            pipeline: self.is_shared.then(|| (ROOM, format!("party {party}"))),
        };
        self.take(vec![Task::Machine(Input::WorkerJoined { node, capabilities }), Task::Ask(node)])?;
        self.retract_again(party)
    }

    /// Sends something to a party that has a session.
    pub(super) fn send(&mut self, node: NodeId, down: Down) -> Held {
        let Some(party) = self.parties.iter().position(|party| party.id() == node) else {
            return Err(Broken::new(format!("the coordinator writes to {node}, whom nobody knows")));
        };
        let Some(session) = self.coordinator.as_ref().and_then(|c| c.sessions.get(&node).copied()) else {
            return Ok(());
        };
        if matches!(down, Down::Close) {
            let pause = self.random.within(TURNED_AWAY_MS / 2..=TURNED_AWAY_MS);
            return self.disconnect(party, pause);
        }
        match self.network.stream(self.now, party) {
            Some(at) => self.at(at, Event::Down(party, session, down)),
            None => self.interrupt(party)?,
        }
        Ok(())
    }

    /// A party sends something on a stream of its session.
    pub(super) fn send_up(&mut self, party: usize, delay: u64, up: Up) -> Held {
        let Some(session) = self.parties[party].session else {
            return Ok(());
        };
        match self.network.stream(self.now.plus(delay), party) {
            Some(at) => self.at(at, Event::Up(party, session, up)),
            None => self.interrupt(party)?,
        }
        Ok(())
    }

    /// A party streams a run, in pieces that arrive in their order.
    pub(super) fn stream(&mut self, party: usize, job: JobId, epoch: LeaseEpoch, mut said: Vec<Said>) -> Held {
        let Some(session) = self.parties[party].session else {
            return Ok(());
        };
        let (count, mut at) = (self.random.within(1..=MOST_PIECES), self.now);
        for left in (1..=count).rev() {
            let rest = if left == 1 { Vec::new() } else { said.split_off(self.random.index(said.len() + 1)) };
            let piece = std::mem::replace(&mut said, rest);
            let runs = self.random.within(5..=3_000 / count);
            let Some(arrives) = self.network.stream(at.plus(runs), party) else {
                return self.interrupt(party);
            };
            at = at.plus(1).max(arrives);
            self.at(at, Event::Up(party, session, Up::Stream(job, epoch, piece)));
        }
        Ok(())
    }

    /// Something reached a party.
    pub(super) fn tell(&mut self, party: usize, down: Down) -> Held {
        match down {
            Down::Assign(epoch, job, hint) => {
                let said = self.parties[party].assigned(job, epoch, &hint, &self.jobs);
                self.stream(party, job, epoch, said)?;
                self.expect_notice(party, job, epoch);
            }
            Down::AssignStage(epoch, job, hint, crew) => self.staged(party, (job, epoch), &hint, crew)?,
            Down::Countersign(job, epoch) => self.countersigns(party, (job, epoch))?,
            Down::Cancel(job, epoch) => self.parties[party].forget(job, epoch),
            Down::Accepted(job, epoch) => {
                self.parties[party].forget(job, epoch);
                self.retract_again(party)?;
            }
            Down::Reveal(job, epoch) => {
                if let Some(up) = self.parties[party].reveal(job, epoch) {
                    self.send_up(party, 0, up)?;
                }
            }
            Down::Halt(job, epoch, place) => {
                if let Some(up) = self.parties[party].halt(job, epoch, place, &self.jobs) {
                    self.send_up(party, 0, up)?;
                }
            }
            Down::Ask(ask) => {
                self.sit_down(party, &ask)?;
                self.play(party)?;
            }
            Down::Acknowledged(entry) => self.parties[party].table.acknowledged(&entry),
            Down::Judged(dispute) => {
                self.parties[party].table.judged(dispute);
                self.retract_again(party)?;
            }
            Down::Close => {}
        }
        self.trouble(party)
    }

    /// What may happen to a party after it did something: it crashes, or is cut off for a while.
    pub(super) fn trouble(&mut self, party: usize) -> Held {
        if self.random.per_mille(self.weather.party_crash) && self.network.may_fail(party, self.now) {
            self.network.faults.party_crashes += 1;
            let down = self.random.within(100..=LONGEST_OUTAGE_MS);
            self.network.spare(party, self.now.plus(down));
            self.parties[party].crash();
            self.disconnect(party, down)?;
        } else if self.random.per_mille(self.weather.partition) && self.network.may_fail(party, self.now) {
            let until = self.now.plus(self.random.within(500..=LONGEST_OUTAGE_MS));
            self.network.cut(party, until);
        }
        Ok(())
    }

    /// Something reached the coordinator.
    pub(super) fn hear(&mut self, party: usize, session: u64, up: Up) -> Held {
        let node = self.parties[party].id();
        let here = self.coordinator.as_ref().is_some_and(|c| c.sessions.get(&node) == Some(&session));
        if !here {
            return Ok(());
        }
        let is_streaming = matches!(up, Up::Stream(..));
        let mut accused = None;
        let tasks = match up {
            Up::Stream(job, epoch, said) => {
                accused = self.accused_by(party, &said);
                heard((node, job, epoch), said)
            }
            Up::Failed(job, epoch) => {
                vec![Task::Machine(Input::Failed {
                    node,
                    job,
                    epoch,
                    code: FailureCode::Backend,
                    reason: String::new(),
                })]
            }
            Up::Retracted(job, epoch) => vec![Task::Machine(Input::Retracted { node, job, epoch })],
            Up::Result { job, epoch, result, salt } => {
                vec![Task::Machine(Input::Completed { node, job, epoch, result, salt })]
            }
            Up::Partial(partial) => vec![Task::Machine(Input::Partial { node, partial })],
            Up::Move(signed) => vec![Task::Move(signed)],
        };
        self.take(tasks)?;
        // A proof convicts as long as the job is open, whatever became of the lease.
        if let (Some((accused, job)), Some(coordinator)) = (accused, &self.coordinator)
            && coordinator.machine().job(&job).is_some()
            && !coordinator.machine().quarantined().any(|node| *node == accused)
        {
            return Err(Broken::verdict(format!("{accused} was proven to hand over something wrong, and gets away")));
        }
        // A run may end anywhere in its stream.
        if is_streaming { self.trouble(party) } else { Ok(()) }
    }

    /// A party takes a question in.
    pub(super) fn sit_down(&mut self, party: usize, ask: &Ask) -> Held {
        let (job, claim) = (ask.terms.job_id(), ask.terms.claim(ask.side));
        let opponent = ask.terms.key(ask.side.other());
        let view = self.jobs.view_of(&ask.terms)?;
        let ground = ask.terms.check().map_err(|error| Broken::new(error.to_string()))?;
        let role_of = |node: NodeId| self.parties.iter().find(|party| party.id() == node).map(|party| party.role);
        let mut role = self.parties[party].role;
        let among_friends = role_of(opponent) == Some(role);
        let case = self.jobs.get(&job).case;
        if role == Role::Faulty {
            // It runs the job again, and sees.
            let is_wrong = !is_right(claim, &ground, case);
            role = if is_wrong { Role::Faulty } else { Role::Honest };
            if is_wrong && self.parties[party].is_spoilt(job) {
                self.parties[party].notice();
            }
        }
        let claim = match self.crews.get(&(job, claim.epoch())) {
            Some(run) => &run.claim,
            None => self.parties[party].claimed(job, &self.jobs),
        };
        let (basis, words, place) = (claim.basis.clone(), claim.words(case), ground.place);
        let (now, seed) = (self.now, self.seed ^ party as u64);
        self.parties[party].asked(now, ask, (role, among_friends), &*view, move || match role {
            Role::Cheat(Adversary::InconsistentLiar | Adversary::Twin) => {
                Box::new(Inconsistent::new(case.trace(&basis, &words, place), seed))
            }
            _ => Box::new(case.trace(&basis, &words, place)),
        })
    }

    /// A party sends the moves that are due.
    pub(super) fn play(&mut self, party: usize) -> Held {
        let role = self.parties[party].role;
        let (moves, next) = self.parties[party].table.due(self.now, role);
        for signed in moves {
            let Some(session) = self.parties[party].session else {
                continue;
            };
            for at in self.network.arrivals(self.now, party, true) {
                self.at(at, Event::Up(party, session, Up::Move(Arc::clone(&signed))));
            }
        }
        if let Some(next) = next {
            self.at(next, Event::Play(party));
        }
        Ok(())
    }
}

/// A piece of a run as a coordinator's session passes it on: roots and words together, as far as they have come.
fn heard((node, job, epoch): (NodeId, JobId, LeaseEpoch), said: Vec<Said>) -> Vec<Task> {
    let mut inputs: Vec<Input> = Vec::new();
    for said in said {
        match (alone((node, job, epoch), said), inputs.last_mut()) {
            (Input::Streamed { said: more, .. }, Some(Input::Streamed { said, .. })) => said.extend(more),
            (input, _) => inputs.push(input),
        }
    }
    inputs.into_iter().map(Task::Machine).collect()
}

/// What is passed on by itself.
fn alone((node, job, epoch): (NodeId, JobId, LeaseEpoch), said: Said) -> Input {
    match said {
        Said::Root(place, root) => Input::Streamed { node, job, epoch, said: vec![Streamed::Root(place, root)] },
        Said::Word(word, logprobs) => Input::Streamed { node, job, epoch, said: vec![Streamed::Word(word, logprobs)] },
        Said::Began => Input::Began { node, job, epoch },
        Said::Committed(commitment) => Input::Committed { node, job, epoch, commitment },
        Said::HandedOver(signed) => Input::HandedOver { node, job, epoch, signed },
        Said::Proof(proof) => Input::Proof { node, job, epoch, proof },
        Said::Ended(saturations) => Input::StageEnded { node, job, epoch, saturations },
        Said::Segment(signed) => Input::Segment { node, job, epoch, signed },
        Said::GivenBack(code) => Input::Failed { node, job, epoch, code, reason: String::new() },
        Said::Waits => Input::Heartbeat { node },
    }
}
