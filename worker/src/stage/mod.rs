//! Some layers of a job, in a pipeline with other workers.
//!
//! - this file: one assignment, from its layers to its signature.
//! - `links`: the streams to the workers before and after.
//! - `seats`: layers on the device, and runs on them.
//! - `inputs`: the rows that were received, kept for disputes.
//!
//! Rows come down from the worker before, are hashed on arrival, and have to have the root that it signed; words come up
//! from the worker after. What goes to the coordinator is said when the word of its point is known, in the same order as by a worker that has
//! all layers. At the end the coordinator shows everybody all roots; each signs for its own layers if they are what it
//! streamed and received.

mod inputs;
mod links;
mod seats;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use lockstep_link::{LinkError, send};
use lockstep_model::generation::{Event as Said, StagePass};
use lockstep_protocol::ids::{Place, Root};
use lockstep_protocol::job::{Job, JobKind};
use lockstep_protocol::limits::{MAX_STAGE_VALUES, WORKER_STAGE_PASS};
use lockstep_protocol::messages::{FailureCode, HandOver, JobResult, SignedHandOver, Stage, StageMessage};
use lockstep_protocol::receipt::{Run, Segment, WorkerReceipt};
use quinn::Connection;
use tokio::sync::mpsc;

pub(crate) use self::inputs::Inputs;
use self::links::Link;
pub(crate) use self::links::Links;
use self::seats::Seat as DeviceSeat;
pub(crate) use self::seats::Seats;
use crate::assignment::{Broken, JobStream, Kept, check_tokens, refused};
use crate::batch::{Failure, Key};
use crate::event::Event;
use crate::running::{Order, Seat};
use crate::store::{Model, blocking};
use crate::supervisor::Shared;

/// What a worker of a pipeline is given.
pub(crate) struct Share {
    pub job: Job,
    pub hint: Vec<u32>,
    pub crew: Vec<Stage>,
}

/// What came of all passes.
struct Outcome {
    /// The roots that were streamed, and those of the received layer.
    said: Vec<(Place, Root)>,
    words: Vec<u32>,
    /// Of the last worker, where they were asked for.
    logprobs: Vec<i32>,
    output: Vec<i32>,
}

/// Runs an assignment. Dropping the future ends the run, and its neighbours notice.
pub(crate) async fn run(
    shared: Arc<Shared>,
    connection: Connection,
    (seat, orders): (Seat, mpsc::UnboundedReceiver<Order>),
    key: Key,
    share: Share,
) -> Result<(), Failure> {
    let Share { job, hint, crew } = share;
    job.check().map_err(|error| refused(error.to_string()))?;
    let at =
        place_in(&crew, shared.keys.id()).ok_or_else(|| refused("the crew is none, or not of this worker".into()))?;
    // From now on, so that a neighbour that is ready earlier finds who takes it.
    let upstream = at.checked_sub(1).map(|before| shared.links.expect(key, crew[before].node));
    let layers = (crew[at].first, crew[at].last);
    let model = shared.store.ensure_slice(job.model, layers, &connection).await?;
    check_tokens(&model, &job)?;
    if crew[crew.len() - 1].last != model.layers + 1 {
        return Err(refused(format!("the crew does not end with layer {}", model.layers + 1)));
    }
    let (shared_, model_, job_) = (Arc::clone(&shared), Arc::clone(&model), job.clone());
    let device = blocking(move || shared_.seats.take(&model_, &job_, hint)).await??;
    let downstream = match crew.get(at + 1) {
        Some(next) => Some(shared.links.connect(key, next).await?),
        None => None,
    };
    let gone = || Failure::new(FailureCode::Upstream, "the worker before this one does not come");
    let upstream = match upstream {
        Some(expected) => Some(expected.link().await.ok_or_else(gone)?),
        None => None,
    };
    let pipe = Pipe { shared, key, crew, at, upstream, downstream, device: Arc::new(Mutex::new(device)) };
    match pipe.run(&connection, &model, &job, seat, orders).await {
        Ok(()) | Err(Broken::Link) => Ok(()),
        Err(Broken::Failure(failure)) => Err(failure),
    }
}

