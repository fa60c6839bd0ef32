//! `lockstep generate`

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::Args;
use lockstep_model::generation::{Event, Generator, Limits, Refused, Request, Run, TokenText, Utf8Stream};
use lockstep_model::package::{Package, WeightMode};
use lockstep_model::tokenizer::TooLong;
use lockstep_protocol::commitment::PointDigest;
use lockstep_protocol::generation::{Generation, SAMPLING_ONE, WordFinish, word_finish, word_token};
use lockstep_protocol::ids::{Root, Seed};
use lockstep_protocol::limits::{
    MAX_LOGPROBS, MAX_PENALTY, MAX_STOP_STRING_BYTES, MAX_TEMPERATURE, MAX_TEXT_BYTES, MAX_TOKEN_BIAS,
};
use lockstep_protocol::logprobs::Logprobs;
use lockstep_worker::{generation_bytes, machine_memory};
use serde_json::{Value, json};

use crate::cli::files;
use crate::exit::{Exit, Failure, OrExit, Outcome};
use crate::{backend, embedded};

/// Arguments of `lockstep generate`.
#[derive(Args)]
#[command(after_help = "The same arguments give the same tokens and the same roots on every machine and backend.\n\
    Without --package, the small model that ships inside this program is used.")]
pub struct GenerateArgs {
    /// Package to run [default: the shipped model].
    #[arg(long, value_name = "FILE")]
    package: Option<PathBuf>,
    #[command(flatten)]
    prompt: Prompt,
    #[command(flatten)]
    settings: Settings,
    /// Backend.
    #[arg(long, default_value = "cpu", help = format!("One of {}", backend::NAMES))]
    backend: String,
    /// Threads to use [default: all].
    #[arg(long, value_parser = backend::threads)]
    threads: Option<NonZeroUsize>,
    /// With --json: also the digest of every point's roots.
    #[arg(long, requires = "json")]
    points: bool,
    /// Print one JSON object on the last line, and no text before.
    #[arg(long)]
    json: bool,
}

/// Where the prompt is.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Prompt {
    /// Text to go on from.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// The same in a file, or - for standard input.
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Token ids to go on from, special ones included.
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',')]
    tokens: Option<Vec<u32>>,
}

/// How tokens are drawn.
#[derive(Args)]
struct Settings {
    /// Most tokens to generate.
    #[arg(long, value_name = "N", default_value = "128")]
    max_tokens: u32,
    /// 0 always takes the likeliest token. Numbers with a point count in steps of 0.0001.
    #[arg(long, value_name = "X", default_value = "0", value_parser = steps(0, MAX_TEMPERATURE as i32), allow_negative_numbers = true)]
    temperature: i32,
    /// Draw from so many of the likeliest tokens; 0 is all.
    #[arg(long, value_name = "N", default_value = "0")]
    top_k: u32,
    /// Draw from the likeliest tokens that together have this probability.
    #[arg(long, value_name = "X", default_value = "1", value_parser = steps(1, ONE), allow_negative_numbers = true)]
    top_p: i32,
    /// Draw from tokens that have this part of the likeliest one's probability.
    #[arg(long, value_name = "X", default_value = "0", value_parser = steps(0, ONE), allow_negative_numbers = true)]
    min_p: i32,
    /// Divides the logits of tokens that were there before.
    #[arg(long, value_name = "X", default_value = "1", value_parser = steps(ONE / 10, PENALTY), allow_negative_numbers = true)]
    repetition_penalty: i32,
    /// Taken off the logits of tokens that were generated before.
    #[arg(long, value_name = "X", default_value = "0", value_parser = steps(-PENALTY, PENALTY), allow_negative_numbers = true)]
    presence_penalty: i32,
    /// The same for each time.
    #[arg(long, value_name = "X", default_value = "0", value_parser = steps(-PENALTY, PENALTY), allow_negative_numbers = true)]
    frequency_penalty: i32,
    /// Decides every draw: a number, or 64 hexadecimal digits.
    #[arg(long, value_name = "SEED", default_value = "0", value_parser = seed, allow_negative_numbers = true)]
    seed: Seed,
    /// What is added to the logits of tokens, by their ids, in steps of 0.0001: from -100 to 100.
    #[arg(long, value_name = "ID:X,ID:X,...", value_delimiter = ',', value_parser = bias, allow_hyphen_values = true)]
    logit_bias: Vec<(u32, i32)>,
    /// Tokens that end the generation beside those that do in this model.
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',')]
    stop_tokens: Vec<u32>,
    /// Text that ends the generation; may be given up to four times.
    #[arg(long, value_name = "TEXT", value_parser = stop_text)]
    stop: Vec<String>,
    /// With --json: the log-probability of each token, and those of so many of the likeliest ones, 0 to 20. They are
    /// integers in units of 2^-20, to base 2.
    #[arg(long, value_name = "N", requires = "json", value_parser = clap::value_parser!(u8).range(0..=i64::from(MAX_LOGPROBS)))]
    logprobs: Option<u8>,
    /// Go on after tokens that end a text in this model.
    #[arg(long)]
    ignore_eos: bool,
}

