//! The connected workers: what they hold, how busy and how fast they are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{JobId, LeaseEpoch, Millis, ModelId, NodeId};
use crate::job::JobKind;
use crate::limits::{
    BEGIN_MS, DEFAULT_MACS_PER_MS, LEASE_FACTOR, LEASE_MAX_MS, LEASE_MIN_MS, LEASE_PULL_MS, MAX_HELD_MODELS,
    MAX_IN_FLIGHT, MAX_MACS_PER_MS, MAX_WAITING_RUNS, MAX_WORKERS, PAUSE_MAX_MS, PAUSE_MIN_MS, SILENCE_MS, TOKEN_MS,
};
use crate::machine::audit::AuditDraw;
use crate::machine::types::JobSpec;
use crate::messages::Hello;

/// Models by which workers are kept in order: more than a coordinator serves at a time.
const MAX_MODELS_LOOKED_FOR: usize = 64;

/// A new measurement counts for one part in so many.
const SPEED_WEIGHT: u64 = 4;

/// What is remembered of a worker over its sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Conduct {
    /// Failures since its last success, at any jobs.
    pub failures: u32,
    /// The end of its pause.
    pub rest_until: Millis,
}

/// What the machine needs to know of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Multiply-accumulates a second that the worker says it does; 0 where it does not say.
    pub macs_per_second: u64,
    /// Assignments that it takes at a time.
    pub max_in_flight: u32,
    /// Models that it holds.
    pub models: Vec<ModelId>,
    /// Who runs it, as the coordinator knows from its own list; nothing that the worker says.
    pub operator: Option<String>,
    /// Where it takes part in pipelines: bytes of parameters that it can hold, and where it takes connections of other
    /// workers, as `HOST:PORT`.
    pub pipeline: Option<(u64, String)>,
}

/// Without the operator and the address, which a worker can't say of itself.
impl From<&Hello> for Capabilities {
    fn from(hello: &Hello) -> Self {
        Self {
            macs_per_second: hello.macs_per_second,
            max_in_flight: hello.max_in_flight,
            models: hello.models.clone(),
            operator: None,
            pipeline: None,
        }
    }
}

/// The pause after so many failures: it doubles with each, up to a limit.
pub(super) fn pause_ms(failures: u32) -> u64 {
    (PAUSE_MIN_MS << failures.saturating_sub(1).min(20)).min(PAUSE_MAX_MS)
}

/// How long a run may take at a speed in multiply-accumulates a millisecond.
pub(super) fn run_ms(work_units: u64, speed: u64) -> u64 {
    (work_units / speed.max(1)).saturating_mul(LEASE_FACTOR)
}

/// What a generation may take for drawing one token after the other, beside the work itself.
pub(super) fn tokens_ms(spec: &JobSpec) -> u64 {
    match spec.job.kind {
        JobKind::Embedding => 0,
        JobKind::Generation(_) => TOKEN_MS.saturating_mul(spec.max_points() as u64),
    }
}

/// What a new lease allows, in milliseconds.
pub(super) struct LeaseTimes {
    /// Until the worker begins.
    pub begin: u64,
    /// From then until the first root.
    pub first: u64,
    /// From root to root after that.
    pub step: u64,
    /// In all.
    pub whole: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Worker {
    /// Multiply-accumulates a millisecond: as declared, then as measured by coordinator time.
    pub speed: u64,
    pub max_in_flight: usize,
    pub models: BTreeSet<ModelId>,
    /// Who runs it, where the coordinator knows.
    pub operator: Option<String>,
    /// Leases that it is running.
    pub leases: BTreeSet<(JobId, LeaseEpoch)>,
    /// Leases of runs that it committed to and has not shown yet.
    pub waiting: BTreeSet<(JobId, LeaseEpoch)>,
    /// Where it takes part in pipelines: bytes of parameters that it can hold, and its address.
    pub offer: Option<(u64, String)>,
    pub draining: bool,
    /// Whether the speed is the coordinator's own measurement.
    pub measured: bool,
    /// Models that it could not get: until when it is not asked for them, and how often it was in vain.
    pub unfit: BTreeMap<ModelId, (Millis, u32)>,
    pub conduct: Conduct,
    /// Jobs that it refused in this session.
    pub refused: BTreeSet<JobId>,
    /// Whether it gets nothing before the end of its pause.
    pub resting: bool,
    pub heard: Millis,
    /// When its silence timer fires next: at or before [`Worker::heard`] and the allowed silence.
    pub silence_at: Millis,
}

impl Worker {
    pub fn new(capabilities: Capabilities, now: Millis) -> Self {
        let speed = match capabilities.macs_per_second / 1_000 {
            0 => DEFAULT_MACS_PER_MS,
            declared => declared.min(MAX_MACS_PER_MS),
        };
        Self {
            speed,
            max_in_flight: capabilities.max_in_flight.clamp(1, MAX_IN_FLIGHT) as usize,
            models: capabilities.models.into_iter().take(MAX_HELD_MODELS).collect(),
            operator: capabilities.operator,
            leases: BTreeSet::new(),
            waiting: BTreeSet::new(),
            offer: capabilities.pipeline,
            draining: false,
            measured: false,
            unfit: BTreeMap::new(),
            conduct: Conduct::default(),
            refused: BTreeSet::new(),
            resting: false,
            heard: now,
            silence_at: now.plus(SILENCE_MS),
        }
    }