/// Where a worker is in a crew whose layers follow one another, each worker there once.
fn place_in(crew: &[Stage], me: lockstep_protocol::ids::NodeId) -> Option<usize> {
    let mut next = 1;
    for (index, stage) in crew.iter().enumerate() {
        let is_new = crew[..index].iter().all(|before| before.node != stage.node);
        if !is_new || stage.first != next || stage.last < stage.first {
            return None;
        }
        next = stage.last.checked_add(1)?;
    }
    crew.iter().position(|stage| stage.node == me)
}

/// One run between two neighbours.
struct Pipe {
    shared: Arc<Shared>,
    key: Key,
    crew: Vec<Stage>,
    at: usize,
    upstream: Option<Link>,
    downstream: Option<Link>,
    device: Arc<Mutex<DeviceSeat>>,
}

impl Pipe {
    async fn run(
        mut self,
        connection: &Connection,
        model: &Model,
        job: &Job,
        seat: Seat,
        orders: mpsc::UnboundedReceiver<Order>,
    ) -> Result<(), Broken> {
        let start = Instant::now();
        let (id, epoch) = self.key;
        let mut stream = JobStream::open(connection, self.key).await?;
        self.shared.events.emit(Event::Running { job: id, epoch, batch: 1 });
        let outcome = self.passes(&mut stream).await?;
        let saturations = self.on_device(|device| device.finish()).await?;
        // The neighbours have all that they need, once it has arrived.
        self.upstream.take().into_iter().chain(self.downstream.take()).for_each(Link::settle);
        self.keep_input().await?;
        stream.ended(saturations).await?;
        self.sign(stream, model, job, outcome, (seat, orders), start).await
    }

    /// All passes, until the last word.
    async fn passes(&mut self, stream: &mut JobStream) -> Result<Outcome, Broken> {
        let mut outcome = Outcome { said: Vec::new(), words: Vec::new(), logprobs: Vec::new(), output: Vec::new() };
        let mut handed = Vec::new();
        loop {
            let (count, rows) = match self.upstream {
                Some(_) => {
                    let (count, rows, signed) = self.receive().await?;
                    handed = signed;
                    (count, rows)
                }
                None => (self.on_device(|device| Ok(device.run.pass_of(WORKER_STAGE_PASS))).await?, Vec::new()),
            };
            let mut passed = self.on_device(move |device| device.pass(count, &rows)).await?;
            self.hand_over(count, &mut passed).await?;
            let words = self.words(&passed).await?;
            if let Some(up) = self.upstream.as_mut().filter(|_| passed.points > 0) {
                let message = StageMessage::Words { words: words.clone() };
                send(&mut up.outbound, &message).await.map_err(|error| lost(FailureCode::Upstream, &error))?;
            }
            let output = passed.output;
            let (taken, given) = (words, output.clone());
            let (said, ended) = self.on_device(move |device| device.accept(&taken, &given)).await?;
            self.stream(stream, said, &handed, &mut outcome).await?;
            if ended {
                outcome.output = output;
                return Ok(outcome);
            }
        }
    }

    /// The rows of the next pass, checked against what their sender signed.
    async fn receive(&mut self) -> Result<(usize, Vec<i32>, Vec<SignedHandOver>), Broken> {
        let (left, cols) = self.on_device(|device| Ok((device.run.left(), device.run.received_cols()))).await?;
        let up = self.upstream.as_mut().expect("only where there is somebody before");
        let wrong = |what: &str| Broken::Failure(Failure::new(FailureCode::Upstream, what));
        let count = match next(up).await? {
            StageMessage::Pass { count } if count as usize <= left => count as usize,
            _ => return Err(wrong("no pass where one was next, or too long a one")),
        };
        let mut rows = Vec::new();
        while rows.len() < count * cols {
            match next(up).await? {
                StageMessage::Rows { values } if !values.is_empty() && rows.len() + values.len() <= count * cols => {
                    rows.extend(values);
                }
                _ => return Err(wrong("other rows than those of the pass")),
            }
        }
        let marked = self.on_device(move |device| Ok((device.run.received_marks(count, &rows), rows)));
        let (marks, rows) = marked.await?;
        let (job, epoch) = self.key;
        let (layer, worker) = (self.crew[self.at].first - 1, self.crew[self.at - 1].node);
        let mut handed = Vec::with_capacity(marks.len());
        for (rows, root) in marks {
            let up = self.upstream.as_mut().expect("it is there still");
            let said = HandOver { job, epoch, layer, rows, root, worker };
            match next(up).await? {
                StageMessage::HandedOver(signed) if signed.hand_over == said && signed.is_signed() => {
                    handed.push(signed)
                }
                _ => return Err(wrong("rows that are not what their sender signed")),
            }
        }
        Ok((count, rows, handed))
    }

