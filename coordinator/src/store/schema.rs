//! The tables, and the steps from one version of them to the next.

use rusqlite::{Connection, Transaction};

use super::StoreError;

/// Marks the file as a coordinator's store ("LKST").
const APPLICATION_ID: i32 = 0x4c4b_5354;

/// The oldest version that this program goes on with: the first step below. Stores from before it have receipts and
/// transcripts that commit to roots in another way, of which nothing can be checked any more.
const FIRST_VERSION: usize = 5;

/// One step each, in order. A step that was released is never changed; a new one is appended.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    -- Records of unfinished jobs, in the order in which the machine made them. Without a job: kept for ever.
    CREATE TABLE records (seq INTEGER PRIMARY KEY, job BLOB, bytes BLOB NOT NULL);
    CREATE INDEX records_by_job ON records (job);
    -- How each job ended, and its receipt.
    CREATE TABLE jobs (
        job BLOB PRIMARY KEY,
        status INTEGER NOT NULL,
        reason TEXT,
        receipt TEXT,
        changed_ms INTEGER NOT NULL
    );
    -- Every model that was ever served. Its manifest is all that a dispute needs of it.
    CREATE TABLE models (
        id BLOB PRIMARY KEY,
        name TEXT NOT NULL,
        path TEXT NOT NULL,
        added_ms INTEGER NOT NULL,
        manifest BLOB NOT NULL
    );
    -- Of runs of generations what a challenge needs and their receipts don't have: the output, and the
    -- roots of all points but the last. Kept until the time for challenges is over.
    CREATE TABLE runs (
        job BLOB NOT NULL,
        receipt BLOB NOT NULL,
        -- When the job ended.
        ended_ms INTEGER,
        bytes BLOB NOT NULL,
        PRIMARY KEY (job, receipt)
    ) WITHOUT ROWID;
    CREATE INDEX runs_by_end ON runs (ended_ms);
    -- Hashes of the tokens that open a job to clients; with `owner`, before it has ended too.
    CREATE TABLE access (
        job BLOB NOT NULL,
        digest BLOB NOT NULL,
        owner INTEGER NOT NULL,
        PRIMARY KEY (job, digest)
    ) WITHOUT ROWID;
    -- The transparency log: entries in order from 0, and the hashes of all full subtrees (level 0: the leaves).
    -- An entry without a job is about all of them.
    CREATE TABLE log (seq INTEGER PRIMARY KEY, job BLOB, entry BLOB NOT NULL);
    CREATE INDEX log_by_job ON log (job);
    CREATE TABLE log_nodes (level INTEGER, seq INTEGER, hash BLOB NOT NULL, PRIMARY KEY (level, seq)) WITHOUT ROWID;
    -- Where in the log the anchors of the chains of secrets for draws are.
    CREATE TABLE anchors (chain INTEGER PRIMARY KEY, seq INTEGER NOT NULL);
    -- Every head that was signed.
    CREATE TABLE log_heads (size INTEGER PRIMARY KEY, head BLOB NOT NULL, digest BLOB NOT NULL);
    CREATE INDEX log_heads_by_digest ON log_heads (digest);
    -- The newest head that each worker countersigned.
    CREATE TABLE cosignatures (
        node BLOB PRIMARY KEY,
        size INTEGER NOT NULL,
        cosignature BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX cosignatures_by_size ON cosignatures (size);
    -- Disputes, in the order in which they were opened, and the signed entries of their transcripts. Kept for ever:
    -- they are the evidence for what was done to the losers.
    CREATE TABLE disputes (
        seq INTEGER PRIMARY KEY,
        dispute BLOB NOT NULL UNIQUE,
        job BLOB NOT NULL,
        model BLOB NOT NULL,
        -- Of the first verdict; until then the dispute is open.
        ended_ms INTEGER,
        -- Whether an opening in it shows tokens of the job.
        shows_tokens INTEGER NOT NULL
    );
    CREATE INDEX disputes_by_job ON disputes (job);
    CREATE TABLE dispute_entries (
        seq INTEGER PRIMARY KEY,
        dispute BLOB NOT NULL,
        number INTEGER NOT NULL,
        bytes BLOB NOT NULL,
        UNIQUE (dispute, number)
    );
    -- The ledger: every posting in order. The accounts are what comes of them.
    CREATE TABLE postings (seq INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, bytes BLOB NOT NULL);
",
    "
    -- The bytes of a run are many: a table that is ordered by its rows reads them to find its place, and one with a
    -- column that changes writes them again.
    ALTER TABLE runs RENAME TO runs_before;
    DROP INDEX runs_by_end;
    CREATE TABLE runs (
        seq INTEGER PRIMARY KEY,
        job BLOB NOT NULL,
        receipt BLOB NOT NULL,
        bytes BLOB NOT NULL,
        UNIQUE (job, receipt)
    );
    -- When the jobs ended of which runs are kept.
    CREATE TABLE run_ends (job BLOB PRIMARY KEY, ended_ms INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX run_ends_by_time ON run_ends (ended_ms);
    INSERT INTO runs (job, receipt, bytes) SELECT job, receipt, bytes FROM runs_before;
    INSERT INTO run_ends SELECT job, max(ended_ms) FROM runs_before WHERE ended_ms IS NOT NULL GROUP BY job;
    DROP TABLE runs_before;
",
];

/// The version that this program writes.
pub const SCHEMA_VERSION: usize = FIRST_VERSION + MIGRATIONS.len() - 1;

/// Brings a store up to this program's version.
///
/// # Errors
/// [`StoreError::NotAStore`], [`StoreError::Older`], [`StoreError::Newer`], and what SQLite says.
pub fn migrate(connection: &mut Connection, now_ms: u64) -> Result<(), StoreError> {
    let version = check(connection)?;
    let transaction = connection.transaction()?;
    if version.is_none() {
        transaction
            .execute_batch("CREATE TABLE migrations (version INTEGER PRIMARY KEY, applied_ms INTEGER NOT NULL);")?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    let applied = version.map_or(0, |version| version + 1 - FIRST_VERSION);
    for (index, step) in MIGRATIONS.iter().enumerate().skip(applied) {
        apply(&transaction, FIRST_VERSION + index, step, now_ms)?;
    }
    transaction.commit()?;
    Ok(())
}

fn apply(transaction: &Transaction<'_>, version: usize, step: &str, now_ms: u64) -> Result<(), StoreError> {
    transaction.execute_batch(step)?;
    transaction.execute("INSERT INTO migrations VALUES (?1, ?2)", (version as i64, now_ms as i64))?;
    transaction.pragma_update(None, "user_version", version as i64)?;
    Ok(())
}

/// The version of an existing store; `None` for an empty file.
fn check(connection: &Connection) -> Result<Option<usize>, StoreError> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let version = number("user_version")?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))?;
    if tables == 0 && version == 0 {
        return Ok(None);
    }
    if number("application_id")? != i64::from(APPLICATION_ID) {
        return Err(StoreError::NotAStore);
    }
    match usize::try_from(version) {
        Ok(version) if (FIRST_VERSION..=SCHEMA_VERSION).contains(&version) => Ok(Some(version)),
        Ok(older) if (1..FIRST_VERSION).contains(&older) => Err(StoreError::Older { found: version }),
        _ => Err(StoreError::Newer { found: version }),
    }
}
