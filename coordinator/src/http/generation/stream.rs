//! Answers as server-sent events, while the words come.
//!
//! Every choice is followed by a task of its own. Its last chunk waits for the end of its job, audits included; the very
//! last chunk has the receipts. Words may leave before a run was audited. Should the answer turn out to be another one, the
//! stream ends with an error that says so, and never as if nothing were.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use lockstep_protocol::ids::JobId;
use lockstep_protocol::limits::{HTTP_KEEP_ALIVE_MS, HTTP_STREAM_PIECES};
use lockstep_protocol::receipt::Receipt;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::answer::{Answering, Ended};
use super::is_for_nothing;
use super::logprobs::{Telling, is_told};
use super::text::TextStream;
use crate::engine::{JobEnd, Progress, Watch, Word};
use crate::http::abandon::Abandon;
use crate::http::error::ApiError;
use crate::http::jobs::{Pending, answered, no_answer_yet};
use crate::http::{App, Place};

/// What a client reads: pieces as they come.
struct Events(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// Answers with a stream.
pub fn respond(app: Arc<App>, answering: Answering, pending: Vec<Pending>, abandon: Abandon, place: Place) -> Response {
    let (sender, receiver) = mpsc::channel(HTTP_STREAM_PIECES);
    let stream = Stream { answering: Arc::new(answering), sender, app, place };
    tokio::spawn(stream.run(pending, abandon));
    let headers = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::new(Events(receiver))).into_response()
}

/// The client has gone.
#[derive(Debug)]
struct Gone;

/// Why a choice was not followed to its end.
enum Broken {
    Gone,
    Failed(ApiError),
}

impl From<Gone> for Broken {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// What all tasks of one answer share.
#[derive(Clone)]
struct Stream {
    answering: Arc<Answering>,
    sender: mpsc::Sender<Bytes>,
    app: Arc<App>,
    /// Taken for as long as the answer goes on.
    place: Place,
}

impl Stream {
    async fn send(&self, event: Map<String, Value>) -> Result<(), Gone> {
        self.send_text(&Value::Object(event).to_string()).await
    }

    async fn send_text(&self, text: &str) -> Result<(), Gone> {
        self.sender.send(Bytes::from(format!("data: {text}\n\n"))).await.map_err(|_| Gone)
    }

    /// Streams to the end, or until the client goes: then its jobs are dropped with `abandon`.
    async fn run(self, pending: Vec<Pending>, mut abandon: Abandon) {
        let mut running = JoinSet::new();
        let gone = self.sender.clone();
        let told = tokio::select! {
            () = gone.closed() => Err(Broken::Gone),
            told = self.tell(pending, &mut running, &mut abandon) => told,
        };
        // Nobody listens to the jobs any more when they are given up.
        running.shutdown().await;
        let Err(Broken::Failed(error)) = told else { return };
        if is_for_nothing(&self.answering, &error) {
            self.app.refund(&self.place, self.answering.prepared.order.tokens());
            return self.send_error(&error).await;
        }
        if error.is_no_answer_yet() || error.is_no_worker() {
            // The client is told how to come back for them.
            abandon.keep_all();
        }
        self.send_error(&error.with_jobs(self.answering.kept.clone())).await;
    }

    async fn send_error(&self, error: &ApiError) {
        let text = serde_json::to_string(error).unwrap_or_default();
        // Nobody may be there to hear it.
        let _ = self.send_text(&text).await;
    }

