//! A worker in the simulation: a stand-in for the worker's shell, with the real player inside.
//!
//! What it must not forget it keeps durably: its runs that wait to be revealed, what it streamed, runs that it takes back,
//! and each move that it signed. Everything else is gone after a crash, and comes again from the coordinator.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockstep_protocol::commitment::RunCommitment;
use lockstep_protocol::dispute::{DisputeId, Evidence, Lowering, Partial, SignedEntry, SignedMove, SignedPartial};
use lockstep_protocol::hand_over::{HandOverProof, SignedHandOver};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{JobId, LeaseEpoch, Millis, NodeId, Place, Root, Salt};
use lockstep_protocol::messages::{Ask, FailureCode, JobResult, Stage};
use lockstep_protocol::receipt::{Run, SignedReceipt, SignedSegment, WorkerReceipt};

use super::Held;
use super::cast::{Member, Role};
use super::job::{Jobs, WorldJob};
use super::perform::{Performance, perform};
use super::table::{Seat, Table};
use crate::adversary::Adversary;
use crate::random::Random;

/// From the coordinator to a party.
#[derive(Clone, Debug)]
pub enum Down {
    /// Run a job; an auditor of a generation may be told the words that are claimed.
    Assign(LeaseEpoch, JobId, Vec<u32>),
    /// Run some layers of a job.
    AssignStage(LeaseEpoch, JobId, Vec<u32>, Vec<Stage>),
    /// Sign for them: the whole run is there.
    Countersign(JobId, LeaseEpoch),
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

/// A piece of a job stream.
#[derive(Clone, Debug)]
pub enum Said {
    /// The run has begun.
    Began,
    /// The root of a place.
    Root(Place, Root),
    /// The word of a point, before its root, with the log-probabilities that are asked for.
    Word(u32, Vec<i32>),
    /// That was all; this binds the party to it.
    Committed(RunCommitment),
    /// Of a pipeline: what was signed of rows.
    HandedOver(Box<SignedHandOver>),
    /// Of a pipeline: what was signed is wrong.
    Proof(Box<HandOverProof>),
    /// Of a pipeline: all roots of its layers were streamed, in which so many values saturated.
    Ended(u64),
    /// Of a pipeline: it signs for its layers.
    Segment(Box<SignedSegment>),
    /// Of a pipeline: it can't go on with a neighbour.
    GivenBack(FailureCode),
    /// Of a pipeline: nothing comes, and it says nothing.
    Waits,
}

/// From a party to the coordinator.
#[derive(Clone, Debug)]
pub enum Up {
    /// The next pieces of a job stream.
    Stream(JobId, LeaseEpoch, Vec<Said>),
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
    /// A job is given back.
    Failed(JobId, LeaseEpoch),
    /// A run is taken back.
    Retracted(JobId, LeaseEpoch),
    /// A move in a dispute.
    Move(Arc<SignedMove>),
}

/// One party.
pub struct Party {
    /// Its key.
    pub keys: Keypair,
    /// What it is.
    pub role: Role,
    /// Who runs it, as the coordinator's list has it.
    pub operator: Option<&'static str>,
    /// Its session, while it has one.
    pub session: Option<u64>,
    random: Random,
    /// What it claims about each job: a run is made once, also by those who crash.
    claims: BTreeMap<JobId, Performance>,
    /// What it streamed under each lease.
    streamed: BTreeMap<(JobId, LeaseEpoch), Performance>,
    /// Runs that it committed to and was not asked to show yet, or not told that they are kept.
    waiting: BTreeMap<(JobId, LeaseEpoch), (JobResult, Salt)>,
    /// Runs that it takes back.
    retracting: BTreeSet<(JobId, LeaseEpoch)>,
    /// Of a faulty one, the job that its machine spoils: its first one.
    spoils: Option<JobId>,
    /// Whether it knows that its machine is faulty: from then on the machine works.
    has_noticed: bool,
    /// How it plays.
    pub table: Table,
}

impl Party {
    /// A party of a world.
    pub fn new(seed: u64, index: usize, member: Member) -> Self {
        let mut random = Random::new(&format!("party {index}"), seed);
        let keys = Keypair::from_seed(random.bytes32());
        Self {
            keys,
            role: member.role,
            operator: member.operator,
            session: None,
            random,
            claims: BTreeMap::new(),
            streamed: BTreeMap::new(),
            waiting: BTreeMap::new(),
            retracting: BTreeSet::new(),
            spoils: None,
            has_noticed: false,
            table: Table::default(),
        }
    }

