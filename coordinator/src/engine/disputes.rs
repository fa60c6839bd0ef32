//! Disputes beside the job machine: moves in, signed entries to the store, verdicts back to the machine.
//!
//! A move's entry is written, in one transaction with everything that follows from it, before anybody hears of it: only
//! then is the side that moved acknowledged, the other one asked, and a loser punished.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lockstep_model::dispute::{Disputable, LayerCase, Report};
use lockstep_model::package::Manifest;
use lockstep_protocol::canonical::to_bytes;
use lockstep_protocol::dispute::{
    Action, Docket, DocketError, Input as Happened, Output, Reason, Side, SignedEntry, SignedMove, Terms, Verdict, What,
};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{DisputeId, JobId, Millis, NodeId, Place};
use lockstep_protocol::job::Job;
use lockstep_protocol::limits::{
    ASK_AGAIN_MS, DISPUTE_HEARTBEAT_MS, MAX_DISPUTES, MAX_TOLD_VERDICTS, STALL_MS, TICK_MS,
};
use lockstep_protocol::machine::Input;
use lockstep_protocol::messages::RefusalCode;
use lockstep_protocol::receipt::Receipt;
use tokio::sync::oneshot;

use super::effects::{Effect, Step};
use super::show::{disputed_element, narrowed, phase_name};
use super::{Down, Engine};
use crate::events::{Event, Narrowed};
use crate::store::{DisputeEntry, JudgedDispute, OpenDispute, Stored, Write};

/// How a move went.
#[derive(Clone, Debug)]
pub enum MoveOutcome {
    /// It is kept: the coordinator's entry about it.
    Kept(Box<SignedEntry>),
    /// There is no such dispute, or it has ended.
    NoDispute,
    /// It is no move that may be made now.
    Refused(String),
}

/// Who waits to hear how a move went.
pub type MoveReply = oneshot::Sender<MoveOutcome>;

/// Where a dispute stands, to show.
#[derive(Clone, Debug)]
pub struct DisputeStatus {
    /// What is looked for: `row`, `ops`, `chunk`, `reveal`, `open` or `recompute`.
    pub stage: &'static str,
    /// The round that is being played, from 0.
    pub round: u16,
    /// What is in dispute.
    pub narrowed: Narrowed,
}

/// The disputes that are being played.
#[derive(Debug)]
pub struct Disputes {
    docket: Docket,
    played: BTreeMap<DisputeId, Played>,
    /// Those that wait until there is room for them.
    waiting: VecDeque<(JobId, Terms)>,
    /// Those whose opening is on its way to the disk; what was opened before, the store knows.
    opening: BTreeSet<DisputeId>,
    /// Those that ended last, oldest first: who was not there is told when it comes again.
    judged: VecDeque<JudgedDispute>,
    /// Why those that are only there to play get no job.
    pub(super) turned_away: BTreeMap<NodeId, RefusalCode>,
    /// When the sides whose clocks run were last asked again.
    asked: Millis,
    /// When it was last written down that the coordinator runs.
    alive: Millis,
    /// When the clocks were last looked at.
    looked: Millis,
}

/// What is kept of a dispute beside its referee.
#[derive(Debug)]
struct Played {
    model: Arc<Disputable>,
    case: Arc<LayerCase>,
    place: Place,
    job: Arc<Job>,
    /// What checking and recomputing took.
    micros: u64,
}

impl Played {
    fn new(model: Arc<Disputable>, terms: &Terms, job: Arc<Job>) -> Result<Self, String> {
        let case = model.case_of(terms).map_err(|error| error.to_string())?;
        Ok(Self { model, place: case.place(), case: Arc::new(case), job, micros: 0 })
    }

    fn spent(&mut self, since: Duration) {
        let micros = u64::try_from(thread_time().saturating_sub(since).as_micros()).unwrap_or(u64::MAX);
        self.micros = self.micros.saturating_add(micros);
    }
}

/// Processor time of this thread: what others do on the machine meanwhile is not the referee's.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