/// 1 in steps of 1e-4.
const ONE: i32 = SAMPLING_ONE as i32;
/// The largest penalty, in these steps.
const PENALTY: i32 = MAX_PENALTY as i32;

/// A number with up to four digits after the point, in steps of 1e-4 from `least` to `most`.
fn steps(least: i32, most: i32) -> impl Fn(&str) -> Result<i32, String> + Clone {
    move |text| {
        let number = |steps: i32| f64::from(steps) / f64::from(ONE);
        let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
        // Whatever is no number or too large becomes one that is outside.
        let steps = (value * f64::from(ONE)).round();
        match steps >= f64::from(least) && steps <= f64::from(most) {
            true => Ok(steps as i32),
            false => Err(format!("not from {} to {}", number(least), number(most))),
        }
    }
}

/// A token and what is added to its logit.
fn bias(text: &str) -> Result<(u32, i32), String> {
    let (token, value) = text.split_once(':').ok_or("not a token's id, a colon and a number")?;
    let token = token.trim().parse().map_err(|_| format!("{token:?} is not a token's id"))?;
    Ok((token, steps(-(MAX_TOKEN_BIAS as i32), MAX_TOKEN_BIAS as i32)(value.trim())?))
}

/// A number as the API takes it, also a negative one, or all of the seed.
fn seed(text: &str) -> Result<Seed, String> {
    if text.len() == 64 {
        return text.parse().map_err(|error| format!("{error}"));
    }
    let number = text.parse::<i64>().map(i64::cast_unsigned).or_else(|_| text.parse::<u64>());
    let number = number.map_err(|_| "neither a number of 64 bits nor 64 hexadecimal digits".to_owned())?;
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Ok(Seed::from_bytes(bytes))
}

fn stop_text(text: &str) -> Result<String, String> {
    match text.len() {
        1..=MAX_STOP_STRING_BYTES => Ok(text.to_owned()),
        length => Err(format!("{length} bytes; 1 to {MAX_STOP_STRING_BYTES} are possible")),
    }
}

impl Settings {
    /// As a job has them.
    fn generation(&self, stop_tokens: &[u32]) -> anyhow::Result<Generation> {
        let unsigned = |name: &str, value: i32| u32::try_from(value).with_context(|| format!("{name} is negative"));
        let of_model = if self.ignore_eos { &[] } else { stop_tokens };
        let mut stop_tokens = [of_model, &self.stop_tokens].concat();
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        let mut logit_bias = self.logit_bias.clone();
        logit_bias.sort_unstable();
        let generation = Generation {
            logit_bias,
            temperature: unsigned("the temperature", self.temperature)?,
            top_k: self.top_k,
            top_p: unsigned("top-p", self.top_p)?,
            min_p: unsigned("min-p", self.min_p)?,
            repetition_penalty: unsigned("the repetition penalty", self.repetition_penalty)?,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            stop_tokens,
            stop_strings: self.stop.iter().map(|text| text.as_bytes().to_vec()).collect(),
            logprobs: self.logprobs.map_or(0, |top| top + 1),
            ..Generation::greedy(self.max_tokens)
        };
        generation.check()?;
        Ok(generation)
    }
}

