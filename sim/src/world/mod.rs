//! One world: from its seed alone to its last verdict, with the properties checked after every step.
//!
//! | file | what it owns |
//! |---|---|
//! | `job.rs`, `cast.rs`, `perform.rs` | what is to be computed, who is there, and what each claims |
//! | `party.rs`, `table.rs` | a worker: its runs, and how it plays its disputes |
//! | `wire.rs` | sessions, and what both sides do with what they hear |
//! | `challenge.rs` | what parties do about the end of a job |
//! | `fault.rs` | runs that are taken back |
//! | `crew.rs` | models that two parties share |
//! | `coordinator.rs`, `store.rs` | the coordinator: machines in memory, and what survives a crash |
//! | `log.rs` | the transparency log, and somebody who watches it |
//! | `check.rs` | the properties |

mod cast;
mod challenge;
mod check;
mod coordinator;
mod crew;
mod fault;
mod job;
mod log;
mod party;
mod perform;
mod store;
mod table;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::rc::Rc;

use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{JobId, LeaseEpoch, Millis};
use lockstep_protocol::limits::TICK_MS;
use lockstep_protocol::machine::Input;

use self::challenge::Answer;
use self::check::Check;
use self::coordinator::{Coordinator, Effect, Step, Task};
use self::crew::CrewRun;
use self::job::Jobs;
use self::party::{Down, Party, Up};
use self::store::Store;
use crate::adversary::Adversary;
use crate::network::{Network, Weather};
use crate::random::Random;
use crate::report::Counts;

/// A property that does not hold in a world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Whether it is a verdict that is wrong.
    pub wrong_verdict: bool,
    /// What happened.
    pub what: String,
}

impl Broken {
    fn new(what: impl Into<String>) -> Self {
        Self { wrong_verdict: false, what: what.into() }
    }

    fn verdict(what: impl Into<String>) -> Self {
        Self { wrong_verdict: true, what: what.into() }
    }
}

/// Result of a step.
type Held = Result<(), Broken>;

/// The fate of a step in which the coordinator does not crash.
const LIVES: usize = 3;
/// Worlds end long before this, or never.
const LONGEST_WORLD_MS: u64 = 24 * 60 * 60 * 1_000;
/// And after fewer events than this.
const MOST_EVENTS: u64 = 2_000_000;
/// Between two attempts of a party to connect.
const CONNECT_MS: u64 = 1_500;
/// Whoever chains sham challenges comes again after so long.
const SHAM_MS: u64 = 500;
/// A party that was turned away comes again after so long.
const TURNED_AWAY_MS: u64 = 60_000;

/// Something that happens at a time.
#[derive(Clone, Debug)]
enum Event {
    /// A message reaches the coordinator, in a session.
    Up(usize, u64, Up),
    /// A message reaches a party, in a session.
    Down(usize, u64, Down),
    /// A party is there (again), and connects.
    Join(usize),
    /// A party sends the moves that are due.
    Play(usize),
    /// A party looks at the end of a job, and may challenge it.
    Challenge(usize, JobId),
    /// A party looks at a run of its own, and may take it back.
    Notice(usize, JobId, LeaseEpoch),
    /// The clock of the coordinator's so many-th life goes on.
    Tick(u64),
    /// The coordinator is there again.
    Restart,
}

/// A world.
struct World {
    now: Millis,
    events: BTreeMap<(Millis, u64), Event>,
    /// Events so far: two of one time happen in the order in which they came up.
    order: u64,
    seed: u64,
    random: Random,
    weather: Weather,
    network: Network,
    jobs: Rc<Jobs>,
    /// Whether models are shared, and the runs of those who share one.
    is_shared: bool,
    crews: BTreeMap<(JobId, LeaseEpoch), Rc<CrewRun>>,
    parties: Vec<Party>,
    /// The coordinator's.
    keys: Keypair,
    coordinator: Option<Coordinator>,
    store: Store,
    /// Sessions so far.
    sessions: u64,
    /// How often the coordinator started.
    lives: u64,
    /// Challenges that are still to be thought about.
    challenges: u64,
    /// The answer of each job that has ended with one.
    answers: BTreeMap<JobId, Answer>,
    direction: Direction,
    check: Check,
    counts: Counts,
}

