//! `lockstep verify`

use std::fs;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use lockstep_kernels::backend::{Backend, BackendError};
use lockstep_model::embed::EmbedError;
use lockstep_model::package::Package;
use lockstep_model::rerun::{Rerun, rerun};
use lockstep_model::tokenizer::TooLong;
use lockstep_protocol::ids::{ModelId, NodeId, Root};
use lockstep_protocol::job::RequestInput;
use lockstep_protocol::limits::MAX_RECEIPT_JSON_BYTES;
use lockstep_protocol::receipt::{Receipt, Standing};
use serde_json::json;

use crate::exit::{Exit, Failure, OrExit, Outcome};
use crate::{backend, paths};

/// Arguments of `lockstep verify`.
#[derive(Args)]
#[command(
    after_help = "Without --package, the package is looked for by its id in the data and cache folders. Where it is \
    not found, only what the receipt itself shows is checked: signatures, hashes and statements; the output says so."
)]
pub struct VerifyArgs {
    /// Receipt in JSON, or - for standard input.
    receipt: PathBuf,
    /// Package of the receipt's model, to run the job again.
    #[arg(long, value_name = "FILE")]
    package: Option<PathBuf>,
    /// Fail where the job can't be run again.
    #[arg(long)]
    require_rerun: bool,
    /// The text that was asked about: must be the one in the receipt.
    #[arg(long)]
    text: Option<String>,
    /// The coordinator that must have signed.
    #[arg(long, value_name = "KEY")]
    coordinator: Option<NodeId>,
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

/// Verifies a receipt.
pub fn run(args: &VerifyArgs) -> Outcome {
    let text = read_receipt(&args.receipt).or_exit(Exit::Configuration)?;
    let receipt = Receipt::from_json(text.trim()).or_exit(Exit::Refuted)?;
    let standing = receipt.check().or_exit(Exit::Refuted)?;
    check_wishes(args, &receipt, &standing).or_exit(Exit::Refuted)?;
    let threads = args.threads.unwrap_or_else(backend::all_threads);
    let package = find_package(args, receipt.job.model)?;
    if let Some(package) = &package {
        package.verify(threads).and_then(|()| package.prove()).or_exit(Exit::Refuted)?;
        check_text(args, &receipt, package).or_exit(Exit::Refuted)?;
        let backend = backend::open(&args.backend, threads)?;
        check_rerun(&receipt, package, &*backend)?;
    }
    report(args, &receipt, &standing, package.is_some());
    Ok(())
}

fn read_receipt(path: &Path) -> anyhow::Result<String> {
    let limit = MAX_RECEIPT_JSON_BYTES as u64 + 1;
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(limit).read_to_string(&mut text).context("cannot read standard input")?;
    } else {
        let file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        file.take(limit).read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(text)
}

fn check_wishes(args: &VerifyArgs, receipt: &Receipt, standing: &Standing) -> anyhow::Result<()> {
    if let Some(place) = standing.refuted {
        bail!(
            "the coordinator itself states that this answer is wrong at point {}, layer {}",
            place.point,
            place.layer
        );
    }
    match args.coordinator {
        Some(wanted) if wanted != receipt.coordinator => {
            bail!("the receipt is by coordinator {}, not by {wanted}", receipt.coordinator)
        }
        _ => Ok(()),
    }
}

/// The package of that id: the one named, or one in the usual folders.
fn find_package(args: &VerifyArgs, model: ModelId) -> Result<Option<Package>, Failure> {
    if let Some(path) = &args.package {
        let package = Package::open(path).with_context(|| path.display().to_string()).or_exit(Exit::Configuration)?;
        if package.model_id() != model {
            let wrong = anyhow!("{} is model {}, the receipt is about {model}", path.display(), package.model_id());
            return Err(wrong).or_exit(Exit::Refuted);
        }
        return Ok(Some(package));
    }
    let dirs = [paths::data_dir(), paths::cache_dir()].into_iter().flatten().map(|d| d.join("packages"));
    let files = dirs.filter_map(|d| fs::read_dir(d).ok()).flatten().flatten().map(|e| e.path());
    let packages = files.filter(|p| p.extension().is_some_and(|e| e == "lsp")).filter_map(|p| Package::open(&p).ok());
    let found = packages.into_iter().find(|p| p.model_id() == model);
    if found.is_none() && args.require_rerun {
        return Err(anyhow!("package {model} is not on this machine: name it with --package"))
            .or_exit(Exit::Configuration);
    }
    Ok(found)
}

fn check_text(args: &VerifyArgs, receipt: &Receipt, package: &Package) -> anyhow::Result<()> {
    let Some(text) = &args.text else { return Ok(()) };
    if RequestInput::Text(text.clone()).hash(&receipt.job.nonce) != receipt.job.request {
        bail!("the receipt is about another text");
    }
    let tokens = package.tokenizer()?.encode(text, TooLong::Truncate)?;
    if tokens != receipt.job.tokens {
        bail!("the job's tokens are not those of the text");
    }
    Ok(())
}

fn check_rerun(receipt: &Receipt, package: &Package, backend: &dyn Backend) -> Outcome {
    let again = rerun(package, backend, &receipt.job.tokens)
        .map_err(|error| Failure { exit: exit_of(&error), error: error.into() });
    let Rerun { roots, output, saturations: _ } = again?;
    let signed = &receipt.worker.receipt;
    let layers = package.program().layers.len() - 2;
    if usize::from(signed.layers) != layers {
        return Err(anyhow!("the receipt is for {} layers; the model has {layers}", signed.layers))
            .or_exit(Exit::Refuted);
    }
    let differs = |(_, (a, b)): &(usize, (&Root, &Root))| a != b;
    if let Some((layer, (signed, right))) = signed.roots.iter().zip(&roots).enumerate().find(differs) {
        let point = receipt.job.tokens.len() - 1;
        let layer = layer + 1;
        let wrong = anyhow!("the root of layer {layer} at point {point} is {signed}; the model gives {right}");
        return Err(wrong).or_exit(Exit::Refuted);
    }
    if receipt.output != output || signed.roots.len() != roots.len() {
        return Err(anyhow!("the output is not what the model gives")).or_exit(Exit::Refuted);
    }
    Ok(())
}

/// A device that fails refutes nothing; tokens that do not fit the model do.
fn exit_of(error: &EmbedError) -> Exit {
    match error {
        EmbedError::Backend(BackendError::Unavailable(_) | BackendError::Device(_)) => Exit::NoDevice,
        _ => Exit::Refuted,
    }
}

fn report(args: &VerifyArgs, receipt: &Receipt, standing: &Standing, rerun: bool) {
    let signed = &receipt.worker.receipt;
    if args.json {
        println!(
            "{}",
            json!({
                "valid": true, "rerun": rerun, "job": signed.job.to_string(), "model_id": signed.model.to_string(),
                "worker": signed.worker.to_string(), "coordinator": receipt.coordinator.to_string(),
                "audits_matched": standing.matched, "audits_mismatched": standing.mismatched,
                "layer_roots": signed.roots.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })
        );
        return;
    }
    println!("job          {}", signed.job);
    println!("model        {}", signed.model);
    println!("worker       {}", signed.worker);
    println!("coordinator  {}", receipt.coordinator);
    println!("audits       {} matched, {} did not", standing.matched, standing.mismatched);
    println!("signatures, hashes and statements hold");
    if rerun {
        println!("run again here: all {} roots and the output are equal", signed.roots.len());
    } else {
        println!("NOT run again: package {} is not on this machine (name it with --package)", signed.model);
    }
}
