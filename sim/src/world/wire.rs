//! Between the coordinator and its parties: sessions that come and go, and what either side does with what it hears.

use std::sync::Arc;

use lockstep_model::package::Package;
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::machine::{Capabilities, Input};
use lockstep_protocol::messages::Ask;

use super::cast::Role;
use super::coordinator::Task;
use super::party::{Down, Up};
use super::{Broken, CONNECT_MS, Event, Held, TURNED_AWAY_MS, World};
use crate::adversary::{Adversary, Inconsistent};
use crate::models;
use crate::network::LONGEST_OUTAGE_MS;

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
            models: models::all().iter().map(Package::model_id).collect(),
            operator: None,
        };
        self.take(vec![Task::Machine(Input::WorkerJoined { node, capabilities }), Task::Ask(node)])
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

    /// Something reached a party.
    pub(super) fn tell(&mut self, party: usize, down: Down) -> Held {
        match down {
            Down::Assign(epoch, job) => {
                let up = self.parties[party].assigned(&job, epoch, &self.jobs);
                let runs = self.random.within(5..=3_000);
                self.send_up(party, runs, up)?;
            }
            Down::Cancel(job, epoch) | Down::Accepted(job, epoch) => self.parties[party].forget(job, epoch),
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
            Down::Judged(dispute) => self.parties[party].table.judged(dispute),
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
        let tasks = match up {
            Up::Stream { job, epoch, roots, commitment } => {
                let geometry = self.jobs.get(&job).geometry();
                let places = geometry.places().zip(roots);
                let root = |(place, root)| Input::LayerRoot { node, job, epoch, place, root };
                let began = Input::Began { node, job, epoch };
                let committed = Input::Committed { node, job, epoch, commitment };
                std::iter::once(began).chain(places.map(root)).chain([committed]).map(Task::Machine).collect()
            }
            Up::Result { job, epoch, result, salt } => {
                vec![Task::Machine(Input::Completed { node, job, epoch, result, salt })]
            }
            Up::Partial(partial) => vec![Task::Machine(Input::Partial { node, partial })],
            Up::Move(signed) => vec![Task::Move(signed)],
        };
        self.take(tasks)
    }

    /// A party takes a question in.
    pub(super) fn sit_down(&mut self, party: usize, ask: &Ask) -> Held {
        let job = ask.terms.job_id();
        let opponent = ask.terms.key(ask.side.other());
        let view = self.jobs.view_of(&ask.terms)?;
        let place = ask.terms.check().map_err(|error| Broken::new(error.to_string()))?.place;
        let role_of = |node: NodeId| self.parties.iter().find(|party| party.id() == node).map(|party| party.role);
        let role = self.parties[party].role;
        let among_friends = role_of(opponent) == Some(role);
        let (case, basis) = (self.jobs.get(&job).case, self.parties[party].claim(job, &self.jobs).basis.clone());
        let (now, seed) = (self.now, self.seed ^ party as u64);
        self.parties[party].asked(now, ask, among_friends, &*view, move || match role {
            Role::Cheat(Adversary::InconsistentLiar | Adversary::Twin) => {
                Box::new(Inconsistent::new(case.trace(&basis, place), seed))
            }
            _ => Box::new(case.trace(&basis, place)),
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
