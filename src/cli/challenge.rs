//! `lockstep challenge`

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use lockstep_link::keyfile;
use lockstep_model::package::Package;
use lockstep_model::rerun::{Rerun, rerun};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::LeaseEpoch;
use lockstep_protocol::limits::MAX_RECEIPT_JSON_BYTES;
use lockstep_protocol::receipt::{Receipt, Run, SignedReceipt, WorkerReceipt};
use serde_json::json;

use crate::cli::client::Address;
use crate::cli::files;
use crate::exit::{Exit, OrExit, Outcome};
use crate::secret::Secret;
use crate::{backend, paths};

/// Arguments of `lockstep challenge`.
#[derive(Args)]
#[command(
    after_help = "The job is run again here. Where the receipt holds there is nothing to challenge, and that is said. Where \
    it does not, the run that was made here is signed with the key of a worker, and the coordinator opens a dispute between \
    the two: within a day after the job's end, for a stake of that worker's credits, which is lost with the dispute. The \
    worker plays it: keep `lockstep worker` connected with the same --data-dir. `lockstep dispute show` tells how it stands."
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
    #[arg(long)]
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
    if receipt.job.kind.generation().is_some() {
        // A wrong account of its own would cost the challenger its stake.
        let error = anyhow!(
            "this command makes runs of embeddings only: check a generation with `lockstep verify`, and challenge it through \
             POST /v1/challenges"
        );
        return Err(error).or_exit(Exit::Configuration);
    }
    let again = run_again(args, &receipt)?;
    let signed = &receipt.worker.receipt;
    let Some(index) = signed.roots.iter().zip(&again.roots).position(|(theirs, ours)| theirs != ours) else {
        report(args, "the receipt holds: every root is what the model gives; there is nothing to challenge", None);
        return Ok(());
    };
    let keys = keys(args.data_dir.as_deref()).or_exit(Exit::Configuration)?;
    let claim = claim(&receipt, again, &keys)?;
    let body = json!({ "job": receipt.job.id(), "receipt": claim, "run": signed.digest() });
    let answer = args.address.post("challenges", Some(&args.access_token), &body)?;
    let dispute = answer["dispute"].as_str().context("the coordinator names no dispute")?;
    let layers = usize::from(signed.layers) + 1;
    report(
        args,
        &format!("the receipt is wrong from layer {} on; dispute {dispute}", index % layers + 1),
        Some(dispute),
    );
    Ok(())
}

fn run_again(args: &ChallengeArgs, receipt: &Receipt) -> Result<Rerun, crate::exit::Failure> {
    let threads = args.threads.unwrap_or_else(backend::all_threads);
    let opened = Package::open_checked(&args.package, threads);
    let package = opened.with_context(|| args.package.display().to_string()).or_exit(Exit::Configuration)?;
    if package.model_id() != receipt.job.model {
        let error = anyhow!("the package is model {}, the receipt is about {}", package.model_id(), receipt.job.model);
        return Err(error).or_exit(Exit::Configuration);
    }
    let backend = backend::open(&args.backend, threads)?;
    rerun(&package, &*backend, &receipt.job.tokens).or_exit(Exit::Failed)
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

/// The run that was made here, as the challenger's.
fn claim(receipt: &Receipt, again: Rerun, keys: &Keypair) -> anyhow::Result<SignedReceipt> {
    let theirs = &receipt.worker.receipt;
    let run = Run {
        epoch: LeaseEpoch::CHALLENGE,
        layers: theirs.layers,
        roots: again.roots,
        words: Vec::new(),
        output_count: u32::try_from(again.output.len())?,
        work_units: theirs.work_units,
        saturations: again.saturations,
    };
    Ok(WorkerReceipt::of_run(&receipt.job.header(), run, keys.id())?.sign(keys))
}

fn report(args: &ChallengeArgs, told: &str, dispute: Option<&str>) {
    if args.json {
        println!("{}", json!({ "challenged": dispute.is_some(), "dispute": dispute }));
    } else {
        println!("{told}");
    }
}