    /// Takes the time of one run into the speed: an exponentially weighted mean, in integers.
    pub fn measure(&mut self, work_units: u64, milliseconds: u64) {
        let measured = (work_units / milliseconds.max(1)).clamp(1, MAX_MACS_PER_MS);
        self.measured = true;
        self.speed = ((SPEED_WEIGHT - 1) * self.speed + measured) / SPEED_WEIGHT;
        self.speed = self.speed.max(1);
    }

    /// How long a new lease lasts, from what the work should take in the worker's queue. A slow speed that
    /// is only declared buys no time.
    pub fn lease_times(&self, spec: &JobSpec, is_hinted: bool) -> LeaseTimes {
        let speed = if self.measured { self.speed } else { self.speed.max(DEFAULT_MACS_PER_MS) };
        let run = run_ms(spec.work_bound(), speed);
        let ahead = run.saturating_mul(self.leases.len() as u64);
        let places = run.saturating_mul(self.max_in_flight as u64);
        let start = if self.models.contains(&spec.job.model) { BEGIN_MS } else { LEASE_PULL_MS };
        let begin = start.saturating_add(ahead).min(LEASE_MAX_MS);
        let within = |ms: u64| LEASE_MIN_MS.saturating_add(ms).min(LEASE_MAX_MS);
        let whole = begin.saturating_add(LEASE_MIN_MS).saturating_add(places).saturating_add(tokens_ms(spec));
        let whole = whole.min(LEASE_MAX_MS);
        let (first, step) = match spec.job.kind {
            JobKind::Embedding => {
                let step = within(places / (u64::from(spec.layers) + 1));
                (step, step)
            }
            // All positions are run before the first root, the claimed words with them; then come single tokens.
            JobKind::Generation(_) => {
                let prompt = run_ms(spec.work.first, speed).saturating_mul(self.max_in_flight as u64);
                (within(if is_hinted { places } else { prompt }), within(TOKEN_MS))
            }
        };
        LeaseTimes { begin, first, step, whole }
    }

    /// Remembers that it could not get a model.
    pub fn lacks(&mut self, model: ModelId, now: Millis) {
        self.models.remove(&model);
        if self.unfit.len() >= MAX_HELD_MODELS && !self.unfit.contains_key(&model) {
            self.unfit.pop_first();
        }
        let (until, times) = self.unfit.entry(model).or_default();
        *times = times.saturating_add(1);
        // A package that could not be had or does not fit seldom does a second later.
        *until = now.plus(pause_ms(times.saturating_add(4)));
    }

    /// Whether it may be asked for a model.
    pub fn may_have(&self, model: &ModelId, now: Millis) -> bool {
        self.unfit.get(model).is_none_or(|(until, _)| *until <= now)
    }

    /// Whether it has a place for one more lease.
    pub fn is_free(&self) -> bool {
        let has_place = self.leases.len() < self.max_in_flight && self.waiting.len() < MAX_WAITING_RUNS;
        !self.draining && !self.resting && has_place
    }

    /// Bytes of parameters that it can hold as a member of a pipeline.
    pub fn model_bytes(&self) -> u64 {
        self.offer.as_ref().map_or(0, |(bytes, _)| *bytes)
    }