    async fn tell(&self, pending: Vec<Pending>, running: &mut Running, abandon: &mut Abandon) -> Result<(), Broken> {
        for index in 0..pending.len() {
            let mut opening = self.answering.opening(index);
            if index == 0 {
                let none: Option<std::iter::Empty<&Arc<Receipt>>> = None;
                opening.insert("lockstep".into(), self.answering.extra(none).map_err(Broken::Failed)?);
            }
            self.send(opening).await?;
        }
        for (index, pending) in pending.into_iter().enumerate() {
            running.spawn(self.clone().follow(index, pending));
        }
        let mut ended: Vec<Option<Ended>> = vec![None; running.len()];
        let mut alive = tokio::time::interval(Duration::from_millis(HTTP_KEEP_ALIVE_MS));
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                joined = running.join_next() => {
                    let Some(joined) = joined else { break };
                    let (index, end) = joined.map_err(|error| Broken::Failed(failed(&error)))??;
                    abandon.ended(&self.answering.kept.jobs[index]);
                    let last = self.answering.end(index, end.reason);
                    ended[index] = Some(end);
                    self.close(last, &ended).await?;
                }
                _ = alive.tick() => self.sender.send(Bytes::from_static(b": waiting\n\n")).await.map_err(|_| Gone)?,
            }
        }
        Ok(self.send_text("[DONE]").await?)
    }

    /// Sends a choice's last chunk, and what comes after the last one of all.
    async fn close(&self, mut last: Map<String, Value>, ended: &[Option<Ended>]) -> Result<(), Broken> {
        let Some(all) = ended.iter().cloned().collect::<Option<Vec<_>>>() else {
            return Ok(self.send(last).await?);
        };
        let receipts = all.iter().map(|ended| &ended.receipt);
        let extra = self.answering.extra(Some(receipts)).map_err(Broken::Failed)?;
        if self.answering.prepared.include_usage {
            self.send(last).await?;
            last = self.answering.event(Vec::new());
            last.insert("usage".into(), self.answering.usage(&all));
        }
        last.insert("lockstep".into(), extra);
        Ok(self.send(last).await?)
    }

    /// Streams one choice up to its last chunk.
    async fn follow(self, index: usize, pending: Pending) -> Result<(usize, Ended), Broken> {
        let job = self.answering.kept.jobs[index];
        let mut heard = Heard { text: self.answering.text(), ..Heard::default() };
        let end = match pending {
            Pending::Ready(end) => end,
            Pending::Coming { end, .. } => self.listen(index, &mut heard, end).await?,
        };
        let receipt = answered(job, end).map_err(Broken::Failed)?;
        let (right, words) = (self.answering.content(&receipt), self.answering.words(&receipt));
        let is_right = !self.answering.prepared.logprobs || words.starts_with(&heard.words);
        let rest = right.strip_prefix(&heard.shown).filter(|_| is_right).ok_or_else(|| Broken::Failed(revoked(job)))?;
        let unheard = words.get(heard.words.len()..).unwrap_or_default();
        self.say(index, &mut heard.telling, rest, unheard).await?;
        Ok((index, Ended::new(receipt)))
    }

    /// Shows words as they come, until the job ends.
    async fn listen(
        &self,
        index: usize,
        heard: &mut Heard,
        mut end: oneshot::Receiver<JobEnd>,
    ) -> Result<JobEnd, Broken> {
        let job = self.answering.kept.jobs[index];
        let stopping = || Broken::Failed(ApiError::stopping());
        let mut watch = self.app.engine.watch(job).await.map_err(|_| stopping())?;
        loop {
            let late = Instant::now() + self.app.http_wait;
            tokio::select! {
                biased;
                // Without a watch, or where this one fell behind, only the end is waited for.
                Some(progress) = next(&mut watch) => match progress {
                    Progress::Word { index: at, word } => {
                        if let Some(piece) = heard.take(&self.answering, at as usize, &word) {
                            self.say(index, &mut heard.telling, &piece, &[word]).await?;
                        }
                    }
                    Progress::Ended(end) => return Ok(end),
                },
                end = &mut end => return end.map_err(|_| stopping()),
                () = tokio::time::sleep_until(late) => return Err(Broken::Failed(no_answer_yet(job))),
            }
        }
    }

    /// Shows what these words add to a choice, if anything.
    async fn say(&self, index: usize, telling: &mut Telling, piece: &str, words: &[Word]) -> Result<(), Gone> {
        let has_logprobs = self.answering.prepared.logprobs && words.iter().any(is_told);
        if piece.is_empty() && !has_logprobs {
            return Ok(());
        }
        let logprobs = self.answering.logprobs(telling, words);
        self.send(self.answering.piece(index, piece, logprobs)).await
    }
}

/// The tasks of the choices.
type Running = JoinSet<Result<(usize, Ended), Broken>>;

async fn next(watch: &mut Option<Watch>) -> Option<Progress> {
    watch.as_mut()?.recv().await
}

/// What was heard of an answer that has not ended.
#[derive(Default)]
struct Heard {
    text: TextStream,
    telling: Telling,
    words: Vec<Word>,
    /// What the client has.
    shown: String,
    /// Whether a word was taken back: nothing more is shown then before the end says what is right.
    is_doubtful: bool,
}

impl Heard {
    /// Takes a word, and gives what can be shown of its text. One that was heard before is taken back by another.
    fn take(&mut self, answering: &Answering, index: usize, word: &Word) -> Option<String> {
        self.is_doubtful |= index != self.words.len();
        if self.is_doubtful {
            return None;
        }
        self.words.push(word.clone());
        let piece = answering.push(&mut self.text, word.word);
        self.shown.push_str(&piece);
        Some(piece)
    }
}

fn failed(error: &tokio::task::JoinError) -> ApiError {
    tracing::error!(%error, "a stream's work failed");
    ApiError::internal("The coordinator failed on this request.")
}

/// The words that were streamed are not the answer.
fn revoked(job: JobId) -> ApiError {
    let message = format!(
        "The text that was streamed came from a run that was found wrong, and is not the answer. The right one is at \
         GET /v1/jobs/{job}/receipt, with lockstep.access as Lockstep-Access; or ask again."
    );
    ApiError::internal(message).with_code("streamed_text_revoked")
}
