//! The transparency log in the store: appended by the writer in the transaction of what it is about.
//!
//! The leaves' blinds are not stored: they follow from the log's secret. All nodes of full subtrees are, about two for
//! each entry, so that any path of any size is made from a few of them.

use std::collections::BTreeSet;
use std::time::Duration;

use lockstep_protocol::canonical::{from_bytes, to_bytes};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Digest, JobId};
use lockstep_protocol::limits::{LOG_HEAD_MS, MAX_LOG_ENTRIES};
use lockstep_protocol::log::{
    Blind, Consistency, Entry, LOG_PROOF_FORMAT, LeafProof, LogHead, LogProof, SignedHead, Subtree, Tree,
    consistency_path, inclusion_path, leaf_hash,
};
use lockstep_protocol::machine::DrawSecret;
use rusqlite::{Connection, OptionalExtension};

use super::{SECRET_BYTES, StoreError};
use crate::clock::wall;

/// The key in `meta` under which the secret of the blinds is.
const LOG_SECRET: &str = "log secret";

/// The writer's end of the log.
#[derive(Clone, Debug)]
pub(super) struct Log {
    keys: Keypair,
    secret: [u8; SECRET_BYTES],
    tree: Tree,
    /// The newest head.
    head: SignedHead,
}

impl Log {
    /// Reads the stored log and hashes all of it again. Whatever a crash leaves behind passes; a changed store does not.
    ///
    /// # Errors
    /// [`StoreError::Log`] where entries, nodes and the last signed head don't fit together, and what SQLite says.
    pub fn open(connection: &Connection, keys: &Keypair) -> Result<Self, StoreError> {
        let secret = super::secret(connection, LOG_SECRET)?;
        let head = newest_head(connection)?;
        let tree = hash_again(connection, &secret, head.as_ref())?;
        if let Some(head) = head {
            head.check().map_err(|error| StoreError::Log(error.to_string()))?;
            if head.head.log != keys.id() {
                return Err(StoreError::Log(format!("it is signed by {}, not by this key", head.head.log)));
            }
            return Ok(Self { keys: keys.clone(), secret, tree, head });
        }
        if tree.size() > 0 {
            return Err(StoreError::Log("it has entries, but no head was ever signed".to_owned()));
        }
        let head = LogHead::of(&tree, keys.id(), wall()).sign(keys);
        put_head(connection, &head)?;
        Ok(Self { keys: keys.clone(), secret, tree, head })
    }

    /// How many entries the newest head covers.
    pub fn head_size(&self) -> u64 {
        self.head.head.size
    }

    /// Appends an entry.
    pub fn append(&mut self, connection: &Connection, entry: &Entry) -> Result<(), StoreError> {
        let index = self.tree.size();
        connection.prepare_cached("INSERT INTO log (seq, job, entry) VALUES (?1, ?2, ?3)")?.execute((
            index as i64,
            entry.job().map(|job| *job.as_bytes()),
            to_bytes(entry),
        ))?;
        if let Entry::Anchored { chain, .. } = entry {
            connection.prepare_cached("INSERT INTO anchors VALUES (?1, ?2)")?.execute((chain, index as i64))?;
        }
        let mut insert = connection.prepare_cached("INSERT INTO log_nodes VALUES (?1, ?2, ?3)")?;
        let leaf = leaf_hash(&Blind::derive(&self.secret, index), entry);
        self.tree.append(leaf, |at, hash| {
            insert.execute((at.level, at.index as i64, hash.as_bytes()))?;
            Ok(())
        })
    }

    /// Signs a head where the log has grown since the last one, at once or when that is old enough.
    pub fn sign(&mut self, connection: &Connection, at_once: bool) -> Result<(), StoreError> {
        let now = wall().max(self.head.head.time);
        let due = at_once || now.since(self.head.head.time) >= LOG_HEAD_MS;
        if due && self.tree.size() > self.head.head.size {
            self.head = LogHead::of(&self.tree, self.keys.id(), now).sign(&self.keys);
            put_head(connection, &self.head)?;
        }
        Ok(())
    }
}

