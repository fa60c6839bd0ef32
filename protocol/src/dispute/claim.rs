//! What a side has signed: a whole run, or one that was stopped early.

use thiserror::Error;

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::commitment::{ChainHead, Geometry, PointDigest};
use crate::domain::Domain;
use crate::generation::{self, Generation};
use crate::identity::{IdentityError, Keypair, Signature};
use crate::ids::{JobId, LeaseEpoch, NodeId, Root};
use crate::job::{JobError, JobHeader, JobKind};
use crate::limits::{MAX_POINTS, MAX_RECEIPT_ROOTS};
use crate::logprobs::ShownRow;
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
    /// The words are not those that were signed, or can't be those of such a run.
    #[error("the words are not those of the signed run")]
    Words,
    /// Log-probabilities are shown of a partial run, which has signed none.
    #[error("a partial run has no log-probabilities")]
    Logprobs,
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
    /// The digests of all points but the last that was begun.
    pub points: Vec<PointDigest>,
    /// The roots of that point so far; at least one.
    pub roots: Vec<Root>,
    /// Of a generation the words so far: one for each point whose roots are all there.
    pub words: Vec<u32>,
    /// The commitment chain after all this.
    pub head: ChainHead,
    /// Who ran it.
    pub worker: NodeId,
}

impl Partial {
    /// The run so far, from all its roots and words; `None` where it has no roots, or more than a run has.
    pub fn of_roots(
        job: JobId,
        geometry: &Geometry,
        epoch: LeaseEpoch,
        roots: &[Root],
        words: &[u32],
        worker: NodeId,
    ) -> Option<Self> {
        let (trail, head) = (geometry.trail(roots)?, geometry.head(job, epoch, roots)?);
        Some(Self { job, epoch, points: trail.points, roots: trail.roots, words: words.to_vec(), head, worker })
    }

    /// Signs it. `keys` must be those of [`Partial::worker`].
    pub fn sign(self, keys: &Keypair) -> SignedPartial {
        SignedPartial { signature: keys.sign(Domain::PartialRun, &to_bytes(&self)), partial: self }
    }
}

impl Canonical for Partial {
    const MIN_BYTES: usize = 32 + 8 + 4 + 4 + 4 + 32 + 32;
    fn encode(&self, writer: &mut Writer) {
        self.job.encode(writer);
        self.epoch.encode(writer);
        writer.seq(&self.points);
        writer.seq(&self.roots);
        writer.seq(&self.words);
        self.head.encode(writer);
        self.worker.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            job: reader.value()?,
            epoch: reader.value()?,
            points: reader.seq("points of a partial run", MAX_POINTS - 1)?,
            roots: reader.seq("roots of a partial run", MAX_RECEIPT_ROOTS)?,
            words: reader.seq("words of a partial run", MAX_POINTS)?,
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

/// What one side signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signed {
    /// A whole run.
    Receipt(SignedReceipt),
    /// A run that was stopped early.
    Partial(SignedPartial),
}

/// What one side signed and now stands for, with what its hashes stand for as far as the dispute needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What was signed.
    pub signed: Signed,
    /// Of a whole generation all its words; or else none.
    pub words: Vec<u32>,
    /// The roots at the disputed point, where that is not the last one of the run, whose roots are signed themselves.
    pub at: Vec<Root>,
    /// The log-probabilities at the disputed point, where it is these that are disputed.
    pub logprobs: Option<ShownRow>,
}

impl From<SignedReceipt> for Claim {
    /// The claim of a run that differs at its last point, as that of an embedding does, without words.
    fn from(signed: SignedReceipt) -> Self {
        Self::of_last(Signed::Receipt(signed))
    }
}

impl From<SignedPartial> for Claim {
    /// The claim of a run that differs at its last point.
    fn from(signed: SignedPartial) -> Self {
        Self::of_last(Signed::Partial(signed))
    }
}

