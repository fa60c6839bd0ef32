//! Which tokens open which jobs to clients. Only hashes are kept.

use std::fmt;

use lockstep_protocol::ids::JobId;
use rusqlite::{Connection, OptionalExtension};

use super::StoreError;

/// The BLAKE3 of an access token. Two are compared in constant time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AccessDigest(blake3::Hash);

impl AccessDigest {
    /// Of a token as clients write it.
    pub fn of(token: &str) -> Self {
        Self(blake3::hash(token.as_bytes()))
    }
}

impl fmt::Debug for AccessDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessDigest")
    }
}

/// What a token opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The job from its submission on: whoever has it submitted the job first.
    Owner,
    /// The job once it has ended: whoever has it only submitted the same again, as a worker could.
    WhenEnded,
}

pub(super) fn put(
    connection: &Connection,
    job: &JobId,
    digest: &AccessDigest,
    access: Access,
) -> Result<(), StoreError> {
    connection.prepare_cached("INSERT OR IGNORE INTO access VALUES (?1, ?2, ?3)")?.execute((
        job.as_bytes(),
        digest.0.as_bytes(),
        access == Access::Owner,
    ))?;
    Ok(())
}

/// Found by the hash, so that what the search's time says is about the hash of a token and never about a token.
pub(super) fn get(connection: &Connection, job: &JobId, digest: &AccessDigest) -> Result<Option<Access>, StoreError> {
    let mut query = connection.prepare_cached("SELECT digest, owner FROM access WHERE job = ?1 AND digest = ?2")?;
    let row = query
        .query_row((job.as_bytes(), digest.0.as_bytes()), |row| {
            Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, bool>(1)?))
        })
        .optional()?;
    let found = row.filter(|(found, _)| blake3::Hash::from_bytes(*found) == digest.0);
    Ok(found.map(|(_, owner)| if owner { Access::Owner } else { Access::WhenEnded }))
}