/// The tree over all stored entries. Every leaf and node must be the stored one, and the tree as large as the head must
/// have the head's root.
fn hash_again(
    connection: &Connection,
    secret: &[u8; SECRET_BYTES],
    head: Option<&SignedHead>,
) -> Result<Tree, StoreError> {
    let damaged = |what: String| StoreError::Log(what);
    let mut entries = connection.prepare("SELECT seq, entry FROM log ORDER BY seq")?;
    let mut rows = entries.query(())?;
    let mut tree = Tree::new();
    let mut nodes = 0_u64;
    let mut root = tree.root();
    while let Some(row) = rows.next()? {
        let (seq, bytes): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
        if u64::try_from(seq) != Ok(tree.size()) {
            return Err(damaged(format!("entry {} is missing", tree.size())));
        }
        let entry: Entry = from_bytes(&bytes).map_err(|error| damaged(format!("entry {seq}: {error}")))?;
        let leaf = leaf_hash(&Blind::derive(secret, tree.size()), &entry);
        tree.append(leaf, |at, hash| {
            nodes += 1;
            if node(connection, at)? == hash { Ok(()) } else { Err(damaged(format!("entry {seq} is another one"))) }
        })?;
        if head.is_some_and(|head| head.head.size == tree.size()) {
            root = tree.root();
        }
    }
    let stored: i64 = connection.query_row("SELECT count(*) FROM log_nodes", (), |row| row.get(0))?;
    if u64::try_from(stored) != Ok(nodes) {
        return Err(damaged("it has nodes without entries".to_owned()));
    }
    match head.map(|head| &head.head) {
        Some(head) if head.size > tree.size() => {
            Err(damaged(format!("{} entries were signed, {} are there", head.size, tree.size())))
        }
        Some(head) if head.root != root => {
            Err(damaged(format!("its {} entries do not have the root that was signed", head.size)))
        }
        _ => Ok(tree),
    }
}

pub(super) fn node(connection: &Connection, at: Subtree) -> Result<Digest, StoreError> {
    let mut query = connection.prepare_cached("SELECT hash FROM log_nodes WHERE level = ?1 AND seq = ?2")?;
    let hash = query.query_row((at.level, at.index as i64), |row| row.get(0)).optional()?;
    hash.map(Digest::from_bytes)
        .ok_or_else(|| StoreError::Log(format!("node {} of level {} is missing", at.index, at.level)))
}

fn put_head(connection: &Connection, head: &SignedHead) -> Result<(), StoreError> {
    connection.prepare_cached("INSERT INTO log_heads (size, head, digest) VALUES (?1, ?2, ?3)")?.execute((
        head.head.size as i64,
        to_bytes(head),
        head.head.digest().as_bytes(),
    ))?;
    Ok(())
}

fn newest_head(connection: &Connection) -> Result<Option<SignedHead>, StoreError> {
    let query = "SELECT head FROM log_heads ORDER BY size DESC LIMIT 1";
    read_head(connection.prepare_cached(query)?.query_row((), |row| row.get(0)).optional()?)
}

/// The head that was signed at a size.
fn head_of(connection: &Connection, size: u64) -> Result<Option<SignedHead>, StoreError> {
    let Ok(size) = i64::try_from(size) else {
        return Ok(None);
    };
    let mut query = connection.prepare_cached("SELECT head FROM log_heads WHERE size = ?1")?;
    read_head(query.query_row([size], |row| row.get(0)).optional()?)
}

/// The head of this digest.
pub(super) fn head_of_digest(connection: &Connection, digest: &Digest) -> Result<Option<SignedHead>, StoreError> {
    let mut query = connection.prepare_cached("SELECT head FROM log_heads WHERE digest = ?1")?;
    read_head(query.query_row([digest.as_bytes()], |row| row.get(0)).optional()?)
}

fn read_head(bytes: Option<Vec<u8>>) -> Result<Option<SignedHead>, StoreError> {
    bytes.map(|bytes| from_bytes(&bytes).map_err(|error| StoreError::Log(format!("a head: {error}")))).transpose()
}

/// What a client asks of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProofRequest {
    /// The job whose entries it wants.
    pub job: JobId,
    /// The size of the head that they are proven against: one that was signed. `None`: the newest.
    pub size: Option<u64>,
    /// The size of an earlier log that this one must be shown to continue.
    pub from: Option<u64>,
}

/// What the store says to that.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// The proof.
    Proof(Box<LogProof>),
    /// No head was signed at that size, or the earlier log is larger.
    NoSuchSize,
    /// Entries are there that no head covers yet: one of this size is needed.
    NeedsHead(u64),
}

