//! The demo with the language model that ships with this program: a text is streamed as it is committed, while an auditor
//! runs the same job beside the first worker. Whoever of them cheats, both stop at the first layer that differs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use lockstep_kernels::program::{Op, Program};
use lockstep_model::generation::TokenText;
use lockstep_model::package::{Package, WeightMode};
use lockstep_protocol::generation::{WordFinish, word_finish, word_token};
use lockstep_protocol::machine::AuditPolicy;
use lockstep_protocol::receipt::Receipt;
use lockstep_sim::adversary::{Change, Lie, Target};
use serde_json::{Value, json};

use super::dispute;
use super::network::{Network, Setup};
use super::story::Story;
use super::stream::{Piece, read};
use super::verdict::{Asked, judge, rerun_all};
use super::{Ended, follow, summary};
use crate::embedded;

/// What the texts begin with: the model has read documentation of Rust.
const PROMPTS: [&str; 6] = [
    "Reads all bytes until",
    "Returns the number of elements in the",
    "Creates a new thread and",
    "An iterator that",
    "This function will return an error if",
    "A mutable reference to",
];

/// Tokens of each text.
const TOKENS: u32 = 48;

/// What the cheat alters: in this transformer layer one number, at this position, which is in the middle of every text.
const LAYER: usize = 3;
const POSITION: usize = 24;
const COLUMN: usize = 7;

/// A bit that no rounding swallows.
const BIT: u32 = 1 << 24;

/// The package of the shipped model.
///
/// # Errors
/// It can't be written to the cache.
pub fn package(story: &Story) -> Result<PathBuf> {
    story.say(
        "a Llama that is inside this program; every weight becomes an integer, every accumulator's bound is proven",
    );
    embedded::package(WeightMode::W8)
}

/// An answer as a client gets it.
struct Answer {
    /// What was shown while it came.
    streamed: String,
    /// Pieces in which it came.
    pieces: usize,
    /// Whether what was shown had to be taken back.
    revoked: bool,
    asked: Asked,
}

/// In the feed-forward part's last product of its layer the cheat alters one number, and computes on from it as if nothing
/// were: all that was before is honest, so the difference has a place.
fn lie(program: &Program) -> Result<Lie> {
    let layer = program.layers.get(LAYER).context("the model has too few layers")?;
    let is_product = |op: &Op| matches!(op, Op::MatMul { .. });
    let op = layer.ops.iter().rposition(is_product).context("the layer has no product")?;
    let target = Target::Element { row: POSITION, col: COLUMN };
    Ok(Lie { layer: LAYER, op, target, change: Change::Xor(BIT) })
}

/// Starts the network, asks, and judges what came back.
pub async fn perform(path: &Path, story: &Story) -> Result<Ended> {
    let package = Package::open(path)?;
    let lie = lie(package.program())?;
    let text = TokenText::of(package.program(), package.params()).context("the model generates no text")?;
    let text = Arc::new(text);
    let policy = AuditPolicy { per_mille: 1_000, auditors: 1, hold: true, distinct_operators: false, lockstep: true };
    let network = Network::start(&Setup { package: path, lie, policy }, story).await?;
    let mut answers = Vec::new();
    for (round, prompt) in PROMPTS.into_iter().enumerate() {
        let what =
            "the prompt goes to POST /v1/completions; one worker runs the job, and beside it an auditor the same job";
        story.asking(round, what);
        answers.push(follow(&network, story, ask(&network, story, prompt, round)).await?);
        // One more text after the cheat is out, or it would end with a scandal.
        if network.cheat_is_out() && answers.len() > 1 {
            break;
        }
    }
    story.verifying();
    let receipts: Vec<Receipt> = answers.iter().flat_map(|a| a.asked.receipts.iter().cloned()).collect();
    let told: Vec<Option<String>> =
        answers.iter().map(|answer| (!answer.revoked).then(|| answer.streamed.clone())).collect();
    let (jobs, by) = (receipts.len(), Arc::clone(&text));
    let verified = rerun_all(path, move |_, rerun| {
        // What was shown is the text of the words that the receipt is about.
        let is_told =
            |receipt: &Receipt, told: &Option<String>| told.as_ref().is_none_or(|told| *told == said(&by, receipt));
        let holds = |(receipt, told): (&Receipt, _)| Ok(rerun(receipt)? && is_told(receipt, told));
        receipts.iter().zip(&told).map(holds).collect()
    })
    .await?;
    let generated = generated(&answers, &text);
    let asked: Vec<Asked> = answers.into_iter().map(|answer| answer.asked).collect();
    let verdict = judge(&network, jobs, verified, LAYER);
    let checked = match &verdict.dispute {
        Some(dispute) => Some(dispute::check(&network, dispute, &asked).await?),
        None => None,
    };
    let mut summary = summary(&network, &verdict, checked.as_ref(), LAYER);
    summary["altered_position"] = json!(POSITION);
    summary["answers"] = generated;
    network.stop().await?;
    Ok(Ended { verdict, checked, summary })
}

/// Asks for a text over HTTP, as any client does, and shows it while it comes.
async fn ask(network: &Network, story: &Story, prompt: &str, round: usize) -> Result<Answer> {
    let body = json!({
        "model": embedded::NAME, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0.7, "top_p": 0.9, "seed": round,
        "stream": true,
    });
    story.prompt(prompt);
    let mut pieces = read(network.url("completions"), body);
    let (mut streamed, mut count) = (String::new(), 0);
    let last = loop {
        match pieces.recv().await.context("the stream broke off")?? {
            Piece::Text(text) => {
                story.piece(&text);
                streamed.push_str(&text);
                count += 1;
            }
            Piece::Last(last) => break last,
        }
    };
    story.piece_end();
    let revoked = last["error"]["code"] == "streamed_text_revoked";
    if last["error"].is_object() && !revoked {
        bail!("the stream ended with: {}", last["error"]["message"]);
    }
    let asked = if revoked { fetch(network, &last["lockstep"]).await? } else { Asked::read(&last["lockstep"])? };
    Ok(Answer { streamed, pieces: count, revoked, asked })
}

/// The right answer, where the stream was of a wrong one.
async fn fetch(network: &Network, ours: &Value) -> Result<Asked> {
    let (job, access) = (ours["jobs"][0].as_str(), ours["access"].as_str());
    let (job, access) = (job.context("the job's id is missing")?, access.context("the access token is missing")?);
    let receipt = network.get(&format!("jobs/{job}/receipt"), access, 16 << 20).await?;
    let receipt = Receipt::from_json(std::str::from_utf8(&receipt)?)?;
    Ok(Asked { receipts: vec![receipt], access: access.to_owned() })
}

/// The text of an answer: a token that stops is no text.
fn said(text: &TokenText, receipt: &Receipt) -> String {
    let words = receipt.words().into_iter();
    text.text(words.filter(|word| word_finish(*word) != Some(WordFinish::StopToken)).map(word_token))
}

fn generated(answers: &[Answer], text: &TokenText) -> Value {
    let answer = |(answer, prompt): (&Answer, &&str)| {
        let receipt = &answer.asked.receipts[0];
        json!({
            "prompt": prompt,
            "text": said(text, receipt),
            "tokens": receipt.words().len(),
            "streamed_pieces": answer.pieces,
            "revoked": answer.revoked,
            "points_committed": receipt.worker.receipt.points.len() + 1,
        })
    };
    answers.iter().zip(&PROMPTS).map(answer).collect()
}
