//! One question, from its checks to the move on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep_protocol::dispute::{DisputeId, MoveBody, SignedMove};
use lockstep_protocol::limits::{WORKER_DISPUTE_PAUSE_MAX_MS, WORKER_DISPUTE_PAUSE_MIN_MS};
use lockstep_protocol::messages::{Ask, JobMessage, ToCoordinator};
use quinn::Connection;
use tokio::sync::mpsc;

use super::desk::{Made, Trouble};
use super::{Checked, Question};
use crate::assignment;
use crate::backoff::Backoff;
use crate::batch::Failure;
use crate::event::Event;
use crate::store::Model;
use crate::supervisor::Shared;

/// Answers an ask. Where something is in the way that may pass, such as a disk or a device, it tries again: to be silent
/// is to lose. Dropping the future gives up, until the coordinator asks again. `answered` is set before anybody can have
/// the answer.
pub(crate) async fn play(
    shared: Arc<Shared>,
    connection: Connection,
    outbox: mpsc::Sender<ToCoordinator>,
    ask: Box<Ask>,
    answered: Arc<AtomicBool>,
) {
    let dispute = ask.terms.id();
    match answer(&shared, &connection, &outbox, *ask).await {
        Ok((question, signed)) => deliver(&shared, &connection, &question, signed, &answered).await,
        Err(reason) => {
            answered.store(true, Ordering::Relaxed);
            failed(&shared, dispute, reason, None);
        }
    }
}

/// The move that an ask wants, or why there will be none.
async fn answer(
    shared: &Arc<Shared>,
    connection: &Connection,
    outbox: &mpsc::Sender<ToCoordinator>,
    ask: Ask,
) -> Result<(Arc<Question>, SignedMove), String> {
    let Checked { question, shown_before, signed_before } = shared.disputes.check(ask).await?;
    shared.disputes.begin(&question);
    let (dispute, job) = (question.dispute, question.ask.terms.job_id());
    let (side, place) = (question.side, question.ground.place);
    shared.events.emit(Event::DisputeAsked { dispute, job, side, place });
    if let Some(shown) = shown_before {
        expose(shared, connection, shown).await;
    }
    if let Some(signed) = signed_before {
        return Ok((question, signed));
    }
    let (first, longest) = (WORKER_DISPUTE_PAUSE_MIN_MS, WORKER_DISPUTE_PAUSE_MAX_MS);
    let mut pauses = Backoff::new(Duration::from_millis(first), Duration::from_millis(longest));
    let mut verify = false;
    loop {
        let reason = match make(shared, connection, outbox, &question, verify).await {
            Ok(signed) => return Ok((question, signed)),
            Err(Trouble::Lasting(reason)) => return Err(reason),
            Err(Trouble::Passing(reason)) => reason,
        };
        // A run that fails may do so because of a damaged package.
        verify = true;
        let retry_in = pauses.pause();
        failed(shared, dispute, reason, Some(retry_in));
        tokio::time::sleep(retry_in).await;
    }
}

/// Shows the coordinator a move of the other side that it was not shown, where the other side signed two.
async fn expose(shared: &Shared, connection: &Connection, shown: SignedMove) {
    let (dispute, round) = (shown.made.dispute, shown.made.round);
    // Where it does not arrive the connection is at its end.
    if assignment::send_alone(connection, &JobMessage::Move(shown)).await.is_ok() {
        shared.events.emit(Event::EquivocationSeen { dispute, round });
    }
}

/// The move, made and kept. A run that differs from the signed one is made once more from a package that was verified
/// again: a disk that lost a bit since must not cost the claim.
async fn make(
    shared: &Arc<Shared>,
    connection: &Connection,
    outbox: &mpsc::Sender<ToCoordinator>,
    question: &Arc<Question>,
    verify: bool,
) -> Result<SignedMove, Trouble> {
    let desk = &shared.disputes.desk;
    let mut held = held(shared, connection, outbox, question).await?;
    if verify {
        held = verified(shared, connection, question).await?;
    }
    if held.layers != question.ask.terms.layers {
        let (found, expected) = (held.layers, question.ask.terms.layers);
        return Err(Trouble::Lasting(format!("the model has {found} layers, not {expected}")));
    }
    let reason = match desk.make(question, held, false).await? {
        Made::Move(signed) => return Ok(signed),
        Made::Differs(reason) => reason,
    };
    tracing::warn!(dispute = %question.dispute, %reason, "a disputed run comes out otherwise; checking again");
    let held = verified(shared, connection, question).await?;
    match desk.make(question, held, true).await? {
        Made::Move(signed) => Ok(signed),
        Made::Differs(reason) => Err(Trouble::Passing(reason)),
    }
}

/// The model, or the layers of it that this worker answers for.
async fn held(
    shared: &Arc<Shared>,
    connection: &Connection,
    outbox: &mpsc::Sender<ToCoordinator>,
    question: &Question,
) -> Result<Arc<Model>, Trouble> {
    let model = question.ask.job.model;
    let held = match question.layers() {
        Some(layers) => shared.store.ensure_slice(model, layers, connection).await,
        None => assignment::ensure(shared, connection, outbox, model).await,
    };
    held.map_err(|failure: Failure| Trouble::Passing(failure.reason))
}

/// The same, with all digests verified now.
async fn verified(shared: &Arc<Shared>, connection: &Connection, question: &Question) -> Result<Arc<Model>, Trouble> {
    let model = question.ask.job.model;
    let held = match question.layers() {
        Some(layers) => shared.store.ensure_slice_verified(model, layers, connection).await,
        None => shared.store.ensure_verified(model, connection).await,
    };
    held.map_err(|failure: Failure| Trouble::Passing(failure.reason))
}

/// Sends the move. Where it does not arrive the connection is at its end, and on the next one the coordinator asks again.
async fn deliver(
    shared: &Shared,
    connection: &Connection,
    question: &Question,
    signed: SignedMove,
    answered: &AtomicBool,
) {
    let (dispute, round, kind) = (question.dispute, signed.made.round, signed.made.body.name());
    let conceded = matches!(signed.made.body, MoveBody::Concede);
    let stream = match assignment::write_alone(connection, &JobMessage::Move(signed)).await {
        Ok(stream) => stream,
        Err(error) => return failed(shared, dispute, error.to_string(), None),
    };
    answered.store(true, Ordering::Relaxed);
    assignment::finish(stream);
    if conceded {
        let (job, epoch) = (question.ask.terms.job_id(), question.ask.terms.claim(question.side).epoch());
        shared.events.emit(Event::Conceded { dispute, job, epoch });
    } else {
        shared.events.emit(Event::DisputeMoved { dispute, round, kind });
    }
}

fn failed(shared: &Shared, dispute: DisputeId, reason: String, retry_in: Option<Duration>) {
    tracing::warn!(%dispute, %reason, "no move was made in a dispute");
    shared.events.emit(Event::DisputeFailed { dispute, reason, retry_in });
}
