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
use crate::logprobs::{self, Logprobs, ShownRow};

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
    /// There is no place at which both have a root and the roots differ, and no point at which both show other
    /// log-probabilities.
    #[error("the claims do not differ where both have roots, nor in log-probabilities that both show")]
    NoDifference,
    /// A claim has not its roots at the disputed point, as it was signed.
    #[error("the roots at the disputed point are not those that the {0} signed")]
    At(Side),
    /// The roots at the point before are not those on which both agree, or are there where there is no such point.
    #[error("the agreed roots at the point before are not those that follow from the claims")]
    Before,
    /// The log-probabilities at the disputed point are not shown as they were signed, or for nothing.
    #[error("the log-probabilities at the disputed point are not shown as the {0} signed them")]
    Logprobs(Side),
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
    /// And its log-probabilities, where the job asks for them.
    pub logprobs: &'a [i32],
}

/// Where a dispute begins, as it follows from two claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ground {
    /// The first place at which the claims differ. Where only log-probabilities do, its layer is
    /// [`Geometry::logprobs_layer`].
    pub place: Place,
    /// Which of the job's points that is, counted from 0.
    pub index: usize,
    /// What claimant and challenger have there; of log-probabilities the root of the point's row.
    pub roots: [Root; 2],
    /// What both have for the layer below, of log-probabilities for layer L; `None` for layer 1.
    pub input: Option<Root>,
    /// So many rows of the disputed layer have a root already, at an earlier point, that both have signed.
    pub prefix: Option<(u32, Root)>,
    /// The words that were generated before the disputed point, on which both agree: one for each earlier point. Where
    /// log-probabilities are disputed, the point's own is among them.
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
        let Some(difference) = geometry.first_difference(runs[0].roots, runs[1].roots) else {
            let asked = job.kind.generation().ok_or(TermsError::NoDifference)?;
            let point = logprobs::first_difference(runs[0].logprobs, runs[1].logprobs, asked);
            let point = point.ok_or(TermsError::NoDifference)?;
            let claims = runs.map(|run| {
                let logprobs = ShownRow::of(run.logprobs, asked, point);
                Claim { logprobs, ..run.claim(&geometry, point) }
            });
            return Self::between(coordinator, job, layers, claims, Vec::new(), budgets_ms);
        };
        let root = geometry.index_of(difference.place).ok_or(TermsError::NoDifference)?;
        let point = root / usize::from(geometry.streamed_layers());
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

    /// What a side signed of the disputed point: the roots of its layers, and after these that of its log-probabilities, where
    /// it is these that are disputed.
    pub fn signed(&self, side: Side, ground: &Ground) -> Vec<Root> {
        let claim = self.claim(side);
        let row = claim.logprobs.as_ref().map(|_| ground.roots[side.index()]);
        claim.roots_at(ground.index).unwrap_or_default().iter().copied().chain(row).collect()
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
        match self.claimant.first_difference(&self.challenger) {
            Some(index) => self.ground_of_roots(index, &geometry),
            None => self.ground_of_logprobs(&geometry),
        }
    }

    /// Where runs begin to differ whose roots do, first at this point.
    fn ground_of_roots(&self, index: usize, geometry: &Geometry) -> Result<Ground, TermsError> {
        if Side::BOTH.iter().any(|side| self.claim(*side).digest_at(index).is_none()) {
            return Err(TermsError::NoDifference);
        }
        if let Some(side) = Side::BOTH.into_iter().find(|side| self.claim(*side).logprobs.is_some()) {
            return Err(TermsError::Logprobs(side));
        }
        let [a, b] = self.roots_at(index, geometry)?;
        let layer = a.iter().zip(b).position(|(a, b)| a != b).ok_or(TermsError::NoDifference)?;
        let words = self.agreed_words(index)?;
        let point = geometry.point(index).ok_or(TermsError::NoDifference)?;
        let place = Place { point, layer: layer as u16 + 1 };
        self.two_keys(place.layer)?;
        let prefix = self.prefix(index, place, geometry)?;
        let input = layer.checked_sub(1).map(|below| a[below]);
        Ok(Ground { place, index, roots: [a[layer], b[layer]], input, prefix, words })
    }

    /// Where runs differ that have the same roots: at the point whose log-probabilities both show. Their tensor is the row
    /// that was signed, and what it is computed from are the rows below the output layer, and the word.
    fn ground_of_logprobs(&self, geometry: &Geometry) -> Result<Ground, TermsError> {
        let asked = self.job.kind.generation().ok_or(TermsError::NoDifference)?;
        if self.claimant.logprobs.is_none() && self.challenger.logprobs.is_none() {
            return Err(TermsError::NoDifference);
        }
        let shown = |side: Side| self.claim(side).shown_logprobs(asked).ok_or(TermsError::Logprobs(side));
        let ((index, a), (other, b)) = (shown(Side::Claimant)?, shown(Side::Challenger)?);
        if index != other {
            return Err(TermsError::Logprobs(Side::Challenger));
        }
        if a == b {
            return Err(TermsError::NoDifference);
        }
        if !self.before.is_empty() {
            return Err(TermsError::Before);
        }
        let [agreed, _] = self.roots_at(index, geometry)?;
        let [.., input, word] = agreed else { return Err(TermsError::At(Side::Claimant)) };
        if agreed.len() != usize::from(geometry.streamed_layers()) {
            return Err(TermsError::At(Side::Claimant));
        }
        let words = self.agreed_words(index + 1)?;
        if words.last().map(|word| generation::word_root(*word)).as_ref() != Some(word) {
            return Err(TermsError::Words);
        }
        let place =
            Place { point: geometry.point(index).ok_or(TermsError::NoDifference)?, layer: geometry.logprobs_layer() };
        self.two_keys(place.layer)?;
        let roots = [a, b].map(|row| Logprobs::of(&row).root());
        Ok(Ground { place, index, roots, input: Some(*input), prefix: None, words })
    }

    /// What both have signed at a point.
    fn roots_at(&self, index: usize, geometry: &Geometry) -> Result<[&[Root]; 2], TermsError> {
        let mut at = [&[][..]; 2];
        for side in Side::BOTH {
            let roots = self.claim(side).roots_at(index);
            let is_point = |roots: &&[Root]| roots.len() <= usize::from(geometry.streamed_layers());
            at[side.index()] = roots.filter(is_point).ok_or(TermsError::At(side))?;
        }
        Ok(at)
    }

    /// Those who answer for a layer are two.
    fn two_keys(&self, layer: u16) -> Result<(), TermsError> {
        let [claimant, challenger] = Side::BOTH.map(|side| self.claim(side).key_at(layer));
        if claimant == challenger { Err(TermsError::OneKey(claimant)) } else { Ok(()) }
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
        let mut claim = Claim { signed: self.signed.clone(), words, at: Vec::new(), logprobs: None };
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
