//! The worker's part of a receipt: what it ran, what it committed to, what came out.

use serde::{Deserialize, Serialize};

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::commitment::ChainHead;
use crate::domain::Domain;
use crate::identity::{IdentityError, Keypair, Signature};
use crate::ids::{Digest, JobId, LeaseEpoch, ModelId, NodeId, RequestHash, Root};
use crate::job::{JobError, JobHeader, SPEC_VERSION};
use crate::limits::{MAX_OUTPUT_VALUES, MAX_RECEIPT_ROOTS};
use crate::receipt::ReceiptError;
use crate::trace::root_of_rows;

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The whole input was run; the only reason for an embedding.
    Complete,
}

impl Canonical for FinishReason {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        writer.u16(match self {
            Self::Complete => 1,
        });
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u16()? {
            1 => Ok(Self::Complete),
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
    /// How many numbers came out.
    pub output_count: u32,
    /// The root of the output as one row of `i32` ([`root_of_rows`]).
    pub output_root: Root,
    /// Transformer layers of the model.
    pub layers: u16,
    /// The streamed roots: for each commitment point, layers 1 to L + 1.
    pub roots: Vec<Root>,
    /// The commitment chain after the last root.
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
    /// How many numbers came out.
    pub output_count: u32,
    /// Multiply-accumulates of the run, as the program counts them.
    pub work_units: u64,
    /// Values that saturated during the run.
    pub saturations: u64,
}

impl WorkerReceipt {
    /// The receipt of a whole run of an embedding, to be signed by `worker`.
    ///
    /// # Errors
    /// [`ReceiptError::Job`] and [`ReceiptError::RootCount`] where the run has another shape than the job.
    pub fn of_run(job: &JobHeader, run: Run, worker: NodeId) -> Result<Self, ReceiptError> {
        let (id, geometry) = (job.id(), job.geometry(run.layers).map_err(ReceiptError::Job)?);
        let wrong_count = ReceiptError::RootCount { expected: geometry.len(), found: run.roots.len() };
        let (Some(head), Some(last)) = (geometry.head(id, run.epoch, &run.roots), run.roots.last()) else {
            return Err(wrong_count);
        };
        Ok(Self {
            spec_version: job.spec_version,
            job: id,
            model: job.model,
            request: job.request,
            token_count: job.token_count,
            token_root: job.token_root,
            epoch: run.epoch,
            finish: FinishReason::Complete,
            output_count: run.output_count,
            // The output of an embedding is the one row of the output layer.
            output_root: *last,
            layers: run.layers,
            head,
            roots: run.roots,
            work_units: run.work_units,
            saturations: run.saturations,
            worker,
        })
    }

    /// What the coordinator's statements call this receipt.
    pub fn digest(&self) -> Digest {
        Domain::WorkerReceipt.hash(&to_bytes(self))
    }

    /// Signs it. `keys` must be those of [`WorkerReceipt::worker`], or nobody will accept it.
    pub fn sign(self, keys: &Keypair) -> SignedReceipt {
        let signature = keys.sign(Domain::WorkerReceipt, &to_bytes(&self));
        SignedReceipt { receipt: self, signature }
    }
}

impl Canonical for WorkerReceipt {
    const MIN_BYTES: usize = 4 + 3 * 32 + 4 + 32 + 8 + 2 + 4 + 32 + 2 + 4 + 32 + 8 + 8 + 32;
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
        writer.u16(self.layers);
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
            layers: reader.u16()?,
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
    /// By [`WorkerReceipt::worker`], over the canonical receipt.
    pub signature: Signature,
}

impl SignedReceipt {
    /// Checks everything that follows from the job: names, counts, chain, output root, signature.
    ///
    /// `output` is the run's output where it is at hand; without it (an auditor's receipt) only its
    /// root is bound, by the last layer's root.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, job: &JobHeader, output: Option<&[i32]>) -> Result<(), ReceiptError> {
        self.check_job(job)?;
        self.check_roots(job)?;
        if let Some(output) = output {
            self.check_output(output)?;
        }
        let bytes = to_bytes(&self.receipt);
        self.receipt
            .worker
            .verify(Domain::WorkerReceipt, &bytes, &self.signature)
            .map_err(|error: IdentityError| ReceiptError::WorkerSignature { worker: self.receipt.worker, error })
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
        let head = geometry
            .head(receipt.job, receipt.epoch, &receipt.roots)
            .ok_or(ReceiptError::RootCount { expected: geometry.len(), found: receipt.roots.len() })?;
        if head != receipt.head {
            return Err(ReceiptError::ChainHead);
        }
        // The output of an embedding is the one row of the output layer.
        if receipt.roots.last() != Some(&receipt.output_root) {
            return Err(ReceiptError::OutputRoot);
        }
        Ok(())
    }

    fn check_output(&self, output: &[i32]) -> Result<(), ReceiptError> {
        if output.is_empty() || output.len() > MAX_OUTPUT_VALUES || output.len() != self.receipt.output_count as usize {
            return Err(ReceiptError::OutputCount { expected: self.receipt.output_count, found: output.len() });
        }
        if root_of_rows(output, output.len()) != self.receipt.output_root {
            return Err(ReceiptError::OutputRoot);
        }
        Ok(())
    }
}

impl Canonical for SignedReceipt {
    const MIN_BYTES: usize = WorkerReceipt::MIN_BYTES + 64;
    fn encode(&self, writer: &mut Writer) {
        self.receipt.encode(writer);
        self.signature.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { receipt: reader.value()?, signature: reader.value()? })
    }
}