    /// Its name.
    pub fn id(&self) -> NodeId {
        self.keys.id()
    }

    /// What it claims about a job; where it has to make that first, knowing the words that it was told.
    pub fn claim(&mut self, job: JobId, hint: &[u32], jobs: &Jobs) -> &Performance {
        let Self { random, claims, role, spoils, has_noticed, .. } = self;
        claims.entry(job).or_insert_with(|| {
            let is_spoilt = !*has_noticed && *spoils.get_or_insert(job) == job;
            let role = if *role == Role::Faulty && !is_spoilt { Role::Honest } else { *role };
            let of = jobs.get(&job);
            perform(role, of.case, hint, &mut of.shared(), random)
        })
    }

    /// What it claims about a job that it has run.
    pub fn claimed(&mut self, job: JobId, jobs: &Jobs) -> &Performance {
        self.claim(job, &[], jobs)
    }

    /// Runs a job and commits to it: all that it will stream. A run that nobody could sign is streamed all the same.
    pub fn assigned(&mut self, job: JobId, epoch: LeaseEpoch, hint: &[u32], jobs: &Jobs) -> Vec<Said> {
        let of = jobs.get(&job);
        let claim = self.claim(job, hint, jobs).clone();
        let mut said = pieces(of, &claim);
        let salt = Salt::from_bytes(self.random.bytes32());
        if let Some(receipt) = sign(&self.keys, of, epoch, &claim) {
            said.push(Said::Committed(RunCommitment::of(job, epoch, self.id(), &salt, &receipt.receipt.head)));
            let result = JobResult { receipt, output: claim.run.output.clone() };
            self.waiting.insert((job, epoch), (result, salt));
        }
        self.streamed.insert((job, epoch), claim);
        said
    }

    /// Keeps the run of a pipeline, which it leads, until it is asked to show it.
    pub fn waits_to_reveal(&mut self, lease: (JobId, LeaseEpoch), result: JobResult, salt: Salt) {
        self.waiting.insert(lease, (result, salt));
    }

    /// Shows a run that was asked for. Cheats may show none, or another one than they committed to.
    pub fn reveal(&mut self, job: JobId, epoch: LeaseEpoch) -> Option<Up> {
        let (mut result, mut salt) = self.waiting.get(&(job, epoch))?.clone();
        match self.trick() {
            Some(Adversary::Withholder) => return None,
            Some(Adversary::Garbler) => result.output[0] ^= 1,
            Some(Adversary::Equivocator) => salt = Salt::from_bytes(self.random.bytes32()),
            _ => {}
        }
        Some(Up::Result { job, epoch, result: Box::new(result), salt })
    }

    /// What a cheat is up to when it has to show or sign what it streamed: mostly nothing yet.
    fn trick(&mut self) -> Option<Adversary> {
        match self.role {
            Role::Cheat(adversary) if self.random.per_mille(250) => Some(adversary),
            _ => None,
        }
    }

    /// Forgets a run that nobody will ask for any more.
    pub fn forget(&mut self, job: JobId, epoch: LeaseEpoch) {
        self.waiting.remove(&(job, epoch));
    }

    /// Signs what it streamed of a run that was halted, up to a place. Cheats may sign nothing, or other roots.
    pub fn halt(&mut self, job: JobId, epoch: LeaseEpoch, place: Place, jobs: &Jobs) -> Option<Up> {
        let trick = self.trick();
        let (of, streamed) = (jobs.get(&job), self.streamed.get(&(job, epoch))?);
        let geometry = of.case.geometry();
        let mut roots = streamed.run.roots.get(..=geometry.index_of(place)?)?.to_vec();
        let points = roots.len() / usize::from(geometry.streamed_layers());
        let words = streamed.words(of.case);
        let words = words.get(..points.min(words.len()))?;
        match trick {
            Some(Adversary::Withholder) => return None,
            Some(Adversary::Equivocator) => roots[0] = of.case.honest().roots[0],
            Some(Adversary::Garbler) => drop(roots.pop()),
            _ => {}
        }
        let partial = Partial::of_roots(job, &geometry, epoch, &roots, words, self.id())?;
        self.waiting.remove(&(job, epoch));
        Some(Up::Partial(Box::new(partial.sign(&self.keys))))
    }

