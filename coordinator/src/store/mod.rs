//! What the coordinator must not forget: one SQLite file.
//!
//! All writes go through one thread, which puts as many commits as are waiting into one transaction (group commit) and
//! says so to each of them afterwards. So the durable flush, the dear part, is shared. The journal is a write-ahead log
//! with `synchronous = FULL`: a commit that was reported is on the disk, and neither a killed process nor a power cut
//! takes it back.
//!
//! Every entry of the transparency log is written in the transaction of what it is about (`log.rs`), and so are the
//! entries of disputes and the postings of the ledger.
//!
//! Measured on a virtual disk with `examples/commit_rate.rs`, in commits of one record a second: a write-ahead log
//! does 9,000 and a rollback journal 1,850 in a loop; through the writer, with an entry of the log for each record, it
//! is 4,450 with one commit waiting at a time and about 30,000 with 64 or more. At the start the log is hashed again at
//! 450,000 entries a second; an entry takes 250 bytes.

mod access;
mod cosignatures;
mod disputes;
mod ledger;
mod log;
mod runs;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_protocol::canonical::{DecodeError, from_bytes};
use lockstep_protocol::dispute::{SignedEntry, Terms};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Digest, DisputeId, JobId, LeaseEpoch, Millis, ModelId, NodeId};
use lockstep_protocol::ledger::{Ledger, Posting};
use lockstep_protocol::limits::{LOG_HEAD_WAIT_MS, STORE_BUSY_MS, STORE_CHECKPOINT_PAGES, STORE_CLOSE_MS};
use lockstep_protocol::log::{LogProof, SignedHead};
use lockstep_protocol::machine::Record;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use thiserror::Error;

pub use self::access::{Access, AccessDigest};
pub use self::cosignatures::Cosign;
pub use self::disputes::{DisputeEntry, DisputeRow, JudgedDispute, OpenDispute};
pub use self::log::ProofRequest;
use self::log::{Found, Log};
pub use self::runs::KeptRun;
pub use self::schema::SCHEMA_VERSION;
use self::writer::Writer;
pub use self::writer::{Commit, Write};
use crate::engine::Books;

/// The store's file in the data directory.
pub const STORE_FILE: &str = "coordinator.db";
/// Memory for pages of the store, in KiB.
const STORE_CACHE_KIB: i64 = 32 << 10;
/// The file whose lock keeps a second coordinator out of the directory.
const LOCK_FILE: &str = "coordinator.lock";
/// Keys of `meta`, each with 8 bytes, little-endian.
const CLOCK: &str = "clock";
const LAST_EPOCH: &str = "last epoch";
/// When the coordinator was last known to run, written while it has disputes.
const ALIVE: &str = "alive";
/// The number of the next draw.
const DRAWS: &str = "draws";
/// How many chains of secrets for draws the log has anchors of.
const ANCHORED: &str = "anchored chains";
/// The key in `meta` under which the secret of all draws is.
const DRAW_SECRET: &str = "draw secret";
/// Bytes of a secret.
pub const SECRET_BYTES: usize = 32;

/// How long the last writes of a store that is closed may take.
pub const STORE_CLOSE: Duration = Duration::from_millis(STORE_CLOSE_MS);

/// Why the store can't be opened, read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// SQLite or the disk.
    #[error("the store: {0}")]
    Sqlite(rusqlite::Error),
    /// The file system.
    #[error("can't {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// Others on this machine may read it.
    #[error("{} has mode {mode:o}, so others can read its secrets: chmod 600 {}", path.display(), path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Somebody else is there.
    #[error("another coordinator uses {}: stop it, or choose another data directory", .0.display())]
    Locked(PathBuf),
    /// Another database.
    #[error("{STORE_FILE} is a database, but not a coordinator's")]
    NotAStore,
    /// Written by an older program, whose jobs can't be gone on with.
    #[error(
        "{STORE_FILE} has schema version {found}, from before text generation; this program reads version {SCHEMA_VERSION} \
         and can't go on with it: let the older program finish its jobs, and give this one a new data directory"
    )]
    Older {
        /// The file's version.
        found: i64,
    },
    /// Written by a newer program.
    #[error(
        "{STORE_FILE} has schema version {found}; this program knows up to {SCHEMA_VERSION}: use the newer program"
    )]
    Newer {
        /// The file's version.
        found: i64,
    },
    /// A record that does not decode.
    #[error("record {seq} is damaged: {error}")]
    Record {
        /// Its number.
        seq: i64,
        /// Why.
        error: DecodeError,
    },
    /// A value with another length than it must have.
    #[error("the store's {0} is damaged")]
    Value(&'static str),
    /// The transparency log does not fit together, or not to its last signed head.
    #[error("the transparency log was changed by something else: {0}; restore the store as this coordinator left it")]
    Log(String),
    /// The postings don't add up.
    #[error("the ledger was changed by something else: {0}; restore the store as this coordinator left it")]
    Ledger(String),
    /// A head did not become durable in time.
    #[error("the store can't be written at the moment")]
    Busy,
    /// No random source.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
    /// The writer has stopped.
    #[error("the store is closed")]
    Closed,
}

