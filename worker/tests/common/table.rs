//! A dispute about one job: the referee, the other side, and what the worker has to say over its connection.
#![allow(dead_code, reason = "each test file uses another part")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport, Wrapper};
use lockstep_kernels::program::{Program, TensorId};
use lockstep_kernels::reference::Reference;
use lockstep_kernels::value::{Params, Value};
use lockstep_model::dispute::{LayerCase, Trace};
use lockstep_model::package::Package;
use lockstep_model::rerun::rerun;
use lockstep_protocol::dispute::{
    Action, Claim, Input, Output, Partial, Phase, Player, Referee, Side, SignedEntry, SignedMove, Terms, Verdict, What,
};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{LeaseEpoch, Millis};
use lockstep_protocol::job::Job;
use lockstep_protocol::messages::{Ask, JobMessage, ToWorker};
use lockstep_protocol::receipt::{Run, WorkerReceipt};

use crate::common::{LAYERS, POSITIONS, Peer, keys};

/// Long enough for a test, short enough to wait out on a made-up clock.
pub const BUDGET_MS: u64 = 100_000;

/// A backend that is wrong in one element of one layer's output, of the tests' model only, while it is told to.
#[derive(Clone)]
pub struct Liar {
    pub layer: usize,
    pub lies: Arc<AtomicBool>,
}

impl Liar {
    pub fn at(layer: usize) -> Self {
        Self { layer, lies: Arc::new(AtomicBool::new(true)) }
    }
}

impl Backend for Liar {
    fn name(&self) -> String {
        "liar".into()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        let inner = Reference.load(Arc::clone(&program), params)?;
        let is_model = program.max_positions as usize == POSITIONS && program.layers.len() == usize::from(LAYERS) + 2;
        let output = is_model.then(|| program.layers[self.layer].output);
        Ok(Box::new(Lying { inner, liar: self.clone(), output }))
    }
}

struct Lying {
    inner: Box<dyn Executor>,
    liar: Liar,
    output: Option<TensorId>,
}

impl Wrapper for Lying {
    fn inner(&self) -> &dyn Executor {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut *self.inner
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        let report = self.inner.run_layer(layer)?;
        if let Some(output) = self.output.filter(|_| layer == self.liar.layer && self.liar.lies.load(Ordering::SeqCst))
        {
            let Value::I32(mut rows) = self.inner.read(output)? else { panic!("a layer's output is i32") };
            let middle = rows.len() / 2;
            rows[middle] ^= 1;
            self.inner.write(output, Value::I32(rows))?;
        }
        Ok(report)
    }
}

/// What a key signs that ran a job on this backend.
pub fn claim(package: &Package, backend: &dyn Backend, job: &Job, epoch: u64, keys: &Keypair) -> Claim {
    let ran = rerun(package, backend, &job.tokens).unwrap();
    let run = Run {
        epoch: LeaseEpoch(epoch),
        layers: LAYERS,
        output_count: ran.output.len() as u32,
        work_units: package.program().macs(job.tokens.len() as u64, 0),
        saturations: ran.saturations,
        roots: ran.roots,
        words: Vec::new(),
    };
    WorkerReceipt::of_run(&job.header(), run, keys.id()).unwrap().sign(keys).into()
}

/// What a key signs that ran a job on this backend and was halted after so many roots.
pub fn partial(package: &Package, backend: &dyn Backend, job: &Job, epoch: u64, roots: usize, keys: &Keypair) -> Claim {
    let (mut ran, header) = (rerun(package, backend, &job.tokens).unwrap(), job.header());
    ran.roots.truncate(roots);
    let geometry = header.geometry(LAYERS).unwrap();
    let partial = Partial::of_roots(header.id(), &geometry, LeaseEpoch(epoch), &ran.roots, &[], keys.id()).unwrap();
    partial.sign(keys).into()
}

pub fn other_keys() -> Keypair {
    Keypair::from_seed([66; 32])
}

/// Terms between the worker's claim and another one; the worker plays this side.
pub fn terms(job: &Job, side: Side, mine: Claim, theirs: Claim) -> Terms {
    let (claimant, challenger) = if side == Side::Claimant { (mine, theirs) } else { (theirs, mine) };
    Terms::between(keys().id(), job.header(), LAYERS, [claimant, challenger], Vec::new(), [BUDGET_MS; 2]).unwrap()
}

