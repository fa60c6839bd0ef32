//! Pipelines: a model too large for one worker, held by several, each with consecutive layers.
//!
//! They share one lease. The worker of the last layers leads: the lease and the receipt are in its name. Each one streams
//! the roots of its own layers; they are merged in stream order, and from there on the run is one like any other. Every
//! member holds a bond of its own, and answers for its own layers only: a dispute about a layer is played by whoever
//! signed for it, and the others lose nothing but their pay.
//!
//! What they hand over to each other is the affair of `rows`.
//!
//! # Who is lost
//! When a member goes, the lease ends for all. In the next one, those that are there keep their layers, so that nothing
//! has to be loaded anew, and somebody else takes the place that is free. The words that the client was told are the hint:
//! prompt and words are run together, and the text goes on.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Action, Machine, Output, Record, RejectReason};
use crate::hand_over::SignedHandOver;
use crate::ids::{JobId, LeaseEpoch, NodeId, Place, Root};
use crate::job::JobKind;
use crate::limits::{COUNTERSIGN_ROOTS, MAX_CREW};
use crate::logprobs::logprobs_root;
use crate::machine::entry::{Entry, Lease};
use crate::machine::table::Stage as JobStage;
use crate::machine::workers::{LeaseTimes, Worker};
use crate::messages::{JobResult, Stage};
use crate::receipt::SignedSegment;

/// What the parameters of a model take, layer by layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// For the embedding, each transformer layer and the output: the parameters that it reads, by number, with their
    /// bytes. What several layers read counts once for whoever has them.
    pub layers: Vec<Vec<(u16, u64)>>,
}

impl Footprint {
    /// Bytes of the parameters of some layers; the first one comes with the embedding.
    pub fn bytes(&self, first: u16, last: u16) -> u64 {
        let from = if first <= 1 { 0 } else { usize::from(first) };
        let layers = self.layers.get(from..=usize::from(last)).unwrap_or_default();
        let params: BTreeMap<u16, u64> = layers.iter().flatten().copied().collect();
        params.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// The number of the output layer.
    fn output(&self) -> u16 {
        u16::try_from(self.layers.len().saturating_sub(1)).unwrap_or(u16::MAX)
    }
}

/// One worker of a live pipeline.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub node: NodeId,
    pub first: u16,
    pub last: u16,
    /// Whether it said that it began.
    began: bool,
    /// Roots that wait for those before them in the stream.
    roots: VecDeque<Root>,
    /// How many it streamed in all.
    streamed: usize,
    /// What its predecessor signed, of the points whose first root waits; of the first one, of the words that are not compared yet.
    pub received: VecDeque<SignedHandOver>,
    /// How many of these it passed on in all.
    pub passed_on: usize,
    /// What it signed itself, of the points whose first root by its successor waits, or whose word is not compared yet.
    pub handed: VecDeque<SignedHandOver>,
    /// How many of these it showed in all.
    pub handed_over: usize,
    /// In which pass the last statement that it showed was made.
    pub pass: u32,
    /// Of the last one: words that wait for the roots before them.
    words: VecDeque<(u32, Vec<i32>)>,
    /// Values that saturated in its layers, once all its roots are streamed.
    saturations: Option<u64>,
    /// What it signed for its layers.
    segment: Option<SignedSegment>,
}

impl Member {
    pub fn new(stage: &Stage) -> Self {
        Self {
            node: stage.node,
            first: stage.first,
            last: stage.last,
            began: false,
            roots: VecDeque::new(),
            streamed: 0,
            received: VecDeque::new(),
            passed_on: 0,
            handed: VecDeque::new(),
            handed_over: 0,
            pass: 0,
            words: VecDeque::new(),
            saturations: None,
            segment: None,
        }
    }

    /// Points of which all its roots are streamed, and how many roots of the next one.
    pub fn progress(&self) -> (usize, u16) {
        let layers = usize::from(self.last - self.first) + 1;
        (self.streamed / layers, (self.streamed % layers) as u16)
    }