// By hand, because an error that is written out in a message must not come again as its source.
impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl StoreError {
    /// Whether the same write fails again, whatever the disk does: what is written breaks the tables' rules.
    fn is_fault(&self) -> bool {
        match self {
            Self::Sqlite(error) => error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation),
            Self::Value(_) | Self::Log(_) | Self::Ledger(_) | Self::Record { .. } => true,
            _ => false,
        }
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It has ended well. Its receipt in JSON.
    Done(String),
    /// It has ended without a result. Why.
    Failed(String),
}

/// What a coordinator finds when it starts.
#[derive(Debug)]
pub struct Restored {
    /// Records of unfinished jobs and all quarantines, in order.
    pub records: Vec<Record>,
    /// The highest lease epoch of all records that were ever written.
    pub last_epoch: LeaseEpoch,
    /// A time at or after every time that was ever used.
    pub clock: Millis,
    /// When the coordinator was last known to run; 0 where it never had a dispute.
    pub alive: Millis,
    /// The secret of all draws.
    pub draw_secret: [u8; SECRET_BYTES],
    /// The number of the next draw.
    pub draws: u64,
    /// How many chains of secrets for draws the log has anchors of.
    pub anchored: u64,
    /// What all postings make.
    pub ledger: Ledger,
    /// The same, as far as it is public.
    pub books: Books,
    /// The disputes that have no verdict, in the order in which they were opened.
    pub disputes: Vec<OpenDispute>,
    /// Of the newest disputes those that have ended, oldest first.
    pub judged: Vec<JudgedDispute>,
    /// Models that were served before, with their packages.
    pub models: Vec<(ModelId, PathBuf)>,
}

/// An opened store. Dropping it writes what is queued and closes it.
#[derive(Debug)]
pub struct Store {
    writer: Writer,
    reader: Mutex<Connection>,
    /// Held, not read: the lock is the file's.
    _lock: File,
}

