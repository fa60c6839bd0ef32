//! What runs for one connection: the assignments, the orders that they are given, and the seats that they take.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use lockstep_protocol::ids::Root;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{AbortHandle, Id};

use crate::batch::Key;

/// What the coordinator tells an assignment that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Show the result that was committed to.
    Reveal,
    /// Of a pipeline: sign for its own layers, if these are the next roots of all; with the last of them, what saturated,
    /// and the root of the log-probabilities.
    Countersign { roots: Vec<Root>, saturations: Option<u64>, logprobs: Option<Root> },
}

/// One of the places for assignments that compute. It is given back once, by whoever is first: the assignment when it
/// has committed to its run, or the session when it hears that nobody wants it any more.
#[derive(Clone, Debug)]
pub(crate) struct Seat(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    in_flight: Arc<AtomicU32>,
    given_back: AtomicBool,
}

impl Seat {
    fn take(in_flight: &Arc<AtomicU32>) -> Self {
        in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Taken { in_flight: Arc::clone(in_flight), given_back: AtomicBool::new(false) }))
    }

    pub fn give_back(&self) {
        if !self.0.given_back.swap(true, Ordering::Relaxed) {
            self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// An assignment from its arrival until it is finished, given back or taken away.
#[derive(Debug)]
struct Run {
    task: AbortHandle,
    orders: UnboundedSender<Order>,
    /// Read by the engine between layers. An aborted task is dropped some time later; this tells at once.
    cancelled: Arc<AtomicBool>,
    /// None for a result of an earlier connection.
    seat: Option<Seat>,
}

/// All assignments of a connection.
#[derive(Debug, Default)]
pub(crate) struct Running {
    runs: BTreeMap<Key, Run>,
    /// Those that compute, for the heartbeat.
    in_flight: Arc<AtomicU32>,
}

impl Running {
    /// Those that compute; what waits to be revealed takes no place.
    pub fn in_flight(&self) -> &Arc<AtomicU32> {
        &self.in_flight
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub fn contains(&self, key: &Key) -> bool {
        self.runs.contains_key(key)
    }

    /// Takes a seat and starts an assignment on it. What it computes stops when the flag is set.
    pub fn start(
        &mut self,
        key: Key,
        spawn: impl FnOnce(Seat, UnboundedReceiver<Order>, Arc<AtomicBool>) -> AbortHandle,
    ) {
        let (orders, ordered) = unbounded_channel();
        let (seat, cancelled) = (Seat::take(&self.in_flight), Arc::default());
        let task = spawn(seat.clone(), ordered, Arc::clone(&cancelled));
        self.runs.insert(key, Run { task, orders, cancelled, seat: Some(seat) });
    }

    /// Starts what sends a kept result again.
    pub fn resume(&mut self, key: Key, spawn: impl FnOnce(UnboundedReceiver<Order>) -> AbortHandle) {
        let (orders, ordered) = unbounded_channel();
        self.runs.insert(key, Run { task: spawn(ordered), orders, cancelled: Arc::default(), seat: None });
    }

    /// Tells an assignment something, if it is there.
    pub fn order(&self, key: &Key, order: Order) {
        if let Some(run) = self.runs.get(key) {
            // One that has ended needs no order.
            let _ = run.orders.send(order);
        }
    }

    /// Takes an assignment off the list; its seat is free and its computing told to stop at once. Says whether it was
    /// there.
    pub fn remove(&mut self, key: &Key) -> Option<AbortHandle> {
        let run = self.runs.remove(key)?;
        run.cancelled.store(true, Ordering::Relaxed);
        if let Some(seat) = run.seat {
            seat.give_back();
        }
        Some(run.task)
    }

    /// All assignments.
    pub fn keys(&self) -> Vec<Key> {
        self.runs.keys().copied().collect()
    }

    /// Which assignment a task is.
    pub fn find(&self, task: Id) -> Option<Key> {
        self.runs.iter().find(|(_, run)| run.task.id() == task).map(|(key, _)| *key)
    }
}
