//! Runs with several commitment points, as long as they can be challenged.

use lockstep_protocol::canonical::{Canonical, DecodeError, Reader, Writer, from_bytes, to_bytes};
use lockstep_protocol::ids::{Digest, JobId, Millis, Root};
use lockstep_protocol::limits::{CHALLENGE_WINDOW_MS, MAX_OUTPUT_VALUES, MAX_RUN_ROOTS};
use lockstep_protocol::machine::Record;
use lockstep_protocol::receipt::FinishReason;
use rusqlite::{Connection, OptionalExtension};

use super::StoreError;

/// What a challenge of a run needs and its receipt does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptRun {
    /// Its output.
    pub output: Vec<i32>,
    /// Its roots at all points but the last, in stream order.
    pub before: Vec<Root>,
}

impl Canonical for KeptRun {
    const MIN_BYTES: usize = 4 + 4;
    fn encode(&self, writer: &mut Writer) {
        writer.seq(&self.output);
        writer.seq(&self.before);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            output: reader.seq("output values", MAX_OUTPUT_VALUES)?,
            before: reader.seq("roots of a run", MAX_RUN_ROOTS)?,
        })
    }
}

/// Keeps what a record says of a run, where it is one of a generation.
pub(super) fn put(connection: &Connection, record: &Record) -> Result<(), StoreError> {
    let Record::Ran { job, result, before, .. } = record else {
        return Ok(());
    };
    if result.receipt.receipt.finish == FinishReason::Complete {
        // An embedding: its receipt says everything.
        return Ok(());
    }
    let kept = KeptRun { output: result.output.clone(), before: before.clone() };
    let digest = result.receipt.receipt.digest();
    connection.prepare_cached("INSERT OR REPLACE INTO runs (job, receipt, bytes) VALUES (?1, ?2, ?3)")?.execute((
        job.as_bytes(),
        digest.as_bytes(),
        to_bytes(&kept),
    ))?;
    Ok(())
}

/// The bytes of a record as they are kept until its job ends: without the roots that [`put`] has kept already.
pub(super) fn record_bytes(record: &Record) -> Vec<u8> {
    match record {
        Record::Ran { job, result, before, salt, operator } if !before.is_empty() => {
            let (result, operator) = (result.clone(), operator.clone());
            to_bytes(&Record::Ran { job: *job, result, before: Vec::new(), salt: *salt, operator })
        }
        other => to_bytes(other),
    }
}

/// A record with the roots that [`record_bytes`] left out.
pub(super) fn whole(connection: &Connection, mut record: Record) -> Result<Record, StoreError> {
    if let Record::Ran { job, result, before, .. } = &mut record
        && before.is_empty()
        && let Some(kept) = get(connection, job, &result.receipt.receipt.digest())?
    {
        *before = kept.before;
    }
    Ok(record)
}

/// A job has ended well: its runs are kept until nobody can challenge them any more, and those of others go whose time is
/// over. A window that is kept open by challenges is at most twice as long.
pub(super) fn ended(connection: &Connection, job: &JobId, at: Millis) -> Result<(), StoreError> {
    let time = |at: u64| i64::try_from(at).unwrap_or(i64::MAX);
    connection
        .prepare_cached("INSERT OR REPLACE INTO run_ends SELECT DISTINCT job, ?2 FROM runs WHERE job = ?1")?
        .execute((job.as_bytes(), time(at.0)))?;
    let over = [time(at.0.saturating_sub(2 * CHALLENGE_WINDOW_MS))];
    connection
        .prepare_cached("DELETE FROM runs WHERE job IN (SELECT job FROM run_ends WHERE ended_ms < ?1)")?
        .execute(over)?;
    connection.prepare_cached("DELETE FROM run_ends WHERE ended_ms < ?1")?.execute(over)?;
    Ok(())
}

/// A job has failed: nobody can challenge its runs.
pub(super) fn forget(connection: &Connection, job: &JobId) -> Result<(), StoreError> {
    connection.prepare_cached("DELETE FROM runs WHERE job = ?1")?.execute([job.as_bytes()])?;
    Ok(())
}

/// What is kept of a run.
pub(super) fn get(connection: &Connection, job: &JobId, receipt: &Digest) -> Result<Option<KeptRun>, StoreError> {
    let mut query = connection.prepare_cached("SELECT bytes FROM runs WHERE job = ?1 AND receipt = ?2")?;
    let bytes: Option<Vec<u8>> = query.query_row((job.as_bytes(), receipt.as_bytes()), |row| row.get(0)).optional()?;
    bytes.map(|bytes| from_bytes(&bytes).map_err(|_| StoreError::Value("runs"))).transpose()
}
