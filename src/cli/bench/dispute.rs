//! `lockstep bench dispute`

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use lockstep_benches::dispute::{Measured, Rates, Seconds, Workload, measure, rates};
use lockstep_benches::report::{Figure, Row};
use lockstep_model::package::Package;
use serde_json::{Value, json};

use super::limits;
use super::output::{self, DeviceArgs, Named, OutputArgs};
use crate::cli::generate;
use crate::exit::{Exit, OrExit, Outcome};
use crate::progress;

/// Arguments of `lockstep bench dispute`.
#[derive(Args)]
#[command(
    after_help = "For each kind of op one dispute, and of a language model one about log-probabilities, in this process: a claimant who altered one number of what such an op \
    of the middle layer puts out (of the embedding or of the output layer, where it has ops of its own) and computed on \
    from it, against an honest challenger. The referee has the manifest and nothing else. Its time is the median of \
    several passes over the same moves: signatures, openings and the recomputed number, without disk and network, in \
    processor time. The time of a player is that of the slower one: the disputed layer once more, from the kept output of \
    the one below, then all its moves; beside it how often the middle layer could run in that time, and what all layers up to the disputed one take. Kernels are not checked against the reference first: see `lockstep conformance`."
)]
pub struct DisputeArgs {
    /// Package to dispute about [default: the shipped model].
    #[arg(long, value_name = "FILE")]
    package: Option<PathBuf>,
    /// Tokens of the disputed job.
    #[arg(long, default_value = "128", value_name = "N", value_parser = limits::count(limits::MAX_TOKENS))]
    positions: usize,
    /// Milliseconds in which all disputes are refereed again and again, on one thread and on all.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = limits::milliseconds())]
    rate_ms: u64,
    /// Times that this counts; once more warms up.
    #[arg(long, value_name = "N", default_value = "5", value_parser = limits::count(limits::MAX_SAMPLES))]
    rate_samples: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Measures.
pub fn run(args: &DisputeArgs, output: OutputArgs) -> Outcome {
    let threads = args.device.threads();
    let package = generate::open(args.package.as_deref(), threads)?;
    let local = args.device.open()?;
    let workload = Workload::new(&package, args.positions).or_exit(Exit::Configuration)?;
    let backend = local.honest().name();
    let about = format!("{} on {backend}, {threads} threads, {} positions", package.manifest().name, args.positions);
    let report =
        output::about("dispute", about, &Named::of(&package), &local, threads).label("positions", args.positions);
    let mut live = output.begin(report);
    let bar = progress::bar(workload.disputes() as u64, "disputes");
    let disputes = measure(&workload, &*local.honest(), &|lie| local.lying(&[lie]), &mut |played| {
        bar.inc(1);
        live.push(row(played))
    })?;
    bar.finish_and_clear();
    let budget = Duration::from_millis(args.rate_ms);
    let mut all_rates = Vec::new();
    for threads in BTreeSet::from([1, threads.get()]) {
        let rates = rates(&package, &disputes, threads, budget, args.rate_samples)?;
        live.push(rates.row())?;
        all_rates.push(rates);
    }
    live.report.summary = Some(format!("{}; {}", most_of(&disputes), rates_of(&all_rates)));
    let summary = summary(args, &backend, threads, &package, (&disputes, &all_rates));
    live.report.json_summary = Some(summary);
    live.end()?;
    let lost = disputes.iter().filter(|d| d.claimant_loses).count();
    if lost == disputes.len() {
        return Ok(());
    }
    Err(anyhow::anyhow!("in {} disputes the liar did not lose", disputes.len() - lost)).or_exit(Exit::Refuted)
}

fn row(d: &Measured) -> Row {
    let slower = d.slower();
    let micros = d.referee_seconds.0.iter().map(|seconds| 1e6 * seconds).collect();
    Row::new([("op", d.op.into()), ("layer", d.layer.into()), ("ended_at", d.ended().into())])
        .figure(Figure::exact("rounds", "rounds", d.rounds.into()))
        .figure(Figure::exact("referee_bytes", "bytes", d.referee_bytes as f64))
        .figure(Figure::of("referee_micros", "referee us", &micros))
        .figure(Figure::once("layer_seconds", "layer s", slower.layer))
        .figure(Figure::once("game_seconds", "moves s", slower.game))
        .figure(Figure::once("player_layers", "x layer", d.layers()))
        .figure(Figure::once("prefill_seconds", "rerun s", d.prefill_seconds))
        .seen(&d.seen)
}

fn most_of(disputes: &[Measured]) -> String {
    let most = Most::of(disputes);
    format!(
        "at most {} rounds, {} bytes and {:.0} us of the referee; {:.1} ms of a player",
        most.rounds,
        most.bytes,
        1e6 * most.referee_seconds,
        1e3 * most.player_seconds
    )
}

fn rates_of(rates: &[Rates]) -> String {
    let each = rates.iter().map(|rates| {
        let (disputes, core, threads) = (rates.per_second.median(), rates.per_core.median(), rates.threads);
        format!("{disputes:.0} disputes/s on {threads} threads ({core:.0} a second of processor time)")
    });
    each.collect::<Vec<_>>().join(", ")
}

/// The largest of each figure.
struct Most {
    rounds: u16,
    bytes: u64,
    referee_seconds: f64,
    player_seconds: f64,
}

impl Most {
    fn of(disputes: &[Measured]) -> Self {
        Self {
            rounds: disputes.iter().map(|d| d.rounds).max().unwrap_or(0),
            bytes: disputes.iter().map(|d| d.referee_bytes).max().unwrap_or(0),
            referee_seconds: disputes.iter().map(|d| d.referee_seconds.median()).fold(0.0, f64::max),
            player_seconds: disputes.iter().map(|d| d.slower().total()).fold(0.0, f64::max),
        }
    }
}

fn summary(
    args: &DisputeArgs,
    backend: &str,
    threads: NonZeroUsize,
    package: &Package,
    (all, rates): (&[Measured], &[Rates]),
) -> Value {
    let rate = |rates: &Rates| {
        json!({
            "threads": rates.threads, "disputes": rates.disputes, "disputes_per_second": rates.per_second.median(),
            "disputes_per_core_second": rates.per_core.median(),
        })
    };
    let dispute = |d: &Measured| {
        let seconds = d.slower();
        let Seconds { layer, game } = seconds;
        json!({
            "op": d.op, "layer": d.layer, "rounds": d.rounds, "referee_bytes": d.referee_bytes,
            "referee_micros": 1e6 * d.referee_seconds.median(), "player_seconds": seconds.total(), "layer_seconds": layer,
            "game_seconds": game, "player_layers": d.layers(), "prefill_seconds": d.prefill_seconds, "verdict": if d.claimant_loses { "claimant_loses" } else { "claimant_wins" },
            "kind": d.kind, "disputed_layer": d.disputed_layer, "step": d.step, "element": d.element,
        })
    };
    let most = Most::of(all);
    json!({
        "model_id": package.model_id().to_string(), "backend": backend, "threads": threads, "positions": args.positions,
        "disputes": all.iter().map(dispute).collect::<Vec<_>>(),
        "count": all.len(), "claimant_loses": all.iter().filter(|d| d.claimant_loses).count(),
        "rounds_max": most.rounds, "referee_bytes_max": most.bytes, "referee_micros_max": 1e6 * most.referee_seconds,
        "player_seconds_max": most.player_seconds, "rates": rates.iter().map(rate).collect::<Vec<_>>(),
    })
}