impl Disputes {
    /// None that is played yet.
    pub(super) fn new(keys: Keypair, now: Millis, judged: Vec<JudgedDispute>) -> Self {
        let (played, waiting, opening, turned_away) = Default::default();
        let (docket, judged, alive) = (Docket::new(keys), judged.into(), Millis(0));
        Self { docket, played, waiting, opening, judged, turned_away, asked: now, alive, looked: now }
    }

    /// A dispute's opening is durable.
    pub(super) fn is_kept(&mut self, dispute: &DisputeId) {
        self.opening.remove(dispute);
    }

    /// Whether a dispute is played, or will be when there is room.
    pub(super) fn is_under_way(&self, dispute: &DisputeId) -> bool {
        self.played.contains_key(dispute) || self.waiting.iter().any(|(_, terms)| terms.id() == *dispute)
    }

    /// Where a dispute stands; `None` where it is not being played.
    pub fn status(&self, dispute: &DisputeId) -> Option<DisputeStatus> {
        let (referee, played) = (self.docket.get(dispute)?, self.played.get(dispute)?);
        let narrowed = narrowed(referee, &played.case, played.place);
        Some(DisputeStatus { stage: phase_name(referee.phase()), round: referee.round(), narrowed })
    }

    /// Whether a key plays.
    pub(super) fn has(&self, node: &NodeId) -> bool {
        self.docket.of_key(node).next().is_some()
    }

    /// When the clocks want to be looked at.
    pub(super) fn next_wake(&self) -> Option<Millis> {
        let heartbeat = (!self.played.is_empty()).then(|| self.looked.plus(TICK_MS));
        self.docket.next_wake().into_iter().chain(heartbeat).min()
    }
}

impl Engine {
    /// Goes on with the disputes that were being played when the coordinator went down. The time since then is charged
    /// to nobody.
    pub(super) fn resume_disputes(&mut self, open: Vec<OpenDispute>, alive: Millis, step: &mut Step) {
        let now = self.clock.now();
        for OpenDispute { row, entries, manifest } in open {
            let last = entries.last().map_or(now, |signed| signed.entry.at);
            let down = now.since(alive.max(last));
            if let Err(error) = self.resume_dispute(row.job, entries, &manifest, down, step) {
                tracing::error!(dispute = %row.dispute, error, "a dispute can't be gone on with");
            }
        }
    }

    fn resume_dispute(
        &mut self,
        job: JobId,
        entries: Vec<SignedEntry>,
        manifest: &[u8],
        down: u64,
        step: &mut Step,
    ) -> Result<(), String> {
        let Some(What::Opened(terms)) = entries.first().map(|signed| &signed.entry.what) else {
            return Err("its transcript does not begin".to_owned());
        };
        let job = self.job_of(job).ok_or("its job is not in the store")?;
        let manifest = Manifest::parse(manifest).map_err(|error| error.to_string())?;
        let model = Disputable::of(&manifest).map_err(|error| error.to_string())?;
        let played = Played::new(Arc::new(model), terms, job)?;
        let now = self.clock.now();
        let restored = self.disputes.docket.restore(now, down, entries, Arc::clone(&played.case) as _);
        let (dispute, output) = restored.map_err(|error| error.to_string())?;
        self.disputes.played.insert(dispute, played);
        self.follow(dispute, output, &mut None, step);
        Ok(())
    }

    /// A job with its tokens: of what is unfinished, or from the receipt of what has ended.
    fn job_of(&self, job: JobId) -> Option<Arc<Job>> {
        if let Some(live) = self.jobs.get(&job) {
            return Some(Arc::clone(&live.spec.job));
        }
        match self.store.job(&job) {
            Ok(Some(Stored::Done(json))) => Some(Arc::new(Receipt::from_json(&json).ok()?.job)),
            _ => None,
        }
    }

    /// Opens a dispute, unless it is being played already; where too many are, it waits for its turn.
    pub(super) fn open_dispute(&mut self, job: JobId, terms: Terms, step: &mut Step) {
        let dispute = terms.id();
        if self.disputes.played.contains_key(&dispute) {
            return;
        }
        match self.try_open(job, terms.clone(), step) {
            Ok(()) => {}
            Err(Unopened::Full) => self.disputes.waiting.push_back((job, terms)),
            Err(Unopened::Never(error)) => {
                tracing::error!(%job, %dispute, error, "a dispute can't be opened: nobody is found wrong");
                let place = terms.check().map_or(Place { point: 0, layer: 1 }, |ground| ground.place);
                let verdict = undecided(place);
                self.input(Input::Judged { job, dispute, verdict: Box::new(verdict) }, None, step);
            }
        }
    }