impl Claim {
    /// The claim of a run that differs at its last point, without words.
    fn of_last(signed: Signed) -> Self {
        Self { signed, words: Vec::new(), at: Vec::new(), logprobs: None }
    }

    /// Whose claim it is. Who plays its side, [`crate::dispute::Terms::key`] says.
    pub fn worker(&self) -> NodeId {
        match &self.signed {
            Signed::Receipt(signed) => signed.receipt.worker,
            Signed::Partial(signed) => signed.partial.worker,
        }
    }

    /// Who answers for a layer of it: of a run that several workers shared, the one who signed for that layer.
    pub fn key_at(&self, layer: u16) -> NodeId {
        match &self.signed {
            Signed::Receipt(signed) => signed.key_at(layer),
            Signed::Partial(signed) => signed.partial.worker,
        }
    }

    /// Whether several workers shared its layers.
    pub fn is_shared(&self) -> bool {
        self.receipt().is_some_and(|signed| !signed.segments.is_empty())
    }

    /// The assignment under which it ran.
    pub fn epoch(&self) -> LeaseEpoch {
        match &self.signed {
            Signed::Receipt(signed) => signed.receipt.epoch,
            Signed::Partial(signed) => signed.partial.epoch,
        }
    }

    /// The job.
    pub fn job(&self) -> JobId {
        match &self.signed {
            Signed::Receipt(signed) => signed.receipt.job,
            Signed::Partial(signed) => signed.partial.job,
        }
    }

    /// The whole run that was signed, where it is one.
    pub fn receipt(&self) -> Option<&SignedReceipt> {
        match &self.signed {
            Signed::Receipt(signed) => Some(signed),
            Signed::Partial(_) => None,
        }
    }

    /// The signed digests of all points but the last.
    pub fn points(&self) -> &[PointDigest] {
        match &self.signed {
            Signed::Receipt(signed) => &signed.receipt.points,
            Signed::Partial(signed) => &signed.partial.points,
        }
    }

    /// The signed roots of the last point.
    pub fn last_roots(&self) -> &[Root] {
        match &self.signed {
            Signed::Receipt(signed) => &signed.receipt.roots,
            Signed::Partial(signed) => &signed.partial.roots,
        }
    }

    /// The words of the run: of an embedding none.
    pub fn words(&self) -> &[u32] {
        match &self.signed {
            Signed::Receipt(_) => &self.words,
            Signed::Partial(signed) => &signed.partial.words,
        }
    }

    /// The digest of point `index`, counted from 0; `None` after the end.
    pub fn digest_at(&self, index: usize) -> Option<PointDigest> {
        let last = (index == self.points().len()).then(|| PointDigest::of(self.last_roots()));
        self.points().get(index).copied().or(last)
    }

    /// The roots at point `index`, counted from 0, where they are at hand and are those of the digest that was signed.
    pub fn roots_at(&self, index: usize) -> Option<&[Root]> {
        match self.points().get(index) {
            Some(digest) => (PointDigest::of(&self.at) == *digest).then_some(&*self.at),
            None => (index == self.points().len() && self.at.is_empty()).then(|| self.last_roots()),
        }
    }

    /// The first point, counted from 0, at which another claim has other roots, or only one of them has any.
    pub fn first_difference(&self, other: &Self) -> Option<usize> {
        let points = self.points().len().max(other.points().len());
        (0..=points).find(|index| self.digest_at(*index) != other.digest_at(*index))
    }

    /// The log-probabilities that are shown, with their point, counted from 0; where these were signed.
    pub fn shown_logprobs(&self, asked: &Generation) -> Option<(usize, Vec<i32>)> {
        let (shown, root) = (self.logprobs.as_ref()?, self.receipt()?.receipt.logprobs?);
        let values = shown.values(&root, asked, self.points().len() + 1)?;
        Some((shown.index as usize, values))
    }