/// A dispute in play.
pub struct Table {
    pub referee: Referee,
    pub case: LayerCase,
    pub job: Job,
    /// The worker's side.
    pub side: Side,
    pub now: Millis,
    /// Whether the other side opens what it is asked to open.
    pub they_open: bool,
    trace: Trace,
    pending: VecDeque<Action>,
    /// What the worker is to be told that its moves came.
    acknowledged: Vec<SignedEntry>,
}

impl Table {
    /// The other side plays from its own run on `theirs`.
    pub fn new(package: &Package, job: &Job, terms: Terms, side: Side, theirs: &dyn Backend) -> Self {
        let ground = terms.check().unwrap();
        let case = LayerCase::new(package.manifest(), &job.header(), ground.place).unwrap();
        let (program, params) = (package.program(), package.params());
        let mut executor = theirs.load(Arc::clone(program), Arc::clone(&params)).unwrap();
        let trace = Trace::of_job(&mut *executor, program, params, job, &ground.words, ground.place).unwrap();
        let (referee, opened) = Referee::open(terms, Millis(1), keys(), &case).unwrap();
        let pending = opened.actions.into();
        let (job, now) = (job.clone(), Millis(1));
        Self { referee, case, job, side, now, they_open: true, trace, pending, acknowledged: vec![] }
    }

    /// What the worker is asked now.
    pub fn ask(&self) -> Ask {
        self.referee.ask(self.job.clone(), self.side)
    }

    /// Everything up to the next question to the worker; `None` where there is a verdict.
    pub async fn next_ask(&mut self, peer: &mut Peer) -> Option<Ask> {
        loop {
            for entry in self.acknowledged.drain(..) {
                peer.say(ToWorker::Acknowledged(Box::new(entry))).await;
            }
            if self.referee.verdict().is_some() {
                return None;
            }
            let Some(action) = self.pending.pop_front() else {
                // Nobody is asked any more: time goes on.
                self.now = self.referee.next_wake().unwrap();
                self.feed(Input::Tick);
                continue;
            };
            match action {
                Action::Ask { side, .. } if side == self.side => return Some(self.ask()),
                Action::Ask { side, .. } => self.answer(side),
                Action::Recompute(of) => {
                    let data: Vec<&[u8]> = of.data.iter().map(Vec::as_slice).collect();
                    let value = self.case.evaluate(of.chunk, of.step, of.element, &data);
                    self.feed(Input::Recomputed { value });
                }
                Action::Repeated { .. } | Action::Ended(_) => {}
                Action::Refuse { side, reason } => panic!("{side:?}: {reason}"),
            }
        }
    }

    /// Plays to the end. Returns the verdict and the moves of the worker.
    pub async fn play(&mut self, peer: &mut Peer) -> (Verdict, Vec<SignedMove>) {
        let mut moves = Vec::new();
        while let Some(ask) = self.next_ask(peer).await {
            peer.say(ToWorker::Asked(Box::new(ask))).await;
            let signed = next_move(peer).await;
            moves.push(signed.clone());
            self.take(signed);
        }
        let verdict = self.referee.verdict().unwrap();
        peer.say(ToWorker::Judged { dispute: self.referee.id(), verdict }).await;
        (verdict, moves)
    }

    pub fn take(&mut self, signed: SignedMove) {
        self.feed(Input::Move(signed));
    }

    fn answer(&mut self, side: Side) {
        let ask = self.referee.ask(self.job.clone(), side);
        let is_opening = self.referee.phase() == Phase::Open;
        if is_opening && !self.they_open {
            return;
        }
        let player = Player::new(&ask.terms, side, &ask.moves, &self.case).unwrap();
        let body = player.next(&mut self.trace, &self.case).unwrap();
        self.feed(Input::Move(player.sign(body, &other_keys(), &[]).unwrap()));
    }

    fn feed(&mut self, input: Input) {
        self.now = self.now.plus(1);
        let Output { entries, actions } = self.referee.handle(self.now, input, &self.case);
        let is_mine = |entry: &SignedEntry| matches!(entry.entry.what, What::Moved { side, .. } if side == self.side);
        self.acknowledged.extend(entries.into_iter().filter(is_mine));
        self.pending.extend(actions);
    }
}

/// The next move, on a stream of its own.
pub async fn next_move(peer: &Peer) -> SignedMove {
    a_move(peer.alone().await)
}

fn a_move(message: JobMessage) -> SignedMove {
    match message {
        JobMessage::Move(signed) => signed,
        other => panic!("{other:?}"),
    }
}
