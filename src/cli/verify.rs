//! `lockstep verify`

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use lockstep_coordinator::conversation_text;
use lockstep_kernels::backend::Backend;
use lockstep_model::ModelError;
use lockstep_model::package::Package;
use lockstep_model::rerun::{Rerun, RerunError, rerun_job};
use lockstep_model::template::ChatTemplate;
use lockstep_model::tokenizer::TooLong;
use lockstep_protocol::ids::{ModelId, NodeId};
use lockstep_protocol::job::{JobKind, RequestInput};
use lockstep_protocol::limits::{MAX_HTTP_BODY_BYTES, MAX_RECEIPT_JSON_BYTES, MAX_TEXT_BYTES};
use lockstep_protocol::logprobs::rows;
use lockstep_protocol::receipt::{Receipt, Standing, WorkerReceipt, split_output};
use serde_json::json;

use crate::cli::files;
use crate::exit::{Exit, Failure, OrExit, Outcome};
use crate::{backend, paths};

/// Arguments of `lockstep verify`.
#[derive(Args)]
#[command(
    after_help = "Without --package, the package is looked for by its id in the data and cache folders. Where it is \
    not found, only what the receipt itself shows is checked: signatures, hashes and statements; the output says so.\n\
    Signatures hold under the keys that the receipt itself names. Run again, the answer is right whoever signed. Not run \
    again, it is worth the word of the coordinator that --coordinator names; without that either, anyone can have made \
    it with keys of their own, and it proves nothing."
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
    #[command(flatten)]
    asked: Asked,
    /// The coordinator that must have signed.
    #[arg(long, value_name = "KEY")]
    coordinator: Option<NodeId>,
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

/// What was asked. Its hash must be the receipt's, and where the package is at hand, its tokens too.
#[derive(Args)]
#[group(multiple = false)]
struct Asked {
    /// The text that was embedded, or the prompt of a completion.
    #[arg(long)]
    text: Option<String>,
    /// The prompt of a completion that was sent as token ids.
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',')]
    tokens: Option<Vec<u32>>,
    /// A conversation: a file with the body of POST /v1/chat/completions, or its list of messages, in JSON; - for standard
    /// input. Takes the package, whose template makes it a text.
    #[arg(long, value_name = "FILE")]
    messages: Option<PathBuf>,
    /// The text that a conversation became, as the answer has it in lockstep.prompt: a file, or - for standard input.
    #[arg(long, value_name = "FILE")]
    rendered: Option<PathBuf>,
}

/// What was asked, as it is hashed.
struct Question {
    input: RequestInput,
    /// Whether a template has written the special tokens out.
    is_rendered: bool,
}

/// What was checked beyond the receipt itself.
struct Checked {
    /// The job was run again.
    rerun: bool,
    /// The question is the one that was asked; nothing where none was given.
    text: Option<TextChecked>,
}

/// How far a question was compared with the job.
#[derive(Clone, Copy)]
struct TextChecked {
    /// Its tokens were derived again; without the package only its hash was compared.
    tokens: bool,
}

/// Verifies a receipt.
pub fn run(args: &VerifyArgs) -> Outcome {
    let text = files::text(&args.receipt, MAX_RECEIPT_JSON_BYTES)?;
    if is_answer(&text) {
        let advice = "this is an answer of the API and no receipt: take one of its lockstep.receipts";
        return Err(anyhow!(advice)).or_exit(Exit::Configuration);
    }
    let receipt = Receipt::from_json(text.trim()).or_exit(Exit::Refuted)?;
    let standing = receipt.check().or_exit(Exit::Refuted)?;
    check_wishes(args, &receipt, &standing).or_exit(Exit::Refuted)?;
    let threads = args.threads.unwrap_or_else(backend::all_threads);
    let package = find_package(args, receipt.job.model, threads)?;
    let question = args.asked.question(package.as_ref())?;
    if let Some(question) = &question {
        check_question(question, &receipt, package.as_ref())?;
    }
    if let Some(package) = &package {
        let backend = backend::open(&args.backend, threads)?;
        check_rerun(&receipt, package, &*backend)?;
    }
    let rerun = package.is_some();
    report(args, &receipt, &standing, &Checked { rerun, text: question.map(|_| TextChecked { tokens: rerun }) });
    Ok(())
}

/// Whether a text is a whole answer of the API, which has its receipts within.
fn is_answer(text: &str) -> bool {
    let value: Result<serde_json::Value, _> = serde_json::from_str(text);
    value.is_ok_and(|value| value["lockstep"]["receipts"].is_array())
}

/// A layer of a run, as a reader knows it: those beyond the last one of the model are no layers of it.
fn layer_name(layer: u16, run: &WorkerReceipt) -> String {
    match layer.checked_sub(run.layers) {
        Some(2) => "in its log-probabilities".to_owned(),
        _ => format!("layer {layer}"),
    }
}

