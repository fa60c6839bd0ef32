//! `lockstep bench dispute`

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use lockstep_benches::dispute::{Measured, Rate, Seconds, Workload, measure, rate};
use lockstep_benches::report::{Figure, Report, Row};
use lockstep_benches::watch::Watch;
use lockstep_model::package::Package;
use serde_json::{Value, json};

use super::output::{OutputArgs, stamp};
use crate::backend::{self, Local};
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
    /// Package to dispute about.
    #[arg(long, value_name = "FILE")]
    package: PathBuf,
    /// Tokens of the disputed job.
    #[arg(long, default_value = "128", value_name = "N")]
    positions: NonZeroUsize,
    /// Backend of both players.
    #[arg(long, default_value = "cpu", help = format!("Backend of both players: one of {}", backend::NAMES))]
    backend: String,
    /// Threads of a player [default: all].
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Milliseconds in which all disputes are refereed again and again, on one thread and on all.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    rate_ms: u64,
}

/// Measures.
pub fn run(args: &DisputeArgs, output: OutputArgs) -> Outcome {
    let threads = args.threads.unwrap_or_else(backend::all_threads);
    let local = Local::open(&args.backend, threads, None)?;
    let package = Package::open_checked(&args.package, threads);
    let package =
        package.map_err(|e| anyhow::anyhow!("{}: {e}", args.package.display())).or_exit(Exit::Configuration)?;
    let workload = Workload::new(&package, args.positions.get()).or_exit(Exit::Configuration)?;
    let bar = progress::bar(workload.disputes() as u64, "disputes");
    let watch = Watch::start();
    let disputes = measure(&workload, &*local.honest(), &|lie| local.lying(&[lie]), &mut |_| bar.inc(1))?;
    bar.finish_and_clear();
    let disturbed = watch.disturbances();
    let lost = disputes.iter().filter(|d| d.claimant_loses).count();
    let backend = local.honest().name();
    let about = format!("{} on {backend}, {threads} threads, {} positions", package.manifest().name, args.positions);
    let mut report = Report::new("dispute", about);
    report.rows = disputes.iter().map(|d| row(d).disturbed(disturbed.clone())).collect();
    let counts = BTreeSet::from([1, threads.get()]);
    let budget = Duration::from_millis(args.rate_ms);
    let rates = counts.into_iter().map(|threads| rate(&package, &disputes, threads, budget));
    let rates: Vec<Rate> = rates.collect::<anyhow::Result<_>>()?;
    report.summary = Some(format!("{}; {}", most_of(&disputes), rates_of(&rates)));
    report.json_summary = Some(summary(args, &backend, threads, &package, (&disputes, &rates)));
    stamp(&mut report, &package, &backend, threads);
    output.print(&report);
    if lost == disputes.len() {
        return Ok(());
    }
    Err(anyhow::anyhow!("in {} disputes the liar did not lose", disputes.len() - lost)).or_exit(Exit::Refuted)
}

fn row(d: &Measured) -> Row {
    let slower = d.slower();
    Row::new([("op", d.op.into()), ("layer", d.layer.into()), ("ended_at", d.ended().into())])
        .figure(Figure::exact("rounds", "rounds", d.rounds.into()))
        .figure(Figure::exact("referee_bytes", "bytes", d.referee_bytes as f64))
        .figure(Figure::exact("referee_micros", "referee us", 1e6 * d.referee_seconds))
        .figure(Figure::exact("layer_seconds", "layer s", slower.layer))
        .figure(Figure::exact("game_seconds", "moves s", slower.game))
        .figure(Figure::exact("player_layers", "x layer", d.layers()))
        .figure(Figure::exact("prefill_seconds", "rerun s", d.prefill_seconds))
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

fn rates_of(rates: &[Rate]) -> String {
    let each = rates.iter().map(|rate| {
        let (disputes, core, threads) = (rate.per_second(), rate.per_core(), rate.threads);
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
            referee_seconds: disputes.iter().map(|d| d.referee_seconds).fold(0.0, f64::max),
            player_seconds: disputes.iter().map(|d| d.slower().total()).fold(0.0, f64::max),
        }
    }
}

fn summary(
    args: &DisputeArgs,
    backend: &str,
    threads: NonZeroUsize,
    package: &Package,
    (all, rates): (&[Measured], &[Rate]),
) -> Value {
    let rate = |rate: &Rate| {
        json!({
            "threads": rate.threads, "disputes": rate.disputes, "disputes_per_second": rate.per_second(),
            "disputes_per_core_second": rate.per_core(),
        })
    };
    let dispute = |d: &Measured| {
        let seconds = d.slower();
        let Seconds { layer, game } = seconds;
        json!({
            "op": d.op, "layer": d.layer, "rounds": d.rounds, "referee_bytes": d.referee_bytes,
            "referee_micros": 1e6 * d.referee_seconds, "player_seconds": seconds.total(), "layer_seconds": layer,
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
