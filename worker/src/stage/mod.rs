//! Some layers of a job, in a pipeline with other workers.
//!
//! - this file: one assignment, from its layers to its signature.
//! - `links`: the streams to the workers before and after.
//! - `seats`: layers on the device, and runs on them.
//! - `inputs`: the rows that were received, kept for disputes.
//!
//! Rows come down from the worker before, are hashed on arrival, and have to have the root that it signed; words come up
//! from the worker after, as the last one signed them. What goes to the coordinator is said when the word of its point is known, in the same order as by a worker that has
//! all layers. At the end the coordinator shows everybody all roots; each signs for its own layers if they are what it
//! streamed and received.

mod inputs;
mod links;
mod seats;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use lockstep_link::{LinkError, send};
use lockstep_model::generation::{Event as Said, Mark, StagePass};
use lockstep_protocol::generation::word_root;
use lockstep_protocol::hand_over::{HandOver, HandOverProof, SignedHandOver};
use lockstep_protocol::ids::{Place, Root};
use lockstep_protocol::job::{Job, JobKind};
use lockstep_protocol::limits::WORKER_STAGE_PASS;
use lockstep_protocol::messages::{FailureCode, JobResult, Stage, StageMessage};
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
#[derive(Default)]
struct Outcome {
    /// The roots that were streamed, and those of the received layer.
    said: Vec<(Place, Root)>,
    words: Vec<u32>,
    /// At the first worker: what was signed of the last word, until it is shown.
    heard: Option<SignedHandOver>,
    /// Of the last worker, where they were asked for.
    logprobs: Vec<i32>,
    output: Vec<i32>,
}