    fn try_open(&mut self, job: JobId, terms: Terms, step: &mut Step) -> Result<(), Unopened> {
        let never = |error: &str| Unopened::Never(error.to_owned());
        let dispute = terms.id();
        // Its transcript begins once.
        match self.store.dispute_terms(&dispute) {
            Ok(None) if !self.disputes.opening.contains(&dispute) => {}
            Ok(_) => return Err(never("it was opened before")),
            Err(error) => return Err(Unopened::Never(error.to_string())),
        }
        let model = self.models.of_job(&terms.job.model).ok_or_else(|| never("its model is not there any more"))?;
        let model = Arc::clone(model.disputable());
        let tokens = self.job_of(job).ok_or_else(|| never("its job is not there any more"))?;
        let started = thread_time();
        let played = Played::new(model, &terms, tokens);
        let mut played = played.map_err(Unopened::Never)?;
        let place = played.place;
        let [claimant, challenger] = Side::BOTH.map(|side| terms.key(side));
        let now = self.clock.now();
        let (dispute, output) = match self.disputes.docket.open(now, terms, Arc::clone(&played.case) as _, None) {
            Ok(opened) => opened,
            Err(DocketError::Full) => return Err(Unopened::Full),
            Err(error) => return Err(Unopened::Never(error.to_string())),
        };
        played.spent(started);
        if self.disputes.played.is_empty() {
            self.disputes.looked = now;
        }
        self.disputes.played.insert(dispute, played);
        self.disputes.opening.insert(dispute);
        step.effects.push(Effect::Opened(dispute));
        step.effects.push(Effect::Emit(Event::DisputeOpened { dispute, job, place, claimant, challenger }));
        self.follow(dispute, output, &mut None, step);
        Ok(())
    }

    /// A move: without a reply from the session of the key that signed it, with one from whoever brings it.
    pub(super) fn make_move(&mut self, signed: SignedMove, reply: Option<MoveReply>, step: &mut Step) {
        let dispute = signed.made.dispute;
        if self.disputes.played.contains_key(&dispute) {
            self.referee(dispute, Happened::Move(signed), reply, step);
        } else {
            tracing::debug!(%dispute, "a move in no dispute that is being played");
            step.effects.extend(reply.map(|reply| Effect::MoveMade(reply, MoveOutcome::NoDispute)));
        }
    }

    /// Lets the clocks of all disputes go on. Where the coordinator itself stood still, that is charged to nobody.
    pub(super) fn tick_disputes(&mut self, step: &mut Step) {
        if self.disputes.played.is_empty() {
            return;
        }
        let now = self.clock.now();
        let gap = now.since(self.disputes.looked);
        self.disputes.looked = now;
        if gap > STALL_MS {
            for (dispute, output) in self.disputes.docket.downtime(now, gap - TICK_MS) {
                self.follow(dispute, output, &mut None, step);
            }
        }
        for (dispute, output) in self.disputes.docket.tick(now) {
            self.follow(dispute, output, &mut None, step);
        }
        if now.since(self.disputes.asked) >= ASK_AGAIN_MS {
            self.disputes.asked = now;
            let sides: BTreeSet<_> =
                self.disputes.docket.open_cases().flat_map(|referee| players(referee.terms())).collect();
            sides.iter().for_each(|node| self.ask_again(node, step));
        }
        if now.since(self.disputes.alive) >= DISPUTE_HEARTBEAT_MS {
            self.disputes.alive = now;
            step.writes.push(Write::Alive(now));
        }
    }

    fn referee(&mut self, dispute: DisputeId, what: Happened, mut reply: Option<MoveReply>, step: &mut Step) {
        let (now, started) = (self.clock.now(), thread_time());
        let output = self.disputes.docket.handle(now, dispute, what);
        if let Some(played) = self.disputes.played.get_mut(&dispute) {
            played.spent(started);
        }
        self.follow(dispute, output.unwrap_or_default(), &mut reply, step);
        // A side whose illegal moves are not even answered any more.
        let ignored = MoveOutcome::Refused("too many moves of this side were refused".to_owned());
        step.effects.extend(reply.map(|reply| Effect::MoveMade(reply, ignored)));
    }

