//! `lockstep ledger`

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::ledger::{AccountLine, Export, Posting};
use lockstep_protocol::limits::{MAX_LEDGER_JSON_BYTES, MAX_LEDGER_LINES};
use serde_json::json;

use crate::cli::client::Address;
use crate::exit::{Exit, Failure, OrExit, Outcome};

/// Arguments of `lockstep ledger`.
#[derive(Args)]
#[command(
    after_help = "Nothing is taken from the coordinator's word: that what all accounts have is what was issued less what \
    was burned is computed here, and with --history every posting is made again from the first one on and must give the \
    same accounts (where there are more than 65,536, the coordinator shows the last ones only, and that is said). What \
    was posted about a job that has not ended, and all after it, is left out. Where the file has entries of the coordinator's log, they are checked too. Exit code 7: it does not \
    add up."
)]
pub struct LedgerArgs {
    #[command(flatten)]
    address: Address,
    /// Fetch all postings too, and make them again.
    #[arg(long)]
    history: bool,
    /// The coordinator whose ledger it must be.
    #[arg(long, value_name = "KEY")]
    coordinator: Option<NodeId>,
    /// Save the ledger here, as the coordinator gave it.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Fetches the ledger, checks that it adds up, and prints it. One that does not is saved all the same: it is evidence.
pub fn run(args: &LedgerArgs) -> Outcome {
    let history = if args.history { MAX_LEDGER_LINES } else { 0 };
    let text = args.address.get(&format!("ledger?history={history}"), None, MAX_LEDGER_JSON_BYTES)?;
    if let Some(out) = &args.out {
        super::files::write(out, text.as_bytes())?;
    }
    let export = Export::from_json(text.trim()).or_exit(Exit::Refuted)?;
    if let Some(wanted) = args.coordinator.filter(|wanted| *wanted != export.coordinator) {
        return Err(refuted(anyhow!("the ledger is of coordinator {}, not of {wanted}", export.coordinator)));
    }
    let folded = args.history && export.postings <= MAX_LEDGER_LINES as u64;
    check(&export, folded).or_exit(Exit::Refuted)?;
    if args.json {
        print_json(&export, folded)
    } else {
        print(&export, folded)
    }
    Ok(())
}

fn refuted(error: anyhow::Error) -> Failure {
    Failure { exit: Exit::Refuted, error }
}

/// That the accounts make the totals and the totals balance; `fold`: also that the postings make the accounts.
fn check(export: &Export, fold: bool) -> anyhow::Result<()> {
    let free = sum(export.accounts.iter().map(|account| account.free))?;
    let held = sum(export.accounts.iter().flat_map(|account| &account.held).map(|line| line.amount))?;
    let totals = export.totals;
    if (free, held) != (totals.free, totals.held) {
        anyhow::bail!(
            "the accounts have {free} credits free and {held} held; the totals say {} and {}",
            totals.free,
            totals.held
        );
    }
    if totals.issued.checked_sub(totals.burned) != free.checked_add(held) {
        anyhow::bail!(
            "{free} credits are free and {held} held, but {} were issued and {} burned",
            totals.issued,
            totals.burned
        );
    }
    if fold {
        export.check(None)?;
    }
    Ok(())
}

fn sum(mut amounts: impl Iterator<Item = u64>) -> anyhow::Result<u64> {
    let sum = amounts.try_fold(0_u64, u64::checked_add);
    sum.ok_or_else(|| anyhow!("the accounts have more than can be counted"))
}

/// What is held of an account, all together. It fits, since the sum over all accounts does.
fn held(account: &AccountLine) -> u64 {
    account.held.iter().map(|line| line.amount).sum()
}

fn print_json(export: &Export, folded: bool) {
    let account = |account: &AccountLine| {
        let held: Vec<_> = account.held.iter().map(|l| json!({ "purpose": l.purpose, "amount": l.amount })).collect();
        json!({ "node": account.node, "free": account.free, "held": held })
    };
    println!(
        "{}",
        json!({
            "coordinator": export.coordinator, "postings": export.postings, "totals": export.totals,
            "accounts": export.accounts.iter().map(account).collect::<Vec<_>>(),
            "conserved": true, "folded": folded, "logged_batches": export.batches.len(),
            "history": export.history,
        })
    );
}

fn print(export: &Export, folded: bool) {
    println!("ledger of coordinator {}, {} postings", export.coordinator, export.postings);
    println!("{:<64} {:>14} {:>14}", "account", "free", "held");
    for account in &export.accounts {
        println!("{:<64} {:>14} {:>14}", account.node.to_string(), account.free, held(account));
        for line in &account.held {
            println!("{:<64} {:>14} {:>14}", format!("  for {}", line.purpose), "", line.amount);
        }
    }
    for line in &export.history {
        println!("{:>8}  {}", line.index, told(&line.posting));
    }
    let totals = export.totals;
    println!(
        "issued {} - burned {} = free {} + held {}: it adds up",
        totals.issued, totals.burned, totals.free, totals.held
    );
    kinds(export);
    if folded {
        println!("every posting made again from nothing gives these accounts");
    } else if export.history.is_empty() {
        println!("the postings were not made again (--history)");
    } else {
        println!("the postings were not made again: the coordinator shows the last {} only", export.history.len());
    }
    if let Some(head) = &export.head {
        println!(
            "{} entries of the coordinator's log hold them, under its head of {}",
            export.batches.len(),
            head.head.size
        );
    }
}

/// How many postings of each kind there are.
fn kinds(export: &Export) {
    if export.history.is_empty() {
        return;
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in &export.history {
        let kind = match line.posting {
            Posting::Issue { .. } => "issued",
            Posting::Hold { .. } => "held",
            Posting::Release { .. } => "released",
            Posting::Forfeit { .. } => "forfeited",
            Posting::Pay { .. } => "paid",
        };
        *counts.entry(kind).or_default() += 1;
    }
    let counts: Vec<_> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    println!("postings: {}", counts.join(", "));
}

/// A posting in words.
fn told(posting: &Posting) -> String {
    match posting {
        Posting::Issue { to, amount } => format!("{amount} issued to {to}"),
        Posting::Hold { from, purpose, amount } => format!("{amount} held of {from} for {purpose}"),
        Posting::Release { node, purpose } => format!("released to {node}: what was held for {purpose}"),
        Posting::Forfeit { node, purpose, awards } => {
            let awards: Vec<_> = awards.iter().map(|award| format!("{} to {}", award.amount, award.to)).collect();
            let rest = if awards.is_empty() { "all of it burned".into() } else { awards.join(", ") };
            format!("forfeited by {node}: what was held for {purpose}; {rest}")
        }
        Posting::Pay { to, purpose, amount } => format!("{amount} paid to {to} for {purpose}"),
    }
}
