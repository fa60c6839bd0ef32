//! The connected workers: what they hold, how busy and how fast they are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{JobId, LeaseEpoch, Millis, ModelId, NodeId};
use crate::limits::{
    DEFAULT_MACS_PER_MS, LEASE_FACTOR, LEASE_MAX_MS, LEASE_MIN_MS, LEASE_PULL_MS, MAX_HELD_MODELS, MAX_IN_FLIGHT,
    MAX_MACS_PER_MS, SILENCE_MS,
};
use crate::machine::audit::AuditDraw;
use crate::machine::types::Capabilities;

/// A new measurement counts for one part in so many.
const SPEED_WEIGHT: u64 = 4;

#[derive(Clone, Debug)]
pub(super) struct Worker {
    /// Multiply-accumulates a millisecond: as declared, then as measured by coordinator time.
    pub speed: u64,
    pub max_in_flight: usize,
    pub models: BTreeSet<ModelId>,
    pub leases: BTreeSet<(JobId, LeaseEpoch)>,
    pub draining: bool,
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
            leases: BTreeSet::new(),
            draining: false,
            heard: now,
            silence_at: now.plus(SILENCE_MS),
        }
    }

    /// Takes the time of one run into the speed: an exponentially weighted mean, in integers.
    pub fn measure(&mut self, work_units: u64, milliseconds: u64) {
        let measured = (work_units / milliseconds.max(1)).clamp(1, MAX_MACS_PER_MS);
        self.speed = ((SPEED_WEIGHT - 1) * self.speed + measured) / SPEED_WEIGHT;
        self.speed = self.speed.max(1);
    }

    /// How long a new lease lasts: several times what the work should take in the worker's queue,
    /// and more where it has to fetch the model.
    pub fn lease_ms(&self, work_units: u64, model: &ModelId) -> u64 {
        let queue = self.leases.len() as u64 + 1;
        let run = (work_units / self.speed).saturating_mul(LEASE_FACTOR).saturating_mul(queue);
        let pull = if self.models.contains(model) { 0 } else { LEASE_PULL_MS };
        LEASE_MIN_MS.saturating_add(run).saturating_add(pull).min(LEASE_MAX_MS)
    }

    fn free_key(&self, node: NodeId) -> Option<(usize, Reverse<u64>, NodeId)> {
        let free = !self.draining && self.leases.len() < self.max_in_flight;
        free.then_some((self.leases.len(), Reverse(self.speed), node))
    }
}

/// All connected workers, with those that have a free place in order: least busy first, then fastest.
#[derive(Clone, Debug, Default)]
pub(super) struct Workers {
    all: BTreeMap<NodeId, Worker>,
    free: BTreeSet<(usize, Reverse<u64>, NodeId)>,
}

impl Workers {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    pub fn get(&self, node: &NodeId) -> Option<&Worker> {
        self.all.get(node)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &Worker)> {
        self.all.iter()
    }

    pub fn insert(&mut self, node: NodeId, worker: Worker) {
        self.free.extend(worker.free_key(node));
        self.all.insert(node, worker);
    }

    pub fn remove(&mut self, node: &NodeId) -> Option<Worker> {
        let worker = self.all.remove(node)?;
        if let Some(key) = worker.free_key(*node) {
            self.free.remove(&key);
        }
        Some(worker)
    }

    /// Changes a worker and keeps the order right.
    pub fn update(&mut self, node: &NodeId, change: impl FnOnce(&mut Worker)) {
        let Some(worker) = self.all.get_mut(node) else {
            return;
        };
        let before = worker.free_key(*node);
        change(worker);
        let after = worker.free_key(*node);
        if before != after {
            if let Some(key) = before {
                self.free.remove(&key);
            }
            self.free.extend(after);
        }
    }

    /// The worker for a first run: among those with a free place and not `barred`, one that holds the
    /// model before one that has to fetch it, then the least busy, then the fastest.
    pub fn pick(&self, model: &ModelId, barred: impl Fn(&NodeId) -> bool) -> Option<NodeId> {
        let mut without_model = None;
        for (_, _, node) in self.free.iter().filter(|(_, _, node)| !barred(node)) {
            if self.all.get(node).is_some_and(|worker| worker.models.contains(model)) {
                return Some(*node);
            }
            without_model.get_or_insert(*node);
        }
        without_model
    }

    /// The worker for an audit: as for a first run, but by the draw's rank and not by speed, so that
    /// nobody makes itself the likely auditor by being fast or idle.
    pub fn pick_auditor(&self, model: &ModelId, draw: &AuditDraw, barred: impl Fn(&NodeId) -> bool) -> Option<NodeId> {
        let lacks = |node: &NodeId| !self.all.get(node).is_some_and(|w| w.models.contains(model));
        self.free
            .iter()
            .map(|(_, _, node)| *node)
            .filter(|node| !barred(node))
            .min_by_key(|node| (lacks(node), draw.rank(node)))
    }
}
