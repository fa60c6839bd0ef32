//! The coordinator in the simulation: the real machines in memory, and what its shell does between them.
//!
//! As in the shell, an input becomes a step: what to write, and what to do once that is durable. The world decides whether
//! the coordinator lives to do it.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use lockstep_protocol::dispute::{
    self, DisputeId, Docket, DocketError, Recompute, SignedEntry, SignedMove, Terms, Verdict, What,
};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Digest, JobId, Millis, NodeId};
use lockstep_protocol::limits::DEFAULT_GRANTS_PER_HOUR;
use lockstep_protocol::machine::{Action, Config, DrawSecret, Input, Machine, Output, audit_draw, lockstep_draw};

use super::Broken;
use super::crew::footprint;
use super::job::Jobs;
use super::party::Down;
use super::store::{Batch, Store};
use crate::models;

/// Credits that a party starts with: many bonds.
const GRANT: u64 = 1_000_000_000;

/// Something that the coordinator has to take in.
#[derive(Clone, Debug)]
pub enum Task {
    /// For the job machine.
    Machine(Input),
    /// For the referee of a dispute.
    Move(Arc<SignedMove>),
    /// A dispute is to be opened, or gone on with.
    Open(Box<Terms>),
    /// The referee's element is computed.
    Recomputed(DisputeId, i64),
    /// A party connected: it is asked again what it was asked.
    Ask(NodeId),
    /// A dispute of a party is over: it may have been there only for that.
    Dismiss(NodeId),
    /// Time went on.
    Tick,
}

/// Something to do once what is before it is durable.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Tell a party, if it has a session.
    Send(NodeId, Down),
    /// Go on with this.
    Then(Task),
    /// A job has ended, or its end was overturned.
    Ended(Box<Action>),
    /// A challenge is refused.
    Refused(Box<Action>),
    /// A move is refused.
    RefusedMove,
}

impl Effect {
    /// The end of a job.
    pub fn ended(&self) -> Option<&Action> {
        match self {
            Self::Ended(action) => Some(action),
            _ => None,
        }
    }
}

/// What one task comes to.
#[derive(Debug, Default)]
pub struct Step {
    /// To be written in one transaction.
    pub batch: Batch,
    /// To be done after that, in order.
    pub effects: Vec<Effect>,
}

/// What the coordinator holds in memory.
pub struct Coordinator {
    machine: Machine,
    docket: Docket,
    /// What is public anyway: jobs, and the dispute views that follow from manifests.
    jobs: Rc<Jobs>,
    draws: u64,
    /// What is to be taken in next.
    pub tasks: VecDeque<Task>,
    /// The session of each connected party, as far as the coordinator knows.
    pub sessions: BTreeMap<NodeId, u64>,
}

impl Coordinator {
    /// A coordinator over what is stored, and its first step.
    ///
    /// # Errors
    /// The store is not what the machines wrote.
    pub fn start(keys: Keypair, store: &Store, jobs: Rc<Jobs>, now: Millis) -> Result<(Self, Step), Broken> {
        let config = Config { coordinator: keys.id(), grant: GRANT, grants_per_hour: DEFAULT_GRANTS_PER_HOUR };
        let (records, ledger) = (store.records()?, store.ledger()?);
        let mut machine = Machine::restore(config, records, store.last_epoch(), ledger)
            .map_err(|error| Broken::new(format!("the job machine does not start again: {error}")))?;
        if jobs.are_shared {
            models::every().for_each(|package| machine.know(package.model_id(), footprint(package)));
        }
        let docket = Docket::new(keys);
        let (tasks, sessions) = (VecDeque::new(), BTreeMap::new());
        let mut coordinator = Self { machine, docket, jobs, draws: 0, tasks, sessions };
        let mut step = Step::default();
        coordinator.restore_disputes(store, now, &mut step)?;
        let output = coordinator.machine.resume(now);
        coordinator.plan(output, &mut step);
        Ok((coordinator, step))
    }

    /// Goes on with the disputes that were not over; its own downtime is charged to nobody.
    fn restore_disputes(&mut self, store: &Store, now: Millis, step: &mut Step) -> Result<(), Broken> {
        let down_ms = now.since(store.alive);
        for entries in store.open_transcripts()? {
            let terms = dispute::transcript::terms(&entries).map_err(|error| Broken::new(error.to_string()))?;
            let view = self.jobs.view_of(terms)?;
            let restored = self.docket.restore(now, down_ms, entries, view);
            let (id, out) =
                restored.map_err(|error| Broken::new(format!("a stored dispute is no transcript: {error}")))?;
            self.plan_dispute(id, out, step);
        }
        Ok(())
    }

