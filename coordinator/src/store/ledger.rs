//! The ledger in the store: postings, appended and never changed.

use std::collections::BTreeSet;

use lockstep_protocol::canonical::{from_bytes, to_bytes};
use lockstep_protocol::ids::{JobId, Millis};
use lockstep_protocol::ledger::{Ledger, LedgerError, Posting};
use rusqlite::Connection;

use super::StoreError;
use crate::engine::Books;

pub(super) fn put(connection: &Connection, posting: &Posting, at: Millis) -> Result<(), StoreError> {
    connection
        .prepare_cached("INSERT INTO postings (at_ms, bytes) VALUES (?1, ?2)")?
        .execute((at.0 as i64, to_bytes(posting)))?;
    Ok(())
}

/// The ledger that all postings make, and what of it is public while these jobs have not ended. A ledger that does not
/// add up is not gone on with.
pub(super) fn fold(connection: &Connection, unfinished: &BTreeSet<JobId>) -> Result<(Ledger, Books), StoreError> {
    let mut query = connection.prepare("SELECT seq, bytes FROM postings ORDER BY seq")?;
    let mut rows = query.query(())?;
    let (mut ledger, mut books) = (Ledger::default(), Books::default());
    while let Some(row) = rows.next()? {
        let (seq, bytes): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let broken = |error: String| StoreError::Ledger(format!("posting {seq}: {error}"));
        if u64::try_from(seq - 1) != Ok(ledger.postings()) {
            return Err(broken("one before it is missing".to_owned()));
        }
        let posting: Posting = from_bytes(&bytes).map_err(|error| broken(error.to_string()))?;
        ledger.post(&posting).map_err(|error: LedgerError| broken(error.to_string()))?;
        books.take(posting);
        books.publish(|job| unfinished.contains(job));
    }
    check(&ledger)?;
    Ok((ledger, books))
}

/// Credits are only moved, but for what is issued and what is burned: nothing may come of nothing, or be lost.
fn check(ledger: &Ledger) -> Result<(), StoreError> {
    let totals = ledger.totals();
    let sum = |mut amounts: Box<dyn Iterator<Item = u64> + '_>| amounts.try_fold(0_u64, u64::checked_add);
    let free = sum(Box::new(ledger.accounts().map(|(_, account)| account.free())));
    let held = sum(Box::new(ledger.accounts().flat_map(|(_, account)| account.held().map(|(_, amount)| amount))));
    let kept = totals.free.checked_add(totals.held);
    let fits = free == Some(totals.free)
        && held == Some(totals.held)
        && kept.is_some()
        && kept == totals.issued.checked_sub(totals.burned);
    if fits {
        return Ok(());
    }
    Err(StoreError::Ledger(format!(
        "{} credits were issued and {} burned, but the accounts have {free:?} free and {held:?} held",
        totals.issued, totals.burned
    )))
}

/// The postings from one index, counted from 0, to before another.
pub(super) fn range(connection: &Connection, first: u64, end: u64) -> Result<Vec<Posting>, StoreError> {
    let mut query =
        connection.prepare_cached("SELECT bytes FROM postings WHERE seq > ?1 AND seq <= ?2 ORDER BY seq")?;
    let rows = query.query_map((first as i64, end as i64), |row| row.get::<_, Vec<u8>>(0))?;
    rows.map(|bytes| from_bytes(&bytes?).map_err(|error| StoreError::Ledger(error.to_string()))).collect()
}
