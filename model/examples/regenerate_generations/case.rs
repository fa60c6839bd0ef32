//! Known answers of generations: receipts of runs of the model in `assets/tiny-llama`, one greedy and one that draws.

use std::num::NonZeroUsize;
use std::path::Path;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::cpu::Cpu;
use lockstep_model::import::{Options, import};
use lockstep_model::package::{Package, WeightMode};
use lockstep_model::rerun::rerun_job;
use lockstep_model::tokenizer::TooLong;
use lockstep_protocol::generation::{Generation, words_of};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{LeaseEpoch, Millis, Nonce, Seed};
use lockstep_protocol::job::{Job, JobKind, RequestInput, SPEC_VERSION};
use lockstep_protocol::receipt::{Receipt, Run, WorkerReceipt};

/// The cases, each a file of this name in `model/vectors`.
pub const NAMES: [&str; 2] = ["greedy", "sampled"];

const PROMPT: &str = "# Closures\n\nA closure is";

/// What a case asks for. The second one has every setting that changes words, and wants log-probabilities.
fn generation(name: &str, stop_tokens: &[u32]) -> Generation {
    let greedy = Generation { stop_tokens: stop_tokens.to_vec(), ..Generation::greedy(12) };
    if name == NAMES[0] {
        return greedy;
    }
    Generation {
        max_tokens: 16,
        temperature: 8_000,
        top_k: 200,
        top_p: 9_700,
        min_p: 50,
        repetition_penalty: 10_500,
        presence_penalty: 2_500,
        frequency_penalty: -1_000,
        logit_bias: vec![(5, -20_000), (300, 15_000)],
        stop_strings: vec![b"\n\n".to_vec()],
        logprobs: 4,
        ..greedy
    }
}

/// The w16 package of the model, under the name with which the program ships it.
pub fn package(folder: &Path) -> Package {
    let (threads, name) = (NonZeroUsize::MIN, "lockstep-tiny".to_owned());
    let options = Options { weights: WeightMode::W16, threads, name, max_positions: None };
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-llama");
    let (file, cpu) = (folder.join("w16.lsp"), Cpu::new(None, 1).expect("a processor"));
    import(&checkpoint, &file, &options, &cpu, &mut |_| {}).expect("the checkpoint is sound");
    Package::open(&file).expect("what was just written")
}

/// The receipt of a case, with the keys, epoch and times of SPEC.md 19.
pub fn receipt(package: &Package, name: &str, backend: &dyn Backend) -> Receipt {
    let nonce = Nonce::from_bytes([2; 32]);
    let tokens = package.tokenizer().expect("a tokenizer").encode(PROMPT, TooLong::Refuse).expect("it fits");
    let job = Job {
        spec_version: SPEC_VERSION,
        model: package.model_id(),
        kind: JobKind::Generation(Box::new(generation(name, &package.manifest().stop_tokens))),
        tokens,
        request: RequestInput::Text(PROMPT.into()).hash(&nonce),
        seed: Seed::from_bytes([3; 32]),
        nonce,
    };
    let ran = rerun_job(package, backend, &job, &[]).expect("it runs");
    let layers = package.program().layers.len() as u16 - 2;
    let (words, logprobs) = ran.output.split_at(ran.roots.len() / usize::from(layers + 1));
    let run = Run {
        epoch: LeaseEpoch(7),
        layers,
        roots: ran.roots,
        words: words_of(words),
        output_count: words.len() as u32,
        work_units: ran.work_units,
        saturations: ran.saturations,
    };
    let keys = Keypair::from_seed([5; 32]);
    let signed = WorkerReceipt::of_run(&job.header(), run, keys.id()).expect("its shape is right");
    let signed = signed.with_logprobs(logprobs).sign(&keys);
    Receipt::accepted(job, signed, ran.output, &Keypair::from_seed([6; 32]), Millis(1_700_000_000_000))
}