    /// Takes something in.
    ///
    /// # Errors
    /// The docket refuses what the job machine asks for.
    pub fn take(&mut self, now: Millis, task: Task) -> Result<Step, Broken> {
        let mut step = Step::default();
        match task {
            Task::Machine(input) => {
                let output = self.machine.handle(now, input);
                self.plan(output, &mut step);
            }
            Task::Move(signed) => {
                let id = signed.made.dispute;
                if let Some(out) = self.docket.handle(now, id, dispute::Input::Move((*signed).clone())) {
                    self.plan_dispute(id, out, &mut step);
                }
            }
            Task::Open(terms) => self.open(now, *terms, &mut step)?,
            Task::Recomputed(id, value) => {
                if let Some(out) = self.docket.handle(now, id, dispute::Input::Recomputed { value }) {
                    self.plan_dispute(id, out, &mut step);
                }
            }
            Task::Ask(node) => self.ask_again(&node, &mut step),
            Task::Dismiss(node) => {
                let is_worker = self.machine.workers().any(|worker| worker.node == node);
                if !is_worker && self.docket.of_key(&node).next().is_none() {
                    step.effects.push(Effect::Send(node, Down::Close));
                }
            }
            Task::Tick => {
                let output = self.machine.handle(now, Input::Tick);
                self.plan(output, &mut step);
                for (id, out) in self.docket.tick(now) {
                    self.plan_dispute(id, out, &mut step);
                }
                step.batch.alive = Some(now);
            }
        }
        Ok(step)
    }

    fn open(&mut self, now: Millis, terms: Terms, step: &mut Step) -> Result<(), Broken> {
        let view = self.jobs.view_of(&terms)?;
        match self.docket.open(now, terms.clone(), view, None) {
            Ok((id, out)) => {
                self.plan_dispute(id, out, step);
                Ok(())
            }
            Err(DocketError::Full) => {
                step.effects.push(Effect::Then(Task::Open(Box::new(terms))));
                Ok(())
            }
            Err(error) => Err(Broken::new(format!("the docket refuses a dispute: {error}"))),
        }
    }

    /// Says to a party again what it is asked in its disputes.
    fn ask_again(&mut self, node: &NodeId, step: &mut Step) {
        let mut asks = Vec::new();
        for referee in self.docket.of_key(node) {
            for action in referee.asks() {
                if let dispute::Action::Ask { side, .. } = action
                    && referee.terms().key(side) == *node
                {
                    asks.push(self.ask(referee, side));
                }
            }
        }
        step.effects.extend(asks);
    }

    fn ask(&self, referee: &dispute::Referee, side: dispute::Side) -> Effect {
        let job = self.jobs.get(&referee.terms().job_id());
        let ask = referee.ask((*job.spec.job).clone(), side);
        Effect::Send(referee.terms().key(side), Down::Ask(Arc::new(ask)))
    }

    /// Takes an output of a referee apart.
    fn plan_dispute(&mut self, id: DisputeId, out: dispute::Output, step: &mut Step) {
        let Some(referee) = self.docket.get(&id) else {
            return;
        };
        let told =
            |entry: SignedEntry, side| Effect::Send(referee.terms().key(side), Down::Acknowledged(Arc::new(entry)));
        for entry in out.entries {
            if let What::Moved { side, .. } = entry.entry.what {
                step.effects.push(told(entry.clone(), side));
            }
            step.batch.entries.push(entry);
        }
        for action in out.actions {
            match action {
                dispute::Action::Ask { side, .. } => {
                    let ask = self.ask(referee, side);
                    step.effects.push(ask);
                }
                dispute::Action::Repeated { side, entry } => step.effects.push(told(*entry, side)),
                dispute::Action::Recompute(element) => {
                    let value = self.recompute(referee.terms(), &element);
                    step.effects.push(Effect::Then(Task::Recomputed(id, value)));
                }
                dispute::Action::Refuse { .. } => step.effects.push(Effect::RefusedMove),
                dispute::Action::Ended(verdict) => {
                    let (terms, job) = (referee.terms(), referee.terms().job_id());
                    for side in dispute::Side::BOTH {
                        step.effects.push(Effect::Send(terms.key(side), Down::Judged(id)));
                    }
                    let judged = Input::Judged { job, dispute: id, verdict: Box::new(verdict) };
                    step.effects.push(Effect::Then(Task::Machine(judged)));
                    let sides = dispute::Side::BOTH.map(|side| Effect::Then(Task::Dismiss(terms.key(side))));
                    step.effects.extend(sides);
                }
            }
        }
    }