    /// Hands the rows of a pass over to the next worker, signed.
    async fn hand_over(&mut self, count: usize, passed: &mut StagePass) -> Result<(), Broken> {
        let Some(down) = &mut self.downstream else { return Ok(()) };
        let ((job, epoch), layer, worker) = (self.key, self.crew[self.at].last, self.shared.keys.id());
        let mut messages = vec![StageMessage::Pass { count: count as u32 }];
        let rows = std::mem::take(&mut passed.rows);
        messages.extend(rows.chunks(MAX_STAGE_VALUES).map(|values| StageMessage::Rows { values: values.to_vec() }));
        messages.extend(passed.marks.iter().map(|(rows, root)| {
            let said = HandOver { job, epoch, layer, rows: *rows, root: *root, worker };
            StageMessage::HandedOver(said.sign(&self.shared.keys))
        }));
        for message in &messages {
            send(&mut down.outbound, message).await.map_err(|error| lost(FailureCode::Downstream, &error))?;
        }
        Ok(())
    }

    /// The words at the points of a pass: its own, or those that come back.
    async fn words(&mut self, passed: &StagePass) -> Result<Vec<u32>, Broken> {
        let Some(down) = self.downstream.as_mut().filter(|_| passed.points > 0) else {
            return Ok(passed.words.clone());
        };
        match down.inbound.next().await {
            Ok(Some(StageMessage::Words { words })) if words.len() == passed.points => Ok(words),
            Ok(_) => Err(Failure::new(FailureCode::Downstream, "no words where they were next").into()),
            Err(error) => Err(lost(FailureCode::Downstream, &error)),
        }
    }

    /// Streams what a pass came to.
    async fn stream(
        &self,
        stream: &mut JobStream,
        said: Vec<Said>,
        handed: &[SignedHandOver],
        outcome: &mut Outcome,
    ) -> Result<(), Broken> {
        let (job, epoch) = self.key;
        let first = self.crew[self.at].first;
        for event in said {
            match event {
                Said::Root { place, root } if place.layer < first => {
                    outcome.said.push((place, root));
                    let signed = handed.iter().find(|signed| signed.hand_over.rows == place.point + 1);
                    let signed =
                        signed.ok_or_else(|| Failure::new(FailureCode::Internal, "a point that nobody handed over"))?;
                    stream.received(*signed).await?;
                }
                Said::Root { place, root } => {
                    outcome.said.push((place, root));
                    stream.layer(place, root).await?;
                    self.shared.events.emit(Event::LayerRoot { job, epoch, place, root });
                }
                Said::Word { word, logprobs, .. } => {
                    outcome.words.push(word);
                    outcome.logprobs.extend_from_slice(&logprobs);
                    if self.is_lead() {
                        stream.word(word, logprobs).await?;
                    }
                }
                // A stage has no whole run.
                Said::Done(_) => {}
            }
        }
        Ok(())
    }

    fn is_lead(&self) -> bool {
        self.at + 1 == self.crew.len()
    }

    /// The received rows, durable before anything is signed.
    async fn keep_input(&self) -> Result<(), Broken> {
        if self.at == 0 {
            return Ok(());
        }
        let (device, inputs, (job, epoch)) = (Arc::clone(&self.device), self.shared.inputs.clone(), self.key);
        let kept = blocking(move || {
            let device = device.lock().unwrap_or_else(PoisonError::into_inner);
            inputs.keep(&job, epoch, device.run.received())
        });
        let kept = kept.await.map_err(Broken::Failure)?;
        kept.map_err(|error| {
            Failure::new(FailureCode::Internal, format!("the received rows can't be kept: {error}")).into()
        })
    }