    /// Whether it is to show now, from its seat, what it received: the rows of this point, or at the first one the word of the last.
    pub fn shows_next(&self, at: usize) -> bool {
        let (point, layer) = self.progress();
        layer == 0 && self.passed_on < point + usize::from(at > 0)
    }

    /// Whether it is to show now what it signed itself.
    pub fn hands_over_next(&self, at: usize) -> bool {
        let (point, layer) = self.progress();
        !self.shows_next(at) && self.first + layer == self.last && self.handed_over == point
    }
}

impl Lease {
    /// Everybody who runs it.
    pub fn nodes(&self) -> Vec<NodeId> {
        if self.crew.is_empty() { vec![self.node] } else { self.crew.iter().map(|member| member.node).collect() }
    }

    pub fn has(&self, node: &NodeId) -> bool {
        self.node == *node || self.crew.iter().any(|member| member.node == *node)
    }

    /// Whom it waits for: the first member that has not begun, is behind the one before it, or has not signed.
    pub fn laggard(&self) -> NodeId {
        let first_of = |late: fn(&Member) -> bool| self.crew.iter().find(|member| late(member)).map(|m| m.node);
        if self.is_shown {
            let unsigned = self.crew.iter().find(|member| member.segment.is_none() && member.node != self.node);
            return unsigned.map_or(self.node, |member| member.node);
        }
        if let Some(node) = first_of(|member| !member.began) {
            return node;
        }
        let behind = self.crew.windows(2).find(|pair| pair[1].progress().0 < pair[0].progress().0);
        let first = self.crew.first().map_or(self.node, |member| member.node);
        behind.map_or(first, |pair| pair[1].node)
    }

    /// Notes that a worker began; says whether now all have.
    pub fn begins(&mut self, node: &NodeId) -> bool {
        self.crew.iter_mut().filter(|member| member.node == *node).for_each(|member| member.began = true);
        self.crew.iter().all(|member| member.began)
    }

    /// Of a pipeline whose members have streamed everything: what saturated in all layers together.
    pub fn saturations(&self) -> Option<u64> {
        let counts = self.crew.iter().map(|member| member.saturations.unwrap_or_default());
        (!self.crew.is_empty()).then(|| counts.fold(0, u64::saturating_add))
    }

    /// Which seat hands over to the one at a seat: a pipeline is a ring.
    pub fn before(&self, at: usize) -> usize {
        at.checked_sub(1).unwrap_or(self.crew.len() - 1)
    }

    /// Whether both sides show what was signed of the next word, with all roots up to it taken in.
    fn shows_a_word(&self, layers: u16) -> bool {
        let (Some(first), Some(lead)) = (self.crew.first(), self.crew.last()) else { return false };
        let compared = first.passed_on - first.received.len();
        let are_here = !first.received.is_empty() && !lead.handed.is_empty();
        are_here && self.roots.len() / usize::from(layers) > compared
    }

    /// The members that are before and after one.
    pub fn neighbours(&self, node: &NodeId) -> [Option<NodeId>; 2] {
        let at = self.crew.iter().position(|member| member.node == *node);
        let find = |at: Option<usize>| at.and_then(|at| self.crew.get(at)).map(|member| member.node);
        [find(at.and_then(|at| at.checked_sub(1))), find(at.map(|at| at + 1))]
    }
}

/// Who runs a job.
pub(super) enum Placement {
    Alone(NodeId),
    Crew(Vec<Stage>),
}

impl Machine {
    /// Tells the machine what a model's parameters take. A model that it is not told of fits every worker.
    pub fn know(&mut self, model: crate::ids::ModelId, footprint: Footprint) {
        self.footprints.insert(model, footprint);
    }

