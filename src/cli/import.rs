//! `lockstep import`

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use indicatif::ProgressBar;
use lockstep_model::check::check;
use lockstep_model::import::{Options, Progress, import};
use lockstep_model::package::{Package, WeightMode};
use serde_json::json;

use crate::exit::{Exit, OrExit, Outcome};
use crate::{backend, progress};

/// Arguments of `lockstep import`.
#[derive(Args)]
#[command(
    after_help = "Supported: decoders of the Llama family (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM,\n\
    Qwen3ForCausalLM), also from GGUF files in F32, F16, BF16 or Q8_0; and BERT-style encoders (BertModel) with mean or\n\
    first-token pooling.\n\
    The package, and so the model id, is the same on every machine and at every thread count.\n\
    Of a decoder, memory holds one matrix or one layer at a time. Meanwhile its weights lie in files without a name beside\n\
    FILE: in 16 bits, and for w8 in 8 bits too."
)]
pub struct ImportArgs {
    /// Folder with config.json, model.safetensors and tokenizer.json, or a GGUF file.
    dir: PathBuf,
    /// Width of the codes: w16 is faithful, w8 takes half the memory.
    #[arg(long, default_value = "w16", conflicts_with = "check")]
    weights: WeightMode,
    /// Package to write.
    #[arg(long, value_name = "FILE", required_unless_present = "check")]
    out: Option<PathBuf>,
    /// Name of the model; part of its id.
    #[arg(long, help = "Name of the model, part of its id [default: the folder's name]")]
    name: Option<String>,
    /// Cap the context of a decoder below the checkpoint's own.
    #[arg(long, value_name = "N", conflicts_with = "check")]
    max_positions: Option<u32>,
    /// Check that this package is DIR, instead of importing.
    #[arg(long, value_name = "PACKAGE", conflicts_with = "out")]
    check: Option<PathBuf>,
    /// Threads to use [default: all].
    #[arg(long, value_parser = backend::threads)]
    threads: Option<NonZeroUsize>,
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Imports or checks.
pub fn run(args: &ImportArgs) -> Outcome {
    let threads = args.threads.unwrap_or_else(backend::all_threads);
    match (&args.check, &args.out) {
        (Some(package), _) => run_check(package, &args.dir, threads, args.json),
        (None, Some(out)) => run_import(args, out, threads),
        (None, None) => unreachable!("clap requires one of them"),
    }
}

fn run_import(args: &ImportArgs, out: &Path, threads: NonZeroUsize) -> Outcome {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => folder_name(&args.dir).or_exit(Exit::Configuration)?,
    };
    let options = Options { weights: args.weights, threads, name, max_positions: args.max_positions };
    let backend = backend::open("cpu", threads)?;
    let mut stages = Stages::default();
    let report = import(&args.dir, out, &options, &*backend, &mut |p| stages.show(p))
        .with_context(|| format!("cannot import {}", args.dir.display()))
        .or_exit(Exit::Configuration)?;
    stages.finish();
    if !args.json {
        for unused in &report.unused {
            println!("not used by the model: {unused}");
        }
        println!("wrote {} ({} bytes, {} parameters)", out.display(), report.bytes, report.params);
        println!("model id {}", report.model_id);
    } else {
        println!(
            "{}",
            json!({
                "model_id": report.model_id.to_string(), "file": out, "bytes": report.bytes,
                "params": report.params, "weights": args.weights.to_string(), "unused": report.unused,
            })
        );
    }
    Ok(())
}

fn run_check(package: &Path, dir: &Path, threads: NonZeroUsize, json: bool) -> Outcome {
    let opened = Package::open(package).with_context(|| package.display().to_string()).or_exit(Exit::Configuration)?;
    let report = check(&opened, dir, threads)
        .with_context(|| format!("{} is not {}", package.display(), dir.display()))
        .or_exit(Exit::Refuted)?;
    if json {
        println!(
            "{}",
            json!({
                "model_id": opened.model_id().to_string(), "matches": true,
                "equal": report.equal, "enclosed": report.enclosed,
            })
        );
    } else {
        println!("model id {}", opened.model_id());
        println!("{} parameters are what {} gives;", report.equal, dir.display());
        println!("{} have only codes that are the floor or the ceiling of weight over scale", report.enclosed);
    }
    Ok(())
}

fn folder_name(dir: &Path) -> anyhow::Result<String> {
    let full = dir.canonicalize().with_context(|| format!("cannot open {}", dir.display()))?;
    let name = if full.is_file() { full.file_stem() } else { full.file_name() };
    let name = name.and_then(|n| n.to_str()).map(str::to_owned);
    name.ok_or_else(|| anyhow!("{} has no name to give the model: use --name", dir.display()))
}

/// One bar for each stage of an import.
#[derive(Default)]
pub struct Stages {
    current: Option<(&'static str, ProgressBar)>,
}

impl Stages {
    /// Shows where the import is.
    pub fn show(&mut self, at: Progress) {
        if self.current.as_ref().is_none_or(|(stage, _)| *stage != at.stage) {
            self.finish();
            let bar = if at.total > 1 { progress::bar(at.total, at.stage) } else { progress::spinner(at.stage) };
            self.current = Some((at.stage, bar));
        }
        if let Some((_, bar)) = &self.current {
            bar.set_position(at.done);
        }
    }

    /// Takes the last bar away.
    pub fn finish(&mut self) {
        if let Some((_, bar)) = self.current.take() {
            bar.finish_and_clear();
        }
    }
}
