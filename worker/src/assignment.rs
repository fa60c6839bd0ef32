//! One assignment: its model, its run, and the stream that carries the commitments while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_link::{LinkError, send};
use lockstep_protocol::commitment::RunCommitment;
use lockstep_protocol::hand_over::{HandOverProof, SignedHandOver};
use lockstep_protocol::ids::{ModelId, Place, Root, Salt};
use lockstep_protocol::job::Job;
use lockstep_protocol::messages::{FailureCode, JobMessage, JobResult, ToCoordinator};
use lockstep_protocol::receipt::{FinishReason, SignedSegment};
use quinn::{Connection, SendStream};
use tokio::sync::mpsc;

use crate::batch::{Failure, Key, Step, Task};
use crate::event::Event;
use crate::running::{Order, Seat};
use crate::store::Model;
use crate::supervisor::Shared;

/// A finished run that the coordinator has not acknowledged yet.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub result: JobResult,
    /// All roots in stream order.
    roots: Vec<Root>,
    /// Hides the run in its commitment until it is revealed.
    salt: Salt,
}

impl Kept {
    /// Draws the salt. Nobody may guess it: the commitment would show the roots to whoever tries.
    pub fn new(result: JobResult, roots: Vec<Root>) -> Result<Self, Failure> {
        let mut salt = [0; 32];
        getrandom::fill(&mut salt)
            .map_err(|error| Failure::new(FailureCode::Internal, format!("no randomness for a salt: {error}")))?;
        Ok(Self { result, roots, salt: Salt::from_bytes(salt) })
    }

    fn commitment(&self) -> RunCommitment {
        let receipt = &self.result.receipt.receipt;
        RunCommitment::of(receipt.job, receipt.epoch, receipt.worker, &self.salt, &receipt.head)
    }
}