    /// Whether a worker can hold a whole model.
    pub(super) fn can_hold(&self, entry: &Entry, worker: &Worker) -> bool {
        let Some(footprint) = self.footprints.get(&entry.header.model) else { return true };
        worker.offer.as_ref().is_none_or(|(most, _)| footprint.bytes(1, footprint.output()) <= *most)
    }

    /// Who runs a job next: one worker that can hold the model, or a crew where there is none such, free or busy.
    pub(super) fn place(&self, job: JobId) -> Option<Placement> {
        if let Some(node) = self.pick(job) {
            return Some(Placement::Alone(node));
        }
        let entry = self.jobs.get(&job)?;
        if self.candidates(entry).next().is_some() {
            return None;
        }
        let fresh = |node: &NodeId| !entry.failures.contains_key(node);
        if let Some(crew) = self.compose(entry, true, &fresh) {
            return Some(Placement::Crew(crew));
        }
        let waits =
            entry.failures.is_empty() || entry.retry_at > self.now || self.compose(entry, false, &fresh).is_some();
        if waits { None } else { self.compose(entry, true, &|_| true).map(Placement::Crew) }
    }

    /// Whether a crew could run the job, of allowed workers that are free or busy.
    pub(super) fn has_crew(&self, entry: &Entry, allowed: &dyn Fn(&NodeId) -> bool) -> bool {
        self.compose(entry, false, allowed).is_some()
    }

    /// A crew for a job out of the allowed workers; `free` asks for those with a free place. None for a job that is run in lockstep.
    fn compose(&self, entry: &Entry, free: bool, allowed: &dyn Fn(&NodeId) -> bool) -> Option<Vec<Stage>> {
        let footprint = self.footprints.get(&entry.header.model)?;
        if entry.draw.is_some_and(|draw| draw.lockstep) && entry.stage == JobStage::Auditing {
            return None;
        }
        let may = |(node, worker): &(&NodeId, &Worker)| {
            let is_there = worker.offer.is_some() && !worker.draining && (!free || worker.is_free());
            is_there && allowed(node) && self.may_share(entry, node, worker)
        };
        let mut workers: Vec<_> = self.workers.iter().filter(may).collect();
        match (&entry.draw, entry.stage) {
            (Some(draw), JobStage::Auditing) => workers.sort_by_key(|(node, _)| draw.rank(node)),
            _ => workers.sort_by_key(|(node, worker)| (Reverse(worker.model_bytes()), **node)),
        }
        if !entry.spec.policy.distinct_operators {
            return refill(entry, footprint, &workers).or_else(|| stack(entry, footprint, &workers));
        }
        // Who is to be told apart by its operator has one.
        let operators: BTreeSet<_> = workers.iter().filter_map(|(_, worker)| worker.operator.as_deref()).collect();
        operators.into_iter().find_map(|operator| {
            let of_one = |(_, worker): &&(&NodeId, &Worker)| worker.operator.as_deref() == Some(operator);
            stack(entry, footprint, &workers.iter().filter(of_one).copied().collect::<Vec<_>>())
        })
    }

    /// What the members of a new crew are given in time: as much as the slowest needs.
    pub(super) fn crew_times(&self, entry: &Entry, crew: &[Stage], is_hinted: bool) -> Option<LeaseTimes> {
        let workers = crew.iter().filter_map(|stage| self.workers.get(&stage.node));
        let times = workers.map(|worker| worker.lease_times(&entry.spec, is_hinted));
        times.reduce(|a, b| LeaseTimes {
            begin: a.begin.max(b.begin),
            first: a.first.max(b.first),
            step: a.step.max(b.step),
            whole: a.whole.max(b.whole),
        })
    }

