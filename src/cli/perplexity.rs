//! `lockstep perplexity`

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::anyhow;
use clap::Args;
use lockstep_benches::perplexity::{Windows, measure};
use lockstep_model::tokenizer::TooLong;
use serde_json::json;

use crate::cli::{files, generate};
use crate::exit::{Exit, OrExit, Outcome};
use crate::{backend, progress};

/// Most bytes of a text.
const MAX_BYTES: usize = 64 << 20;

/// Arguments of `lockstep perplexity`.
#[derive(Args)]
#[command(
    after_help = "The text is tokenized as a whole, with the special tokens that the tokenizer adds around it, and cut \
    into windows of N tokens one after the other; a last window of one token is left out. Each window is run from \
    position 0. Each of its tokens but the first is scored by the model's distribution after those before it in the \
    window: -ln(softmax(logits)[token]), in double precision over the exact integer logits divided by 2^frac. The \
    perplexity is exp of the mean over all scored tokens. Transformers gives the number of the float model with the same \
    windows: mean of cross_entropy(logits[:-1], window[1:])."
)]
pub struct PerplexityArgs {
    /// Package to run [default: the shipped model].
    #[arg(long, value_name = "FILE")]
    package: Option<PathBuf>,
    /// File with the text, or - for standard input.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of a window [default: 512, or what the model takes].
    #[arg(long, value_name = "N")]
    window: Option<NonZeroUsize>,
    /// Windows to score, from the start of the text [default: all].
    #[arg(long, value_name = "N")]
    windows: Option<NonZeroUsize>,
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

/// Measures how well a model foresees a text.
pub fn run(args: &PerplexityArgs) -> Outcome {
    let threads = args.threads.unwrap_or_else(backend::all_threads);
    let backend = backend::open(&args.backend, threads)?;
    let package = generate::open(args.package.as_deref(), threads)?;
    if !package.program().is_decoder() {
        let error = anyhow!("{} does not generate text, and has no perplexity", package.manifest().name);
        return Err(error).or_exit(Exit::Configuration);
    }
    let most = package.program().max_positions as usize;
    let window = args.window.map_or(most.min(512), NonZeroUsize::get);
    if window < 2 || window > most {
        let error = anyhow!("windows of {window} tokens; 2 to {most} are allowed");
        return Err(error).or_exit(Exit::Configuration);
    }
    let text = files::text(&args.text, MAX_BYTES)?;
    let tokens = package.tokenizer().or_exit(Exit::Configuration)?.encode(&text, TooLong::Keep);
    let tokens = tokens.or_exit(Exit::Configuration)?;
    let windows = Windows { tokens: &tokens, window, most: args.windows.map_or(usize::MAX, NonZeroUsize::get) };
    let start = Instant::now();
    let bar = progress::bar(windows.count() as u64, "windows");
    let measured = measure(&package, &*backend, &windows, &mut |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    let measured = measured.or_exit(Exit::NoDevice)?;
    if measured.scored == 0 {
        return Err(anyhow!("the text has too few tokens to score any")).or_exit(Exit::Configuration);
    }
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        println!(
            "{}",
            json!({
                "model_id": package.model_id().to_string(), "model": package.manifest().name,
                "backend": backend.name(), "perplexity": measured.perplexity(), "mean_nll": measured.mean(),
                "scored_tokens": measured.scored, "tokens": tokens.len(), "window": window,
                "windows": windows.count(), "saturations": measured.saturations, "seconds": seconds,
            })
        );
        return Ok(());
    }
    println!("{} on {}", package.manifest().name, backend.name());
    println!("{} tokens scored in {} windows of {window}, {seconds:.1} s", measured.scored, windows.count());
    println!("perplexity {:.6}", measured.perplexity());
    Ok(())
}
