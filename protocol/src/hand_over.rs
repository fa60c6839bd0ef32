//! What a worker of a pipeline signs of what it hands over, and what proves that it signed something wrong. Rows go to the worker
//! that has the next layers; the words that the last one draws go to all before it, since the first one computes on from them. So a
//! pipeline is a ring, and a word is handed over like a row: of one value, after no others.
//!
//! The rows of a pass travel in pieces ([`cuts`]), each with a signature over what it holds, what was before it and what root all
//! rows have after it. Whoever gets a piece takes it only if that is so. Where the signature is good and the rows are the
//! signed ones, but not of the signed root, the piece is a proof that anybody can check from its bytes alone, and so are two signed
//! statements about one piece. Nothing else is one: what came unsigned, or not at all, nobody can show to a third.

use thiserror::Error;

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::domain::Domain;
use crate::identity::{Keypair, Signature};
use crate::ids::{Digest, JobId, LeaseEpoch, NodeId, Root};
use crate::limits::{MAX_POSITIONS, MAX_STAGE_VALUES, MAX_TREE_STATE_BYTES};
use crate::trace::RowTree;

/// Where the rows of a pass over `count` positions, the last `points` of which are commitment points, are cut into
/// hand-overs: after each point, at the end, and wherever a message is full. Each cut is the number of rows before it.
///
/// # Panics
/// When rows have no columns, or there are more points than positions.
pub fn cuts(count: usize, points: usize, columns: usize) -> Vec<usize> {
    let most = (MAX_STAGE_VALUES / columns).max(1);
    let prompt = if points == 0 { count } else { count - points + 1 };
    let full = (1..).map(|number| number * most).take_while(|end| *end < prompt);
    full.chain(prompt..=count).collect()
}

/// What a worker says of some rows that it hands over. It says one such thing of each piece of each pass. A word is the one row of the
/// last layer at its point ([`crate::generation::word_root`]), with no rows before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// Whose lease it is: what is signed for one coordinator proves nothing to another.
    pub coordinator: NodeId,
    /// Of which job.
    pub job: JobId,
    /// Under which lease.
    pub epoch: LeaseEpoch,
    /// The layer whose output they are.
    pub layer: u16,
    /// In which pass of the lease, from 0. Positions that followed a wrong hint are computed again, in a later one.
    pub pass: u32,
    /// How many rows there are before them; of a word its point.
    pub first: u32,
    /// How many there are with them; of a word its point and one.
    pub rows: u32,
    /// The root of those before.
    pub before: Root,
    /// BLAKE3 of their values, each as `i32`, without padding: of what travels.
    pub values: Root,
    /// The root of all rows up to here.
    pub root: Root,
    /// Who computed them.
    pub worker: NodeId,
}

impl HandOver {
    /// What [`HandOver::values`] is of values.
    pub fn values_root(values: &[i32]) -> Root {
        let mut hasher = blake3::Hasher::new();
        let mut bytes = Vec::with_capacity(4 * 1_024);
        for values in values.chunks(1_024) {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            hasher.update(&bytes);
        }
        hasher.finalize().into()
    }

    /// Of which lease it is, and of whose.
    pub fn lease(&self) -> (NodeId, JobId, LeaseEpoch) {
        (self.coordinator, self.job, self.epoch)
    }

    /// Signs it. `keys` must be those of [`HandOver::worker`].
    pub fn sign(self, keys: &Keypair) -> SignedHandOver {
        SignedHandOver { hand_over: self, signature: keys.sign(Domain::HandOver, &to_bytes(&self)) }
    }

    /// Whether it is about the same piece of the same pass.
    pub fn is_about_that_of(&self, other: &Self) -> bool {
        let about = |it: &Self| (it.lease(), it.layer, it.pass, it.rows, it.worker);
        about(self) == about(other)
    }
}

impl Canonical for HandOver {
    const MIN_BYTES: usize = 2 * 32 + 8 + 2 + 3 * 4 + 4 * 32;
    fn encode(&self, writer: &mut Writer) {
        self.coordinator.encode(writer);
        self.job.encode(writer);
        self.epoch.encode(writer);
        writer.u16(self.layer);
        writer.u32(self.pass);
        writer.u32(self.first);
        writer.u32(self.rows);
        self.before.encode(writer);
        self.values.encode(writer);
        self.root.encode(writer);
        self.worker.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            coordinator: reader.value()?,
            job: reader.value()?,
            epoch: reader.value()?,
            layer: reader.u16()?,
            pass: reader.u32()?,
            first: reader.u32()?,
            rows: reader.u32()?,
            before: reader.value()?,
            values: reader.value()?,
            root: reader.value()?,
            worker: reader.value()?,
        })
    }
}

