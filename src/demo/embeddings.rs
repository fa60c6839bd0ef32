//! The demo with a sentence encoder: texts are embedded, and each job is run again by an auditor that does not know it.

use std::path::Path;

use anyhow::{Context, Result};
use lockstep_model::embed::to_real;
use lockstep_protocol::machine::AuditPolicy;
use lockstep_protocol::receipt::Receipt;
use lockstep_sim::adversary::{Change, Lie, Target};
use serde_json::{Value, json};

use super::dispute;
use super::minilm::NAME;
use super::network::{Network, Setup};
use super::story::Story;
use super::verdict::{Asked, judge, rerun_all};
use super::{Ended, follow, summary};

/// What is asked.
const QUESTION: &str = "How can I trust a result that a stranger's computer gave me?";

/// Among these the network finds the passage that fits the question best.
const PASSAGES: [&str; 11] = [
    "A receipt lets anyone recompute the work and compare every intermediate value, so trust is not needed.",
    "The bakery on the corner opens at six and sells out of rye bread by nine.",
    "Glaciers carve valleys slowly, leaving lakes where the ice once pressed deepest.",
    "To verify an answer from an unknown machine, have a second machine repeat the computation and check that both agree.",
    "Tomatoes ripen faster next to bananas, because the fruit gives off ethylene.",
    "The orchestra tuned to the oboe before the conductor raised her baton.",
    "A hash commits you to a value: change one bit of it and the fingerprint no longer matches.",
    "Most of the desert's animals sleep through the heat and hunt at night.",
    "The ferry to the island is cancelled whenever the wind is above gale force.",
    "Integer addition gives the same sum in any order, which floating point addition does not.",
    "He repaired the old bicycle with parts from three others.",
];

/// What the cheat does: in the third layer it alters one number of the product with the feed-forward matrix, a sum of 384
/// products, and computes on from it as if nothing were. The layers before are honest, so the difference has a place.
/// The bit is high enough that rounding does not swallow it.
const LIE: Lie = Lie { layer: 3, op: 10, target: Target::Element { row: 2, col: 700 }, change: Change::Xor(1 << 20) };

/// Texts of one request: few, so that a person can follow.
const INPUTS_PER_REQUEST: usize = 3;

/// Rounds after which the demo gives up on the cheat being drawn into a job.
const ROUNDS: usize = 5;

/// An answer as a client gets it.
struct Answer {
    /// One vector for each input.
    embeddings: Vec<Vec<f64>>,
    asked: Asked,
}

/// Starts the network, asks, and judges what came back.
pub async fn perform(package: &Path, story: &Story) -> Result<Ended> {
    let policy = AuditPolicy { per_mille: 1_000, auditors: 1, hold: true, distinct_operators: false, lockstep: false };
    let network = Network::start(&Setup { package, lie: LIE, policy }, story).await?;
    let inputs: Vec<&str> = [QUESTION].into_iter().chain(PASSAGES).collect();
    let mut answers = Vec::new();
    for round in 0..ROUNDS {
        let what = format!(
            "{} texts go to POST /v1/embeddings; every job is run by one worker and audited by another",
            inputs.len()
        );
        story.asking(round, &what);
        for part in inputs.chunks(INPUTS_PER_REQUEST) {
            answers.push(follow(&network, story, ask(&network, part)).await?);
        }
        if network.cheat_is_out() {
            break;
        }
    }
    let embeddings: Vec<_> = answers.iter().flat_map(|answer| &answer.embeddings).take(inputs.len()).collect();
    story.ranking(QUESTION, &PASSAGES, &embeddings);
    story.verifying();
    let receipts: Vec<(Receipt, Vec<f64>)> =
        answers.iter().flat_map(|a| a.asked.receipts.iter().cloned().zip(a.embeddings.iter().cloned())).collect();
    let jobs = receipts.len();
    let verified = rerun_all(package, move |package, rerun| {
        let frac = package.manifest().output_frac;
        let holds = |(receipt, told): &(Receipt, Vec<f64>)| Ok(rerun(receipt)? && is_told(receipt, told, frac));
        receipts.iter().map(holds).collect()
    })
    .await?;
    let asked: Vec<Asked> = answers.into_iter().map(|answer| answer.asked).collect();
    let verdict = judge(&network, jobs, verified, LIE.layer);
    let checked = match &verdict.dispute {
        Some(dispute) => Some(dispute::check(&network, dispute, &asked).await?),
        None => None,
    };
    let summary = summary(&network, &verdict, checked.as_ref(), LIE.layer);
    network.stop().await?;
    Ok(Ended { verdict, checked, summary })
}

/// Whether a client was told the numbers of its receipt: the nearest 32-bit floats.
fn is_told(receipt: &Receipt, told: &[f64], frac: u8) -> bool {
    to_real(&receipt.output, frac).iter().map(|x| *x as f32).eq(told.iter().map(|x| *x as f32))
}

/// Asks for embeddings over HTTP, as any client does.
async fn ask(network: &Network, inputs: &[&str]) -> Result<Answer> {
    let answer = network.post("embeddings", json!({ "model": NAME, "input": inputs })).await?;
    let read = || -> Result<Answer> {
        let number = |v: &Value| v.as_f64().context("a number is missing");
        let vector =
            |item: &Value| item["embedding"].as_array().context("a vector is missing")?.iter().map(number).collect();
        let data = answer["data"].as_array().context("a list is missing")?;
        Ok(Answer {
            embeddings: data.iter().map(vector).collect::<Result<_>>()?,
            asked: Asked::read(&answer["lockstep"])?,
        })
    };
    read().context("the answer is not in the API's shape")
}