    /// A root of a pipeline: kept until those before it are there. Says whether the run goes on.
    pub(super) fn stage_root(
        &mut self,
        assignment: (NodeId, JobId, LeaseEpoch),
        place: Place,
        root: Root,
        out: &mut Output,
    ) -> bool {
        let (node, job, epoch) = assignment;
        let entry = self.jobs.get_mut(&job).expect("its lease is live");
        let (geometry, has_words) = (entry.geometry, entry.header.kind != JobKind::Embedding);
        let lease = entry.leases.get_mut(&epoch).expect("it is live");
        let Some(at) = lease.crew.iter().position(|member| member.node == node) else { return false };
        let hands_over = has_words || at + 1 < lease.crew.len();
        let member = &mut lease.crew[at];
        let (point, layer) = member.progress();
        let expected = geometry.point(point).map(|point| Place { point, layer: member.first + layer });
        let is_received = !member.shows_next(at);
        let is_handed_over = !hands_over
            || member.first + layer < member.last
            || member.handed_over == point + 1
                && member.handed.back().is_some_and(|signed| signed.hand_over.root == root);
        if expected != Some(place) || !is_received || !is_handed_over || member.saturations.is_some() {
            self.reject(assignment, RejectReason::OutOfOrder { found: place }, out);
            return false;
        }
        member.roots.push_back(root);
        member.streamed += 1;
        self.merge(job, epoch, out)
    }

    /// A word of a pipeline, of its last worker. Says whether the run goes on.
    pub(super) fn stage_word(
        &mut self,
        assignment: (NodeId, JobId, LeaseEpoch),
        word: (u32, Vec<i32>),
        out: &mut Output,
    ) -> bool {
        let (_, job, epoch) = assignment;
        let entry = self.jobs.get_mut(&job).expect("its lease is live");
        let is_generation = entry.header.kind != JobKind::Embedding;
        let lease = entry.leases.get_mut(&epoch).expect("it is live");
        let is_lead = lease.node == assignment.0;
        let told = lease.words.len();
        let Some(lead) = lease.crew.last_mut() else { return false };
        let (point, layer) = lead.progress();
        let is_due = is_generation && layer == lead.last - lead.first && told + lead.words.len() == point;
        if !is_lead || !is_due {
            self.reject(assignment, RejectReason::WordOutOfOrder, out);
            return false;
        }
        lead.words.push_back(word);
        true
    }

    /// Takes the roots into the run whose turn has come. Says whether the run goes on.
    pub(super) fn merge(&mut self, job: JobId, epoch: LeaseEpoch, out: &mut Output) -> bool {
        loop {
            let Some(entry) = self.jobs.get_mut(&job) else { return false };
            let geometry = entry.geometry;
            let Some(lease) = entry.leases.get_mut(&epoch) else { return false };
            if lease.shows_a_word(geometry.streamed_layers()) {
                if !self.compare((job, epoch), 0, out) {
                    return false;
                }
                continue;
            }
            let Some(place) = geometry.place(lease.roots.len()) else { break };
            let Some(at) = lease.crew.iter().position(|m| (m.first..=m.last).contains(&place.layer)) else {
                return false;
            };
            let member = &mut lease.crew[at];
            let node = member.node;
            let Some(root) = member.roots.pop_front() else { break };
            let words = &mut member.words;
            let word = if place.layer == geometry.streamed_layers() { words.pop_front() } else { None };
            if at > 0 && place.layer == member.first && !self.compare((job, epoch), at, out) {
                return false;
            }
            if let Some(word) = word
                && !self.take_word((node, job, epoch), word, out)
            {
                return false;
            }
            if !self.take_root((node, job, epoch), place, root, out) {
                return false;
            }
        }
        self.countersign(job, epoch, out);
        true
    }

    /// A worker of a pipeline has streamed all its roots.
    pub(super) fn stage_ended(&mut self, assignment: (NodeId, JobId, LeaseEpoch), saturations: u64, out: &mut Output) {
        let (node, job, epoch) = assignment;
        if self.lease(assignment, out).is_none() {
            return;
        }
        let entry = self.jobs.get_mut(&job).expect("its lease is live");
        let has_words = entry.header.kind != JobKind::Embedding;
        let lease = entry.leases.get_mut(&epoch).expect("it is live");
        let may_end = |(at, member): &(usize, &mut Member)| {
            // The first one has shown all words by then.
            let is_shown = *at > 0 || !has_words || !member.shows_next(0);
            member.saturations.is_none() && member.progress().1 == 0 && is_shown
        };
        let member = lease.crew.iter_mut().enumerate().find(|(_, member)| member.node == node);
        let Some((_, member)) = member.filter(may_end) else {
            self.reject(assignment, RejectReason::CommitmentOutOfOrder, out);
            return;
        };
        member.saturations = Some(saturations);
        self.countersign(job, epoch, out);
    }