    fn recompute(&self, terms: &Terms, element: &Recompute) -> i64 {
        let view = self.jobs.view_of(terms).expect("the dispute was opened with it");
        view.recompute(element)
    }

    /// When the clock is to go on at the latest.
    pub fn next_wake(&self) -> Option<Millis> {
        self.machine.next_wake().into_iter().chain(self.docket.next_wake()).min()
    }

    /// The job machine, to check.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Of a dispute that it has at hand, the verdict if there is one; to check.
    pub fn verdict(&self, dispute: &DisputeId) -> Option<Option<Verdict>> {
        self.docket.get(dispute).map(dispute::Referee::verdict)
    }

    /// Takes an output of the job machine apart, as the engine does.
    fn plan(&mut self, output: Output, step: &mut Step) {
        step.batch.records.extend(output.records);
        step.batch.postings.extend(output.postings);
        for action in output.actions {
            self.plan_action(action, step);
        }
    }

    fn plan_action(&mut self, action: Action, step: &mut Step) {
        let effect = match action {
            Action::RefuseWorker { node, .. } | Action::Quarantine { node, .. } | Action::SetAside { node, .. } => {
                // Whoever is turned away may stay for as long as it has a dispute to play.
                if self.docket.of_key(&node).next().is_some() {
                    return;
                }
                Effect::Send(node, Down::Close)
            }
            Action::Rejected { node, .. } | Action::Disconnect { node } => Effect::Send(node, Down::Close),
            Action::Assign { node, epoch, job, hint } => Effect::Send(node, Down::Assign(epoch, job.id(), hint)),
            Action::AssignStage { node, epoch, job, hint, crew } => {
                Effect::Send(node, Down::AssignStage(epoch, job.id(), hint, crew))
            }
            // What they are shown is what they streamed: the shell's worker compares it.
            Action::Countersign { node, job, epoch, saturations: Some(_), .. } => {
                Effect::Send(node, Down::Countersign(job, epoch))
            }
            Action::Countersign { .. } => return,
            Action::Cancel { node, job, epoch } => Effect::Send(node, Down::Cancel(job, epoch)),
            Action::Reveal { node, job, epoch } => Effect::Send(node, Down::Reveal(job, epoch)),
            Action::Accepted { node, job, epoch } => Effect::Send(node, Down::Accepted(job, epoch)),
            Action::Halt { node, job, epoch, place } => Effect::Send(node, Down::Halt(job, epoch, place)),
            Action::NeedDraw { job, head, nonce } => {
                let draw = audit_draw(&self.secret(job), &head, &nonce);
                Effect::Then(Task::Machine(Input::Drawn { job, draw }))
            }
            Action::NeedLockstepDraw { job, nonce } => {
                let draw = lockstep_draw(&self.secret(job), job, &nonce);
                Effect::Then(Task::Machine(Input::Drawn { job, draw }))
            }
            Action::JobDone { .. } | Action::JobFailed { .. } | Action::Overturned { .. } => {
                Effect::Ended(Box::new(action))
            }
            Action::RefuseChallenge { .. } | Action::Unposted { .. } => Effect::Refused(Box::new(action)),
            Action::OpenDispute { terms, .. } => Effect::Then(Task::Open(terms)),
            Action::Submitted { .. }
            | Action::AlreadyKnown { .. }
            | Action::RefuseJob { .. }
            | Action::ChallengeWaits { .. }
            | Action::Deserted { .. }
            | Action::Committed { .. }
            | Action::Token { .. }
            | Action::Diverged { .. }
            | Action::Mismatch { .. } => return,
        };
        step.effects.push(effect);
    }

    /// The secret of the next draw. That secrets come from a chain is the shell's affair.
    fn secret(&mut self, job: JobId) -> DrawSecret {
        self.draws += 1;
        DrawSecret { number: self.draws, secret: Digest::from_bytes(*job.as_bytes()) }
    }
}