/// What is not left to the seed: how tests show that a broken rule is noticed.
#[derive(Clone, Copy)]
struct Direction {
    /// Who cheats, if that is not drawn.
    first: Option<Adversary>,
    /// Whether models are shared, if that is not drawn.
    shared: Option<bool>,
    /// Changes what the coordinator does before it is done.
    tamper: fn(&mut Step, &Keypair),
    /// Whether the coordinator hears a challenge of a run.
    hears: fn(&Coordinator, &JobId) -> bool,
    /// Who runs a party, as the coordinator's list has it.
    list: fn(Option<&str>, usize) -> Option<String>,
}

impl Default for Direction {
    fn default() -> Self {
        let list = |operator: Option<&str>, _| operator.map(str::to_owned);
        Self { first: None, shared: None, tamper: |_, _| {}, hears: |_, _| true, list }
    }
}

/// Runs the world of a seed.
pub fn run(seed: u64) -> (Counts, Option<Broken>) {
    run_directed(seed, Direction::default())
}

fn run_directed(seed: u64, direction: Direction) -> (Counts, Option<Broken>) {
    let mut world = World::new(seed, direction);
    let broken = world.live().err();
    (world.finish(), broken)
}

impl World {
    fn new(seed: u64, direction: Direction) -> Self {
        let mut random = Random::new("world", seed);
        let weather = Weather::draw(&mut random);
        let is_drawn = Random::new("shared", seed).per_mille(crew::SHARED_PER_MILLE);
        let is_shared = direction.shared.unwrap_or(is_drawn && direction.first.is_none());
        let cast = if is_shared { cast::draw_crews(&mut random) } else { cast::draw(&mut random, direction.first) };
        let jobs = Rc::new(Jobs::draw(seed, &cast, is_shared));
        let parties: Vec<_> = cast.iter().enumerate().map(|(i, member)| Party::new(seed, i, *member)).collect();
        let mut world = Self {
            now: Millis(1_000_000),
            events: BTreeMap::new(),
            order: 0,
            seed,
            random,
            weather,
            network: Network::new(seed, weather),
            jobs,
            is_shared,
            crews: BTreeMap::new(),
            parties,
            keys: Keypair::from_seed(Random::new("coordinator", seed).bytes32()),
            coordinator: None,
            store: Store::default(),
            sessions: 0,
            lives: 0,
            challenges: 0,
            answers: BTreeMap::new(),
            direction,
            check: Check::default(),
            counts: Counts::default(),
        };
        world.at(Millis(1_000_000), Event::Restart);
        for party in 0..world.parties.len() {
            let after = world.random.within(1..=2_000);
            world.after(after, Event::Join(party));
        }
        world
    }

    fn at(&mut self, time: Millis, event: Event) {
        self.order += 1;
        self.events.insert((time.max(self.now), self.order), event);
    }

    fn after(&mut self, milliseconds: u64, event: Event) {
        self.at(self.now.plus(milliseconds), event);
    }

    /// Lets things happen until nothing is left to be decided.
    fn live(&mut self) -> Held {
        let first = self.now;
        while !self.is_over() {
            let Some(((at, _), event)) = self.events.pop_first() else {
                return Err(Broken::new("nothing happens any more, and the jobs have not ended"));
            };
            if at.since(first) > LONGEST_WORLD_MS || self.order > MOST_EVENTS {
                return Err(Broken::new("the jobs do not end"));
            }
            self.now = at;
            self.happen(event)?;
        }
        self.check.end(self.now, &self.jobs, &self.parties, &self.store, &mut self.counts)
    }

    fn is_over(&self) -> bool {
        self.store.ended.len() == self.jobs.iter().count() && self.challenges == 0 && self.store.is_settled()
    }

    fn happen(&mut self, event: Event) -> Held {
        match event {
            Event::Up(party, session, up) => self.hear(party, session, up),
            Event::Down(party, session, down) => {
                if self.parties[party].session == Some(session) {
                    self.tell(party, down)?;
                }
                Ok(())
            }
            Event::Join(party) => self.join(party),
            Event::Play(party) => self.play(party),
            Event::Challenge(party, job) => self.challenge(party, job),
            Event::Notice(party, job, epoch) => self.notice(party, job, epoch),
            Event::Tick(life) => self.tick(life),
            Event::Restart => self.restart(),
        }
    }

