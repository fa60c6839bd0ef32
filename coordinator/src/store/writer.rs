//! The one thread that writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_protocol::ids::{Digest, JobId, LeaseEpoch, Millis, ModelId};
use lockstep_protocol::ledger::Posting;
use lockstep_protocol::limits::{STORE_BATCH, STORE_QUEUE, STORE_RETRY_MS};
use lockstep_protocol::log::{Cosignature, Entry};
use lockstep_protocol::machine::Record;
use rusqlite::Connection;

use super::StoreError;
use super::access::{self, Access, AccessDigest};
use super::disputes::{self, DisputeEntry};
use super::log::Log;
use super::{cosignatures, ledger, runs};

/// Values of `jobs.status`.
pub(super) const DONE: i64 = 2;
pub(super) const FAILED: i64 = 3;

/// How often it is looked whether the writer has ended.
const JOIN_POLL: Duration = Duration::from_millis(2);

/// One change.
#[derive(Clone, Debug)]
pub enum Write {
    /// A record of the job machine.
    Record(Record),
    /// A job has ended well; its records go.
    Done {
        /// Which job.
        job: JobId,
        /// Its receipt.
        receipt: String,
        /// When.
        at: Millis,
    },
    /// The receipt of a job that has ended well says more than before.
    Amended {
        /// Which job.
        job: JobId,
        /// Its receipt.
        receipt: String,
    },
    /// A job has ended without a result; its records go.
    Failed {
        /// Which job.
        job: JobId,
        /// Why.
        reason: String,
        /// When.
        at: Millis,
    },
    /// A token opens a job to clients.
    Access {
        /// Which job.
        job: JobId,
        /// The token's hash.
        digest: AccessDigest,
        /// What it opens.
        access: Access,
    },
    /// The coordinator states something about a receipt of the job; the statement itself is in the receipt.
    Stated {
        /// Which job.
        job: JobId,
        /// The digest of the statement.
        statement: Digest,
    },
    /// Changes of the ledger that are made together.
    Postings {
        /// The index of the first of them among all postings.
        first: u64,
        /// What they are.
        postings: Vec<Posting>,
        /// When.
        at: Millis,
    },
    /// One more entry of a dispute's transcript.
    Dispute(Box<DisputeEntry>),
    /// A new chain of secrets for draws: none of them was used before this.
    Anchored {
        /// Which chain.
        chain: u32,
        /// Its anchor.
        anchor: Digest,
    },
    /// Draws below this number have been made.
    Draws(u64),
    /// A worker cosigned a head of the log.
    Cosigned {
        /// The size of the head.
        size: u64,
        /// The cosignature.
        cosignature: Cosignature,
    },
    /// The log gets a head that covers everything before this.
    Head,
    /// No time after this one was used so far.
    Clock(Millis),
    /// The coordinator ran at this time.
    Alive(Millis),
    /// A model is served.
    Model {
        /// Its id.
        id: ModelId,
        /// Its name.
        name: String,
        /// Its package.
        path: String,
        /// Its manifest, of which the id is the hash.
        manifest: Vec<u8>,
        /// When.
        at: Millis,
    },
}

/// Changes that become durable together, and what is called once they are. An empty one is called in its turn too.
pub struct Commit {
    /// The changes, in order.
    pub writes: Vec<Write>,
    /// Called on the writer's thread: must not block.
    pub then: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Commit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commit").field("writes", &self.writes).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    /// `None` only while it is being dropped.
    queue: Option<SyncSender<Commit>>,
    thread: Option<JoinHandle<()>>,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    /// Whether the last transaction was written.
    healthy: AtomicBool,
    /// Whether the store is being closed, so that what can't be written is given up.
    closing: AtomicBool,
    /// The size of the newest head of the log that is written.
    head: AtomicU64,
}

impl Writer {
    pub fn start(connection: Connection, log: Log) -> Result<Self, StoreError> {
        let (queue, commits) = sync_channel(STORE_QUEUE);
        let state = Arc::new(State {
            healthy: AtomicBool::new(true),
            closing: AtomicBool::new(false),
            head: AtomicU64::new(log.head_size()),
        });
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("lockstep-store".into())
            .spawn(move || run(connection, log, &commits, &shared))
            .map_err(|error| StoreError::Io { action: "start the thread of", path: super::STORE_FILE.into(), error })?;
        Ok(Self { queue: Some(queue), thread: Some(thread), state })
    }

    pub fn submit(&self, commit: Commit) -> Result<(), StoreError> {
        self.queue.as_ref().and_then(|queue| queue.send(commit).ok()).ok_or(StoreError::Closed)
    }

    pub fn close(&self) {
        self.state.closing.store(true, Ordering::Relaxed);
    }

    pub fn head_size(&self) -> u64 {
        self.state.head.load(Ordering::Relaxed)
    }

    pub fn is_healthy(&self) -> bool {
        self.state.healthy.load(Ordering::Relaxed) && self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.state.closing.store(true, Ordering::Relaxed);
        self.queue = None;
        let Some(thread) = self.thread.take() else {
            return;
        };
        let given_up = Instant::now() + super::STORE_CLOSE;
        while !thread.is_finished() && Instant::now() < given_up {
            std::thread::sleep(JOIN_POLL);
        }
        if !thread.is_finished() {
            tracing::error!("the disk does not answer; the store's writer is left behind");
        } else if thread.join().is_err() {
            tracing::error!("the store's writer had panicked");
        }
    }
}