/// A hand-over with its signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignedHandOver {
    /// What was signed.
    pub hand_over: HandOver,
    /// By [`HandOver::worker`], over the canonical hand-over.
    pub signature: Signature,
}

impl SignedHandOver {
    /// Whether the worker signed it.
    pub fn is_signed(&self) -> bool {
        self.hand_over.worker.verify(Domain::HandOver, &to_bytes(&self.hand_over), &self.signature).is_ok()
    }
}

impl Canonical for SignedHandOver {
    const MIN_BYTES: usize = HandOver::MIN_BYTES + 64;
    fn encode(&self, writer: &mut Writer) {
        self.hand_over.encode(writer);
        self.signature.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { hand_over: reader.value()?, signature: reader.value()? })
    }
}

/// Why a proof proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProofError {
    /// A statement is not signed by its worker.
    #[error("it is not signed by whom it is against")]
    Unsigned,
    /// The values are not those that were signed, or no whole rows.
    #[error("the rows are not those that were signed")]
    OtherRows,
    /// The state of the tree does not have the signed root of the rows before.
    #[error("the state of the tree is not that of the rows before")]
    OtherState,
    /// The rows have the root that was signed of them.
    #[error("the rows have the root that was signed of them")]
    Right,
    /// The two statements are one, or not about one hand-over.
    #[error("the statements do not contradict each other")]
    NoContradiction,
}

/// What proves that a worker signed a hand-over that no honest one signs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "whoever keeps or sends one boxes it whole")]
pub enum HandOverProof {
    /// The signed rows do not have the signed root.
    Rows {
        /// What the sender signed.
        signed: SignedHandOver,
        /// The state of the tree before these rows ([`RowTree::state`]).
        state: Vec<u8>,
        /// The values that were signed.
        values: Vec<i32>,
    },
    /// Two different statements about one piece of a pass.
    Contradiction(SignedHandOver, SignedHandOver),
}

impl HandOverProof {
    /// The statement that it is about.
    pub fn hand_over(&self) -> &HandOver {
        match self {
            Self::Rows { signed, .. } | Self::Contradiction(signed, _) => &signed.hand_over,
        }
    }

    /// Whether it proves what it says, whoever brings it.
    ///
    /// # Errors
    /// [`ProofError`] where it does not.
    pub fn check(&self) -> Result<(), ProofError> {
        match self {
            Self::Rows { signed, state, values } => {
                let said = &signed.hand_over;
                let root = root_after(said, state, values)?;
                match (root == said.root, signed.is_signed()) {
                    (_, false) => Err(ProofError::Unsigned),
                    (true, true) => Err(ProofError::Right),
                    (false, true) => Ok(()),
                }
            }
            Self::Contradiction(a, b) => {
                if a.hand_over == b.hand_over || !a.hand_over.is_about_that_of(&b.hand_over) {
                    Err(ProofError::NoContradiction)
                } else if a.is_signed() && b.is_signed() {
                    Ok(())
                } else {
                    Err(ProofError::Unsigned)
                }
            }
        }
    }

    /// What the log has of it.
    pub fn digest(&self) -> Digest {
        Domain::HandOverProof.hash(&to_bytes(self))
    }
}

/// The root of all rows, where state and values are what the sender signed.
fn root_after(said: &HandOver, state: &[u8], values: &[i32]) -> Result<Root, ProofError> {
    let count = said.rows.checked_sub(said.first).filter(|count| *count > 0 && said.rows as usize <= MAX_POSITIONS);
    let count = count.ok_or(ProofError::OtherRows)? as usize;
    let is_whole = !values.is_empty() && values.len().is_multiple_of(count);
    if !is_whole || HandOver::values_root(values) != said.values {
        return Err(ProofError::OtherRows);
    }
    let tree = RowTree::resume(values.len() / count, said.first.into(), state);
    let mut tree = tree.filter(|tree| tree.root() == said.before).ok_or(ProofError::OtherState)?;
    tree.push_rows(values);
    Ok(tree.root())
}

impl Canonical for HandOverProof {
    const MIN_BYTES: usize = 2 + SignedHandOver::MIN_BYTES + 4 + 4;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Rows { signed, state, values } => {
                writer.u16(1);
                signed.encode(writer);
                writer.bytes(state);
                writer.seq(values);
            }
            Self::Contradiction(a, b) => {
                writer.u16(2);
                a.encode(writer);
                b.encode(writer);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Rows {
                signed: reader.value()?,
                state: reader.bytes("state of a tree", MAX_TREE_STATE_BYTES)?.to_vec(),
                values: reader.seq("values of rows", MAX_STAGE_VALUES)?,
            },
            2 => Self::Contradiction(reader.value()?, reader.value()?),
            tag => return Err(DecodeError::InvalidTag { what: "proof about a hand-over", tag: tag.into() }),
        })
    }
}