    /// Checks that it is a claim about this job, on a model with so many transformer layers, and signed. The roots at the
    /// disputed point are checked with the terms.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, job: &JobHeader, layers: u16) -> Result<(), ClaimError> {
        match &self.signed {
            Signed::Receipt(signed) if signed.receipt.layers != layers => {
                Err(ClaimError::Layers { expected: layers, found: signed.receipt.layers })
            }
            Signed::Receipt(signed) => {
                signed.check(job, None)?;
                match &job.kind {
                    JobKind::Embedding if self.words.is_empty() => Ok(()),
                    JobKind::Embedding => Err(ClaimError::Words),
                    JobKind::Generation(generation) => Ok(signed.check_words(&self.words, generation.max_tokens)?),
                }
            }
            Signed::Partial(_) if !self.words.is_empty() => Err(ClaimError::Words),
            Signed::Partial(_) if self.logprobs.is_some() => Err(ClaimError::Logprobs),
            Signed::Partial(signed) => check_partial(signed, job, layers),
        }
    }
}

fn check_partial(signed: &SignedPartial, job: &JobHeader, layers: u16) -> Result<(), ClaimError> {
    let partial = &signed.partial;
    let (id, geometry) = (job.id(), job.geometry(layers)?);
    if partial.job != id {
        return Err(ClaimError::AnotherJob { found: partial.job });
    }
    let head = geometry.head_of(id, partial.epoch, &partial.points, &partial.roots);
    if head != Some(partial.head) || partial.epoch.0 == 0 {
        return Err(ClaimError::Chain { roots: partial.roots.len() });
    }
    if !words_fit(partial, job, usize::from(geometry.streamed_layers())) {
        return Err(ClaimError::Words);
    }
    let worker = partial.worker;
    let verified = worker.verify(Domain::PartialRun, &to_bytes(partial), &signed.signature);
    verified.map_err(|error| ClaimError::Signature { worker, error })
}

/// Whether a partial run has a word for each point whose roots are all there, the last of them as it was committed.
fn words_fit(partial: &Partial, job: &JobHeader, per_point: usize) -> bool {
    let Some(asked) = job.kind.generation() else {
        return partial.words.is_empty();
    };
    let is_whole = partial.roots.len() == per_point;
    let count = partial.points.len() + usize::from(is_whole);
    let last = partial.words.last().filter(|_| is_whole).map(|word| generation::word_root(*word));
    let is_committed = last.is_none_or(|root| partial.roots.last() == Some(&root));
    // A run that is at a further point went on after all the words before it.
    let goes_on = is_whole || !partial.words.last().is_some_and(|word| generation::ends_run(*word));
    let fits = generation::words_fit(&partial.words, asked.max_tokens);
    partial.words.len() == count && is_committed && goes_on && fits
}

impl Canonical for Claim {
    const MIN_BYTES: usize = 2 + SignedPartial::MIN_BYTES + 4 + 4;
    fn encode(&self, writer: &mut Writer) {
        match &self.signed {
            Signed::Receipt(signed) => {
                writer.u16(if self.logprobs.is_some() { 3 } else { 1 });
                signed.encode(writer);
            }
            Signed::Partial(signed) => {
                writer.u16(2);
                signed.encode(writer);
            }
        }
        writer.seq(&self.words);
        writer.seq(&self.at);
        if let (Signed::Receipt(_), Some(shown)) = (&self.signed, &self.logprobs) {
            shown.encode(writer);
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let tag = reader.u16()?;
        let signed = match tag {
            1 | 3 => Signed::Receipt(reader.value()?),
            2 => Signed::Partial(reader.value()?),
            tag => return Err(DecodeError::InvalidTag { what: "claim", tag: tag.into() }),
        };
        let words = reader.seq("words of a claim", MAX_POINTS)?;
        let at = reader.seq("roots of a claim", MAX_RECEIPT_ROOTS)?;
        let logprobs = if tag == 3 { Some(reader.value()?) } else { None };
        Ok(Self { signed, words, at, logprobs })
    }
}