/// Generates text.
pub fn run(args: &GenerateArgs) -> Outcome {
    let threads = args.threads.unwrap_or_else(backend::all_threads);
    let backend = backend::open(&args.backend, threads)?;
    let package = open(args.package.as_deref(), threads)?;
    let text = TokenText::of(package.program(), package.params())
        .ok_or_else(|| anyhow!("{} does not generate text: embed with it", package.manifest().name))
        .or_exit(Exit::Configuration)?;
    let tokens = tokenize(&args.prompt, &package)?;
    let generation = args.settings.generation(&package.manifest().stop_tokens).or_exit(Exit::Configuration)?;
    let request = Request::new(tokens, &generation, args.settings.seed, Vec::new());
    let limits = Limits::within(generation_bytes(machine_memory()));
    let mut generator = Generator::new(Arc::clone(package.program()), package.params(), &*backend, limits)
        .map_err(|refused| Failure { exit: exit_of(&refused), error: refused.into() })?;
    let prompt_tokens = request.prompt.len();
    let generated = generate(&mut generator, request, &text, !args.json)?;
    if args.json {
        let report = report(&package, &backend.name(), prompt_tokens, &generated, &text, args.points);
        println!("{report}");
    } else {
        print_end(&package, &backend.name(), prompt_tokens, &generated);
    }
    Ok(())
}

/// A package's file, or that of the shipped one.
pub fn file(path: Option<&Path>) -> Result<PathBuf, Failure> {
    Ok(match path {
        Some(path) => path.to_owned(),
        None => embedded::package(WeightMode::W8)?,
    })
}

/// The package in a file, or the shipped one; verified and proven.
pub fn open(path: Option<&Path>, threads: NonZeroUsize) -> Result<Package, Failure> {
    let path = file(path)?;
    Package::open_checked(&path, threads)
        .with_context(|| format!("{} is not a package that can be run", path.display()))
        .or_exit(Exit::Configuration)
}

fn tokenize(prompt: &Prompt, package: &Package) -> Result<Vec<u32>, Failure> {
    let text = match (&prompt.prompt, &prompt.prompt_file, &prompt.tokens) {
        (_, _, Some(tokens)) => return Ok(tokens.clone()),
        (_, Some(file), _) => files::text(file, MAX_TEXT_BYTES)?,
        (text, None, None) => text.clone().unwrap_or_default(),
    };
    let tokenizer = package.tokenizer().or_exit(Exit::Configuration)?;
    tokenizer.encode(&text, TooLong::Refuse).or_exit(Exit::Configuration)
}

fn exit_of(refused: &Refused) -> Exit {
    if matches!(refused, Refused::Backend(_)) { Exit::NoDevice } else { Exit::Configuration }
}

/// A run with the time that it took.
struct Generated {
    run: Run,
    /// Up to the first word.
    prefill: Duration,
    /// From there to the end.
    decode: Duration,
}

impl Generated {
    fn last_roots(&self) -> &[Root] {
        let per_point = self.run.roots.len() / self.run.words.len().max(1);
        &self.run.roots[self.run.roots.len() - per_point..]
    }