fn check_wishes(args: &VerifyArgs, receipt: &Receipt, standing: &Standing) -> anyhow::Result<()> {
    if let Some(place) = standing.refuted {
        bail!(
            "the coordinator itself states that this answer is wrong at point {}, {}",
            place.point,
            layer_name(place.layer, &receipt.worker.receipt)
        );
    }
    if standing.withdrawn {
        bail!("the worker took this answer back: its own machine, run again, gave another one");
    }
    match args.coordinator {
        Some(wanted) if wanted != receipt.coordinator => {
            bail!("the receipt is by coordinator {}, not by {wanted}", receipt.coordinator)
        }
        _ => Ok(()),
    }
}

/// The package of that id, verified and proven: the one named, or one in the usual folders. That a package is damaged
/// says nothing about the receipt.
fn find_package(args: &VerifyArgs, model: ModelId, threads: NonZeroUsize) -> Result<Option<Package>, Failure> {
    if let Some(path) = &args.package {
        let opened = Package::open_checked(path, threads);
        let package = opened
            .with_context(|| format!("{} is not a package that can be run", path.display()))
            .or_exit(Exit::Configuration)?;
        if package.model_id() != model {
            let wrong = anyhow!("{} is model {}, the receipt is about {model}", path.display(), package.model_id());
            return Err(wrong).or_exit(Exit::Configuration);
        }
        return Ok(Some(package));
    }
    let dirs = [paths::data_dir(), paths::cache_dir()].into_iter().flatten().map(|d| d.join("packages"));
    let files = dirs.filter_map(|d| fs::read_dir(d).ok()).flatten().flatten().map(|e| e.path());
    let packages = files.filter(|p| p.extension().is_some_and(|e| e == "lsp"));
    let found = packages.into_iter().find_map(|path| sound(&path, model, threads));
    if found.is_none() && args.require_rerun {
        return Err(anyhow!("no sound package {model} is on this machine: name one with --package"))
            .or_exit(Exit::Configuration);
    }
    Ok(found)
}

/// The package in a file that was found, if it is that model's; one that can't be used is named and passed over.
fn sound(path: &Path, model: ModelId, threads: NonZeroUsize) -> Option<Package> {
    let passed_over = |error: ModelError| eprintln!("note: {} is passed over: {error}", path.display());
    let package = Package::open(path).map_err(passed_over).ok()?;
    if package.model_id() != model {
        return None;
    }
    package.verify(threads).and_then(|()| package.prove()).map_err(passed_over).ok()?;
    Some(package)
}

impl Asked {
    /// What was asked, where it was given.
    fn question(&self, package: Option<&Package>) -> Result<Option<Question>, Failure> {
        let question = |input, is_rendered| Ok(Some(Question { input, is_rendered }));
        let text = |file: &Path| files::text(file, MAX_TEXT_BYTES);
        match (&self.text, &self.tokens, &self.messages, &self.rendered) {
            (Some(text), ..) => question(RequestInput::Text(text.clone()), false),
            (_, Some(tokens), ..) => question(RequestInput::Tokens(tokens.clone()), false),
            (_, _, _, Some(file)) => question(RequestInput::Text(text(file)?), true),
            (_, _, Some(file), _) => {
                let rendered =
                    render(&files::text(file, MAX_HTTP_BODY_BYTES)?, package).or_exit(Exit::Configuration)?;
                question(RequestInput::Text(rendered), true)
            }
            _ => Ok(None),
        }
    }
}

/// The text that the package's template makes of a conversation.
fn render(json: &str, package: Option<&Package>) -> anyhow::Result<String> {
    let package = package.context("a conversation is made a text by its model's template: name the package")?;
    let tokenizer = package.tokenizer()?;
    let template = ChatTemplate::of(package, &tokenizer)?.context("the model has no chat template")?;
    conversation_text(&template, json).map_err(|error| anyhow!("the conversation: {error}"))
}

fn check_question(question: &Question, receipt: &Receipt, package: Option<&Package>) -> Outcome {
    if question.input.hash(&receipt.job.nonce) != receipt.job.request {
        return Err(anyhow!("the receipt is about another question")).or_exit(Exit::Refuted);
    }
    let Some(package) = package else { return Ok(()) };
    let tokens = match (&question.input, question.is_rendered) {
        (RequestInput::Tokens(tokens), _) => tokens.clone(),
        (RequestInput::Text(text), is_rendered) => {
            let tokenizer = package.tokenizer().or_exit(Exit::Configuration)?;
            let encode = || match is_rendered {
                true => tokenizer.encode_rendered(text),
                false => tokenizer.encode(text, TooLong::Truncate),
            };
            encode().or_exit(Exit::Refuted)?
        }
    };
    if tokens != receipt.job.tokens {
        return Err(anyhow!("the job's tokens are not those of the question")).or_exit(Exit::Refuted);
    }
    Ok(())
}

fn check_rerun(receipt: &Receipt, package: &Package, backend: &dyn Backend) -> Outcome {
    // Of a generation, what is claimed is checked in one prefill.
    let claimed = match receipt.job.kind {
        JobKind::Embedding => Vec::new(),
        JobKind::Generation(_) => receipt.words(),
    };
    let exit_of = |error: &RerunError| if error.is_of_the_device() { Exit::NoDevice } else { Exit::Refuted };
    let again = rerun_job(package, backend, &receipt.job, &claimed)
        .map_err(|error| Failure { exit: exit_of(&error), error: error.into() })?;
    compare(receipt, package, &again).or_exit(Exit::Refuted)
}