    /// From the referee's output to what is written, and what is done once it is durable.
    fn follow(&mut self, dispute: DisputeId, output: Output, reply: &mut Option<MoveReply>, step: &mut Step) {
        for entry in output.entries {
            self.note_entry(dispute, entry, reply, step);
        }
        for action in output.actions {
            self.dispute_action(dispute, action, reply, step);
        }
    }

    /// An entry on its way into the store.
    fn note_entry(&mut self, dispute: DisputeId, entry: SignedEntry, reply: &mut Option<MoveReply>, step: &mut Step) {
        let disputes = &self.disputes;
        let (Some(referee), Some(played)) = (disputes.docket.get(&dispute), disputes.played.get(&dispute)) else {
            return;
        };
        let terms = referee.terms();
        let (mut shows_tokens, mut acknowledged) = (false, None);
        match &entry.entry.what {
            What::Moved { side, signed } => {
                // Only the steps of layer 1 read tokens. Once the row is known, frontiers, chunks and openings follow
                // from few of them, which can be guessed.
                shows_tokens = played.place.layer == 1 && referee.chunk().is_some();
                let bytes = to_bytes(signed).len() as u64;
                step.effects.push(Effect::Emit(Event::DisputeMoved {
                    dispute,
                    round: signed.made.round,
                    node: terms.key(*side),
                    claimant: *side == Side::Claimant,
                    stage: signed.made.body.name(),
                    narrowed: narrowed(referee, &played.case, played.place),
                    bytes,
                }));
                acknowledged = Some(terms.key(*side));
            }
            What::Notice { side } => {
                step.effects.push(Effect::Emit(Event::DisputeNotice { dispute, node: terms.key(*side) }));
            }
            What::Opened(_) | What::Credited { .. } | What::Verdict(_) => {}
        }
        let (job, model) = (terms.job_id(), terms.job.model);
        if let Some(node) = acknowledged {
            self.acknowledge(&node, &entry, reply, step);
        }
        step.writes.push(Write::Dispute(Box::new(DisputeEntry { job, model, shows_tokens, entry })));
    }

    /// Tells the side that moved, and whoever brought the move, that it is kept.
    fn acknowledge(&self, node: &NodeId, entry: &SignedEntry, reply: &mut Option<MoveReply>, step: &mut Step) {
        self.send(node, Down::Acknowledged(Box::new(entry.clone())), step);
        let kept = || MoveOutcome::Kept(Box::new(entry.clone()));
        step.effects.extend(reply.take().map(|reply| Effect::MoveMade(reply, kept())));
    }

    fn dispute_action(&mut self, dispute: DisputeId, action: Action, reply: &mut Option<MoveReply>, step: &mut Step) {
        let disputes = &self.disputes;
        let (Some(referee), Some(played)) = (disputes.docket.get(&dispute), disputes.played.get(&dispute)) else {
            return;
        };
        match action {
            Action::Ask { side, .. } => {
                let ask = Box::new(referee.ask((*played.job).clone(), side));
                self.send(&referee.terms().key(side), Down::Asked(ask), step);
            }
            // Only who brought it hears of it again: anybody can repeat a move that it has seen.
            Action::Repeated { side, entry } => match reply.take() {
                Some(reply) => step.effects.push(Effect::MoveMade(reply, MoveOutcome::Kept(entry))),
                None => self.send(&referee.terms().key(side), Down::Acknowledged(entry), step),
            },
            Action::Refuse { side, reason } => {
                let node = side.map(|side| referee.terms().key(side));
                tracing::debug!(%dispute, ?node, %reason, "a move is refused");
                let refused = MoveOutcome::Refused(reason.to_string());
                step.effects.extend(reply.take().map(|reply| Effect::MoveMade(reply, refused)));
            }
            Action::Recompute(asked) => {
                let started = thread_time();
                let value = played.case.recompute(&asked);
                if let Some(played) = self.disputes.played.get_mut(&dispute) {
                    played.spent(started);
                }
                self.referee(dispute, Happened::Recomputed { value }, None, step);
            }
            Action::Ended(verdict) => self.dispute_ended(dispute, verdict, step),
        }
    }