    /// Shows all members the whole run, once it is there, so that they can sign for it.
    fn countersign(&mut self, job: JobId, epoch: LeaseEpoch, out: &mut Output) {
        let entry = &self.jobs[&job];
        let Some(lease) = entry.leases.get(&epoch) else { return };
        let counts: Option<Vec<u64>> = lease.crew.iter().map(|member| member.saturations).collect();
        let Some(counts) = counts.filter(|_| !lease.is_shown && entry.has_all_roots(lease)) else { return };
        let saturations = counts.into_iter().fold(0, u64::saturating_add);
        let logprobs = (!lease.logprobs.is_empty()).then(|| logprobs_root(&lease.logprobs));
        for node in lease.nodes() {
            let mut parts = lease.roots.chunks(COUNTERSIGN_ROOTS).peekable();
            while let Some(roots) = parts.next() {
                let saturations = parts.peek().is_none().then_some(saturations);
                let logprobs = logprobs.filter(|_| saturations.is_some());
                out.actions.push(Action::Countersign {
                    node,
                    job,
                    epoch,
                    roots: roots.to_vec(),
                    saturations,
                    logprobs,
                });
            }
        }
        let lease = self.jobs.get_mut(&job).and_then(|entry| entry.leases.get_mut(&epoch));
        lease.expect("it was there").is_shown = true;
        self.extend(job, epoch);
    }

    /// A worker of a pipeline signed for its layers. Whether for the right run is known once the result is there.
    pub(super) fn segment(&mut self, assignment: (NodeId, JobId, LeaseEpoch), signed: SignedSegment, out: &mut Output) {
        let (node, job, epoch) = assignment;
        let Some(lease) = self.lease(assignment, out) else { return };
        let (is_shown, lead) = (lease.is_shown, lease.node);
        let member = lease.crew.iter_mut().find(|member| member.node == node && node != lead);
        let Some(member) = member.filter(|member| is_shown && member.segment.is_none()) else {
            self.reject(assignment, RejectReason::CommitmentOutOfOrder, out);
            return;
        };
        member.segment = Some(signed);
        if let Some((result, salt)) = lease.result.take() {
            self.completed((lead, job, epoch), result, salt, out);
        }
    }

    /// Puts the members' signatures beside the lead's result, which was found right without them. `None` where one is
    /// missing, and the result waits, or where a member signed something else, and is rejected.
    pub(super) fn with_segments(
        &mut self,
        job: JobId,
        epoch: LeaseEpoch,
        mut result: Box<JobResult>,
        salt: crate::ids::Salt,
        out: &mut Output,
    ) -> Option<Box<JobResult>> {
        let lease = self.jobs.get_mut(&job)?.leases.get_mut(&epoch)?;
        let digest = result.receipt.receipt.digest();
        let others: Vec<_> = lease.crew.iter().filter(|member| member.node != lease.node).collect();
        for member in &others {
            let Some(signed) = member.segment else { continue };
            let said = signed.segment;
            let is_right = (said.receipt, said.first, said.last) == (digest, member.first, member.last);
            if !is_right || said.worker != member.node || !signed.is_signed() {
                let node = member.node;
                self.reject((node, job, epoch), RejectReason::NotAsStreamed, out);
                return None;
            }
        }
        let segments: Option<Vec<_>> = others.iter().map(|member| member.segment).collect();
        let Some(segments) = segments else {
            lease.result = Some((result, salt));
            return None;
        };
        result.receipt.segments = segments;
        Some(result)
    }