/// Tells the engine that nobody waits any more, once this is dropped: with the session, or at its end.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Why relaying a run to the coordinator ended early.
pub(crate) enum Broken {
    /// The coordinator does not want the stream any more, or the connection is at its end: both are heard elsewhere.
    Link,
    /// The assignment is to be given back.
    Failure(Failure),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<LinkError> for Broken {
    fn from(error: LinkError) -> Self {
        match error {
            // Limits and the check of models leave no such message.
            LinkError::Frame(error) => Self::Failure(Failure::new(FailureCode::Internal, error.to_string())),
            _ => Self::Link,
        }
    }
}

/// Runs an assignment. Dropping the future stops the run at its next layer and resets its stream.
pub(crate) async fn run(
    shared: Arc<Shared>,
    connection: Connection,
    outbox: mpsc::Sender<ToCoordinator>,
    (seat, orders, cancelled): (Seat, mpsc::UnboundedReceiver<Order>, Arc<AtomicBool>),
    key: Key,
    (job, hint): (Job, Vec<u32>),
) -> Result<(), Failure> {
    job.check().map_err(|error| refused(error.to_string()))?;
    let model = ensure(&shared, &connection, &outbox, job.model).await?;
    check_tokens(&model, &job)?;
    let _guard = CancelOnDrop(Arc::clone(&cancelled));
    let (steps, said) = mpsc::unbounded_channel();
    let header = job.header();
    shared.streams.begin(key, header.clone(), model.layers);
    shared.engine.submit(Task { key, header, tokens: job.tokens, hint, model, steps, cancelled });
    match relay(&shared, &connection, key, said, (seat, orders)).await {
        Ok(()) | Err(Broken::Link) => Ok(()),
        Err(Broken::Failure(failure)) => Err(failure),
    }
}

/// Passes on what the engine says, as it says it. At the end the worker commits to the run, and shows it when it is told
/// to.
async fn relay(
    shared: &Shared,
    connection: &Connection,
    key: Key,
    mut said: mpsc::UnboundedReceiver<Step>,
    (seat, orders): (Seat, mpsc::UnboundedReceiver<Order>),
) -> Result<(), Broken> {
    let (job, epoch) = key;
    let mut stream = None;
    while let Some(step) = said.recv().await {
        match (step, &mut stream) {
            (Step::Failed(failure), _) => return Err(Broken::Failure(failure)),
            (Step::Started { batch }, None) => {
                shared.events.emit(Event::Running { job, epoch, batch });
                stream = Some(JobStream::open(connection, key).await?);
            }
            (Step::Layer { place, root }, Some(stream)) => {
                if !shared.streams.push(&key, root) {
                    // Halted: the session signs and sends what was streamed.
                    return Ok(());
                }
                stream.layer(place, root).await?;
                shared.events.emit(Event::LayerRoot { job, epoch, place, root });
            }
            (Step::Word { word, logprobs }, Some(stream)) => {
                if !shared.streams.push_word(&key, word) {
                    return Ok(());
                }
                stream.word(word, logprobs).await?;
            }
            (Step::Done { result, roots, elapsed }, Some(stream)) => {
                let work_units = result.receipt.receipt.work_units;
                let kept = Kept::new(*result, roots).map_err(Broken::Failure)?;
                // Kept before anything of it is sent: the connection may break in between.
                shared.keep_result(key, kept.clone());
                shared.self_test.signed(key);
                // What waits takes nothing of the device.
                seat.give_back();
                shared.events.emit(Event::Finished { job, epoch, work_units, elapsed });
                return Ok(stream.commit_and_reveal(kept, orders).await?);
            }
            // The engine starts each task once, before anything else.
            (Step::Started { .. } | Step::Layer { .. } | Step::Word { .. } | Step::Done { .. }, _) => break,
        }
    }
    Err(Broken::Failure(Failure::new(FailureCode::Internal, "the engine stopped")))
}

/// Gets a model ready, and tells the coordinator when it was not there before.
pub(crate) async fn ensure(
    shared: &Shared,
    connection: &Connection,
    outbox: &mpsc::Sender<ToCoordinator>,
    model: ModelId,
) -> Result<Arc<Model>, Failure> {
    let (ready, pulled) = shared.store.ensure(model, connection).await?;
    if pulled {
        // A session that is over needs no news.
        let _ = outbox.send(ToCoordinator::HaveModel { model }).await;
    }
    Ok(ready)
}

/// Offers a run that was finished on an earlier connection and never acknowledged, in the same order as at first.
pub(crate) async fn send_again(
    connection: Connection,
    orders: mpsc::UnboundedReceiver<Order>,
    key: Key,
    kept: Kept,
) -> Result<(), LinkError> {
    let mut stream = JobStream::open(&connection, key).await?;
    let receipt = &kept.result.receipt.receipt;
    let (mut words, logprobs) = (kept.result.words().into_iter(), kept.result.logprobs());
    let mut logprobs = logprobs.chunks((logprobs.len() / words.len().max(1)).max(1));
    let first = receipt.token_count.saturating_sub(1);
    for (point, roots) in (first..).zip(kept.roots.chunks(usize::from(receipt.layers) + 1)) {
        for (layer, root) in (1..).zip(roots) {
            // Of an embedding no words are streamed.
            if layer > receipt.layers && receipt.finish != FinishReason::Complete {
                let row = logprobs.next().unwrap_or_default().to_vec();
                stream.word(words.next().unwrap_or_default(), row).await?;
            }
            stream.layer(Place { point, layer }, *root).await?;
        }
    }
    stream.commit_and_reveal(kept, orders).await
}

/// What a backend would refuse must not reach a batch that others share.
pub(crate) fn check_tokens(model: &Model, job: &Job) -> Result<(), Failure> {
    let program = model.package.program();
    if program.is_decoder() != job.kind.generation().is_some() {
        return Err(refused("the model is not for this kind of job".into()));
    }
    if job.tokens.len() > program.max_positions as usize {
        let (found, most) = (job.tokens.len(), program.max_positions);
        return Err(refused(format!("{found} tokens; the model takes {most}")));
    }
    match job.tokens.iter().find(|token| **token >= program.vocab_size) {
        Some(token) => Err(refused(format!("token {token}; the model has {}", program.vocab_size))),
        None => Ok(()),
    }
}

pub(crate) fn refused(reason: String) -> Failure {
    Failure::new(FailureCode::JobRefused, reason)
}

/// Sends one message on a stream of its own.
pub(crate) async fn send_alone(connection: &Connection, message: &JobMessage) -> Result<(), LinkError> {
    finish(write_alone(connection, message).await?);
    Ok(())
}

/// Writes one message on a stream of its own. The other side takes it when the stream is finished.
pub(crate) async fn write_alone(connection: &Connection, message: &JobMessage) -> Result<SendStream, LinkError> {
    let mut stream = connection.open_uni().await?;
    send(&mut stream, message).await?;
    Ok(stream)
}

/// Ends a stream.
pub(crate) fn finish(mut stream: SendStream) {
    // Only a stream that was reset can't be finished, and its connection is at its end.
    let _ = stream.finish();
}

/// A job stream. Dropped before its result, it is reset, so that what was sent never looks complete.
pub(crate) struct JobStream {
    stream: SendStream,
    finished: bool,
}

impl JobStream {
    pub async fn open(connection: &Connection, (job, epoch): Key) -> Result<Self, LinkError> {
        let mut opened = Self { stream: connection.open_uni().await?, finished: false };
        send(&mut opened.stream, &JobMessage::Begin { job, epoch }).await?;
        Ok(opened)
    }

