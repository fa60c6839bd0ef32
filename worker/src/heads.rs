//! The coordinator's log as this worker saw it: the last head that it cosigned, and whether the next one follows.

use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Digest, NodeId};
use lockstep_protocol::limits::MAX_LOG_HEAD_JSON_BYTES;
use lockstep_protocol::log::{Cosignature, LogError, SignedHead, cosign};

use crate::durable;
use crate::error::WorkerError;
use crate::event::Event;
use crate::store::blocking;
use crate::supervisor::Shared;

/// Why a head was not cosigned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The head does not follow.
    #[error("{0}")]
    Log(#[from] LogError),
    /// The head could not be kept.
    #[error("the head can't be kept: {0}")]
    Disk(#[from] Error),
}

/// What a worker answers when it is asked for a cosignature.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It follows the log to the head.
    Signed(Cosignature),
    /// The coordinator does not know where this worker stands: the cosignature of the kept head tells it.
    Kept(Cosignature),
}

/// The last head that was cosigned, durable.
#[derive(Debug)]
pub(crate) struct Heads {
    /// `LOG.json`, as `lockstep log verify --old-head` takes it.
    path: PathBuf,
    keys: Keypair,
    /// The coordinator.
    log: NodeId,
    kept: Mutex<Option<SignedHead>>,
}

impl Heads {
    /// Reads the head that was kept. One that can't be read is an error: without it the worker would vouch for whatever
    /// it is shown.
    pub fn open(dir: &Path, keys: Keypair, log: NodeId) -> Result<Self, WorkerError> {
        let path = dir.join(format!("{log}.json"));
        let kept =
            load(&path).map_err(|error| WorkerError::DataDir { path: path.clone(), reason: error.to_string() })?;
        Ok(Self { path, keys, log, kept: Mutex::new(kept) })
    }

    /// Cosigns a head that follows the kept one, and keeps it before it returns. Blocks for a write to the disk.
    pub fn cosign(&self, head: &SignedHead, from: u64, path: &[Digest]) -> Result<Answer, Refusal> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let signed = match (cosign(&self.keys, self.log, kept.as_ref(), head, from, path), &*kept) {
            (Ok(signed), _) => signed,
            (Err(LogError::NoConsistency { .. } | LogError::Older { .. }), Some(kept)) => {
                return Ok(Answer::Kept(Cosignature::of(kept, &self.keys)));
            }
            (Err(error), _) => {
                self.keep_evidence(&error, head);
                return Err(error.into());
            }
        };
        if *kept != Some(*head) {
            durable::replace(&self.path, head.to_json().as_bytes())?;
            *kept = Some(*head);
        }
        Ok(Answer::Signed(signed))
    }

    /// A signed head that does not follow, beside the kept one that it does not follow: together they show two
    /// histories. The first such head stays.
    fn keep_evidence(&self, error: &LogError, head: &SignedHead) {
        if matches!(error, LogError::Equivocation { .. } | LogError::Shrunk { .. } | LogError::NotConsistent { .. })
            && let Err(error) = durable::create(&self.path.with_extension("refused.json"), head.to_json().as_bytes())
        {
            tracing::error!(%error, "a head that contradicts the log can't be kept");
        }
    }
}

/// Answers a request for a cosignature; `None` where there is no answer but a loud event.
pub(crate) async fn answer(
    shared: &Arc<Shared>,
    head: SignedHead,
    from: u64,
    path: Vec<Digest>,
) -> Option<Cosignature> {
    let (held, size) = (Arc::clone(shared), head.head.size);
    let reason = match blocking(move || held.heads.cosign(&head, from, &path)).await {
        Ok(Ok(Answer::Signed(signed))) => {
            shared.events.emit(Event::Cosigned { size });
            return Some(signed);
        }
        Ok(Ok(Answer::Kept(signed))) => return Some(signed),
        Ok(Err(refusal)) => refusal.to_string(),
        Err(failure) => failure.reason,
    };
    tracing::error!(%reason, size, "a head of the coordinator's log is not cosigned");
    shared.events.emit(Event::HeadRefused { size, reason });
    None
}

fn load(path: &Path) -> Result<Option<SignedHead>, Error> {
    let Some(bytes) = durable::read(path, MAX_LOG_HEAD_JSON_BYTES)? else { return Ok(None) };
    let invalid = |error: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidData, error.to_string());
    let text = String::from_utf8(bytes).map_err(|error| invalid(&error))?;
    let head = SignedHead::from_json(&text).map_err(|error| invalid(&error))?;
    head.check().map_err(|error| invalid(&error))?;
    Ok(Some(head))
}