    /// Waits for the roots of all, and signs for its own layers; the last worker for the run.
    async fn sign(
        self,
        mut stream: JobStream,
        model: &Model,
        job: &Job,
        outcome: Outcome,
        (seat, mut orders): (Seat, mpsc::UnboundedReceiver<Order>),
        start: Instant,
    ) -> Result<(), Broken> {
        let mut roots = Vec::new();
        let (saturations, logprobs) = loop {
            match orders.recv().await {
                Some(Order::Countersign { roots: more, saturations, logprobs }) => {
                    roots.extend(more);
                    if let Some(saturations) = saturations {
                        break (saturations, logprobs);
                    }
                }
                Some(Order::Reveal) => {}
                // The session is over.
                None => return Ok(()),
            }
        };
        let internal = |what: &str| Broken::Failure(Failure::new(FailureCode::Internal, what));
        let (header, lead) = (job.header(), self.crew[self.crew.len() - 1].node);
        let geometry = model.geometry(&header).map_err(|error| refused(error.to_string()))?;
        let is_own =
            |(place, root): &(Place, Root)| geometry.index_of(*place).and_then(|index| roots.get(index)) == Some(root);
        if !outcome.said.iter().all(is_own) {
            return Err(internal("the coordinator shows other roots than this worker streamed"));
        }
        let program = model.package.program();
        let points = outcome.words.len() as u64;
        let output_count = match &job.kind {
            JobKind::Embedding => program.layers.last().map_or(0, |layer| program.tensor(layer.output).cols),
            JobKind::Generation(_) => outcome.words.len() as u32,
        };
        let positions = u64::from(header.token_count) + points.saturating_sub(1);
        let run = Run {
            epoch: self.key.1,
            layers: model.layers,
            roots: roots.clone(),
            words: outcome.words.clone(),
            output_count,
            work_units: program.macs(positions, points),
            saturations,
        };
        let receipt = WorkerReceipt::of_run(&header, run, lead);
        let receipt = receipt.map_err(|_| internal("the run has another shape than its job"))?;
        // Those of the others are the last worker's affair, as they are told.
        let receipt = WorkerReceipt { logprobs, ..receipt };
        let ((id, epoch), work_units, elapsed) = (self.key, receipt.work_units, start.elapsed());
        let finished = Event::Finished { job: id, epoch, work_units, elapsed };
        if !self.is_lead() {
            let Stage { first, last, .. } = self.crew[self.at];
            let segment = Segment { receipt: receipt.digest(), first, last, worker: self.shared.keys.id() };
            seat.give_back();
            self.shared.events.emit(finished);
            return Ok(stream.segment(segment.sign(&self.shared.keys)).await?);
        }
        let output = match &job.kind {
            JobKind::Embedding => outcome.output,
            JobKind::Generation(_) => {
                let words = outcome.words.iter().map(|word| word.cast_signed());
                words.chain(outcome.logprobs.iter().copied()).collect()
            }
        };
        if receipt.logprobs != receipt.clone().with_logprobs(&outcome.logprobs).logprobs {
            return Err(internal("the coordinator shows other log-probabilities than this worker streamed"));
        }
        let first = self.crew[self.at].first;
        let result = JobResult { receipt: receipt.sign_share(first, &self.shared.keys), output };
        let kept = Kept::new(result, roots).map_err(Broken::Failure)?;
        self.shared.keep_result(self.key, kept.clone());
        seat.give_back();
        self.shared.events.emit(finished);
        Ok(stream.commit_and_reveal(kept, orders).await?)
    }

    async fn on_device<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut DeviceSeat) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Broken> {
        let device = Arc::clone(&self.device);
        let done = blocking(move || work(&mut device.lock().unwrap_or_else(PoisonError::into_inner))).await;
        let done = done.flatten();
        if done.as_ref().is_err_and(|failure| failure.code == FailureCode::Backend) {
            self.shared.seats.forget(&self.device.lock().unwrap_or_else(PoisonError::into_inner));
        }
        done.map_err(Broken::Failure)
    }
}

/// The next message of the worker before this one.
async fn next(up: &mut Link) -> Result<StageMessage, Broken> {
    match up.inbound.next().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(Failure::new(FailureCode::Upstream, "the worker before this one ended the stream").into()),
        Err(error) => Err(lost(FailureCode::Upstream, &error)),
    }
}

fn lost(code: FailureCode, error: &LinkError) -> Broken {
    Broken::Failure(Failure::new(code, format!("the stream to a neighbour broke: {error}")))
}
