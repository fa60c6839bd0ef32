//! The worker's part of a receipt: what it ran, what it committed to, what came out.

use serde::{Deserialize, Serialize};

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::commitment::{ChainHead, PointDigest};
use crate::domain::Domain;
use crate::generation::{self, Generation, WordFinish};
use crate::identity::{IdentityError, Keypair, Signature};
use crate::ids::{Digest, JobId, LeaseEpoch, ModelId, NodeId, RequestHash, Root};
use crate::job::{JobError, JobHeader, JobKind, SPEC_VERSION};
use crate::limits::{MAX_CREW, MAX_OUTPUT_VALUES, MAX_POINTS, MAX_RECEIPT_ROOTS};
use crate::logprobs;
use crate::receipt::{ReceiptError, Segment, SignedSegment};
use crate::trace::root_of_rows;

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The whole input was run; the only reason for an embedding.
    Complete,
    /// A token or text that stops was generated.
    Stop,
    /// As many tokens were generated as were asked for.
    Length,
}

impl FinishReason {
    /// Why a run ended, by its last word; `None` where it goes on.
    pub fn of_word(word: u32) -> Option<Self> {
        match generation::word_finish(word)? {
            WordFinish::GoesOn => None,
            WordFinish::StopToken | WordFinish::StopString => Some(Self::Stop),
            WordFinish::Length => Some(Self::Length),
        }
    }
}

impl Canonical for FinishReason {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        writer.u16(match self {
            Self::Complete => 1,
            Self::Stop => 2,
            Self::Length => 3,
        });
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u16()? {
            1 => Ok(Self::Complete),
            2 => Ok(Self::Stop),
            3 => Ok(Self::Length),
            tag => Err(DecodeError::InvalidTag { what: "finish reason", tag: tag.into() }),
        }
    }
}

/// What a worker signs at the end of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerReceipt {
    /// The version of SPEC.md that the run follows.
    pub spec_version: u32,
    /// The job.
    pub job: JobId,
    /// Its model.
    pub model: ModelId,
    /// Its request hash.
    pub request: RequestHash,
    /// Its token count.
    pub token_count: u32,
    /// Its token root.
    pub token_root: Root,
    /// The assignment under which it ran.
    pub epoch: LeaseEpoch,
    /// Why the run ended.
    pub finish: FinishReason,
    /// How many numbers came out: of a generation, how many words, which is how many points.
    pub output_count: u32,
    /// The root of the output: of an embedding as one row of `i32` ([`root_of_rows`]), of a generation that of its words
    /// ([`generation::words_root`]).
    pub output_root: Root,
    /// Where log-probabilities were asked for, their root ([`logprobs::logprobs_root`]). No layer's root covers them.
    pub logprobs: Option<Root>,
    /// Transformer layers of the model.
    pub layers: u16,
    /// The digests of all commitment points but the last.
    pub points: Vec<PointDigest>,
    /// The streamed roots of the last commitment point: layers 1 to L + 1.
    pub roots: Vec<Root>,
    /// The commitment chain after the last point.
    pub head: ChainHead,
    /// Multiply-accumulates of the run, as the program counts them.
    pub work_units: u64,
    /// Values that saturated during the run.
    pub saturations: u64,
    /// Who ran it.
    pub worker: NodeId,
}

/// What a worker knows at the end of a run and a job does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The assignment under which it ran.
    pub epoch: LeaseEpoch,
    /// Transformer layers of the model.
    pub layers: u16,
    /// The streamed roots: for each commitment point, layers 1 to L + 1.
    pub roots: Vec<Root>,
    /// Of a generation its words, one for each point; of an embedding none.
    pub words: Vec<u32>,
    /// How many numbers came out.
    pub output_count: u32,
    /// Multiply-accumulates of the run, as the program counts them.
    pub work_units: u64,
    /// Values that saturated during the run.
    pub saturations: u64,
}

