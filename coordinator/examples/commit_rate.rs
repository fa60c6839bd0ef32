//! Measures how many durable commits a second the store makes on this disk, in either journal mode and by group size.
//!
//! `cargo run --release -p lockstep-coordinator --example commit_rate [DIR]`: DIR is on the disk to measure; the
//! system's temporary directory where it is missing.

use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use lockstep_coordinator::store::{Commit, Store, Write};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{JobId, LeaseEpoch, NodeId};
use lockstep_protocol::machine::Record;
use rusqlite::Connection;

const TIME: Duration = Duration::from_secs(2);

fn main() -> anyhow::Result<()> {
    let base = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, Into::into);
    println!("one insert of 100 bytes a transaction, synchronous=FULL:");
    for mode in ["WAL", "DELETE", "TRUNCATE", "PERSIST"] {
        println!("  journal_mode={mode}: {:.0} commits/s", single(&base, mode)?);
    }
    println!("the store, commits of one record, so many waiting at a time:");
    for waiting in [1, 4, 16, 64, 256, 1_024] {
        println!("  {waiting}: {:.0} commits/s", grouped(&base, waiting)?);
    }
    Ok(())
}

fn fresh(base: &Path) -> anyhow::Result<std::path::PathBuf> {
    let dir = base.join(format!("lockstep-commit-rate-{}", std::process::id()));
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir(&dir)?;
    Ok(dir)
}

fn single(base: &Path, mode: &str) -> anyhow::Result<f64> {
    let dir = fresh(base)?;
    let connection = Connection::open(dir.join("x.db"))?;
    connection.pragma_update(None, "journal_mode", mode)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch("CREATE TABLE records (seq INTEGER PRIMARY KEY, bytes BLOB NOT NULL)")?;
    let mut insert = connection.prepare("INSERT INTO records (bytes) VALUES (?1)")?;
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < TIME {
        insert.execute([&[7_u8; 100][..]])?;
        count += 1;
    }
    let rate = f64::from(count) / start.elapsed().as_secs_f64();
    std::fs::remove_dir_all(&dir)?;
    Ok(rate)
}

fn grouped(base: &Path, waiting: usize) -> anyhow::Result<f64> {
    let dir = fresh(base)?;
    let (store, _) = Store::open(&dir, &Keypair::from_seed([1; 32]), 0)?;
    let (sender, done) = channel();
    let submit = |number: u64| {
        let sender = sender.clone();
        let (job, node) = (JobId::from_bytes([number as u8; 32]), NodeId::from_bytes([1; 32]));
        let record = Record::Assigned { job, epoch: LeaseEpoch(number), node };
        let then = Box::new(move || {
            // Whoever measures may have left.
            let _ = sender.send(());
        });
        store.submit(Commit { writes: vec![Write::Record(record)], then })
    };
    for number in 0..waiting {
        submit(number as u64)?;
    }
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < TIME {
        done.recv()?;
        count += 1;
        submit(count.into())?;
    }
    let rate = f64::from(count) / start.elapsed().as_secs_f64();
    drop(store);
    std::fs::remove_dir_all(&dir)?;
    Ok(rate)
}
