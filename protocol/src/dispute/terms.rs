//! The terms of a dispute: everything from which the game begins. Their hash is its name.

use thiserror::Error;

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::commitment::{Geometry, PointDigest};
use crate::dispute::{Claim, ClaimError, Side, Signed};
use crate::domain::Domain;
use crate::generation;
use crate::ids::{DisputeId, JobId, NodeId, Place, Root};
use crate::job::{JobError, JobHeader};
use crate::limits::MAX_RECEIPT_ROOTS;

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
    /// A claim has not its roots at the disputed point, as it was signed.
    #[error("the roots at the disputed point are not those that the {0} signed")]
    At(Side),
    /// The roots at the point before are not those on which both agree, or are there where there is no such point.
    #[error("the agreed roots at the point before are not those that follow from the claims")]
    Before,
    /// The words before the disputed point differ, though the roots do not: one of the sides signed words that it did not
    /// commit to.
    #[error("the words before the disputed point are not those that were committed to")]
    Words,
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
    /// The roots at the point before the disputed one, on which both agree; none where that is the first.
    pub before: Vec<Root>,
}

/// A run as somebody who holds all of it brings it into a dispute.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// What was signed.
    pub signed: &'a Signed,
    /// All its roots in stream order.
    pub roots: &'a [Root],
    /// Of a whole generation its words.
    pub words: &'a [u32],
}

/// Where a dispute begins, as it follows from two claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ground {
    /// The first place at which the claims differ.
    pub place: Place,
    /// Which of the job's points that is, counted from 0.
    pub index: usize,
    /// What claimant and challenger have there.
    pub roots: [Root; 2],
    /// What both have for the layer below; `None` for layer 1.
    pub input: Option<Root>,
    /// So many rows of the disputed layer have a root already, at an earlier point, that both have signed.
    pub prefix: Option<(u32, Root)>,
    /// The words that were generated before the disputed point, on which both agree: one for each earlier point.
    pub words: Vec<u32>,
}

impl Terms {
    /// The terms of a dispute between two runs of one job on a model with so many transformer layers, by claims that have
    /// their roots at the disputed point. Everything is checked.
    ///
    /// # Errors
    /// [`TermsError`].
    pub fn between(
        coordinator: NodeId,
        job: JobHeader,
        layers: u16,
        [claimant, challenger]: [Claim; 2],
        before: Vec<Root>,
        budgets_ms: [u64; 2],
    ) -> Result<Self, TermsError> {
        let terms = Self { coordinator, job, layers, claimant, challenger, budgets_ms, before };
        terms.check()?;
        Ok(terms)
    }