impl WorkerReceipt {
    /// The receipt of a whole run, to be signed by `worker`.
    ///
    /// # Errors
    /// [`ReceiptError`] where the run has another shape than the job.
    pub fn of_run(job: &JobHeader, run: Run, worker: NodeId) -> Result<Self, ReceiptError> {
        let (id, geometry) = (job.id(), job.geometry(run.layers).map_err(ReceiptError::Job)?);
        let wrong_count = ReceiptError::RootCount { expected: geometry.max_roots(), found: run.roots.len() };
        let trail = geometry.trail(&run.roots).filter(|_| geometry.is_whole(run.roots.len()));
        let Some((trail, head)) = trail.zip(geometry.head(id, run.epoch, &run.roots)) else {
            return Err(wrong_count);
        };
        let (finish, output_root) = match job.kind {
            // The output of an embedding is the one row of the output layer.
            JobKind::Embedding => (FinishReason::Complete, *trail.roots.last().ok_or(wrong_count)?),
            JobKind::Generation(_) => {
                let last = run.words.last().copied().and_then(FinishReason::of_word);
                (last.ok_or(ReceiptError::Words)?, generation::words_root(&run.words))
            }
        };
        Ok(Self {
            spec_version: job.spec_version,
            job: id,
            model: job.model,
            request: job.request,
            token_count: job.token_count,
            token_root: job.token_root,
            epoch: run.epoch,
            finish,
            output_count: run.output_count,
            output_root,
            logprobs: None,
            layers: run.layers,
            points: trail.points,
            roots: trail.roots,
            head,
            work_units: run.work_units,
            saturations: run.saturations,
            worker,
        })
    }

    /// The same with the log-probabilities of all points, where the job asks for them.
    #[must_use]
    pub fn with_logprobs(self, values: &[i32]) -> Self {
        Self { logprobs: (!values.is_empty()).then(|| logprobs::logprobs_root(values)), ..self }
    }

    /// Whether another run has the same roots and log-probabilities: all that can be disputed.
    pub fn agrees_with(&self, other: &Self) -> bool {
        self.points == other.points && self.roots == other.roots && self.logprobs == other.logprobs
    }

    /// How many roots were streamed, all points together.
    pub fn root_count(&self) -> usize {
        (self.points.len() + 1) * self.roots.len()
    }

    /// What the coordinator's statements call this receipt.
    pub fn digest(&self) -> Digest {
        Domain::WorkerReceipt.hash(&to_bytes(self))
    }

    /// Signs it. `keys` must be those of [`WorkerReceipt::worker`], or nobody will accept it.
    pub fn sign(self, keys: &Keypair) -> SignedReceipt {
        let signature = keys.sign(Domain::WorkerReceipt, &to_bytes(&self));
        SignedReceipt { receipt: self, signature, segments: Vec::new() }
    }
}

impl WorkerReceipt {
    /// The part of its worker in a run that several workers shared: the layers from `first` on.
    fn share(&self, first: u16) -> Segment {
        Segment { receipt: self.digest(), first, last: self.layers.saturating_add(1), worker: self.worker }
    }

    /// Signs it for the layers from `first` on. The segments of the others are still to come.
    pub fn sign_share(self, first: u16, keys: &Keypair) -> SignedReceipt {
        let signature = self.share(first).sign(keys).signature;
        SignedReceipt { receipt: self, signature, segments: Vec::new() }
    }
}

impl Canonical for WorkerReceipt {
    const MIN_BYTES: usize = 4 + 3 * 32 + 4 + 32 + 8 + 2 + 4 + 32 + 1 + 2 + 4 + 4 + 32 + 8 + 8 + 32;
    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.spec_version);
        self.job.encode(writer);
        self.model.encode(writer);
        self.request.encode(writer);
        writer.u32(self.token_count);
        self.token_root.encode(writer);
        self.epoch.encode(writer);
        self.finish.encode(writer);
        writer.u32(self.output_count);
        self.output_root.encode(writer);
        writer.option(self.logprobs.as_ref());
        writer.u16(self.layers);
        writer.seq(&self.points);
        writer.seq(&self.roots);
        self.head.encode(writer);
        writer.u64(self.work_units);
        writer.u64(self.saturations);
        self.worker.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            spec_version: reader.u32()?,
            job: reader.value()?,
            model: reader.value()?,
            request: reader.value()?,
            token_count: reader.u32()?,
            token_root: reader.value()?,
            epoch: reader.value()?,
            finish: reader.value()?,
            output_count: reader.u32()?,
            output_root: reader.value()?,
            logprobs: reader.option()?,
            layers: reader.u16()?,
            points: reader.seq("receipt points", MAX_POINTS - 1)?,
            roots: reader.seq("receipt roots", MAX_RECEIPT_ROOTS)?,
            head: reader.value()?,
            work_units: reader.u64()?,
            saturations: reader.u64()?,
            worker: reader.value()?,
        })
    }
}

