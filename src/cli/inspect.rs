//! `lockstep inspect`

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use lockstep_model::package::Package;
use serde_json::json;

use crate::backend::all_threads;
use crate::exit::{Exit, OrExit, Outcome};

/// Arguments of `lockstep inspect`.
#[derive(Args)]
pub struct InspectArgs {
    /// Package to look into.
    package: PathBuf,
    /// Verify every digest and prove every bound, too.
    #[arg(long)]
    verify: bool,
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Prints the manifest.
pub fn run(args: &InspectArgs) -> Outcome {
    let package = Package::open(&args.package)
        .with_context(|| args.package.display().to_string())
        .or_exit(Exit::Configuration)?;
    if args.verify {
        package.verify(all_threads()).or_exit(Exit::Refuted)?;
        package.prove().or_exit(Exit::Refuted)?;
    }
    let (m, program) = (package.manifest(), package.program());
    let bytes: u64 = m.blobs().map(|b| b.bytes).sum();
    if args.json {
        let params: Vec<_> = program
            .params
            .iter()
            .zip(&m.params)
            .map(|(p, b)| {
                json!({
                    "name": p.name, "dtype": format!("{:?}", p.dtype).to_lowercase(), "shape": [p.rows, p.cols],
                    "bytes": b.bytes, "digest": b.digest.to_string(),
                })
            })
            .collect();
        let layers: Vec<_> = program
            .layers
            .iter()
            .map(|l| {
                json!({
                    "name": l.name, "ops": l.ops.iter().map(|op| op.name()).collect::<Vec<_>>(),
                    "output": program.tensor(l.output).name,
                })
            })
            .collect();
        let sources: Vec<_> = m
            .sources
            .iter()
            .map(|s| {
                json!({
                    "name": s.name, "bytes": s.bytes, "digest": s.digest.to_string(),
                })
            })
            .collect();
        println!(
            "{}",
            json!({
                "model_id": package.model_id().to_string(), "name": m.name, "family": m.family,
                "weights": m.weights.to_string(), "spec_version": m.spec_version, "vocab_size": program.vocab_size,
                "max_positions": program.max_positions, "output_fractional_bits": m.output_frac, "blob_bytes": bytes,
                "params": params, "layers": layers, "sources": sources, "verified": args.verify,
            })
        );
        return Ok(());
    }
    println!("{} ({}, {}), spec version {}", m.name, m.family, m.weights, m.spec_version);
    println!("model id {}", package.model_id());
    println!(
        "{} parameters, {bytes} bytes; {} tokens, {} positions",
        m.params.len(),
        program.vocab_size,
        program.max_positions
    );
    for (i, layer) in program.layers.iter().enumerate() {
        let ops: Vec<_> = layer.ops.iter().map(|op| op.name()).collect();
        println!("layer {i:>3} {:<12} {}", layer.name, ops.join(" "));
    }
    for s in &m.sources {
        println!("source {} {}", s.digest, s.name);
    }
    if args.verify {
        println!("every digest and every bound holds");
    }
    Ok(())
}