    /// A receipt of its run under no lease, signed to challenge with, where anybody could sign such a run.
    pub fn receipt(&mut self, job: JobId, jobs: &Jobs) -> Option<SignedReceipt> {
        let claim = self.claimed(job, jobs).clone();
        sign(&self.keys, jobs.get(&job), LeaseEpoch::CHALLENGE, &claim)
    }

    /// Whether its machine has spoilt a job, and it does not know.
    pub fn is_spoilt(&self, job: JobId) -> bool {
        self.role == Role::Faulty && !self.has_noticed && self.spoils == Some(job)
    }

    /// The job that its machine spoils.
    pub fn spoils(&self) -> Option<JobId> {
        self.spoils
    }

    /// It has run its job again, and knows: what it says about it from now on is right.
    pub fn notice(&mut self) {
        self.has_noticed = true;
        if let Some(job) = self.spoils {
            self.claims.remove(&job);
        }
    }

    /// Takes a run back: gives the job back where the run is not kept yet, and says it again once it is.
    pub fn retract(&mut self, job: JobId, epoch: LeaseEpoch) -> Vec<Up> {
        self.retracting.insert((job, epoch));
        let given_back = self.waiting.remove(&(job, epoch)).map(|_| Up::Failed(job, epoch));
        given_back.into_iter().chain([Up::Retracted(job, epoch)]).collect()
    }

    /// What it says again, since nobody tells it that it was heard.
    pub fn retractions(&self) -> Vec<Up> {
        self.retracting.iter().map(|(job, epoch)| Up::Retracted(*job, *epoch)).collect()
    }

    /// Takes a question of a dispute in.
    ///
    /// # Errors
    /// Somebody honest has no move.
    pub fn asked(
        &mut self,
        now: Millis,
        ask: &Ask,
        (role, among_friends): (Role, bool),
        lowering: &dyn Lowering,
        trace: impl FnOnce() -> Box<dyn Evidence>,
    ) -> Held {
        let seat = Seat { keys: &self.keys, role, random: &mut self.random, among_friends };
        self.table.asked(now, ask, seat, lowering, trace)
    }

    /// Loses all that is not kept durably.
    pub fn crash(&mut self) {
        self.table.crash();
    }
}

/// What is streamed of a run, but for the commitment at its end.
fn pieces(job: &WorldJob, claim: &Performance) -> Vec<Said> {
    let geometry = job.case.geometry();
    let words = claim.words(job.case);
    let mut said = vec![Said::Began];
    for (index, root) in claim.run.roots.iter().enumerate() {
        // A run that goes on for longer than it may has no place for its last roots.
        let Some(place) = geometry.place(index) else { break };
        let point = index / usize::from(geometry.streamed_layers());
        let is_output = place.layer == geometry.streamed_layers();
        let word = words.get(point).filter(|_| is_output);
        said.extend(word.map(|word| Said::Word(*word, claim.logprobs_at(job.case, point))));
        said.push(Said::Root(place, *root));
    }
    said
}

fn sign(keys: &Keypair, job: &WorldJob, epoch: LeaseEpoch, claim: &Performance) -> Option<SignedReceipt> {
    Some(receipt_of(job, epoch, claim, keys.id())?.sign(keys))
}

/// The receipt of a run; none where nobody could sign such a run.
pub fn receipt_of(job: &WorldJob, epoch: LeaseEpoch, claim: &Performance, worker: NodeId) -> Option<WorkerReceipt> {
    let (spec, run) = (&job.spec, &claim.run);
    let words = claim.words(job.case);
    let points = run.roots.len() / (usize::from(spec.layers) + 1);
    let made = Run {
        epoch,
        layers: spec.layers,
        roots: run.roots.clone(),
        output_count: if job.case.is_generation() { words.len() as u32 } else { run.output.len() as u32 },
        words,
        work_units: spec.work.units(points),
        saturations: run.saturations,
    };
    let receipt = WorkerReceipt::of_run(&spec.job.header(), made, worker).ok()?;
    Some(receipt.with_logprobs(claim.logprobs(job.case)))
}
