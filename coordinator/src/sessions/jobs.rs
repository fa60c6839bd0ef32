//! Job streams: begin, roots, commitment, result. Moves of disputes and runs that were stopped come on streams of their
//! own.

use std::sync::Arc;

use lockstep_link::{Frames, LinkError};
use lockstep_protocol::ids::{JobId, LeaseEpoch};
use lockstep_protocol::limits::{MAX_POINTS, MAX_RUN_ROOTS, MAX_STREAMED_TOGETHER};
use lockstep_protocol::machine::{Input, Streamed};
use lockstep_protocol::messages::{FailureCode, JobMessage};
use quinn::{Connection, RecvStream};
use tokio::task::JoinSet;

use super::session::{Claim, End, Session};

/// Accepts job streams until one of them ends the session.
pub(super) async fn accept(session: &Arc<Session>, connection: &Connection) -> End {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => match stream {
                Ok(stream) => {
                    streams.spawn(serve(Arc::clone(session), stream));
                }
                Err(_) => return End::Gone,
            },
            Some(ended) = streams.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(end)) => return end,
                Err(error) => {
                    tracing::error!(%error, "a job stream's task failed");
                    return End::Killed;
                }
            },
        }
    }
}

async fn serve(session: Arc<Session>, stream: RecvStream) -> Result<(), End> {
    let mut frames = Frames::<JobMessage>::new(stream);
    let (job, epoch) = match frames.next().await {
        Ok(Some(JobMessage::Begin { job, epoch })) => (job, epoch),
        Ok(Some(JobMessage::Move(signed))) => {
            frames.stop();
            return session.make_move(signed).await;
        }
        Ok(Some(JobMessage::Partial(partial))) => {
            frames.stop();
            return session.tell(Input::Partial { node: session.node, partial: Box::new(partial) }).await;
        }
        Ok(Some(_)) => return Err(End::Protocol("a job stream does not begin with its assignment".to_owned())),
        // A stream that was opened and dropped is about nothing.
        Ok(None) | Err(LinkError::Read(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let began = Input::Began { node: session.node, job, epoch };
    match session.claim(job, epoch) {
        Claim::Live => session.tell(began).await?,
        Claim::Twice => return Err(End::Protocol("a second stream for one assignment".to_owned())),
        // The machine tells the worker that this assignment is over; of what follows only a proof is taken.
        Claim::Stray if session.may_stray() => session.tell(began).await?,
        Claim::Stray => return Err(End::Protocol("too many streams for assignments that it does not have".to_owned())),
    }
    run(&session, frames, job, epoch).await
}

/// Roots, a commitment to them, and when the worker is told to reveal it, the result. How many roots there are and
/// where, and who is told when, the machine knows.
async fn run(session: &Session, frames: Frames<JobMessage>, job: JobId, epoch: LeaseEpoch) -> Result<(), End> {
    let node = session.node;
    let mut stream = JobStream { frames, ahead: None, left: MAX_RUN_ROOTS + 3 * MAX_POINTS + 3 };
    loop {
        let message = stream.next().await?;
        // What a hand-over is proven wrong by counts after the end of the lease, too: its sender may have ended that.
        if !session.is_live(job, epoch) && !matches!(message, Some(JobMessage::Proof(_))) {
            stream.frames.stop();
            return Ok(());
        }
        match message {
            Some(JobMessage::Layer { place, root }) => {
                let said = stream.together(Streamed::Root(place, root))?;
                session.tell(Input::Streamed { node, job, epoch, said }).await?;
            }
            Some(JobMessage::Token { word, logprobs }) => {
                let said = stream.together(Streamed::Word(word, logprobs))?;
                session.tell(Input::Streamed { node, job, epoch, said }).await?;
            }
            Some(JobMessage::Received(signed) | JobMessage::HandedOver(signed)) => {
                session.tell(Input::HandedOver { node, job, epoch, signed }).await?;
            }
            Some(JobMessage::Proof(proof)) => {
                session.tell(Input::Proof { node, job, epoch, proof }).await?;
                stream.frames.stop();
                return Ok(());
            }
            Some(JobMessage::Ended { saturations }) => {
                session.tell(Input::StageEnded { node, job, epoch, saturations }).await?;
            }
            Some(JobMessage::Segment(signed)) => {
                session.tell(Input::Segment { node, job, epoch, signed: Box::new(signed) }).await?;
                stream.frames.stop();
                return Ok(());
            }
            Some(JobMessage::Commit { commitment }) => {
                session.tell(Input::Committed { node, job, epoch, commitment }).await?;
            }
            Some(JobMessage::Result { result, salt }) => {
                session.tell(Input::Completed { node, job, epoch, result, salt }).await?;
                stream.frames.stop();
                return Ok(());
            }
            Some(JobMessage::Move(_) | JobMessage::Partial(_)) => {
                return Err(End::Protocol("what comes on a stream of its own comes on a job's".to_owned()));
            }
            Some(JobMessage::Begin { .. }) => return Err(End::Protocol("a job stream begins twice".to_owned())),
            None => {
                return session
                    .tell(Input::Failed { node, job, epoch, code: FailureCode::Internal, reason: String::new() })
                    .await;
            }
        }
    }
}

/// A job stream after its beginning.
struct JobStream {
    frames: Frames<JobMessage>,
    /// A message that was read to see whether it belongs to those before it.
    ahead: Option<JobMessage>,
    /// How many messages may still come.
    left: usize,
}

impl JobStream {
    /// The next message; `None` at the end, and where the stream broke.
    async fn next(&mut self) -> Result<Option<JobMessage>, End> {
        let message = match self.ahead.take() {
            Some(message) => Ok(Some(message)),
            None => self.frames.next().await,
        };
        self.left = self.left.checked_sub(1).ok_or_else(too_many)?;
        match message {
            Ok(message) => Ok(message),
            Err(LinkError::Frame(error)) => Err(End::Protocol(error.to_string())),
            Err(_) => Ok(None),
        }
    }

    /// What is streamed of a run, with what has come right behind it: the engine is not woken for each root.
    fn together(&mut self, first: Streamed) -> Result<Vec<Streamed>, End> {
        let mut said = vec![first];
        while said.len() < MAX_STREAMED_TOGETHER {
            match self.frames.at_hand()? {
                Some(JobMessage::Layer { place, root }) => said.push(Streamed::Root(place, root)),
                Some(JobMessage::Token { word, logprobs }) => said.push(Streamed::Word(word, logprobs)),
                other => {
                    self.ahead = other;
                    break;
                }
            }
        }
        self.left = self.left.checked_sub(said.len() - 1).ok_or_else(too_many)?;
        Ok(said)
    }
}

fn too_many() -> End {
    End::Protocol("a job stream has more roots than any job".to_owned())
}