/// What was signed at the points of a pass.
#[derive(Clone, Copy)]
struct Signed<'a> {
    /// Of the rows that were received.
    received: &'a [SignedHandOver],
    /// Of the rows that were handed over.
    own: &'a [SignedHandOver],
    /// Of the words.
    words: &'a [SignedHandOver],
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
    let pipe = Pipe { shared, key, crew, at, upstream, downstream, device: Arc::new(Mutex::new(device)), pass: 0 };
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
    /// The number of the pass.
    pass: u32,
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
        let mut outcome = self.passes(&mut stream).await?;
        let saturations = self.on_device(|device| device.finish()).await?;
        // The neighbours have all that they need, once it has arrived.
        self.upstream.take().into_iter().chain(self.downstream.take()).for_each(Link::settle);
        self.keep_input().await?;
        if let Some(signed) = outcome.heard.take() {
            stream.received(signed).await?;
        }
        stream.ended(saturations).await?;
        self.sign(stream, model, job, outcome, (seat, orders), start).await
    }

    /// All passes, until the last word.
    async fn passes(&mut self, stream: &mut JobStream) -> Result<Outcome, Broken> {
        let mut outcome = Outcome::default();
        let mut handed = Vec::new();
        loop {
            let (count, rows) = match self.upstream {
                Some(_) => {
                    let (count, rows, signed) = self.receive(stream).await?;
                    handed = signed;
                    (count, rows)
                }
                None => (self.on_device(|device| Ok(device.run.pass_of(WORKER_STAGE_PASS))).await?, Vec::new()),
            };
            let mut passed = self.on_device(move |device| device.pass(count, &rows)).await?;
            let own = self.hand_over(count, &mut passed).await?;
            let (words, signed) = self.words(&passed).await?;
            let output = passed.output;
            let (taken, given) = (words, output.clone());
            let (said, ended) = self.on_device(move |device| device.accept(&taken, &given)).await?;
            self.stream(stream, said, Signed { received: &handed, own: &own, words: &signed }, &mut outcome).await?;
            self.pass += 1;
            if ended {
                outcome.output = output;
                return Ok(outcome);
            }
        }
    }

    /// The rows of the next pass, checked against what their sender signed.
    async fn receive(&mut self, stream: &mut JobStream) -> Result<(usize, Vec<i32>, Vec<SignedHandOver>), Broken> {
        let (left, cols) = self.on_device(|device| Ok((device.run.left(), device.run.received_cols()))).await?;
        let wrong = |what: &str| Broken::Failure(Failure::new(FailureCode::Upstream, what));
        let count = match self.next().await? {
            StageMessage::Pass { count } if count as usize <= left => count as usize,
            _ => return Err(wrong("no pass where one was next, or too long a one")),
        };
        let cuts = self.on_device(move |device| Ok(device.run.received_cuts(count))).await?;
        let (mut rows, mut handed) = (Vec::new(), Vec::with_capacity(cuts.len()));
        for end in cuts {
            match self.next().await? {
                StageMessage::Rows { values } if rows.len() + values.len() == end * cols => rows.extend(values),
                _ => return Err(wrong("other rows than those of the pass")),
            }
            match self.next().await? {
                StageMessage::HandedOver(signed) => handed.push(*signed),
                _ => return Err(wrong("rows that nobody signed")),
            }
        }
        let marked = self.on_device(move |device| Ok((device.run.received_marks(count, &rows), rows)));
        let (marks, rows) = marked.await?;
        for (mark, signed) in marks.iter().zip(&handed) {
            let (right, said) = (self.said(self.at - 1, *mark), &signed.hand_over);
            let is_of_these_rows = *said == HandOver { root: said.root, ..right };
            if !is_of_these_rows || !signed.is_signed() {
                return Err(wrong("rows that are not what their sender signed"));
            }
            if *said != right {
                return self.accuse(stream, *signed, (marks[0].first, cols), rows).await;
            }
        }
        Ok((count, rows, handed))
    }

    /// Shows that the signed rows do not have the signed root. `rows` are those of the whole pass, from row `from` on.
    async fn accuse<T>(
        &self,
        stream: &mut JobStream,
        signed: SignedHandOver,
        (from, cols): (u32, usize),
        rows: Vec<i32>,
    ) -> Result<T, Broken> {
        let [first, end] = [signed.hand_over.first, signed.hand_over.rows].map(|row| (row - from) as usize * cols);
        let values = rows[first..end].to_vec();
        let state = self.on_device(move |device| Ok(device.run.received_state(&rows[..first]))).await?;
        tracing::warn!(worker = %signed.hand_over.worker, "the worker before this one signed a root that its rows do not have");
        stream.proof(HandOverProof::Rows { signed, state, values }).await?;
        // What follows is the coordinator's affair; until it ends the lease, the neighbours have nothing to complain of.
        std::future::pending().await
    }

    /// What a worker of the crew has to say of some rows of this pass.
    fn said(&self, at: usize, mark: Mark) -> HandOver {
        let ((job, epoch), layer, worker, pass) = (self.key, self.crew[at].last, self.crew[at].node, self.pass);
        let (coordinator, Mark { first, rows, before, values, root }) = (self.shared.config.coordinator, mark);
        HandOver { coordinator, job, epoch, layer, pass, first, rows, before, values, root, worker }
    }

    /// Hands the rows of a pass over to the next worker, and says what it signed of them.
    async fn hand_over(&mut self, count: usize, passed: &mut StagePass) -> Result<Vec<SignedHandOver>, Broken> {
        let signed = self.signed(&passed.marks);
        let Some(down) = &mut self.downstream else { return Ok(Vec::new()) };
        let rows = std::mem::take(&mut passed.rows);
        let (cols, from) = (rows.len() / count, signed[0].hand_over.first);
        let mut messages = vec![StageMessage::Pass { count: count as u32 }];
        for signed in &signed {
            let [first, end] = [signed.hand_over.first, signed.hand_over.rows].map(|row| (row - from) as usize * cols);
            messages.push(StageMessage::Rows { values: rows[first..end].to_vec() });
            messages.push(StageMessage::HandedOver(Box::new(*signed)));
        }
        for message in &messages {
            send(&mut down.outbound, message).await.map_err(|error| lost(FailureCode::Downstream, &error))?;
        }
        Ok(signed)
    }

    /// What this worker signs of the rows or words of this pass.
    fn signed(&self, marks: &[Mark]) -> Vec<SignedHandOver> {
        marks.iter().map(|mark| self.said(self.at, *mark).sign(&self.shared.keys)).collect()
    }

    /// The words at the points of a pass, which go on up: its own, or those that come back, as the last worker signed them.
    async fn words(&mut self, passed: &StagePass) -> Result<(Vec<u32>, Vec<SignedHandOver>), Broken> {
        if passed.points == 0 {
            return Ok(Default::default());
        }
        let (mut words, mut signed) = (passed.words.clone(), Vec::new());
        if let Some(down) = &mut self.downstream {
            for _ in 0..passed.points {
                match down.inbound.next().await {
                    Ok(Some(StageMessage::Word { word, signed: by_lead })) => {
                        words.push(word);
                        signed.push(*by_lead);
                    }
                    Ok(_) => return Err(Failure::new(FailureCode::Downstream, "no word where one was next").into()),
                    Err(error) => return Err(lost(FailureCode::Downstream, &error)),
                }
            }
        }
        let code = if self.is_lead() { FailureCode::Backend } else { FailureCode::Downstream };
        let marked = self.on_device(move |device| Ok((device.run.word_marks(&words), words))).await?;
        let (Some(marks), words) = marked else {
            return Err(Failure::new(code, "words that are none of the job").into());
        };
        let lead = self.crew.len() - 1;
        let is_right =
            |(mark, signed): (&Mark, &SignedHandOver)| signed.hand_over == self.said(lead, *mark) && signed.is_signed();
        if self.is_lead() {
            signed = self.signed(&marks);
        } else if !marks.iter().zip(&signed).all(is_right) {
            return Err(Failure::new(code, "words that are not what the last worker signed").into());
        }
        if let Some(up) = &mut self.upstream {
            for (word, signed) in words.iter().zip(&signed) {
                let message = StageMessage::Word { word: *word, signed: Box::new(*signed) };
                send(&mut up.outbound, &message).await.map_err(|error| lost(FailureCode::Upstream, &error))?;
            }
        }
        Ok((words, signed))
    }

    /// Streams what a pass came to.
    async fn stream(
        &self,
        stream: &mut JobStream,
        said: Vec<Said>,
        signed: Signed<'_>,
        outcome: &mut Outcome,
    ) -> Result<(), Broken> {
        let (job, epoch) = self.key;
        let Stage { first, last, .. } = self.crew[self.at];
        let own = if self.is_lead() { signed.words } else { signed.own };
        let at_point = |of: &[SignedHandOver], point: u32| {
            let signed = of.iter().find(|signed| signed.hand_over.rows == point + 1).copied();
            signed.ok_or_else(|| Failure::new(FailureCode::Internal, "a point that was not handed over"))
        };
        for event in said {
            match event {
                Said::Root { place, root } if place.layer < first => {
                    outcome.said.push((place, root));
                    stream.received(at_point(signed.received, place.point)?).await?;
                }
                Said::Root { place, root } => {
                    outcome.said.push((place, root));
                    if let Some(signed) = outcome.heard.take() {
                        stream.received(signed).await?;
                    }
                    if place.layer == last && !own.is_empty() {
                        stream.handed_over(at_point(own, place.point)?).await?;
                    }
                    stream.layer(place, root).await?;
                    self.shared.events.emit(Event::LayerRoot { job, epoch, place, root });
                }
                Said::Word { point, word, logprobs } => {
                    outcome.words.push(word);
                    if self.at == 0 {
                        outcome.heard = Some(at_point(signed.words, point)?);
                    }
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
        let root_of_word = |index| {
            let point = geometry.point(index)?;
            roots.get(geometry.index_of(Place { point, layer: geometry.streamed_layers() })?).copied()
        };
        if !outcome.words.iter().enumerate().all(|(index, word)| root_of_word(index) == Some(word_root(*word))) {
            let reason = "the last worker said other words to the coordinator than arrived here";
            return Err(Failure::new(FailureCode::Downstream, reason).into());
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

    /// The next message of the worker before this one.
    async fn next(&mut self) -> Result<StageMessage, Broken> {
        let up = self.upstream.as_mut().expect("only where there is somebody before");
        match up.inbound.next().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(Failure::new(FailureCode::Upstream, "the worker before this one ended the stream").into()),
            Err(error) => Err(lost(FailureCode::Upstream, &error)),
        }
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

fn lost(code: FailureCode, error: &LinkError) -> Broken {
    Broken::Failure(Failure::new(code, format!("the stream to a neighbour broke: {error}")))
}
