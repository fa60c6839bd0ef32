//! Disputes in the store: the signed entries of each transcript, appended and never changed.

use lockstep_protocol::canonical::{from_bytes, to_bytes};
use lockstep_protocol::dispute::{Side, SignedEntry, Terms, Verdict, What};
use lockstep_protocol::ids::{DisputeId, JobId, Millis, ModelId, NodeId};
use lockstep_protocol::limits::MAX_DISPUTES;
use lockstep_protocol::log::Entry;
use rusqlite::{Connection, OptionalExtension, Row};

use super::StoreError;

/// One more entry of a transcript. The first one opens the dispute, a verdict ends it.
#[derive(Clone, Debug)]
pub struct DisputeEntry {
    /// About which job.
    pub job: JobId,
    /// On which model.
    pub model: ModelId,
    /// Whether it may hold tokens of the job.
    pub shows_tokens: bool,
    /// The entry.
    pub entry: SignedEntry,
}

impl DisputeEntry {
    /// What the transparency log says of it. That a dispute was opened, the machine's record says there.
    pub(super) fn logged(&self) -> Option<Entry> {
        let (job, entry) = (self.job, &self.entry.entry);
        let (dispute, digest) = (entry.dispute, entry.digest());
        match entry.what {
            What::Opened(_) => None,
            What::Verdict(_) => Some(Entry::Judged { job, dispute, verdict: digest }),
            _ => Some(Entry::Transcript { job, dispute, index: entry.index.into(), digest }),
        }
    }
}

/// A dispute without its transcript.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisputeRow {
    /// Its place among all disputes, from 1.
    pub number: i64,
    /// Which.
    pub dispute: DisputeId,
    /// About which job.
    pub job: JobId,
    /// On which model.
    pub model: ModelId,
    /// When it ended; `None` while it has no verdict.
    pub ended: Option<Millis>,
    /// Whether its transcript may hold tokens of the job.
    pub shows_tokens: bool,
}

/// The columns of a [`DisputeRow`], in order.
const COLUMNS: &str = "seq, dispute, job, model, ended_ms, shows_tokens";

fn read(row: &Row<'_>) -> rusqlite::Result<DisputeRow> {
    Ok(DisputeRow {
        number: row.get(0)?,
        dispute: DisputeId::from_bytes(row.get(1)?),
        job: JobId::from_bytes(row.get(2)?),
        model: ModelId::from_bytes(row.get(3)?),
        ended: row.get::<_, Option<i64>>(4)?.map(|at| Millis(at as u64)),
        shows_tokens: row.get(5)?,
    })
}

pub(super) fn put(connection: &Connection, written: &DisputeEntry) -> Result<(), StoreError> {
    let DisputeEntry { job, model, shows_tokens, entry: signed } = written;
    let (dispute, number) = (signed.entry.dispute, i64::from(signed.entry.index));
    let ends = matches!(signed.entry.what, What::Verdict(_));
    if matches!(signed.entry.what, What::Opened(_)) {
        connection
            .prepare_cached("INSERT INTO disputes (dispute, job, model, shows_tokens) VALUES (?1, ?2, ?3, 0)")?
            .execute((dispute.as_bytes(), job.as_bytes(), model.as_bytes()))?;
    }
    connection
        .prepare_cached("INSERT INTO dispute_entries (dispute, number, bytes) VALUES (?1, ?2, ?3)")?
        .execute((dispute.as_bytes(), number, to_bytes(signed)))?;
    if *shows_tokens || ends {
        let at = ends.then_some(signed.entry.at.0 as i64);
        connection
            .prepare_cached(
                "UPDATE disputes SET ended_ms = coalesce(ended_ms, ?2), shows_tokens = max(shows_tokens, ?3)
                 WHERE dispute = ?1",
            )?
            .execute((dispute.as_bytes(), at, shows_tokens))?;
    }
    Ok(())
}

/// A dispute without a verdict, as it is gone on with after a start.
#[derive(Clone, Debug)]
pub struct OpenDispute {
    /// Which.
    pub row: DisputeRow,
    /// Its transcript so far.
    pub entries: Vec<SignedEntry>,
    /// The manifest of its model.
    pub manifest: Vec<u8>,
}

/// The disputes that have no verdict, in the order in which they were opened.
pub(super) fn open(connection: &Connection) -> Result<Vec<OpenDispute>, StoreError> {
    let mut query =
        connection.prepare(&format!("SELECT {COLUMNS} FROM disputes WHERE ended_ms IS NULL ORDER BY seq"))?;
    let rows: Vec<_> = query.query_map((), read)?.collect::<rusqlite::Result<_>>()?;
    let open = |row: DisputeRow| {
        let entries = entries(connection, &row.dispute)?;
        let manifest = manifest(connection, &row.model)?.ok_or(StoreError::Value("manifest of a disputed model"))?;
        Ok(OpenDispute { row, entries, manifest })
    };
    rows.into_iter().map(open).collect()
}

