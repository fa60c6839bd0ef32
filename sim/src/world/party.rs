//! A worker in the simulation: a stand-in for the worker's shell, with the real player inside.
//!
//! What it must not forget it keeps durably: its runs that wait to be revealed, and each move that it signed. Everything
//! else is gone after a crash, and comes again from the coordinator.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_model::rerun::Rerun;
use lockstep_protocol::commitment::RunCommitment;
use lockstep_protocol::dispute::{DisputeId, Evidence, Lowering, Partial, SignedEntry, SignedMove, SignedPartial};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{JobId, LeaseEpoch, Millis, NodeId, Place, Root, Salt};
use lockstep_protocol::job::Job;
use lockstep_protocol::machine::JobSpec;
use lockstep_protocol::messages::{Ask, JobResult};
use lockstep_protocol::receipt::{Run, SignedReceipt, WorkerReceipt};

use super::Held;
use super::cast::{Performance, Role, perform};
use super::job::Jobs;
use super::table::{Seat, Table};
use crate::random::Random;

/// From the coordinator to a party.
#[derive(Clone, Debug)]
pub enum Down {
    /// Run a job.
    Assign(LeaseEpoch, Arc<Job>),
    /// An assignment is over.
    Cancel(JobId, LeaseEpoch),
    /// Show the run.
    Reveal(JobId, LeaseEpoch),
    /// The run is kept.
    Accepted(JobId, LeaseEpoch),
    /// Stop a run, and sign what was streamed.
    Halt(JobId, LeaseEpoch, Place),
    /// Move in a dispute.
    Ask(Arc<Ask>),
    /// A move is kept.
    Acknowledged(Arc<SignedEntry>),
    /// A dispute is over.
    Judged(DisputeId),
    /// The session is over.
    Close,
}

/// From a party to the coordinator.
#[derive(Clone, Debug)]
pub enum Up {
    /// A job stream up to the commitment: the stream is ordered, so it comes as one.
    Stream {
        /// Of which job.
        job: JobId,
        /// Under which lease.
        epoch: LeaseEpoch,
        /// All roots.
        roots: Vec<Root>,
        /// Binds the party to them.
        commitment: RunCommitment,
    },
    /// The rest of a job stream.
    Result {
        /// Of which job.
        job: JobId,
        /// Under which lease.
        epoch: LeaseEpoch,
        /// The run.
        result: Box<JobResult>,
        /// Opens the commitment.
        salt: Salt,
    },
    /// What was streamed of a run that was halted.
    Partial(Box<SignedPartial>),
    /// A move in a dispute.
    Move(Arc<SignedMove>),
}

/// One party.
pub struct Party {
    /// Its key.
    pub keys: Keypair,
    /// What it is.
    pub role: Role,
    /// Its session, while it has one.
    pub session: Option<u64>,
    random: Random,
    /// What it claims about each job: a run is made once, also by those who crash.
    claims: BTreeMap<JobId, Performance>,
    /// Runs that it committed to and was not asked to show yet.
    waiting: BTreeMap<(JobId, LeaseEpoch), (JobResult, Salt)>,
    /// How it plays.
    pub table: Table,
}

impl Party {
    /// A party of a world.
    pub fn new(seed: u64, index: usize, role: Role) -> Self {
        let mut random = Random::new(&format!("party {index}"), seed);
        let keys = Keypair::from_seed(random.bytes32());
        Self {
            keys,
            role,
            session: None,
            random,
            claims: BTreeMap::new(),
            waiting: BTreeMap::new(),
            table: Table::default(),
        }
    }

    /// Its name.
    pub fn id(&self) -> NodeId {
        self.keys.id()
    }

    /// What it claims about a job.
    pub fn claim(&mut self, job: JobId, jobs: &Jobs) -> &Performance {
        let Self { random, claims, role, .. } = self;
        claims.entry(job).or_insert_with(|| {
            let job = jobs.get(&job);
            perform(*role, job.case, &mut job.shared(), random)
        })
    }

    /// Runs a job and commits to it.
    pub fn assigned(&mut self, job: &Job, epoch: LeaseEpoch, jobs: &Jobs) -> Up {
        let id = job.id();
        let spec = &jobs.get(&id).spec;
        let run = Arc::clone(&self.claim(id, jobs).run);
        let salt = Salt::from_bytes(self.random.bytes32());
        let receipt = sign(&self.keys, spec, epoch, &run);
        let commitment = RunCommitment::of(id, epoch, self.id(), &salt, &receipt.receipt.head);
        let result = JobResult { receipt, output: run.output.clone() };
        self.waiting.insert((id, epoch), (result, salt));
        Up::Stream { job: id, epoch, roots: run.roots.clone(), commitment }
    }

    /// Shows a run that was asked for.
    pub fn reveal(&self, job: JobId, epoch: LeaseEpoch) -> Option<Up> {
        let (result, salt) = self.waiting.get(&(job, epoch))?.clone();
        Some(Up::Result { job, epoch, result: Box::new(result), salt })
    }

    /// Forgets a run that nobody will ask for any more.
    pub fn forget(&mut self, job: JobId, epoch: LeaseEpoch) {
        self.waiting.remove(&(job, epoch));
    }

    /// Signs what it streamed of a run that was halted, up to a place.
    pub fn halt(&mut self, job: JobId, epoch: LeaseEpoch, place: Place, jobs: &Jobs) -> Option<Up> {
        let (run, geometry) = (Arc::clone(&self.claim(job, jobs).run), jobs.get(&job).geometry());
        let roots = run.roots.get(..=geometry.index_of(place)?)?;
        let partial = Partial::of_roots(job, &geometry, epoch, roots, &[], self.id())?;
        self.waiting.remove(&(job, epoch));
        Some(Up::Partial(Box::new(partial.sign(&self.keys))))
    }

    /// A receipt of its run under no lease, signed to challenge with.
    pub fn receipt(&mut self, job: JobId, jobs: &Jobs) -> SignedReceipt {
        let (keys, spec) = (self.keys.clone(), &jobs.get(&job).spec);
        let run = Arc::clone(&self.claim(job, jobs).run);
        sign(&keys, spec, LeaseEpoch::CHALLENGE, &run)
    }

    /// Takes a question of a dispute in.
    ///
    /// # Errors
    /// Somebody honest has no move.
    pub fn asked(
        &mut self,
        now: Millis,
        ask: &Ask,
        among_friends: bool,
        lowering: &dyn Lowering,
        trace: impl FnOnce() -> Box<dyn Evidence>,
    ) -> Held {
        let seat = Seat { keys: &self.keys, role: self.role, random: &mut self.random, among_friends };
        self.table.asked(now, ask, seat, lowering, trace)
    }

    /// Loses all that is not kept durably.
    pub fn crash(&mut self) {
        self.table.crash();
    }
}

/// The receipt of a run.
fn sign(keys: &Keypair, spec: &JobSpec, epoch: LeaseEpoch, run: &Rerun) -> SignedReceipt {
    let made = Run {
        epoch,
        layers: spec.layers,
        roots: run.roots.clone(),
        words: Vec::new(),
        output_count: spec.output_count,
        work_units: spec.work.units(1),
        saturations: run.saturations,
    };
    WorkerReceipt::of_run(&spec.job.header(), made, keys.id()).expect("a run has the job's shape").sign(keys)
}
