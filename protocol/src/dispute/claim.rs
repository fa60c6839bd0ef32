//! What a side has signed: a whole run, or one that was stopped early.

use thiserror::Error;

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::commitment::{ChainHead, Geometry};
use crate::domain::Domain;
use crate::identity::{IdentityError, Keypair, Signature};
use crate::ids::{JobId, LeaseEpoch, NodeId, Root};
use crate::job::{JobError, JobHeader};
use crate::limits::MAX_RECEIPT_ROOTS;
use crate::receipt::{ReceiptError, SignedReceipt};

/// Why a claim is none about a job.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClaimError {
    /// The job or its layers are not allowed.
    #[error("{0}")]
    Job(#[from] JobError),
    /// The receipt does not check.
    #[error("{0}")]
    Receipt(#[from] ReceiptError),
    /// The receipt is for a model with another number of layers.
    #[error("the receipt is for {found} layers, and the model has {expected}")]
    Layers {
        /// Of the model.
        expected: u16,
        /// Of the receipt.
        found: u16,
    },
    /// The partial run is one of another job.
    #[error("the partial run is of job {found}")]
    AnotherJob {
        /// Which.
        found: JobId,
    },
    /// The partial run has no roots or too many, or its chain is not that of its roots.
    #[error("the partial run's chain is not that of its {roots} roots")]
    Chain {
        /// How many.
        roots: usize,
    },
    /// The partial run is not signed by its worker.
    #[error("the signature of the partial run by {worker}: {error}")]
    Signature {
        /// Who should have signed it.
        worker: NodeId,
        /// What is wrong.
        error: IdentityError,
    },
}

/// A run that was stopped early: what its worker signs so that it can be disputed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    /// The job.
    pub job: JobId,
    /// The assignment under which it ran.
    pub epoch: LeaseEpoch,
    /// The roots so far, in stream order; at least one.
    pub roots: Vec<Root>,
    /// The commitment chain after them.
    pub head: ChainHead,
    /// Who ran it.
    pub worker: NodeId,
}

impl Partial {
    /// The run so far; `None` where it has no roots, or more than a run has.
    pub fn of_roots(
        job: JobId,
        geometry: &Geometry,
        epoch: LeaseEpoch,
        roots: Vec<Root>,
        worker: NodeId,
    ) -> Option<Self> {
        let head = head_of(job, geometry, epoch, &roots)?;
        Some(Self { job, epoch, roots, head, worker })
    }

    /// Signs it. `keys` must be those of [`Partial::worker`].
    pub fn sign(self, keys: &Keypair) -> SignedPartial {
        SignedPartial { signature: keys.sign(Domain::PartialRun, &to_bytes(&self)), partial: self }
    }
}

/// The chain after the first roots of a run.
fn head_of(job: JobId, geometry: &Geometry, epoch: LeaseEpoch, roots: &[Root]) -> Option<ChainHead> {
    let is_right = (1..=geometry.len()).contains(&roots.len());
    is_right.then(|| {
        let start = ChainHead::start(job, epoch);
        geometry.places().zip(roots).fold(start, |head, (place, root)| head.step(place, root))
    })
}

impl Canonical for Partial {
    const MIN_BYTES: usize = 32 + 8 + 4 + 32 + 32;
    fn encode(&self, writer: &mut Writer) {
        self.job.encode(writer);
        self.epoch.encode(writer);
        writer.seq(&self.roots);
        self.head.encode(writer);
        self.worker.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            job: reader.value()?,
            epoch: reader.value()?,
            roots: reader.seq("roots of a partial run", MAX_RECEIPT_ROOTS)?,
            head: reader.value()?,
            worker: reader.value()?,
        })
    }
}

/// A partial run with its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedPartial {
    /// What was signed.
    pub partial: Partial,
    /// By [`Partial::worker`], over the canonical partial run.
    pub signature: Signature,
}

impl Canonical for SignedPartial {
    const MIN_BYTES: usize = Partial::MIN_BYTES + 64;
    fn encode(&self, writer: &mut Writer) {
        self.partial.encode(writer);
        self.signature.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { partial: reader.value()?, signature: reader.value()? })
    }
}

/// What one side signed and now stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A whole run.
    Receipt(SignedReceipt),
    /// A run that was stopped early.
    Partial(SignedPartial),
}

impl Claim {
    /// Whose claim it is: the key that plays its side.
    pub fn worker(&self) -> NodeId {
        match self {
            Self::Receipt(signed) => signed.receipt.worker,
            Self::Partial(signed) => signed.partial.worker,
        }
    }

    /// The assignment under which it ran.
    pub fn epoch(&self) -> LeaseEpoch {
        match self {
            Self::Receipt(signed) => signed.receipt.epoch,
            Self::Partial(signed) => signed.partial.epoch,
        }
    }

    /// The job.
    pub fn job(&self) -> JobId {
        match self {
            Self::Receipt(signed) => signed.receipt.job,
            Self::Partial(signed) => signed.partial.job,
        }
    }

    /// The signed roots, in stream order.
    pub fn roots(&self) -> &[Root] {
        match self {
            Self::Receipt(signed) => &signed.receipt.roots,
            Self::Partial(signed) => &signed.partial.roots,
        }
    }

    /// Checks that it is a claim about this job, on a model with so many transformer layers, and signed.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, job: &JobHeader, layers: u16) -> Result<(), ClaimError> {
        match self {
            Self::Receipt(signed) if signed.receipt.layers != layers => {
                Err(ClaimError::Layers { expected: layers, found: signed.receipt.layers })
            }
            Self::Receipt(signed) => Ok(signed.check(job, None)?),
            Self::Partial(signed) => check_partial(signed, job, layers),
        }
    }
}

fn check_partial(signed: &SignedPartial, job: &JobHeader, layers: u16) -> Result<(), ClaimError> {
    let partial = &signed.partial;
    let (id, geometry) = (job.id(), job.geometry(layers)?);
    if partial.job != id {
        return Err(ClaimError::AnotherJob { found: partial.job });
    }
    if head_of(id, &geometry, partial.epoch, &partial.roots) != Some(partial.head) || partial.epoch.0 == 0 {
        return Err(ClaimError::Chain { roots: partial.roots.len() });
    }
    let worker = partial.worker;
    let verified = worker.verify(Domain::PartialRun, &to_bytes(partial), &signed.signature);
    verified.map_err(|error| ClaimError::Signature { worker, error })
}

impl Canonical for Claim {
    const MIN_BYTES: usize = 2 + SignedPartial::MIN_BYTES;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Receipt(signed) => {
                writer.u16(1);
                signed.encode(writer);
            }
            Self::Partial(signed) => {
                writer.u16(2);
                signed.encode(writer);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Receipt(reader.value()?),
            2 => Self::Partial(reader.value()?),
            tag => return Err(DecodeError::InvalidTag { what: "claim", tag: tag.into() }),
        })
    }
}