/// Everything that the worker signed about its run, with what the run gives here.
fn compare(receipt: &Receipt, package: &Package, again: &Rerun) -> anyhow::Result<()> {
    let Rerun { roots, output, saturations, work_units } = again;
    let signed = &receipt.worker.receipt;
    let layers = package.program().layers.len() - 2;
    if usize::from(signed.layers) != layers {
        bail!("the receipt is for {} layers; the model has {layers}", signed.layers);
    }
    let geometry = receipt.job.header().geometry(signed.layers)?;
    let trail = geometry.trail(roots).context("the run has another shape than the job")?;
    let first = geometry.first_point();
    if let Some((index, digest, right)) = first_difference(&signed.points, &trail.points) {
        bail!("the digest of point {} is {digest}; the model gives {right}", first as usize + index);
    }
    if signed.points.len() != trail.points.len() {
        let (signed, right) = (signed.points.len() + 1, trail.points.len() + 1);
        bail!("the receipt is for {signed} points; the model gives {right}");
    }
    if let Some((layer, signed, right)) = first_difference(&signed.roots, &trail.roots) {
        let (layer, point) = (layer + 1, first as usize + trail.points.len());
        bail!("the root of layer {layer} at point {point} is {signed}; the model gives {right}");
    }
    compare_logprobs(receipt, output, first)?;
    if receipt.output != *output || signed.roots.len() != trail.roots.len() {
        bail!("the output is not what the model gives");
    }
    if signed.work_units != *work_units {
        bail!("the receipt is for {} multiply-accumulates; the run takes {work_units}", signed.work_units);
    }
    if signed.saturations != *saturations {
        bail!("the receipt is for {} saturated elements; the run has {saturations}", signed.saturations);
    }
    Ok(())
}

/// Of a generation whose words are right, what it says of their probabilities.
fn compare_logprobs(receipt: &Receipt, output: &[i32], first: u32) -> anyhow::Result<()> {
    let Some(asked) = receipt.job.kind.generation() else { return Ok(()) };
    let (_, right) = split_output(output, &receipt.worker.receipt);
    let mut pairs = receipt.logprobs().zip(rows(right, asked)).enumerate();
    if let Some((index, (signed, right))) = pairs.find(|(_, (signed, right))| signed != right) {
        let (point, signed, right) = (first as usize + index, signed.values(), right.values());
        bail!("the log-probabilities at point {point} are {signed:?}; the model gives {right:?}");
    }
    Ok(())
}

/// The first place at which two lists differ, and what they have there.
fn first_difference<T: PartialEq + Copy>(signed: &[T], right: &[T]) -> Option<(usize, T, T)> {
    let pairs = signed.iter().zip(right).enumerate();
    pairs.map(|(index, (a, b))| (index, *a, *b)).find(|(_, a, b)| a != b)
}

fn report(args: &VerifyArgs, receipt: &Receipt, standing: &Standing, checked: &Checked) {
    let signed = &receipt.worker.receipt;
    let members: Vec<_> = receipt.worker.members().collect();
    if args.json {
        let of_layers = |(worker, first, last): &(NodeId, u16, u16)| json!({ "worker": worker.to_string(), "layers": [first, last] });
        let workers: Vec<_> = members.iter().map(of_layers).collect();
        println!(
            "{}",
            json!({
                "valid": true, "rerun": checked.rerun, "coordinator_pinned": args.coordinator.is_some(),
                "text_checked": checked.text.is_some(), "tokens_checked": checked.text.is_some_and(|t| t.tokens),
                "job": signed.job.to_string(), "model_id": signed.model.to_string(),
                "worker": signed.worker.to_string(), "workers": workers, "coordinator": receipt.coordinator.to_string(),
                "audits_matched": standing.matched, "audits_mismatched": standing.mismatched,
                "layer_roots": signed.roots.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })
        );
        return;
    }
    println!("job          {}", signed.job);
    println!("model        {}", signed.model);
    for (worker, first, last) in members {
        match receipt.worker.segments.is_empty() {
            true => println!("worker       {worker}"),
            false => println!("worker       {worker}, layers {first} to {last}"),
        }
    }
    println!("coordinator  {}", receipt.coordinator);
    println!("audits       {} matched, {} did not", standing.matched, standing.mismatched);
    println!("signatures, hashes and statements hold");
    match checked.text {
        None => {}
        Some(TextChecked { tokens: true }) => println!("the question is the one asked, and the tokens are its own"),
        Some(TextChecked { tokens: false }) => {
            println!("the question is the one asked; whether the tokens are its own was NOT checked");
        }
    }
    if checked.rerun {
        println!(
            "run again here: all {} points, the {} roots of the last, the output, the work and the saturations are equal",
            signed.points.len() + 1,
            signed.roots.len()
        );
    } else {
        println!("NOT run again: package {} is not on this machine (name it with --package)", signed.model);
    }
    if args.coordinator.is_none() {
        println!("coordinator key not pinned (--coordinator KEY)");
    }
}