/// One dispute.
pub(super) fn get(connection: &Connection, dispute: &DisputeId) -> Result<Option<DisputeRow>, StoreError> {
    let mut query = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM disputes WHERE dispute = ?1"))?;
    Ok(query.query_row([dispute.as_bytes()], read).optional()?)
}

/// A dispute that has ended, as its sides are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgedDispute {
    /// Which.
    pub dispute: DisputeId,
    /// The keys of claimant and challenger.
    pub sides: [NodeId; 2],
    /// How it ended.
    pub verdict: Verdict,
}

/// Of the newest disputes those that have ended, oldest first.
pub(super) fn judged(connection: &Connection) -> Result<Vec<JudgedDispute>, StoreError> {
    let found = list(connection, i64::MAX, MAX_DISPUTES)?;
    let judged = found.iter().rev().filter_map(|(row, entries)| {
        match [&entries.first()?.entry.what, &entries.last()?.entry.what] {
            [What::Opened(terms), What::Verdict(verdict)] => {
                let sides = Side::BOTH.map(|side| terms.key(side));
                Some(JudgedDispute { dispute: row.dispute, sides, verdict: *verdict })
            }
            _ => None,
        }
    });
    Ok(judged.collect())
}

/// What a dispute was opened on; `None` where there is no such dispute.
pub(super) fn terms(connection: &Connection, dispute: &DisputeId) -> Result<Option<Terms>, StoreError> {
    let mut query = connection.prepare_cached("SELECT bytes FROM dispute_entries WHERE dispute = ?1 AND number = 0")?;
    let first: Option<Vec<u8>> = query.query_row([dispute.as_bytes()], |row| row.get(0)).optional()?;
    match first.map(|bytes| decode(&bytes)).transpose()?.map(|signed| signed.entry.what) {
        None => Ok(None),
        Some(What::Opened(terms)) => Ok(Some(*terms)),
        Some(_) => Err(StoreError::Value("transcript of a dispute")),
    }
}

/// What the disputes about a job were opened on.
pub(super) fn terms_of_job(connection: &Connection, job: &JobId) -> Result<Vec<Terms>, StoreError> {
    let mut query = connection.prepare_cached("SELECT dispute FROM disputes WHERE job = ?1 ORDER BY seq")?;
    let rows = query.query_map([job.as_bytes()], |row| row.get(0))?;
    let ids: Vec<_> = rows.map(|id| id.map(DisputeId::from_bytes)).collect::<rusqlite::Result<_>>()?;
    ids.iter().filter_map(|id| terms(connection, id).transpose()).collect()
}

/// The newest disputes before a number, newest first, each with the first entry of its transcript and the last.
pub(super) fn list(
    connection: &Connection,
    before: i64,
    most: usize,
) -> Result<Vec<(DisputeRow, Vec<SignedEntry>)>, StoreError> {
    let mut query = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM disputes WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2"))?;
    let rows: Vec<_> = query.query_map((before, most as i64), read)?.collect::<rusqlite::Result<_>>()?;
    let mut ends = connection.prepare_cached(
        "SELECT bytes FROM dispute_entries WHERE dispute = ?1 AND number IN
         (0, (SELECT max(number) FROM dispute_entries WHERE dispute = ?1)) ORDER BY number",
    )?;
    let with_ends = |row: DisputeRow| {
        let found = ends.query_map([row.dispute.as_bytes()], |row| row.get::<_, Vec<u8>>(0))?;
        let entries = found.map(|bytes| decode(&bytes?)).collect::<Result<_, StoreError>>()?;
        Ok((row, entries))
    };
    rows.into_iter().map(with_ends).collect()
}

/// A transcript.
pub(super) fn entries(connection: &Connection, dispute: &DisputeId) -> Result<Vec<SignedEntry>, StoreError> {
    let mut query =
        connection.prepare_cached("SELECT bytes FROM dispute_entries WHERE dispute = ?1 ORDER BY number")?;
    let rows = query.query_map([dispute.as_bytes()], |row| row.get::<_, Vec<u8>>(0))?;
    rows.map(|bytes| decode(&bytes?)).collect()
}

fn decode(bytes: &[u8]) -> Result<SignedEntry, StoreError> {
    from_bytes(bytes).map_err(|_| StoreError::Value("transcript of a dispute"))
}

/// The manifest of a model that was served at some time.
pub(super) fn manifest(connection: &Connection, model: &ModelId) -> Result<Option<Vec<u8>>, StoreError> {
    let mut query = connection.prepare_cached("SELECT manifest FROM models WHERE id = ?1")?;
    Ok(query.query_row([model.as_bytes()], |row| row.get(0)).optional()?)
}
