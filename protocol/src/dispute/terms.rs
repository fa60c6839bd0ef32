//! The terms of a dispute: everything from which the game begins. Their hash is its name.

use thiserror::Error;

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::commitment::Geometry;
use crate::dispute::{Claim, ClaimError, Side};
use crate::domain::Domain;
use crate::ids::{DisputeId, JobId, NodeId, Place, Root};
use crate::job::{JobError, JobHeader};

/// Why two claims are no dispute.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TermsError {
    /// The job or its layers are not allowed.
    #[error("{0}")]
    Job(#[from] JobError),
    /// A claim does not check.
    #[error("the claim of the {side}: {error}")]
    Claim {
        /// Whose.
        side: Side,
        /// What is wrong with it.
        error: ClaimError,
    },
    /// Both claims are of one key: nobody plays against himself.
    #[error("both claims are of {0}")]
    OneKey(NodeId),
    /// There is no place at which both have a root and the roots differ.
    #[error("the claims do not differ where both have roots")]
    NoDifference,
    /// The prefix is not the one that follows from the claims.
    #[error("the agreed prefix is not the one that follows from the claims")]
    Prefix,
}

/// Who disputes what, before whom, and in which time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Who referees and signs the transcript.
    pub coordinator: NodeId,
    /// The job.
    pub job: JobHeader,
    /// Transformer layers of the model.
    pub layers: u16,
    /// The run that is challenged.
    pub claimant: Claim,
    /// The run of who challenges it.
    pub challenger: Claim,
    /// The clocks of claimant and challenger, in milliseconds.
    pub budgets_ms: [u64; 2],
    /// So many rows of the disputed layer have a root already, at an earlier point, that both have signed.
    pub prefix: Option<(u32, Root)>,
}

/// Where a dispute begins, as it follows from two claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ground {
    /// The first place at which the claims differ.
    pub place: Place,
    /// What claimant and challenger have there.
    pub roots: [Root; 2],
    /// What both have for the layer below; `None` for layer 1.
    pub input: Option<Root>,
    /// See [`Terms::prefix`].
    pub prefix: Option<(u32, Root)>,
}

impl Ground {
    /// Finds the first difference of two streams of roots.
    pub(super) fn of(geometry: &Geometry, claimant: &[Root], challenger: &[Root]) -> Option<Self> {
        let difference = geometry.first_difference(claimant, challenger)?;
        let place = difference.place;
        let index = geometry.places().position(|at| at == place)?;
        let input = (place.layer > 1).then(|| claimant[index - 1]);
        let earlier = index.checked_sub(usize::from(geometry.streamed_layers()));
        let prefix = earlier.and_then(|earlier| {
            let point = geometry.place(earlier)?.point;
            // The rows of an output by sequence are others at each point.
            (place.layer <= geometry.layers()).then(|| (point + 1, claimant[earlier]))
        });
        Some(Self { place, roots: [difference.a?, difference.b?], input, prefix })
    }
}

impl Terms {
    /// The terms of a dispute between two runs of one job on a model with so many transformer layers. Everything is
    /// checked.
    ///
    /// # Errors
    /// [`TermsError`], but for [`TermsError::Prefix`].
    pub fn between(
        coordinator: NodeId,
        job: JobHeader,
        layers: u16,
        claimant: Claim,
        challenger: Claim,
        budgets_ms: [u64; 2],
    ) -> Result<Self, TermsError> {
        let mut terms = Self { coordinator, job, layers, claimant, challenger, budgets_ms, prefix: None };
        terms.prefix = terms.checked_ground()?.prefix;
        Ok(terms)
    }

    /// The name of the dispute: of everything in the terms.
    pub fn id(&self) -> DisputeId {
        DisputeId::from_bytes(*Domain::Dispute.hash(&to_bytes(self)).as_bytes())
    }

    /// The job's id.
    pub fn job_id(&self) -> JobId {
        self.job.id()
    }

    /// A side's claim.
    pub fn claim(&self, side: Side) -> &Claim {
        match side {
            Side::Claimant => &self.claimant,
            Side::Challenger => &self.challenger,
        }
    }

    /// The key that plays a side.
    pub fn key(&self, side: Side) -> NodeId {
        self.claim(side).worker()
    }

    /// The side that a key plays.
    pub fn side_of(&self, key: &NodeId) -> Option<Side> {
        Side::BOTH.into_iter().find(|side| self.key(*side) == *key)
    }

    /// Checks everything that can be checked without the model, and says where the dispute begins.
    ///
    /// # Errors
    /// [`TermsError`].
    pub fn check(&self) -> Result<Ground, TermsError> {
        let ground = self.checked_ground()?;
        if ground.prefix == self.prefix { Ok(ground) } else { Err(TermsError::Prefix) }
    }

    fn checked_ground(&self) -> Result<Ground, TermsError> {
        let geometry = self.job.geometry(self.layers)?;
        for side in Side::BOTH {
            let checked = self.claim(side).check(&self.job, self.layers);
            checked.map_err(|error| TermsError::Claim { side, error })?;
        }
        if self.claimant.worker() == self.challenger.worker() {
            return Err(TermsError::OneKey(self.claimant.worker()));
        }
        Ground::of(&geometry, self.claimant.roots(), self.challenger.roots()).ok_or(TermsError::NoDifference)
    }
}

impl Canonical for Terms {
    const MIN_BYTES: usize = 32 + JobHeader::MIN_BYTES + 2 + 2 * Claim::MIN_BYTES + 2 * 8 + 1;
    fn encode(&self, writer: &mut Writer) {
        self.coordinator.encode(writer);
        self.job.encode(writer);
        writer.u16(self.layers);
        self.claimant.encode(writer);
        self.challenger.encode(writer);
        self.budgets_ms.iter().for_each(|budget| writer.u64(*budget));
        writer.bool(self.prefix.is_some());
        if let Some((rows, root)) = &self.prefix {
            writer.u32(*rows);
            root.encode(writer);
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            coordinator: reader.value()?,
            job: reader.value()?,
            layers: reader.u16()?,
            claimant: reader.value()?,
            challenger: reader.value()?,
            budgets_ms: [reader.u64()?, reader.u64()?],
            prefix: if reader.bool()? { Some((reader.u32()?, reader.value()?)) } else { None },
        })
    }
}
