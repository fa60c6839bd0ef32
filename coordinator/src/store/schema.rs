//! The tables, and the steps from one version of them to the next.

use rusqlite::{Connection, Transaction};

use super::StoreError;

/// Marks the file as a coordinator's store ("LKST").
const APPLICATION_ID: i32 = 0x4c4b_5354;

/// One step each, in order. A step that was released is never changed; a new one is appended.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    -- Records of unfinished jobs, in the order in which the machine made them. Without a job: kept for ever.
    CREATE TABLE records (seq INTEGER PRIMARY KEY, job BLOB, bytes BLOB NOT NULL);
    CREATE INDEX records_by_job ON records (job);
    -- What clients may have of a job: its receipt so far, or how it ended.
    CREATE TABLE jobs (
        job BLOB PRIMARY KEY,
        status INTEGER NOT NULL,
        reason TEXT,
        receipt TEXT,
        changed_ms INTEGER NOT NULL
    );
    CREATE TABLE models (id BLOB PRIMARY KEY, name TEXT NOT NULL, path TEXT NOT NULL, added_ms INTEGER NOT NULL);
",
    "
    -- Hashes of the tokens that open a job to clients; with `owner`, before it has ended too.
    CREATE TABLE access (
        job BLOB NOT NULL,
        digest BLOB NOT NULL,
        owner INTEGER NOT NULL,
        PRIMARY KEY (job, digest)
    ) WITHOUT ROWID;
",
    "
    -- The transparency log: entries in order from 0, and the hashes of all full subtrees (level 0: the leaves).
    CREATE TABLE log (seq INTEGER PRIMARY KEY, job BLOB NOT NULL, entry BLOB NOT NULL);
    CREATE INDEX log_by_job ON log (job);
    CREATE TABLE log_nodes (level INTEGER, seq INTEGER, hash BLOB NOT NULL, PRIMARY KEY (level, seq)) WITHOUT ROWID;
    -- Every head that was signed.
    CREATE TABLE log_heads (size INTEGER PRIMARY KEY, head BLOB NOT NULL);
",
];

/// The version that this program writes.
pub const SCHEMA_VERSION: usize = MIGRATIONS.len();

/// Brings a store up to this program's version.
///
/// # Errors
/// [`StoreError::NotAStore`], [`StoreError::Newer`], and what SQLite says.
pub fn migrate(connection: &mut Connection, now_ms: u64) -> Result<(), StoreError> {
    let version = check(connection)?;
    let transaction = connection.transaction()?;
    if version == 0 {
        transaction
            .execute_batch("CREATE TABLE migrations (version INTEGER PRIMARY KEY, applied_ms INTEGER NOT NULL);")?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    for (index, step) in MIGRATIONS.iter().enumerate().skip(version) {
        apply(&transaction, index + 1, step, now_ms)?;
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

/// The version of an existing store; 0 for an empty file.
fn check(connection: &Connection) -> Result<usize, StoreError> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let version = number("user_version")?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))?;
    if tables == 0 && version == 0 {
        return Ok(0);
    }
    if number("application_id")? != i64::from(APPLICATION_ID) {
        return Err(StoreError::NotAStore);
    }
    match usize::try_from(version) {
        Ok(version) if (1..=SCHEMA_VERSION).contains(&version) => Ok(version),
        _ => Err(StoreError::Newer { found: version }),
    }
}