/// Makes a proof, from one consistent view of the store.
pub(super) fn prove(connection: &Connection, request: &ProofRequest) -> Result<Found, StoreError> {
    let view = connection.unchecked_transaction()?;
    let head = match request.size {
        Some(size) => head_of(&view, size)?,
        None => newest_head(&view)?,
    };
    let Some(head) = head.filter(|head| request.from.is_none_or(|from| from <= head.head.size)) else {
        return Ok(Found::NoSuchSize);
    };
    let size = head.head.size;
    let mut entries = entries_of(&view, &request.job)?;
    if let Some((last, _)) = entries.last().filter(|(index, _)| request.size.is_none() && *index >= size) {
        return Ok(Found::NeedsHead(last + 1));
    }
    entries.retain(|(index, _)| *index < size);
    add_anchors(&view, &mut entries)?;
    let secret = super::meta(&view, LOG_SECRET)?.ok_or(StoreError::Value(LOG_SECRET))?;
    let leaf = |(index, entry): (u64, Entry)| {
        let path = inclusion_path(index, size, |at| node(&view, at))?;
        Ok(LeafProof { index, blind: Blind::derive(&secret, index), entry, path })
    };
    let entries = entries.into_iter().map(leaf).collect::<Result<_, StoreError>>()?;
    let path = |from| consistency_path(from, size, |at| node(&view, at)).map(|path| Consistency { from, path });
    let consistency = request.from.map(path).transpose()?;
    let cosignatures = super::cosignatures::of_size(&view, size)?;
    let format = LOG_PROOF_FORMAT.to_owned();
    let proof = LogProof { format, job: request.job, head, cosignatures, entries, consistency };
    Ok(Found::Proof(Box::new(proof)))
}

fn decode((seq, bytes): (i64, Vec<u8>)) -> Result<(u64, Entry), StoreError> {
    let entry = from_bytes(&bytes).map_err(|error| StoreError::Log(format!("entry {seq}: {error}")))?;
    Ok((seq as u64, entry))
}

fn entries_of(connection: &Connection, job: &JobId) -> Result<Vec<(u64, Entry)>, StoreError> {
    let mut query = connection.prepare_cached("SELECT seq, entry FROM log WHERE job = ?1 ORDER BY seq LIMIT ?2")?;
    let rows = query.query_map((job.as_bytes(), MAX_LOG_ENTRIES as i64), |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.map(|row| decode(row?)).collect()
}

/// Adds to the entries of a job the anchors of its draws: what these were committed to before they were made.
fn add_anchors(connection: &Connection, entries: &mut Vec<(u64, Entry)>) -> Result<(), StoreError> {
    let of_draw = |(_, entry): &(u64, Entry)| match entry {
        Entry::Drawn { secret, .. } => DrawSecret::chain_of(secret.number),
        _ => None,
    };
    let chains: BTreeSet<u32> = entries.iter().filter_map(of_draw).collect();
    let mut anchor = connection
        .prepare_cached("SELECT seq, entry FROM log WHERE seq = (SELECT seq FROM anchors WHERE chain = ?1)")?;
    for chain in chains {
        entries.push(decode(anchor.query_row([chain], |row| Ok((row.get(0)?, row.get(1)?)))?)?);
    }
    entries.sort_by_key(|(index, _)| *index);
    entries.truncate(MAX_LOG_ENTRIES);
    Ok(())
}

/// The path from one size of the log to a later one; `None` where the log is not that large.
pub(super) fn consistency(connection: &Connection, from: u64, to: u64) -> Result<Option<Vec<Digest>>, StoreError> {
    let view = connection.unchecked_transaction()?;
    if from > to || to > size(&view)? {
        return Ok(None);
    }
    consistency_path(from, to, |at| node(&view, at)).map(Some)
}

/// How many entries are durable.
pub(super) fn size(connection: &Connection) -> Result<u64, StoreError> {
    let last: Option<i64> = connection.query_row("SELECT max(seq) FROM log", (), |row| row.get(0))?;
    Ok(last.map_or(0, |last| last as u64 + 1))
}

/// The newest head, and, where the log has grown since, how long it is until the next one is due.
pub(super) fn head(connection: &Connection) -> Result<(SignedHead, Option<Duration>), StoreError> {
    // The head first: an entry that comes in between only makes the next one due.
    let head = newest_head(connection)?.ok_or_else(|| StoreError::Log("no head was ever signed".to_owned()))?;
    let grown = size(connection)? > head.head.size;
    let left = head.head.time.plus(LOG_HEAD_MS).since(wall());
    // A clock that was set back makes nobody wait for longer.
    Ok((head, grown.then(|| Duration::from_millis(left.min(LOG_HEAD_MS)))))
}
