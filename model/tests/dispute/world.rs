//! A tiny package, a job on it, and what anybody makes of the job.

use std::num::NonZeroUsize;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::conformance::{Case, ParamValue};
use lockstep_model::package::{BlobInfo, Manifest, Package, SPEC_VERSION, WeightMode, write};
use lockstep_model::rerun::{rerun, rerun_job};
use lockstep_protocol::generation::{Generation, words_of};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Digest, LeaseEpoch, Nonce, Root, Seed};
use lockstep_protocol::job::{Job, JobKind, RequestInput};
use lockstep_protocol::receipt::{Run, SignedReceipt, WorkerReceipt};

pub struct World {
    pub package: Package,
    pub job: Job,
}

impl World {
    /// The case's program as a package, and a job with the tokens of its first sequence.
    pub fn new(case: &Case) -> Self {
        Self::of_kind(case, JobKind::Embedding)
    }

    /// The same for a job of any kind.
    pub fn of_kind(case: &Case, kind: JobKind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let blobs: Vec<_> = case.params.0.iter().map(bytes).chain([b"{}".to_vec()]).collect();
        let infos: Vec<_> = blobs.iter().map(|blob| BlobInfo::of(blob)).collect();
        let (tokenizer, params) = infos.split_last().unwrap();
        let manifest = Manifest {
            spec_version: SPEC_VERSION,
            name: case.name.clone(),
            family: "test".into(),
            weights: WeightMode::W16,
            program: case.program.clone(),
            output_frac: 30,
            params: params.to_vec(),
            tokenizer: *tokenizer,
            template: None,
            stop_tokens: Vec::new(),
            sources: Vec::new(),
            calibration: case.program.is_decoder().then(|| Digest::from_bytes([5; 32])),
        };
        let path = dir.path().join("package");
        let model = write(&path, &manifest, |i| blobs[i].clone()).unwrap();
        // The mapping outlives the name.
        let package = Package::open_checked(&path, NonZeroUsize::MIN).unwrap();
        let tokens = case.batch.sequences[0].tokens.clone();
        let nonce = Nonce::from_bytes([3; 32]);
        let request = RequestInput::Tokens(tokens.clone()).hash(&nonce);
        let seed = Seed::from_bytes([4; 32]);
        let job = Job { spec_version: SPEC_VERSION, model, kind, tokens, request, seed, nonce };
        Self { package, job }
    }

    /// Transformer layers.
    pub fn layers(&self) -> u16 {
        self.package.program().layers.len() as u16 - 2
    }

    /// The generation of whoever has this backend, signed, with all its roots, its words, and its log-probabilities, which may
    /// be changed.
    pub fn generation(
        &self,
        backend: &dyn Backend,
        keys: &Keypair,
        epoch: u64,
        change: impl FnOnce(&mut [i32]),
    ) -> (SignedReceipt, Vec<Root>, Vec<u32>, Vec<i32>) {
        let run = rerun_job(&self.package, backend, &self.job, &[]).unwrap();
        let per_point = self.job.kind.generation().map_or(1, Generation::values_per_point);
        let (words, logprobs) = run.output.split_at(run.output.len() / per_point);
        let (words, mut logprobs) = (words_of(words), logprobs.to_vec());
        change(&mut logprobs);
        let of = Run {
            epoch: LeaseEpoch(epoch),
            layers: self.layers(),
            roots: run.roots.clone(),
            words: words.clone(),
            output_count: words.len() as u32,
            work_units: run.work_units,
            saturations: run.saturations,
        };
        let receipt = WorkerReceipt::of_run(&self.job.header(), of, keys.id()).unwrap().with_logprobs(&logprobs);
        (receipt.sign(keys), run.roots, words, logprobs)
    }

    /// The run of whoever has this backend, signed.
    pub fn run(&self, backend: &dyn Backend, keys: &Keypair, epoch: u64) -> SignedReceipt {
        let run = rerun(&self.package, backend, &self.job.tokens).unwrap();
        let work_units = self.package.program().macs(self.job.tokens.len() as u64, 0);
        let run = Run {
            epoch: LeaseEpoch(epoch),
            layers: self.layers(),
            roots: run.roots,
            words: Vec::new(),
            output_count: run.output.len() as u32,
            work_units,
            saturations: run.saturations,
        };
        WorkerReceipt::of_run(&self.job.header(), run, keys.id()).unwrap().sign(keys)
    }
}

fn bytes(value: &ParamValue) -> Vec<u8> {
    match value {
        ParamValue::I8(v) => v.iter().map(|v| *v as u8).collect(),
        ParamValue::I16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ParamValue::U16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ParamValue::I32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}