    /// The terms of a dispute between two runs of which all is at hand.
    ///
    /// # Errors
    /// [`TermsError`].
    pub fn of_runs(
        coordinator: NodeId,
        job: JobHeader,
        layers: u16,
        runs: [Held<'_>; 2],
        budgets_ms: [u64; 2],
    ) -> Result<Self, TermsError> {
        let geometry = job.geometry(layers)?;
        let difference = geometry.first_difference(runs[0].roots, runs[1].roots);
        let root = difference.and_then(|difference| geometry.index_of(difference.place));
        let point = root.ok_or(TermsError::NoDifference)? / usize::from(geometry.streamed_layers());
        let before = point.checked_sub(1).map(|before| roots_at(&geometry, runs[0].roots, before).to_vec());
        let claims = runs.map(|run| run.claim(&geometry, point));
        Self::between(coordinator, job, layers, claims, before.unwrap_or_default(), budgets_ms)
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

    /// The key that plays a side: of a run that several workers shared, the one who signed for the disputed layer.
    pub fn key(&self, side: Side) -> NodeId {
        let claim = self.claim(side);
        let layer = if claim.is_shared() { self.disputed_layer() } else { None };
        layer.map_or_else(|| claim.worker(), |layer| claim.key_at(layer))
    }

    fn disputed_layer(&self) -> Option<u16> {
        let index = self.claimant.first_difference(&self.challenger)?;
        let [a, b] = Side::BOTH.map(|side| self.claim(side).roots_at(index));
        let layer = a?.iter().zip(b?).position(|(a, b)| a != b)?;
        u16::try_from(layer + 1).ok()
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
        for side in Side::BOTH {
            let checked = self.claim(side).check(&self.job, self.layers);
            checked.map_err(|error| TermsError::Claim { side, error })?;
        }
        self.ground()
    }

    /// Where the dispute begins, of terms of which the claims were checked already, as [`Terms::between`] and
    /// [`Terms::check`] do: to check a signature takes longer than all else.
    ///
    /// # Errors
    /// [`TermsError`], but for [`TermsError::Claim`].
    pub fn ground(&self) -> Result<Ground, TermsError> {
        let geometry = self.job.geometry(self.layers)?;
        let is_shared = self.claimant.is_shared() || self.challenger.is_shared();
        if !is_shared && self.claimant.worker() == self.challenger.worker() {
            return Err(TermsError::OneKey(self.claimant.worker()));
        }
        let index = self.claimant.first_difference(&self.challenger).ok_or(TermsError::NoDifference)?;
        if Side::BOTH.iter().any(|side| self.claim(*side).digest_at(index).is_none()) {
            return Err(TermsError::NoDifference);
        }
        let mut at = [&[][..]; 2];
        for side in Side::BOTH {
            let roots = self.claim(side).roots_at(index);
            let is_point = |roots: &&[Root]| roots.len() <= usize::from(geometry.streamed_layers());
            at[side.index()] = roots.filter(is_point).ok_or(TermsError::At(side))?;
        }
        let [a, b] = at;
        let layer = a.iter().zip(b).position(|(a, b)| a != b).ok_or(TermsError::NoDifference)?;
        let words = self.agreed_words(index)?;
        let point = geometry.point(index).ok_or(TermsError::NoDifference)?;
        let place = Place { point, layer: layer as u16 + 1 };
        let [claimant, challenger] = Side::BOTH.map(|side| self.claim(side).key_at(place.layer));
        if claimant == challenger {
            return Err(TermsError::OneKey(claimant));
        }
        let prefix = self.prefix(index, place, &geometry)?;
        let input = layer.checked_sub(1).map(|below| a[below]);
        Ok(Ground { place, index, roots: [a[layer], b[layer]], input, prefix, words })
    }

    /// The words before a point: both have the same.
    fn agreed_words(&self, index: usize) -> Result<Vec<u32>, TermsError> {
        let [a, b] = Side::BOTH.map(|side| self.claim(side).words().get(..index));
        match a.filter(|_| a == b) {
            Some(words) => Ok(words.to_vec()),
            None => Err(TermsError::Words),
        }
    }

    /// The rows that have a root from the point before; at the same time the roots of that point are checked.
    fn prefix(&self, index: usize, place: Place, geometry: &Geometry) -> Result<Option<(u32, Root)>, TermsError> {
        let Some(earlier) = index.checked_sub(1) else {
            return if self.before.is_empty() { Ok(None) } else { Err(TermsError::Before) };
        };
        let is_agreed = self.claimant.digest_at(earlier) == Some(PointDigest::of(&self.before));
        if !is_agreed || self.before.len() != usize::from(geometry.streamed_layers()) {
            return Err(TermsError::Before);
        }
        let word = self.claimant.words().get(earlier).map(|word| generation::word_root(*word));
        if word.as_ref() != self.before.last() {
            return Err(TermsError::Words);
        }
        // The rows of the last layer are others at each point.
        let is_prefixed = place.layer <= geometry.layers();
        Ok(is_prefixed.then(|| (place.point, self.before[usize::from(place.layer) - 1])))
    }
}

impl Held<'_> {
    /// What this run claims in a dispute about the point `index`.
    fn claim(&self, geometry: &Geometry, index: usize) -> Claim {
        let words = match self.signed {
            Signed::Receipt(_) => self.words.to_vec(),
            Signed::Partial(_) => Vec::new(),
        };
        let mut claim = Claim { signed: self.signed.clone(), words, at: Vec::new() };
        if index < claim.points().len() {
            claim.at = roots_at(geometry, self.roots, index).to_vec();
        }
        claim
    }
}

/// The roots of point `index` among all of a run, as far as they are there.
fn roots_at<'a>(geometry: &Geometry, roots: &'a [Root], index: usize) -> &'a [Root] {
    roots.chunks(usize::from(geometry.streamed_layers())).nth(index).unwrap_or_default()
}

impl Canonical for Terms {
    const MIN_BYTES: usize = 32 + JobHeader::MIN_BYTES + 2 + 2 * Claim::MIN_BYTES + 2 * 8 + 4;
    fn encode(&self, writer: &mut Writer) {
        self.coordinator.encode(writer);
        self.job.encode(writer);
        writer.u16(self.layers);
        self.claimant.encode(writer);
        self.challenger.encode(writer);
        self.budgets_ms.iter().for_each(|budget| writer.u64(*budget));
        writer.seq(&self.before);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            coordinator: reader.value()?,
            job: reader.value()?,
            layers: reader.u16()?,
            claimant: reader.value()?,
            challenger: reader.value()?,
            budgets_ms: [reader.u64()?, reader.u64()?],
            before: reader.seq("agreed roots", MAX_RECEIPT_ROOTS)?,
        })
    }
}
