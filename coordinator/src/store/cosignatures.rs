//! The newest cosignature of each worker: that it followed the transparency log to a head.

use lockstep_protocol::canonical::{from_bytes, to_bytes};
use lockstep_protocol::ids::{Digest, NodeId};
use lockstep_protocol::limits::MAX_COSIGNATURES;
use lockstep_protocol::log::{Cosignature, SignedHead, consistency_path};
use rusqlite::{Connection, OptionalExtension};

use super::StoreError;

/// Keeps a cosignature of the head of a size in the place of the worker's last one, unless that is of a larger head.
pub(super) fn put(connection: &Connection, size: u64, cosignature: &Cosignature) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO cosignatures VALUES (?1, ?2, ?3) ON CONFLICT (node) DO UPDATE
             SET size = excluded.size, cosignature = excluded.cosignature WHERE excluded.size >= size",
        )?
        .execute((cosignature.worker.as_bytes(), size as i64, to_bytes(cosignature)))?;
    Ok(())
}

/// What a worker is asked to cosign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cosign {
    /// The newest head.
    pub head: SignedHead,
    /// The size of the last head that the worker cosigned; 0 for none.
    pub from: u64,
    /// From there to the head.
    pub path: Vec<Digest>,
}

/// What to ask a worker next.
pub(super) fn next(connection: &Connection, worker: &NodeId) -> Result<Option<Cosign>, StoreError> {
    let view = connection.unchecked_transaction()?;
    let (head, _) = super::log::head(&view)?;
    let mut query = view.prepare_cached("SELECT size FROM cosignatures WHERE node = ?1")?;
    let last: Option<i64> = query.query_row([worker.as_bytes()], |row| row.get(0)).optional()?;
    let (from, size) = (last.map_or(0, |size| size as u64), head.head.size);
    if last.is_some() && from >= size {
        return Ok(None);
    }
    let path = consistency_path(from, size, |at| super::log::node(&view, at))?;
    Ok(Some(Cosign { head, from, path }))
}

/// The cosignatures of the head of a size, at most [`MAX_COSIGNATURES`].
pub(super) fn of_size(connection: &Connection, size: u64) -> Result<Vec<Cosignature>, StoreError> {
    let mut query =
        connection.prepare_cached("SELECT cosignature FROM cosignatures WHERE size = ?1 ORDER BY node LIMIT ?2")?;
    let rows = query.query_map((size as i64, MAX_COSIGNATURES as i64), |row| row.get::<_, Vec<u8>>(0))?;
    rows.map(|bytes| from_bytes(&bytes?).map_err(|_| StoreError::Value("cosignature"))).collect()
}