fn run(mut connection: Connection, mut log: Log, commits: &Receiver<Commit>, state: &State) {
    connection.set_prepared_statement_cache_capacity(32);
    while let Ok(first) = commits.recv() {
        let batch: Vec<_> = std::iter::once(first).chain(commits.try_iter()).take(STORE_BATCH).collect();
        // A refused transaction left nothing behind: it is tried again as it is, and until it succeeds nothing in it
        // is acknowledged to anybody. Full disks get room again.
        while let Err(error) = write(&mut connection, &mut log, &batch) {
            state.healthy.store(false, Ordering::Relaxed);
            if error.is_fault() {
                // It would fail for ever. To leave it out would leave a hole in what follows from it: the store stops
                // here, and the next start goes on from what is on the disk.
                return tracing::error!(%error, "what is to be written does not fit the store: a bug; the store stops");
            }
            tracing::error!(%error, "the store can't be written; nothing is acknowledged until it can");
            if state.closing.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(STORE_RETRY_MS));
        }
        state.healthy.store(true, Ordering::Relaxed);
        state.head.store(log.head_size(), Ordering::Relaxed);
        for commit in batch {
            (commit.then)();
        }
    }
}

fn write(connection: &mut Connection, log: &mut Log, batch: &[Commit]) -> Result<(), StoreError> {
    if batch.iter().all(|commit| commit.writes.is_empty()) {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    // What the transaction leaves undone must not be in the tree either.
    let mut grown = log.clone();
    let mut head = false;
    for change in batch.iter().flat_map(|commit| &commit.writes) {
        apply(&transaction, change)?;
        head |= matches!(change, Write::Head);
        if let Some(entry) = entry(change) {
            grown.append(&transaction, &entry)?;
        }
    }
    grown.sign(&transaction, head)?;
    // The machine's epochs ascend, so the highest of the batch is the highest of all.
    if let Some(epoch) = batch.iter().filter_map(last_epoch).max() {
        put_meta(&transaction, super::LAST_EPOCH, epoch.0)?;
    }
    transaction.commit()?;
    *log = grown;
    Ok(())
}

fn apply(connection: &Connection, change: &Write) -> Result<(), StoreError> {
    match change {
        Write::Record(record) => {
            let job = record.job();
            let job = (!record.outlives_job()).then(|| job.as_bytes().as_slice());
            connection
                .prepare_cached("INSERT INTO records (job, bytes) VALUES (?1, ?2)")?
                .execute((job, runs::record_bytes(record)))?;
            runs::put(connection, record)?;
        }
        Write::Done { job, receipt, at } => {
            put_job(connection, job, DONE, None, Some(receipt), *at)?;
            runs::ended(connection, job, *at)?;
            drop_records(connection, job)?;
        }
        Write::Failed { job, reason, at } => {
            put_job(connection, job, FAILED, Some(reason), None, *at)?;
            runs::forget(connection, job)?;
            drop_records(connection, job)?;
        }
        Write::Amended { job, receipt } => {
            connection
                .prepare_cached("UPDATE jobs SET receipt = ?2 WHERE job = ?1")?
                .execute((job.as_bytes(), receipt))?;
        }
        Write::Access { job, digest, access } => access::put(connection, job, digest, *access)?,
        Write::Postings { postings, at, .. } => {
            postings.iter().try_for_each(|posting| ledger::put(connection, posting, *at))?;
        }
        Write::Dispute(entry) => disputes::put(connection, entry)?,
        Write::Anchored { chain, .. } => put_meta(connection, super::ANCHORED, u64::from(*chain) + 1)?,
        Write::Draws(next) => put_meta(connection, super::DRAWS, *next)?,
        Write::Cosigned { size, cosignature } => cosignatures::put(connection, *size, cosignature)?,
        // What they leave behind is in the log.
        Write::Stated { .. } | Write::Head => {}
        Write::Clock(at) => put_meta(connection, super::CLOCK, at.0)?,
        Write::Alive(at) => put_meta(connection, super::ALIVE, at.0)?,
        Write::Model { id, name, path, manifest, at } => {
            connection
                .prepare_cached(
                    "INSERT INTO models VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT (id) DO UPDATE SET name = excluded.name, path = excluded.path",
                )?
                .execute((id.as_bytes(), name, path, at.0 as i64, manifest))?;
        }
    }
    Ok(())
}

/// The log's entry of a change.
fn entry(change: &Write) -> Option<Entry> {
    match change {
        Write::Record(record) => Entry::of_record(record),
        Write::Stated { job, statement } => Some(Entry::Statement { job: *job, statement: *statement }),
        Write::Postings { first, postings, .. } => Entry::of_postings(*first, postings),
        Write::Dispute(entry) => entry.logged(),
        Write::Anchored { chain, anchor } => Some(Entry::Anchored { chain: *chain, anchor: *anchor }),
        _ => None,
    }
}

/// The highest epoch that a commit gives out.
fn last_epoch(commit: &Commit) -> Option<LeaseEpoch> {
    let epoch = |write: &Write| match write {
        Write::Record(record) => record.epoch(),
        _ => None,
    };
    commit.writes.iter().filter_map(epoch).max()
}

fn put_meta(connection: &Connection, key: &str, value: u64) -> Result<(), StoreError> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?
        .execute((key, &value.to_le_bytes()[..]))?;
    Ok(())
}

fn put_job(
    connection: &Connection,
    job: &JobId,
    status: i64,
    reason: Option<&String>,
    receipt: Option<&String>,
    at: Millis,
) -> Result<(), StoreError> {
    connection.prepare_cached("INSERT OR REPLACE INTO jobs VALUES (?1, ?2, ?3, ?4, ?5)")?.execute((
        job.as_bytes(),
        status,
        reason,
        receipt,
        at.0 as i64,
    ))?;
    Ok(())
}

fn drop_records(connection: &Connection, job: &JobId) -> Result<(), StoreError> {
    connection.prepare_cached("DELETE FROM records WHERE job = ?1")?.execute([job.as_bytes()])?;
    Ok(())
}
