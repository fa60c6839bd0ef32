//! Challenges of runs of jobs that have ended.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lockstep_protocol::dispute::Claim;
use lockstep_protocol::generation::words_of;
use lockstep_protocol::ids::{Digest, DisputeId, JobId, Millis, Root};
use lockstep_protocol::job::JobKind;
use lockstep_protocol::limits::MAX_HTTP_BODY_BYTES;
use lockstep_protocol::logprobs::ShownRow;
use lockstep_protocol::machine::Challenge;
use lockstep_protocol::receipt::{Receipt, SignedReceipt, split_output};
use serde::Deserialize;
use serde_json::json;

use super::App;
use super::access::Presented;
use super::embeddings::read_body;
use super::error::ApiError;
use super::info::no_job;
use super::read::read;
use crate::engine::ChallengeOutcome;
use crate::store::{KeptRun, Stored};

/// The body of a challenge.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChallengeBody {
    /// Of a job that has ended well.
    job: JobId,
    /// The challenger's own run of it, signed with the lease epoch of challenges.
    receipt: SignedReceipt,
    /// The digest of the receipt that is challenged; that of the answer where it is missing.
    run: Option<Digest>,
    /// Of a generation all words of the challenger's run.
    #[serde(default)]
    words: Vec<u32>,
    /// Its roots at the first point at which the runs differ, where that is not its last one.
    #[serde(default)]
    at: Vec<Root>,
    /// Where its roots are the same: its log-probabilities at a point at which the runs differ.
    logprobs: Option<ShownRow>,
}

/// `POST /v1/challenges`: disputes a run of a job that has ended, with a run of one's own and a stake. The key of that
/// run plays: over a session of its own, or by moves that anybody brings. It takes the job's access token, because whoever
/// plays is told the prompt.
pub async fn challenge(State(app): State<Arc<App>>, presented: Presented, body: Body) -> Result<Response, ApiError> {
    let body = read_body(body, MAX_HTTP_BODY_BYTES).await?;
    let asked: ChallengeBody = read(&body)?;
    let (job, reader) = (asked.job, Arc::clone(&app));
    presented.to(&app, job).await?.ok_or_else(|| no_job(job))?;
    let found = app.blocking(move || Ok((reader.store.job(&job)?, reader.store.ended(&job)?))).await?;
    let found = found.map_err(|error: crate::store::StoreError| ApiError::internal(format!("The store: {error}")))?;
    let (Some(Stored::Done(json)), ended) = found else {
        return Err(no_job(job));
    };
    let receipt = Receipt::from_json(&json).map_err(|error| ApiError::internal(error.to_string()))?;
    let mut runs = std::iter::once(&receipt.worker).chain(&receipt.audits);
    let wanted = asked.run.unwrap_or_else(|| receipt.worker.receipt.digest());
    let claimant = runs.find(|run| run.receipt.digest() == wanted).cloned();
    let claimant = claimant.ok_or_else(|| ApiError::parameter("run", format!("Job {job} has no such run.")))?;
    is_new(&app, job, &claimant, &asked.receipt).await?;
    let kept = match receipt.job.kind {
        JobKind::Embedding => KeptRun::default(),
        JobKind::Generation(_) => kept(&app, job, wanted).await?,
    };
    let ChallengeBody { words, at, logprobs, .. } = asked;
    let challenger = Claim { words, at, logprobs, ..asked.receipt.into() };
    let challenge = against(&receipt, (claimant, kept), challenger, ended);
    match app.engine.challenge(challenge).await.map_err(|_| ApiError::stopping())? {
        ChallengeOutcome::Opened(dispute) => Ok(taken(job, dispute, false)),
        ChallengeOutcome::Waits(dispute) => Ok(taken(job, dispute, true)),
        ChallengeOutcome::Refused(reason) => Err(refused(&reason)),
    }
}

/// A challenge is taken in. Where it waits for its turn, its dispute is not there to be looked at yet.
fn taken(job: JobId, dispute: DisputeId, waits: bool) -> Response {
    let taken = json!({"object": "lockstep.challenge", "job": job, "dispute": dispute, "waits": waits});
    (StatusCode::ACCEPTED, axum::Json(taken)).into_response()
}

/// What is kept of a run of a generation.
async fn kept(app: &Arc<App>, job: JobId, run: Digest) -> Result<KeptRun, ApiError> {
    let reader = Arc::clone(app);
    let found = app.blocking(move || reader.store.run(&job, &run)).await?;
    let found = found.map_err(|error| ApiError::internal(format!("The store: {error}")))?;
    found.ok_or_else(|| refused("the job ended too long ago"))
}

/// The challenge of a run, of which everything is at hand, by another.
fn against(
    receipt: &Receipt,
    (claimant, kept): (SignedReceipt, KeptRun),
    challenger: Claim,
    ended: Option<Millis>,
) -> Challenge {
    let (layers, work_units) = (claimant.receipt.layers, claimant.receipt.work_units);
    let (words, logprobs) = split_output(&kept.output, &claimant.receipt);
    let mut claimant = Claim { words: words_of(words), ..claimant.into() };
    let roots_at = |point: Option<usize>| {
        let roots = point.and_then(|point| kept.before.chunks(usize::from(layers) + 1).nth(point));
        roots.unwrap_or_default().to_vec()
    };
    // Where they do not differ, the machine says so.
    let difference = claimant.first_difference(&challenger);
    let before = roots_at(difference.and_then(|point| point.checked_sub(1)));
    if let (None, Some(shown), Some(asked)) = (difference, &challenger.logprobs, receipt.job.kind.generation()) {
        let point = shown.index as usize;
        (claimant.logprobs, claimant.at) = (ShownRow::of(logprobs, asked, point), roots_at(Some(point)));
    } else {
        claimant.at = roots_at(difference);
    }
    Challenge { job: receipt.job.header(), layers, work_units, ended, claimant, challenger, before }
}

/// Refuses two runs that were disputed before: they have their verdict, or will have it.
async fn is_new(app: &Arc<App>, job: JobId, a: &SignedReceipt, b: &SignedReceipt) -> Result<(), ApiError> {
    let reader = Arc::clone(app);
    let before = app.blocking(move || reader.store.terms_of_job(&job)).await?;
    let before = before.map_err(|error| ApiError::internal(format!("The store: {error}")))?;
    let is = |claim: &Claim, signed: &SignedReceipt| claim.receipt().is_some_and(|of| of.receipt == signed.receipt);
    if before.iter().any(|terms| is(&terms.claimant, a) && is(&terms.challenger, b)) {
        return Err(refused("these two runs were disputed before"));
    }
    Ok(())
}

fn refused(reason: &str) -> ApiError {
    let (status, kind) = (StatusCode::UNPROCESSABLE_ENTITY, "invalid_request_error");
    ApiError::new(status, kind, Some("challenge_refused"), format!("The challenge is refused: {reason}."))
}