    /// A dispute has a verdict: the machine acts on it in the same transaction.
    fn dispute_ended(&mut self, dispute: DisputeId, verdict: Verdict, step: &mut Step) {
        let (Some(played), Some(referee)) = (self.disputes.played.remove(&dispute), self.disputes.docket.get(&dispute))
        else {
            return;
        };
        let (job, sides) = (referee.terms().job_id(), players(referee.terms()));
        let report = Report::of(&played.model, &played.case, referee.terms(), referee.entries(), verdict);
        let lost = sides.iter().zip(verdict.losers).filter(|(_, lost)| *lost);
        step.effects.push(Effect::Emit(Event::DisputeJudged {
            dispute,
            job,
            kind: verdict.kind,
            losers: lost.map(|(node, _)| *node).collect(),
            element: disputed_element(&report),
            rounds: report.rounds,
            referee_bytes: report.referee_bytes,
            referee_micros: played.micros,
        }));
        for node in &sides {
            self.send(node, Down::Judged(dispute, verdict), step);
        }
        self.disputes.judged.push_back(JudgedDispute { dispute, sides, verdict });
        if self.disputes.judged.len() > MAX_DISPUTES {
            self.disputes.judged.pop_front();
        }
        self.input(Input::Judged { job, dispute, verdict: Box::new(verdict) }, None, step);
        for node in &sides {
            self.dismiss(node, step);
        }
        for (job, terms) in std::mem::take(&mut self.disputes.waiting) {
            self.open_dispute(job, terms, step);
        }
    }

    /// Tells a worker that has come again how its last disputes ended: it may have heard of none.
    pub(super) fn tell_verdicts(&self, node: &NodeId, step: &mut Step) {
        let its = self.disputes.judged.iter().rev().filter(|judged| judged.sides.contains(node));
        for JudgedDispute { dispute, verdict, .. } in its.take(MAX_TOLD_VERDICTS) {
            self.send(node, Down::Judged(*dispute, *verdict), step);
        }
    }

    /// Asks a worker for the moves that are waited for: when it has come again, and while its clock runs.
    pub(super) fn ask_again(&self, node: &NodeId, step: &mut Step) {
        for referee in self.disputes.docket.of_key(node) {
            let Some(played) = self.disputes.played.get(&referee.id()) else {
                continue;
            };
            for action in referee.asks() {
                if let Action::Ask { side, .. } = action
                    && referee.terms().key(side) == *node
                {
                    let ask = Box::new(referee.ask((*played.job).clone(), side));
                    let peer = self.peers.get(node).map(Arc::clone);
                    step.effects.extend(peer.map(|peer| Effect::Ask(peer, Down::Asked(ask))));
                }
            }
        }
    }

    /// Turns a worker away that was only there to play, once it has nothing more to play.
    fn dismiss(&mut self, node: &NodeId, step: &mut Step) {
        let is_worker = self.machine.workers().any(|worker| worker.node == *node);
        if !is_worker && !self.disputes.has(node) && self.peers.contains_key(node) {
            let is_out = self.machine.quarantined().any(|out| out == node);
            let told = self.disputes.turned_away.remove(node);
            let code = if is_out { RefusalCode::Quarantined } else { told.unwrap_or(RefusalCode::Faulty) };
            self.refuse(node, code, step);
        }
    }
}

/// Why a dispute is not opened.
enum Unopened {
    /// Too many are played: later.
    Full,
    /// It never will be.
    Never(String),
}

/// The keys of both sides.
fn players(terms: &Terms) -> [NodeId; 2] {
    Side::BOTH.map(|side| terms.key(side))
}

/// What the machine is told of a dispute that could not be played: nobody lost it.
fn undecided(place: Place) -> Verdict {
    let (kind, reason) = (Reason::Silence.kind(), Reason::Silence);
    Verdict { kind, losers: [false; 2], place, chunk: None, step: None, element: None, reason }
}