    fn decode_rate(&self) -> f64 {
        (self.run.words.len() - 1) as f64 / self.decode.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Runs a request to its end, and prints the text as it comes where that is wanted.
fn generate(
    generator: &mut Generator,
    request: Request,
    text: &TokenText,
    is_printed: bool,
) -> Result<Generated, Failure> {
    let start = Instant::now();
    generator.submit(request).or_exit(Exit::Configuration)?;
    let (mut first, mut done, mut stream) = (None, None, Utf8Stream::default());
    let print = |text: &str| {
        // Whoever closed standard output does not want the rest.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    };
    loop {
        let more = generator.step(&mut |_, event| match event {
            Event::Root { .. } => {}
            Event::Word { word, .. } => {
                first.get_or_insert_with(Instant::now);
                // A stop token is no text.
                if is_printed && word_finish(word) != Some(WordFinish::StopToken) {
                    print(&stream.push(&text.bytes(word_token(word))));
                }
            }
            Event::Done(run) => done = Some(run),
        });
        if !more.or_exit(Exit::NoDevice)? {
            break;
        }
    }
    if is_printed {
        print(&format!("{}\n", stream.finish()));
    }
    let (Some(run), Some(first)) = (done, first) else { return Err(anyhow!("the generation did not end").into()) };
    Ok(Generated { run, prefill: first - start, decode: first.elapsed() })
}

/// Why a run ended, as APIs say it.
fn finish_of(words: &[u32]) -> &'static str {
    match words.last().and_then(|word| word_finish(*word)) {
        Some(WordFinish::Length) => "length",
        _ => "stop",
    }
}

fn report(
    package: &Package,
    backend: &str,
    prompt_tokens: usize,
    generated: &Generated,
    text: &TokenText,
    with_points: bool,
) -> Value {
    let Generated { run, prefill, decode } = generated;
    let tokens: Vec<u32> = run.words.iter().map(|word| word_token(*word)).collect();
    // A stop token is no text.
    let said = run.words.iter().filter(|word| word_finish(**word) != Some(WordFinish::StopToken));
    let mut report = json!({
        "model_id": package.model_id().to_string(),
        "model": package.manifest().name,
        "backend": backend,
        "prompt_tokens": prompt_tokens,
        "tokens": tokens,
        "text": text.text(said.map(|word| word_token(*word))),
        "finish": finish_of(&run.words),
        "layer_roots": generated.last_roots().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "saturations": run.saturations,
        "prefill_seconds": prefill.as_secs_f64(),
        "prefill_tokens_per_second": prompt_tokens as f64 / prefill.as_secs_f64().max(f64::MIN_POSITIVE),
        "decode_seconds": decode.as_secs_f64(),
        "decode_tokens_per_second": generated.decode_rate(),
    });
    if with_points {
        let points = run.roots.chunks(run.roots.len() / run.words.len().max(1));
        report["points"] = points.map(|roots| PointDigest::of(roots).to_string()).collect();
    }
    if !run.logprobs.is_empty() {
        let rows = run.logprobs.chunks(run.logprobs.len() / run.words.len()).map(Logprobs::of);
        let told = |row: Logprobs<'_>| json!({"logprob": row.token(), "top": row.top().collect::<Vec<_>>()});
        report["logprobs"] = rows.map(told).collect();
    }
    report
}

/// Goes to standard error, so that standard output is the text alone.
fn print_end(package: &Package, backend: &str, prompt_tokens: usize, generated: &Generated) {
    let Generated { run, prefill, .. } = generated;
    eprintln!("{} on {backend}, model {}", package.manifest().name, package.model_id());
    eprintln!(
        "{prompt_tokens} tokens of prompt at {:.1}/s, {} generated at {:.1}/s, ended by {}",
        prompt_tokens as f64 / prefill.as_secs_f64().max(f64::MIN_POSITIVE),
        run.words.len(),
        generated.decode_rate(),
        finish_of(&run.words),
    );
    for (layer, root) in (1..).zip(generated.last_roots()) {
        eprintln!("  layer {layer:>2}  {root}");
    }
    if run.saturations > 0 {
        eprintln!("{} elements saturated", run.saturations);
    }
}
