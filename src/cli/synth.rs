//! `lockstep synth`

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;
use lockstep_model::package::WeightMode;
use lockstep_model::synth::{Options, SHAPES, Shape, synth};
use serde_json::json;

use super::Stages;
use crate::backend;
use crate::exit::{Exit, OrExit, Outcome};

/// Arguments of `lockstep synth`.
#[derive(Args)]
#[command(after_help = "The package, and so the model id, follows from shape, mode, seed and context alone.\n\
    Beside FILE as much room as it takes is needed once more while it is written.")]
pub struct SynthArgs {
    /// Whose dimensions: tiny, smollm2-135m, qwen2-0.5b, qwen3-0.6b, tinyllama-1.1b, mistral-7b or llama-8b.
    #[arg(long)]
    shape: String,
    /// Width of the codes.
    #[arg(long, default_value = "w8")]
    weights: WeightMode,
    /// All weights follow from it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Package to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Longest context [default: the shape's, up to 8192].
    #[arg(long, value_name = "N")]
    max_positions: Option<u32>,
    /// Threads to use [default: all].
    #[arg(long, value_parser = backend::threads)]
    threads: Option<NonZeroUsize>,
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Makes a model up.
pub fn run(args: &SynthArgs) -> Outcome {
    let shape = Shape::named(&args.shape).ok_or_else(|| {
        let known: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
        anyhow!("no shape is called {:?}: known are {}", args.shape, known.join(", "))
    });
    let shape = shape.or_exit(Exit::Configuration)?;
    let options = Options {
        weights: args.weights,
        seed: args.seed,
        max_positions: args.max_positions,
        threads: args.threads.unwrap_or_else(backend::all_threads),
    };
    let mut stages = Stages::default();
    let report = synth(shape, &args.out, &options, &mut |at| stages.show(at))
        .with_context(|| format!("cannot make {}", args.out.display()))
        .or_exit(Exit::Configuration)?;
    stages.finish();
    if args.json {
        println!(
            "{}",
            json!({
                "model_id": report.model_id.to_string(), "file": args.out, "bytes": report.bytes,
                "params": report.params, "weights": args.weights.to_string(), "shape": shape.name, "seed": args.seed,
            })
        );
    } else {
        println!("wrote {} ({} bytes, {} parameters)", args.out.display(), report.bytes, report.params);
        println!("model id {}", report.model_id);
    }
    Ok(())
}