    pub async fn layer(&mut self, place: Place, root: Root) -> Result<(), LinkError> {
        send(&mut self.stream, &JobMessage::Layer { place, root }).await
    }

    pub async fn word(&mut self, word: u32, logprobs: Vec<i32>) -> Result<(), LinkError> {
        send(&mut self.stream, &JobMessage::Token { word, logprobs }).await
    }

    /// Of a pipeline: what the worker before this one signed.
    pub async fn received(&mut self, signed: SignedHandOver) -> Result<(), LinkError> {
        send(&mut self.stream, &JobMessage::Received(Box::new(signed))).await
    }

    /// Of a pipeline: what this worker signed for the one after it.
    pub async fn handed_over(&mut self, signed: SignedHandOver) -> Result<(), LinkError> {
        send(&mut self.stream, &JobMessage::HandedOver(Box::new(signed))).await
    }

    /// Of a pipeline: the worker before this one signed something wrong. The end of the stream.
    pub async fn proof(&mut self, proof: HandOverProof) -> Result<(), LinkError> {
        send(&mut self.stream, &JobMessage::Proof(Box::new(proof))).await?;
        self.finish();
        Ok(())
    }

    /// Of a pipeline: all roots are streamed.
    pub async fn ended(&mut self, saturations: u64) -> Result<(), LinkError> {
        send(&mut self.stream, &JobMessage::Ended { saturations }).await
    }

    /// Of a pipeline: signs for some layers, at the end of the stream.
    pub async fn segment(&mut self, signed: SignedSegment) -> Result<(), LinkError> {
        send(&mut self.stream, &JobMessage::Segment(signed)).await?;
        self.finish();
        Ok(())
    }

    fn finish(&mut self) {
        // Only a stream that was reset can't be finished, and its connection is at its end.
        let _ = self.stream.finish();
        self.finished = true;
    }

    /// Commits to the run, waits for the order to reveal it, and sends it. A run that nobody wants any more waits until
    /// its task is aborted.
    pub async fn commit_and_reveal(
        &mut self,
        kept: Kept,
        mut orders: mpsc::UnboundedReceiver<Order>,
    ) -> Result<(), LinkError> {
        send(&mut self.stream, &JobMessage::Commit { commitment: kept.commitment() }).await?;
        match orders.recv().await {
            // There is nothing to sign for any more.
            Some(Order::Reveal | Order::Countersign { .. }) => {}
            // The session is over.
            None => return Ok(()),
        }
        send(&mut self.stream, &JobMessage::Result { result: Box::new(kept.result), salt: kept.salt }).await?;
        self.finish();
        Ok(())
    }
}

impl Drop for JobStream {
    fn drop(&mut self) {
        if !self.finished {
            // A stream that is closed already needs no reset.
            let _ = self.stream.reset(0_u32.into());
        }
    }
}