    fn free_key(&self, node: NodeId) -> Option<Key> {
        self.is_free().then_some((self.leases.len(), Reverse(self.speed), node))
    }
}

/// Leases, speed, name.
type Key = (usize, Reverse<u64>, NodeId);

/// All connected workers, with those that have a free place in order: least busy first, then fastest.
#[derive(Clone, Debug, Default)]
pub(super) struct Workers {
    all: BTreeMap<NodeId, Worker>,
    orders: Orders,
    /// Of workers that left after failures, so that to come again is no pardon.
    conducts: BTreeMap<NodeId, Conduct>,
}

/// Workers with a free place, in the order in which they are asked.
#[derive(Clone, Debug, Default)]
struct Orders {
    free: BTreeSet<Key>,
    /// Of them those that hold a model, for models that were looked for.
    holders: BTreeMap<ModelId, BTreeSet<Key>>,
}

impl Orders {
    /// Moves a worker from one key to another.
    fn file(&mut self, before: Option<Key>, after: Option<Key>, worker: &Worker) {
        if let Some(key) = &before {
            self.free.remove(key);
        }
        self.free.extend(after);
        for (model, holders) in &mut self.holders {
            if let Some(key) = &before {
                holders.remove(key);
            }
            holders.extend(after.filter(|_| worker.models.contains(model)));
        }
    }
}

impl Workers {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn has_free(&self) -> bool {
        !self.orders.free.is_empty()
    }

    pub fn get(&self, node: &NodeId) -> Option<&Worker> {
        self.all.get(node)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &Worker)> {
        self.all.iter()
    }

    pub fn insert(&mut self, node: NodeId, mut worker: Worker) {
        worker.conduct = self.conducts.remove(&node).unwrap_or_default();
        self.orders.file(None, worker.free_key(node), &worker);
        self.all.insert(node, worker);
    }

    pub fn remove(&mut self, node: &NodeId) -> Option<Worker> {
        let worker = self.all.remove(node)?;
        self.orders.file(worker.free_key(*node), None, &worker);
        if worker.conduct.failures > 0 {
            if self.conducts.len() >= MAX_WORKERS {
                self.conducts.pop_first();
            }
            self.conducts.insert(*node, worker.conduct);
        }
        Some(worker)
    }

    /// Changes a worker and keeps the order right.
    pub fn update(&mut self, node: &NodeId, change: impl FnOnce(&mut Worker)) {
        let Some(worker) = self.all.get_mut(node) else {
            return;
        };
        let (before, models) = (worker.free_key(*node), worker.models.len());
        change(worker);
        let after = worker.free_key(*node);
        // No change takes one model and gives another.
        if before != after || models != worker.models.len() {
            self.orders.file(before, after, worker);
        }
    }

    /// Whether all orders have whom they must have and nobody else.
    #[cfg(test)]
    pub fn are_in_order(&self) -> bool {
        let keys = |of: &dyn Fn(&Worker) -> bool| {
            let those = self.all.iter().filter(|(_, worker)| of(worker));
            those.filter_map(|(node, worker)| worker.free_key(*node)).collect::<BTreeSet<_>>()
        };
        let mut holders = self.orders.holders.iter();
        let hold = holders.all(|(model, holders)| *holders == keys(&|worker| worker.models.contains(model)));
        hold && self.orders.free == keys(&|_| true)
    }

    /// Sees to it that workers are found by a model that they hold. What they announce may be anything: only models that are
    /// looked for are kept in order.
    pub fn look_for(&mut self, model: &ModelId) {
        let holders = &mut self.orders.holders;
        if holders.contains_key(model) {
            return;
        }
        if holders.len() >= MAX_MODELS_LOOKED_FOR {
            holders.pop_first();
        }
        let holds = self.all.iter().filter(|(_, worker)| worker.models.contains(model));
        holders.insert(*model, holds.filter_map(|(node, worker)| worker.free_key(*node)).collect());
    }

    /// The worker for a first run: among those with a free place and not `barred`, one that holds the
    /// model before one that has to fetch it, then the least busy, then the fastest. The model was looked for.
    pub fn pick(&self, model: &ModelId, barred: impl Fn(&NodeId) -> bool) -> Option<NodeId> {
        let holders = self.orders.holders.get(model).into_iter().flatten();
        holders.chain(&self.orders.free).map(|(_, _, node)| *node).find(|node| !barred(node))
    }

    /// The worker for an audit: as for a first run, but by the draw's rank and not by speed, so that
    /// nobody makes itself the likely auditor by being fast or idle.
    pub fn pick_auditor(&self, model: &ModelId, draw: &AuditDraw, barred: impl Fn(&NodeId) -> bool) -> Option<NodeId> {
        let lacks = |node: &NodeId| !self.all.get(node).is_some_and(|w| w.models.contains(model));
        self.orders
            .free
            .iter()
            .map(|(_, _, node)| *node)
            .filter(|node| !barred(node))
            .min_by_key(|node| (lacks(node), draw.rank(node)))
    }
}
