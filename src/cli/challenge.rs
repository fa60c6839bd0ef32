//! `lockstep challenge`

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use lockstep_link::keyfile;
use lockstep_model::package::Package;
use lockstep_model::rerun::{Rerun, rerun_job};
use lockstep_protocol::dispute::Claim;
use lockstep_protocol::generation::words_of;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::LeaseEpoch;
use lockstep_protocol::job::JobKind;
use lockstep_protocol::limits::MAX_RECEIPT_JSON_BYTES;
use lockstep_protocol::logprobs::{ShownRow, first_difference};
use lockstep_protocol::receipt::{Receipt, Run, WorkerReceipt, split_output};
use serde_json::{Value, json};

use crate::cli::client::Address;
use crate::cli::files;
use crate::exit::{Exit, Failure, OrExit, Outcome};
use crate::secret::Secret;
use crate::{backend, paths};

/// Arguments of `lockstep challenge`.
#[derive(Args)]
#[command(
    after_help = "The job is run again here; a generation by one prefill as far as its words are right. Where every root and \
    log-probability is right there is nothing to challenge, and that is said. Where one is not, the run that was made here is signed with the \
    key of a worker, and the coordinator opens a dispute between the two: within a day after the job's end, for a stake of \
    that worker's credits, which is lost with the dispute. The worker plays it: keep `lockstep worker` connected with the \
    same --data-dir. `lockstep dispute show` tells how it stands."
)]
pub struct ChallengeArgs {
    /// Receipt in JSON, or - for standard input.
    receipt: PathBuf,
    /// Package of the receipt's model.
    #[arg(long, value_name = "FILE")]
    package: PathBuf,
    #[command(flatten)]
    address: Address,
    /// The access token that the coordinator returned with the answer (`lockstep.access`).
    #[arg(long, env = "LOCKSTEP_ACCESS_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    access_token: Secret,
    /// Folder of the worker that challenges [default: ~/.local/share/lockstep].
    #[arg(long, env = "LOCKSTEP_WORKER_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Backend.
    #[arg(long, default_value = "cpu", help = format!("One of {}", backend::NAMES))]
    backend: String,
    /// Threads to use [default: all].
    #[arg(long, value_parser = backend::threads)]
    threads: Option<NonZeroUsize>,
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Challenges a receipt that is wrong.
pub fn run(args: &ChallengeArgs) -> Outcome {
    let text = files::text(&args.receipt, MAX_RECEIPT_JSON_BYTES)?;
    let receipt = Receipt::from_json(text.trim()).or_exit(Exit::Refuted)?;
    receipt.check().or_exit(Exit::Refuted)?;
    let keys = keys(args.data_dir.as_deref()).or_exit(Exit::Configuration)?;
    let (theirs, (ours, difference)) = (claim_of(&receipt), run_again(args, &receipt, &keys)?);
    let wrong = match difference {
        None => {
            let holds = "the receipt holds: every root and log-probability is what the model gives; there is nothing to challenge";
            report(args, holds, None);
            return Ok(());
        }
        Some(Difference::Roots(point)) => format!("from {} on", place(&receipt, [&theirs, &ours], point)),
        Some(Difference::Logprobs(point)) => format!("about the log-probabilities of word {}", point + 1),
    };
    let answer = args.address.post("challenges", Some(&args.access_token), &body(&receipt, &ours))?;
    let dispute = answer["dispute"].as_str().context("the coordinator names no dispute")?;
    report(args, &format!("the receipt is wrong {wrong}; dispute {dispute}"), Some(dispute));
    Ok(())
}

/// At which point, counted from 0, a run parts from the receipt.
#[derive(Clone, Copy)]
enum Difference {
    /// By its roots.
    Roots(usize),
    /// By log-probabilities, where all roots are the same.
    Logprobs(usize),
}

/// Where the roots part. Of an earlier point than the last one the receipt has no roots, but a digest of them.
fn place(receipt: &Receipt, [theirs, ours]: [&Claim; 2], point: usize) -> String {
    let roots = theirs.roots_at(point).zip(ours.roots_at(point));
    let layer = roots.and_then(|(theirs, ours)| theirs.iter().zip(ours).position(|(a, b)| a != b));
    let layer = layer.map(|layer| format!("layer {}", layer + 1));
    let word = matches!(receipt.job.kind, JobKind::Generation(_)).then(|| format!("word {}", point + 1));
    [layer, word].into_iter().flatten().collect::<Vec<_>>().join(" of ")
}

/// What the worker of a receipt stands for.
fn claim_of(receipt: &Receipt) -> Claim {
    Claim { words: receipt.words(), ..receipt.worker.clone().into() }
}

/// The run that is made here, as the claim of the challenger, and where it parts from the receipt.
fn run_again(args: &ChallengeArgs, receipt: &Receipt, keys: &Keypair) -> Result<(Claim, Option<Difference>), Failure> {
    let threads = args.threads.unwrap_or_else(backend::all_threads);
    let opened = Package::open_checked(&args.package, threads);
    let package = opened.with_context(|| args.package.display().to_string()).or_exit(Exit::Configuration)?;
    if package.model_id() != receipt.job.model {
        let error = anyhow!("the package is model {}, the receipt is about {}", package.model_id(), receipt.job.model);
        return Err(error).or_exit(Exit::Configuration);
    }
    let backend = backend::open(&args.backend, threads)?;
    let again = rerun_job(&package, &*backend, &receipt.job, &receipt.words()).or_exit(Exit::Failed)?;
    claim(receipt, &package, again, keys).or_exit(Exit::Failed)
}

/// The key of the worker in the folder, which has to be there.
fn keys(data_dir: Option<&Path>) -> anyhow::Result<Keypair> {
    let folder = match data_dir {
        Some(dir) => dir.to_path_buf(),
        None => paths::data_dir()?,
    };
    let file = folder.join(lockstep_worker::KEY_FILE);
    if !file.is_file() {
        anyhow::bail!("there is no worker in {}: name its folder with --data-dir", folder.display());
    }
    Ok(keyfile::load_or_create(&file)?)
}

/// A whole run of the job as a claim, with what it has where it differs from the receipt; and where that is.
fn claim(
    receipt: &Receipt,
    package: &Package,
    again: Rerun,
    keys: &Keypair,
) -> anyhow::Result<(Claim, Option<Difference>)> {
    let Rerun { roots, output, saturations, work_units } = again;
    let streamed = package.program().layers.len() - 1;
    // A generation has a word for each point, and after them the log-probabilities that were asked for.
    let count = match receipt.job.kind {
        JobKind::Embedding => output.len(),
        JobKind::Generation(_) => roots.len() / streamed,
    };
    let (output, logprobs) = output.split_at_checked(count).context("the run has fewer words than points")?;
    let words = match receipt.job.kind {
        JobKind::Embedding => Vec::new(),
        JobKind::Generation(_) => words_of(output),
    };
    let run = Run {
        epoch: LeaseEpoch::CHALLENGE,
        layers: u16::try_from(streamed - 1)?,
        roots: roots.clone(),
        words: words.clone(),
        output_count: u32::try_from(count)?,
        work_units,
        saturations,
    };
    let signed = WorkerReceipt::of_run(&receipt.job.header(), run, keys.id())?.with_logprobs(logprobs).sign(keys);
    let mut ours = Claim { words, ..signed.into() };
    let difference = match (claim_of(receipt).first_difference(&ours), receipt.job.kind.generation()) {
        (Some(point), _) => Some(Difference::Roots(point)),
        (None, Some(asked)) => {
            let (_, theirs) = split_output(&receipt.output, &receipt.worker.receipt);
            let point = first_difference(theirs, logprobs, asked);
            ours.logprobs = point.and_then(|point| ShownRow::of(logprobs, asked, point));
            point.map(Difference::Logprobs)
        }
        (None, None) => None,
    };
    // The roots of the last point are in the receipt.
    if let Some(Difference::Roots(point) | Difference::Logprobs(point)) = difference
        && point < ours.points().len()
    {
        ours.at = roots.chunks(streamed).nth(point).unwrap_or_default().to_vec();
    }
    Ok((ours, difference))
}

/// What the coordinator is asked.
fn body(receipt: &Receipt, ours: &Claim) -> Value {
    let challenged = receipt.worker.receipt.digest();
    json!({
        "job": receipt.job.id(), "run": challenged, "receipt": ours.receipt(), "words": ours.words, "at": ours.at,
        "logprobs": ours.logprobs,
    })
}

fn report(args: &ChallengeArgs, told: &str, dispute: Option<&str>) {
    if args.json {
        println!("{}", json!({ "challenged": dispute.is_some(), "dispute": dispute }));
    } else {
        println!("{told}");
    }
}
