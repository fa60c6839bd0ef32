//! `lockstep embed`

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use lockstep_kernels::backend::{Backend, Executor};
use lockstep_kernels::value::Batch;
use lockstep_model::embed::{Layer, embed, to_real};
use lockstep_model::output::Wanted;
use lockstep_model::package::Package;
use lockstep_model::tokenizer::TooLong;
use lockstep_protocol::ids::Root;
use lockstep_protocol::trace::push_padded_row;
use serde_json::json;

use crate::backend;
use crate::exit::{Exit, Failure, OrExit, Outcome};

/// Most rows of one pass; more texts than fit are run one pass after the other. No result depends on it.
const PASS_ROWS: usize = 4_096;

/// Arguments of `lockstep embed`.
#[derive(Args)]
pub struct EmbedArgs {
    /// Package to run.
    #[arg(long, value_name = "FILE")]
    package: PathBuf,
    /// Texts to embed.
    #[arg(required_unless_present = "input_file")]
    text: Vec<String>,
    /// JSON file with a list of texts.
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    input_file: Option<PathBuf>,
    /// Backend.
    #[arg(long, default_value = "cpu", help = format!("One of {}", backend::NAMES))]
    backend: String,
    /// Threads to use [default: all].
    #[arg(long, value_parser = backend::threads)]
    threads: Option<NonZeroUsize>,
    /// Cut texts that are too long, instead of refusing them.
    #[arg(long)]
    truncate: bool,
    /// Write each layer's committed tensor of the first text here; `b3sum` of a file is the layer's root.
    #[arg(long, value_name = "DIR")]
    dump_trace: Option<PathBuf>,
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Everything about one text.
struct Embedded {
    row: Vec<i32>,
    roots: Vec<Root>,
    tokens: usize,
}

/// Embeds the texts.
pub fn run(args: &EmbedArgs) -> Outcome {
    let threads = args.threads.unwrap_or_else(backend::all_threads);
    let backend = backend::open(&args.backend, threads)?;
    let (package, mut executor) = load(&args.package, &*backend, threads)?;
    let sequences = tokenize(args, &package).or_exit(Exit::Configuration)?;
    if let Some(dir) = &args.dump_trace {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let start = Instant::now();
    let (mut results, mut saturations) = (Vec::new(), 0);
    for pass in passes(&sequences) {
        let dump = args.dump_trace.as_deref().filter(|_| results.is_empty());
        let (embedded, clamped) = run_pass(&mut *executor, &package, pass, dump)?;
        results.extend(embedded);
        saturations += clamped;
    }
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        print_json(&package, &*backend, &results, saturations, seconds);
    } else {
        print_text(&package, &results, saturations);
    }
    Ok(())
}

/// Opens and checks a package, and loads it on a backend.
fn load(path: &Path, backend: &dyn Backend, threads: NonZeroUsize) -> Result<(Package, Box<dyn Executor>), Failure> {
    let package = Package::open_checked(path, threads)
        .with_context(|| format!("{} is not a package that can be run", path.display()))
        .or_exit(Exit::Configuration)?;
    if package.program().is_decoder() {
        return Err(anyhow!("{} generates text: `lockstep generate` runs it", path.display()))
            .or_exit(Exit::Configuration);
    }
    let executor = backend.load(Arc::clone(package.program()), package.params()).or_exit(Exit::NoDevice)?;
    Ok((package, executor))
}

fn tokenize(args: &EmbedArgs, package: &Package) -> anyhow::Result<Vec<Vec<u32>>> {
    let texts = match &args.input_file {
        None => args.text.clone(),
        Some(file) => {
            let json = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            serde_json::from_str(&json).with_context(|| format!("{} is not a JSON list of texts", file.display()))?
        }
    };
    if texts.is_empty() {
        bail!("there is no text to embed");
    }
    let tokenizer = package.tokenizer()?;
    let too_long = if args.truncate { TooLong::Truncate } else { TooLong::Refuse };
    let encode = |(i, text): (usize, &String)| {
        tokenizer.encode(text, too_long).map_err(|e| anyhow!("text {i}: {e}, or cut it with --truncate"))
    };
    texts.iter().enumerate().map(encode).collect()
}

/// Cuts the sequences into passes of at most [`PASS_ROWS`] rows, and at least one sequence.
fn passes(sequences: &[Vec<u32>]) -> Vec<&[Vec<u32>]> {
    let (mut passes, mut start, mut rows) = (Vec::new(), 0, 0);
    for (i, s) in sequences.iter().enumerate() {
        if rows > 0 && rows + s.len() > PASS_ROWS {
            passes.push(&sequences[start..i]);
            (start, rows) = (i, 0);
        }
        rows += s.len();
    }
    passes.push(&sequences[start..]);
    passes
}

fn run_pass(
    executor: &mut dyn Executor,
    package: &Package,
    sequences: &[Vec<u32>],
    dump: Option<&Path>,
) -> Result<(Vec<Embedded>, u64), Failure> {
    let mut roots = vec![Vec::new(); sequences.len()];
    let mut dumped = Ok(());
    let batch = Batch::of(sequences.to_vec());
    let wanted = if dump.is_some() { Wanted::Rows } else { Wanted::Root };
    let out = embed(executor, package.program(), &batch, wanted, |layer| {
        for (s, roots) in roots.iter_mut().enumerate() {
            roots.push(layer.root(s));
        }
        if let (Some(dir), Some(rows)) = (dump, layer.rows(0)) {
            dumped = dump_layer(dir, &layer, rows);
        }
        if dumped.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    dumped?;
    let out = out.or_exit(Exit::NoDevice)?;
    let embedded = out.rows.into_iter().zip(roots).zip(sequences);
    let embedded = embedded.map(|((row, roots), tokens)| Embedded { row, roots, tokens: tokens.len() }).collect();
    Ok((embedded, out.saturations))
}

fn dump_layer(dir: &Path, layer: &Layer<'_>, rows: &[i32]) -> anyhow::Result<()> {
    let path = dir.join(format!("layer-{:03}.bin", layer.layer));
    let mut file = BufWriter::new(File::create(&path).with_context(|| format!("cannot write {}", path.display()))?);
    let mut bytes = Vec::new();
    for row in rows.chunks(layer.output.cols()) {
        bytes.clear();
        push_padded_row(row, &mut bytes);
        file.write_all(&bytes)?;
    }
    file.flush().with_context(|| format!("cannot write {}", path.display()))
}

fn print_json(package: &Package, backend: &dyn Backend, results: &[Embedded], saturations: u64, seconds: f64) {
    let frac = package.manifest().output_frac;
    let roots = |e: &Embedded| e.roots.iter().map(ToString::to_string).collect::<Vec<_>>();
    println!(
        "{}",
        json!({
            "model_id": package.model_id().to_string(),
            "model": package.manifest().name,
            "backend": backend.name(),
            "embeddings": results.iter().map(|e| to_real(&e.row, frac)).collect::<Vec<_>>(),
            "integers": results.iter().map(|e| &e.row).collect::<Vec<_>>(),
            "fractional_bits": frac,
            "layer_roots": results.iter().map(roots).collect::<Vec<_>>(),
            "tokens": results.iter().map(|e| e.tokens).collect::<Vec<_>>(),
            "saturations": saturations,
            "seconds": seconds,
        })
    );
}

fn print_text(package: &Package, results: &[Embedded], saturations: u64) {
    for (i, e) in results.iter().enumerate() {
        let real = to_real(&e.row, package.manifest().output_frac);
        let head: Vec<_> = real.iter().take(6).map(|x| format!("{x:+.6}")).collect();
        println!("text {i}: {} tokens, {} dimensions: {} ...", e.tokens, real.len(), head.join(" "));
        for (l, root) in e.roots.iter().enumerate() {
            println!("  layer {l:>2}  {root}");
        }
    }
    if saturations > 0 {
        println!("{saturations} elements saturated");
    }
}