    /// The coordinator starts, or starts again.
    fn restart(&mut self) -> Held {
        self.lives += 1;
        let (coordinator, step) = Coordinator::start(self.keys.clone(), &self.store, Rc::clone(&self.jobs), self.now)?;
        self.check.restarted(&coordinator)?;
        self.coordinator = Some(coordinator);
        self.execute(step)?;
        // Clients submit again what they heard nothing of.
        let specs: Vec<_> = self.jobs.iter().filter(|(id, _)| !self.store.ended.contains(id)).collect();
        let specs: Vec<_> = specs.into_iter().map(|(_, job)| Task::Machine(Input::Submit(job.spec.clone()))).collect();
        self.take(specs)?;
        self.tick(self.lives)
    }

    /// Time goes on for the coordinator. Parties that are connected have sent their heartbeats.
    fn tick(&mut self, life: u64) -> Held {
        if life != self.lives {
            return Ok(());
        }
        let Some(coordinator) = &self.coordinator else {
            return Ok(());
        };
        let heartbeats = coordinator.sessions.keys().map(|node| Task::Machine(Input::Heartbeat { node: *node }));
        let tasks = heartbeats.chain([Task::Tick]).collect();
        self.take(tasks)?;
        if let Some(coordinator) = &self.coordinator {
            let wake = coordinator.next_wake().unwrap_or(self.now.plus(TICK_MS));
            self.at(wake.max(self.now.plus(1)), Event::Tick(life));
        }
        Ok(())
    }

    /// Gives the coordinator tasks, and lets it work until it has none left, or crashes.
    fn take(&mut self, tasks: Vec<Task>) -> Held {
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.tasks.extend(tasks);
        }
        while let Some(coordinator) = &mut self.coordinator
            && let Some(task) = coordinator.tasks.pop_front()
        {
            let step = coordinator.take(self.now, task)?;
            self.execute(step)?;
        }
        Ok(())
    }

    /// Writes a step and acts on it, unless the coordinator crashes on the way.
    fn execute(&mut self, mut step: Step) -> Held {
        (self.direction.tamper)(&mut step, &self.keys);
        let crashes = !step.batch.is_empty() && self.random.per_mille(self.weather.coordinator_crash);
        let fate = if crashes { self.random.index(3) } else { LIVES };
        if fate == 0 {
            self.crash(fate);
            return Ok(());
        }
        self.store.write(&step.batch)?;
        self.check.step(&step.batch, &self.parties, &self.jobs, &mut self.counts)?;
        // What a job ended with is written with its end, whatever becomes of the coordinator.
        for end in step.effects.iter().filter_map(Effect::ended) {
            self.check.ended(end, self.now, &self.jobs, &self.parties, &mut self.counts)?;
            self.note_end(end);
        }
        if let Some(coordinator) = &self.coordinator {
            self.check.books(coordinator.machine().ledger(), self.store.postings())?;
            self.check.log(&self.store.log, &self.keys, self.now)?;
        }
        let last = if fate == 2 { self.random.index(step.effects.len() + 1) } else { step.effects.len() };
        if fate != 1 {
            step.effects.into_iter().take(last).try_for_each(|effect| self.act(effect))?;
        }
        if fate != LIVES {
            self.crash(fate);
        }
        Ok(())
    }

    /// The coordinator is gone, with all that it had in memory; so are all connections.
    fn crash(&mut self, fate: usize) {
        self.network.faults.coordinator_crashes[fate] += 1;
        self.coordinator = None;
        for party in 0..self.parties.len() {
            let pause = self.random.within(50..=CONNECT_MS);
            self.hang_up(party, pause);
        }
        let down = if self.random.per_mille(100) {
            self.random.within(10_000..=600_000)
        } else {
            self.random.within(100..=5_000)
        };
        self.check.down(down);
        self.after(down, Event::Restart);
    }

    fn act(&mut self, effect: Effect) -> Held {
        match effect {
            Effect::Then(task) => {
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.tasks.push_back(task);
                }
                Ok(())
            }
            Effect::Send(node, down) => self.send(node, down),
            Effect::Refused(action) => self.refused(*action),
            Effect::RefusedMove => {
                self.counts.refused += 1;
                Ok(())
            }
            Effect::Ended(_) => Ok(()),
        }
    }

    fn finish(mut self) -> Counts {
        self.counts.postings = self.store.postings() as u64;
        self.counts.log_entries = self.store.log.size();
        self.counts.faults = self.network.faults;
        self.counts
    }
}
