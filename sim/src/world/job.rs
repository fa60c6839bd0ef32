//! The jobs of a world.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_model::dispute::LayerCase;
use lockstep_protocol::dispute::Terms;
use lockstep_protocol::ids::{JobId, Nonce, Place};
use lockstep_protocol::job::{Job, RequestInput};
use lockstep_protocol::machine::{AuditPolicy, JobSpec};

use super::Broken;
use super::cast::{Member, Role};
use crate::adversary::Adversary;
use crate::random::Random;
use crate::runs::{self, Case};

/// A job with what it is made of.
pub struct WorldJob {
    /// Model and tokens.
    pub case: &'static Case,
    /// As it is submitted.
    pub spec: JobSpec,
    seed: u64,
}

impl WorldJob {
    /// A job of a world.
    fn draw(seed: u64, index: usize, cast: &[Member], random: &mut Random) -> Self {
        let case = runs::draw(random);
        let nonce = Nonce::from_bytes(random.bytes32());
        let request = RequestInput::Tokens(case.tokens().to_vec()).hash(&nonce);
        let job = Job { request, nonce, ..case.job.clone() };
        let policy = policy(cast, random);
        let planted = random.per_mille(150).then(|| case.honest().roots.clone());
        let spec = JobSpec {
            layers: case.layers(),
            output_count: job.kind.generation().map_or(case.honest().output.len() as u32, |asked| asked.max_tokens),
            job: Arc::new(job),
            work: case.work(),
            planted: planted.filter(|_| policy.per_mille > 0),
            policy,
        };
        Self { case, spec, seed: seed ^ ((index as u64) << 32) }
    }

    /// The stream from which everybody who colludes draws the same lie about this job.
    pub fn shared(&self) -> Random {
        Random::new("gang", self.seed)
    }
}

/// How a job is audited.
fn policy(cast: &[Member], random: &mut Random) -> AuditPolicy {
    let most = (cast.len() as u64 - 1).clamp(1, 3);
    let mut policy = AuditPolicy {
        per_mille: if random.per_mille(900) { 1_000 } else { 500 },
        auditors: random.within(1..=most) as u8,
        hold: random.per_mille(200),
        distinct_operators: cast.iter().any(|member| member.operator.is_some()) && random.per_mille(600),
        lockstep: random.per_mille(250),
    };
    let has = |adversary| cast.iter().any(|member| member.role == Role::Cheat(adversary));
    if has(Adversary::Pretender) {
        // It bets on not being audited.
        policy.per_mille = 500;
    }
    if has(Adversary::ShamChain) {
        // What is audited is found anyway: these are about what only a challenge finds.
        (policy.per_mille, policy.lockstep) = (0, false);
    }
    policy
}

/// All of them, with the dispute views of their layers: whoever plays or referees derives the same from the manifest.
pub struct Jobs {
    jobs: BTreeMap<JobId, WorldJob>,
    /// Whether no party can hold their models.
    pub are_shared: bool,
    views: RefCell<BTreeMap<(JobId, Place), Arc<LayerCase>>>,
}

impl Jobs {
    /// The jobs of a world with these parties.
    pub fn draw(seed: u64, cast: &[Member], are_shared: bool) -> Self {
        let mut random = Random::new("jobs", seed);
        let count = if random.per_mille(250) { 2 } else { 1 };
        let job = |index| {
            let mut job = WorldJob::draw(seed, index, cast, &mut random);
            // Nobody audits a pipeline in lockstep.
            job.spec.policy.lockstep &= !are_shared;
            job
        };
        let jobs = (0..count).map(job).map(|job| (job.spec.job.id(), job)).collect();
        Self { jobs, are_shared, views: RefCell::default() }
    }

    /// One that is there.
    pub fn get(&self, job: &JobId) -> &WorldJob {
        &self.jobs[job]
    }

    /// In the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&JobId, &WorldJob)> {
        self.jobs.iter()
    }

    /// The dispute view of a place.
    pub fn view(&self, job: &JobId, place: Place) -> Arc<LayerCase> {
        let make = || {
            let job = self.get(job);
            let view = LayerCase::new(job.case.package().manifest(), &job.spec.job.header(), place);
            Arc::new(view.expect("the models of the simulation can be disputed"))
        };
        Arc::clone(self.views.borrow_mut().entry((*job, place)).or_insert_with(make))
    }

    /// The dispute view of the place that the terms are about.
    ///
    /// # Errors
    /// The terms do not check.
    pub fn view_of(&self, terms: &Terms) -> Result<Arc<LayerCase>, Broken> {
        let ground = terms.check().map_err(|error| Broken::new(format!("terms that do not check: {error}")))?;
        Ok(self.view(&terms.job_id(), ground.place))
    }
}