    /// Gives a job to a crew.
    pub(super) fn assign_crew(&mut self, job: JobId, crew: Vec<Stage>, out: &mut Output) {
        let epoch = LeaseEpoch(self.last_epoch.0 + 1);
        let lead = crew.last().expect("a crew has members").node;
        self.record(Record::Assigned { job, epoch, node: lead }, out);
        for stage in &crew {
            if stage.node != lead {
                self.record(Record::Staged { job, epoch, node: stage.node }, out);
            }
            self.hold_bond(job, epoch, stage.node, out);
        }
        let entry = &self.jobs[&job];
        let hint = entry.hint();
        let times = self.crew_times(entry, &crew, !hint.is_empty()).expect("the chosen workers are connected");
        let operator = self.workers.get(&lead).and_then(|worker| worker.operator.clone());
        let members = crew.iter().map(Member::new).collect();
        self.begin_lease((job, epoch, lead), operator, members, times, !hint.is_empty());
        let entry = self.jobs.get_mut(&job).expect("it was there");
        entry.last_crew.clone_from(&crew);
        let shared = entry.spec.job.clone();
        for stage in &crew {
            let (node, job, hint, crew) = (stage.node, shared.clone(), hint.clone(), crew.clone());
            out.actions.push(Action::AssignStage { node, epoch, job, hint, crew });
        }
        self.queue(job);
    }
}

impl Entry {
    pub(super) fn are_apart(&self, a: &NodeId, b: &NodeId) -> bool {
        self.apart.contains(&(*a, *b)) || self.apart.contains(&(*b, *a))
    }
}

fn stage(node: &NodeId, worker: &Worker, first: u16, last: u16) -> Stage {
    let address = worker.offer.as_ref().map(|(_, address)| address.clone()).unwrap_or_default();
    Stage { node: *node, address, first, last }
}

/// The crew of the last lease with somebody else in each place that is free; `None` where there was none, or nobody else.
fn refill(entry: &Entry, footprint: &Footprint, workers: &[(&NodeId, &Worker)]) -> Option<Vec<Stage>> {
    if entry.last_crew.is_empty() {
        return None;
    }
    let stays = |node: &NodeId| entry.last_crew.iter().any(|stage| stage.node == *node);
    let mut crew: Vec<Stage> = Vec::new();
    for old in &entry.last_crew {
        let fits = |(node, worker): &&(&NodeId, &Worker)| {
            let gets_along = crew.last().is_none_or(|before| !entry.are_apart(&before.node, node));
            let is_new = *node == &old.node || !stays(node) && crew.iter().all(|stage| stage.node != **node);
            is_new && gets_along && footprint.bytes(old.first, old.last) <= worker.model_bytes()
        };
        let same = workers.iter().filter(fits).find(|(node, _)| **node == old.node);
        let (node, worker) = same.or_else(|| workers.iter().find(fits))?;
        crew.push(stage(node, worker, old.first, old.last));
    }
    Some(crew)
}

/// Gives each worker in turn as many layers as it can hold.
fn stack(entry: &Entry, footprint: &Footprint, workers: &[(&NodeId, &Worker)]) -> Option<Vec<Stage>> {
    let output = footprint.output();
    let mut crew: Vec<Stage> = Vec::new();
    for (node, worker) in workers {
        let first = crew.last().map_or(1, |stage| stage.last + 1);
        let fits = |last: &u16| footprint.bytes(first, *last) <= worker.model_bytes();
        let Some(last) = (first..=output).take_while(fits).last() else { continue };
        if crew.last().is_some_and(|before| entry.are_apart(&before.node, node)) {
            continue;
        }
        crew.push(stage(node, worker, first, last));
        if last == output {
            return (crew.len() > 1).then_some(crew);
        }
        if crew.len() == MAX_CREW {
            break;
        }
    }
    None
}