impl Store {
    /// Opens or creates the store in a directory (see [`create`]), and reads what is needed to go on. `keys` are the
    /// coordinator's: they sign the heads of the transparency log.
    ///
    /// # Errors
    /// [`StoreError`]: the directory is in use, or the file is not one that this program can go on with.
    pub fn open(dir: &Path, keys: &Keypair, now_ms: u64) -> Result<(Self, Restored), StoreError> {
        create(dir)?;
        let lock = lock(dir)?;
        let path = dir.join(STORE_FILE);
        make_private(&path)?;
        let mut connection = Connection::open(&path)?;
        connection.busy_timeout(Duration::from_millis(STORE_BUSY_MS))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "wal_autocheckpoint", STORE_CHECKPOINT_PAGES)?;
        // In KiB, where negative: room for a transaction of many runs.
        connection.pragma_update(None, "cache_size", -STORE_CACHE_KIB)?;
        schema::migrate(&mut connection, now_ms)?;
        let restored = restore(&connection)?;
        let log = open_log(&mut connection, keys)?;
        let reader = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        Ok((Self { writer: Writer::start(connection, log)?, reader: Mutex::new(reader), _lock: lock }, restored))
    }

    /// Queues a commit, blocking while the queue is full. Commits become durable in the order of these calls.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub fn submit(&self, commit: Commit) -> Result<(), StoreError> {
        self.writer.submit(commit)
    }

    /// From now on what can't be written is given up instead of tried again; nothing in it was acknowledged.
    pub fn close(&self) {
        self.writer.close();
    }

    /// The newest head of the transparency log, and, where the log has grown since, how long it is until the next one
    /// is due. Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn log_head(&self) -> Result<(SignedHead, Option<Duration>), StoreError> {
        log::head(&self.reader())
    }

    /// A head that covers everything that is in the log now. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Busy`], and what SQLite says.
    pub fn sign_head(&self) -> Result<SignedHead, StoreError> {
        let (sender, signed) = channel();
        let then = Box::new(move || {
            // A client that waited long enough is gone.
            let _ = sender.send(());
        });
        self.submit(Commit { writes: vec![Write::Head], then })?;
        signed.recv_timeout(Duration::from_millis(LOG_HEAD_WAIT_MS)).map_err(|_| StoreError::Busy)?;
        Ok(log::head(&self.reader())?.0)
    }

    /// The entries of a job and that they are in the log; `None` where no head has the size asked for. What no head
    /// covers yet gets one. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Busy`], and what SQLite says.
    pub fn log_proof(&self, request: &ProofRequest) -> Result<Option<LogProof>, StoreError> {
        let mut found = log::prove(&self.reader(), request)?;
        if let Found::NeedsHead(_) = found {
            self.sign_head()?;
            found = log::prove(&self.reader(), request)?;
        }
        match found {
            Found::Proof(proof) => Ok(Some(*proof)),
            Found::NoSuchSize => Ok(None),
            Found::NeedsHead(size) => Err(StoreError::Log(format!("no head of {size} entries could be signed"))),
        }
    }

    /// The path from one size of the log to another; `None` where it is not that large. Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn log_consistency(&self, from: u64, to: u64) -> Result<Option<Vec<Digest>>, StoreError> {
        log::consistency(&self.reader(), from, to)
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many entries the log's newest head covers, without a look at the disk.
    pub fn head_size(&self) -> u64 {
        self.writer.head_size()
    }

    /// Whether the last transaction was written.
    pub fn is_writable(&self) -> bool {
        self.writer.is_healthy()
    }

    /// How a job ended; `None` where it has not, or there is none. Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn job(&self, job: &JobId) -> Result<Option<Stored>, StoreError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached("SELECT status, reason, receipt FROM jobs WHERE job = ?1")?;
        let row = query
            .query_row([job.as_bytes()], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Option<String>>(1)?, row.get::<_, Option<String>>(2)?))
            })
            .optional()?;
        match row {
            None => Ok(None),
            Some((writer::DONE, _, Some(receipt))) => Ok(Some(Stored::Done(receipt))),
            Some((writer::FAILED, Some(reason), _)) => Ok(Some(Stored::Failed(reason))),
            Some(_) => Err(StoreError::Value("job status")),
        }
    }

    /// When a job ended; `None` where it has not. Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn ended(&self, job: &JobId) -> Result<Option<Millis>, StoreError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached("SELECT changed_ms FROM jobs WHERE job = ?1")?;
        let at: Option<i64> = query.query_row([job.as_bytes()], |row| row.get(0)).optional()?;
        Ok(at.map(|at| Millis(at as u64)))
    }

    /// What is kept of a run of a generation, by the digest of its receipt; `None` where nothing is, or no more. Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn run(&self, job: &JobId, receipt: &Digest) -> Result<Option<KeptRun>, StoreError> {
        runs::get(&self.reader(), job, receipt)
    }

    /// What to ask a worker to cosign; `None` where it has cosigned the newest head. Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn next_cosign(&self, worker: &NodeId) -> Result<Option<Cosign>, StoreError> {
        cosignatures::next(&self.reader(), worker)
    }

    /// The head of the log with this digest, if one was signed. Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn head_of_digest(&self, digest: &Digest) -> Result<Option<SignedHead>, StoreError> {
        log::head_of_digest(&self.reader(), digest)
    }

    /// A dispute and its transcript; `None` where there is none. Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn dispute(&self, dispute: &DisputeId) -> Result<Option<(DisputeRow, Vec<SignedEntry>)>, StoreError> {
        let reader = self.reader();
        let view = reader.unchecked_transaction()?;
        let Some(row) = disputes::get(&view, dispute)? else {
            return Ok(None);
        };
        let entries = disputes::entries(&view, dispute)?;
        Ok(Some((row, entries)))
    }

    /// What a dispute was opened on; `None` where there is no such dispute. Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn dispute_terms(&self, dispute: &DisputeId) -> Result<Option<Terms>, StoreError> {
        disputes::terms(&self.reader(), dispute)
    }

    /// What the disputes about a job were opened on. Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn terms_of_job(&self, job: &JobId) -> Result<Vec<Terms>, StoreError> {
        disputes::terms_of_job(&self.reader(), job)
    }

    /// The newest disputes before a number, newest first, each with the first entry of its transcript and the last.
    /// Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn disputes(&self, before: i64, most: usize) -> Result<Vec<(DisputeRow, Vec<SignedEntry>)>, StoreError> {
        disputes::list(&self.reader(), before, most)
    }

    /// The manifest of a model that was served at some time. Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn manifest(&self, model: &ModelId) -> Result<Option<Vec<u8>>, StoreError> {
        disputes::manifest(&self.reader(), model)
    }

    /// The postings of the ledger from one index, counted from 0, to before another. Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn postings(&self, first: u64, end: u64) -> Result<Vec<Posting>, StoreError> {
        ledger::range(&self.reader(), first, end)
    }

    /// What a token opens of a job; `None` where it opens nothing, or there is no such job. Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn access(&self, job: &JobId, digest: &AccessDigest) -> Result<Option<Access>, StoreError> {
        access::get(&self.reader(), job, digest)
    }
}