/// A worker's receipt with its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedReceipt {
    /// What was signed.
    pub receipt: WorkerReceipt,
    /// By [`WorkerReceipt::worker`]: over the canonical receipt, or where there are segments, as a segment of its own from
    /// the layer after theirs on, so that nobody can make it answer for theirs.
    pub signature: Signature,
    /// Of a run whose layers several workers computed: what all but [`WorkerReceipt::worker`] signed for theirs, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<SignedSegment>,
}

impl SignedReceipt {
    /// Checks everything that follows from the job: names, counts, chain, output root, signature.
    ///
    /// `output` is the run's output where it is at hand; without it (an auditor's receipt) only its
    /// root is bound: that of an embedding by the last layer's root, that of a generation by the signature.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, job: &JobHeader, output: Option<&[i32]>) -> Result<(), ReceiptError> {
        if let Some(last) = self.segments.last() {
            self.check_share(job, output, last.segment.last.saturating_add(1))?;
            return self.check_segments();
        }
        self.check_run(job, output)?;
        let bytes = to_bytes(&self.receipt);
        self.receipt
            .worker
            .verify(Domain::WorkerReceipt, &bytes, &self.signature)
            .map_err(|error: IdentityError| ReceiptError::WorkerSignature { worker: self.receipt.worker, error })
    }

    /// The same for a run whose layers several workers computed, without their segments: the receipt's worker signed for
    /// the layers from `first` on.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check_share(&self, job: &JobHeader, output: Option<&[i32]>, first: u16) -> Result<(), ReceiptError> {
        self.check_run(job, output)?;
        let worker = self.receipt.worker;
        let verified = worker.verify(Domain::Segment, &to_bytes(&self.receipt.share(first)), &self.signature);
        verified.map_err(|error| ReceiptError::WorkerSignature { worker, error })
    }

    fn check_run(&self, job: &JobHeader, output: Option<&[i32]>) -> Result<(), ReceiptError> {
        self.check_job(job)?;
        self.check_roots(job)?;
        output.map_or(Ok(()), |output| self.check_output(job, output))
    }

    fn check_job(&self, job: &JobHeader) -> Result<(), ReceiptError> {
        let receipt = &self.receipt;
        if receipt.spec_version != SPEC_VERSION || job.spec_version != SPEC_VERSION {
            let found = receipt.spec_version;
            return Err(ReceiptError::Job(JobError::SpecVersion { found }));
        }
        let fields = [
            ("job id", receipt.job == job.id()),
            ("model id", receipt.model == job.model),
            ("request hash", receipt.request == job.request),
            ("token count", receipt.token_count == job.token_count),
            ("token root", receipt.token_root == job.token_root),
        ];
        match fields.into_iter().find(|(_, fits)| !fits) {
            Some((field, _)) => Err(ReceiptError::NotThisJob { field }),
            None => Ok(()),
        }
    }

    fn check_roots(&self, job: &JobHeader) -> Result<(), ReceiptError> {
        let receipt = &self.receipt;
        if receipt.output_count == 0 || receipt.output_count as usize > MAX_OUTPUT_VALUES {
            return Err(ReceiptError::OutputRange { found: receipt.output_count });
        }
        if receipt.epoch.0 == 0 {
            return Err(ReceiptError::EpochZero);
        }
        let geometry = job.geometry(receipt.layers).map_err(ReceiptError::Job)?;
        let found = receipt.root_count();
        let is_point = receipt.roots.len() == usize::from(geometry.streamed_layers());
        let head = geometry.head_of(receipt.job, receipt.epoch, &receipt.points, &receipt.roots);
        let head = head
            .filter(|_| is_point && geometry.is_whole(found))
            .ok_or(ReceiptError::RootCount { expected: geometry.max_roots(), found })?;
        if head != receipt.head {
            return Err(ReceiptError::ChainHead);
        }
        match &job.kind {
            JobKind::Embedding if receipt.finish != FinishReason::Complete => Err(ReceiptError::Finish),
            // The output of an embedding is the one row of the output layer.
            JobKind::Embedding if receipt.roots.last() != Some(&receipt.output_root) => Err(ReceiptError::OutputRoot),
            JobKind::Embedding if receipt.logprobs.is_some() => Err(ReceiptError::Logprobs),
            JobKind::Embedding => Ok(()),
            JobKind::Generation(generation) => self.check_counts(generation),
        }
    }

    /// Of a generation: a word for each point, the end that goes with their number, and log-probabilities if asked for.
    fn check_counts(&self, asked: &Generation) -> Result<(), ReceiptError> {
        let receipt = &self.receipt;
        if receipt.logprobs.is_some() != (asked.logprobs > 0) {
            return Err(ReceiptError::Logprobs);
        }
        if receipt.output_count as usize != receipt.points.len() + 1 {
            return Err(ReceiptError::OutputRange { found: receipt.output_count });
        }
        match receipt.finish {
            FinishReason::Stop => Ok(()),
            FinishReason::Length if receipt.output_count == asked.max_tokens => Ok(()),
            _ => Err(ReceiptError::Finish),
        }
    }

    fn check_output(&self, job: &JobHeader, output: &[i32]) -> Result<(), ReceiptError> {
        let (count, found) = (self.receipt.output_count as usize, output.len());
        let expected = count * job.kind.generation().map_or(1, Generation::values_per_point);
        if found == 0 || found > MAX_OUTPUT_VALUES || found != expected {
            return Err(ReceiptError::OutputCount { expected, found });
        }
        match &job.kind {
            JobKind::Embedding if root_of_rows(output, output.len()) == self.receipt.output_root => Ok(()),
            JobKind::Embedding => Err(ReceiptError::OutputRoot),
            JobKind::Generation(asked) => {
                let (words, logprobs) = output.split_at(count);
                self.check_words(&generation::words_of(words), asked.max_tokens)?;
                self.check_logprobs(asked, logprobs)
            }
        }
    }

    /// Checks log-probabilities against what was signed of them; whether they are the model's takes the model.
    fn check_logprobs(&self, asked: &Generation, values: &[i32]) -> Result<(), ReceiptError> {
        let root = (!values.is_empty()).then(|| logprobs::logprobs_root(values));
        let fits = root == self.receipt.logprobs && logprobs::rows(values, asked).all(|row| row.is_possible());
        if fits { Ok(()) } else { Err(ReceiptError::Logprobs) }
    }

    /// Checks the words of a generation against what was signed of them.
    ///
    /// # Errors
    /// [`ReceiptError::OutputRoot`], [`ReceiptError::Words`].
    pub fn check_words(&self, words: &[u32], max_tokens: u32) -> Result<(), ReceiptError> {
        let receipt = &self.receipt;
        if words.len() != receipt.output_count as usize || generation::words_root(words) != receipt.output_root {
            return Err(ReceiptError::OutputRoot);
        }
        let last = words.last().copied();
        let is_last_root = last.map(generation::word_root).as_ref() == receipt.roots.last();
        let ends = last.and_then(FinishReason::of_word) == Some(receipt.finish);
        if is_last_root && ends && generation::words_fit(words, max_tokens) { Ok(()) } else { Err(ReceiptError::Words) }
    }
}

impl Canonical for SignedReceipt {
    const MIN_BYTES: usize = WorkerReceipt::MIN_BYTES + 64 + 4;
    fn encode(&self, writer: &mut Writer) {
        self.receipt.encode(writer);
        self.signature.encode(writer);
        writer.seq(&self.segments);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            receipt: reader.value()?,
            signature: reader.value()?,
            segments: reader.seq("segments", MAX_CREW - 1)?,
        })
    }
}