/// Shared, so that the engine and the HTTP handlers have the same one.
pub type SharedStore = Arc<Store>;

fn io(action: &'static str, path: &Path, error: std::io::Error) -> StoreError {
    StoreError::Io { action, path: path.to_path_buf(), error }
}

/// Makes a store's directory, durably: what is written into it is flushed with it, but its own name is not.
///
/// # Errors
/// [`StoreError::Io`].
pub fn create(dir: &Path) -> Result<(), StoreError> {
    if dir.is_dir() { Ok(()) } else { create_new(dir).map_err(|source| io("create", dir, source)) }
}

fn create_new(dir: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)?;
    #[cfg(unix)]
    if let Some(parent) = std::path::absolute(dir)?.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Makes the store's file, for its owner alone, or sees to it that it is one: it holds the secret of audit draws and
/// what clients asked. SQLite gives its other files the same mode.
fn make_private(path: &Path) -> Result<(), StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(|source| io("open", path, source))?;
    #[cfg(unix)]
    {
        let metadata = file.metadata().map_err(|source| io("look at", path, source))?;
        let mode = std::os::unix::fs::MetadataExt::mode(&metadata) & 0o777;
        if mode & 0o077 != 0 {
            return Err(StoreError::Mode { path: path.to_path_buf(), mode });
        }
    }
    Ok(())
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|source| io("open", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(dir.to_path_buf())),
        Err(TryLockError::Error(source)) => Err(io("lock", &path, source)),
    }
}

fn restore(connection: &Connection) -> Result<Restored, StoreError> {
    let records = records(connection)?;
    let (ledger, books) = ledger::fold(connection, &unfinished(&records))?;
    Ok(Restored {
        records,
        last_epoch: LeaseEpoch(meta(connection, LAST_EPOCH)?.map_or(0, u64::from_le_bytes)),
        clock: Millis(meta(connection, CLOCK)?.map_or(0, u64::from_le_bytes)),
        alive: Millis(meta(connection, ALIVE)?.map_or(0, u64::from_le_bytes)),
        draw_secret: secret(connection, DRAW_SECRET)?,
        draws: meta(connection, DRAWS)?.map_or(0, u64::from_le_bytes),
        anchored: meta(connection, ANCHORED)?.map_or(0, u64::from_le_bytes),
        ledger,
        books,
        disputes: disputes::open(connection)?,
        judged: disputes::judged(connection)?,
        models: models(connection)?,
    })
}

/// The jobs that have not ended.
fn unfinished(records: &[Record]) -> BTreeSet<JobId> {
    records.iter().filter(|record| matches!(record, Record::Submitted(_))).map(Record::job).collect()
}

fn records(connection: &Connection) -> Result<Vec<Record>, StoreError> {
    let mut query = connection.prepare("SELECT seq, bytes FROM records ORDER BY seq")?;
    let rows = query.query_map((), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
    rows.map(|row| {
        let (seq, bytes) = row?;
        let record = from_bytes(&bytes).map_err(|error| StoreError::Record { seq, error })?;
        runs::whole(connection, record)
    })
    .collect()
}

fn models(connection: &Connection) -> Result<Vec<(ModelId, PathBuf)>, StoreError> {
    let mut query = connection.prepare("SELECT id, path FROM models ORDER BY added_ms, id")?;
    let rows = query.query_map((), |row| Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, String>(1)?)))?;
    rows.map(|row| row.map(|(id, path)| (ModelId::from_bytes(id), path.into())).map_err(StoreError::from)).collect()
}

fn meta<const N: usize>(connection: &Connection, key: &'static str) -> Result<Option<[u8; N]>, StoreError> {
    let value: Option<Vec<u8>> =
        connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()?;
    value.map(|bytes| bytes.try_into().map_err(|_| StoreError::Value(key))).transpose()
}

/// Opens the log, and signs what a crash left unsigned.
fn open_log(connection: &mut Connection, keys: &Keypair) -> Result<Log, StoreError> {
    let transaction = connection.transaction()?;
    let mut log = Log::open(&transaction, keys)?;
    log.sign(&transaction, true)?;
    transaction.commit()?;
    Ok(log)
}

/// A secret of the coordinator: drawn once, at the first start.
fn secret(connection: &Connection, key: &'static str) -> Result<[u8; SECRET_BYTES], StoreError> {
    if let Some(secret) = meta(connection, key)? {
        return Ok(secret);
    }
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret).map_err(StoreError::Random)?;
    connection.execute("INSERT INTO meta VALUES (?1, ?2)", (key, &secret[..]))?;
    Ok(secret)
}
