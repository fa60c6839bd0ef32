//! Commitments: where a job commits, the hash chain over its roots, and the comparison of two runs.

use crate::canonical::{Canonical, Writer};
use crate::domain::Domain;
use crate::hex::byte_newtype;
use crate::ids::{JobId, LeaseEpoch, NodeId, Place, Root, Salt};

byte_newtype! {
    /// The value of a commitment chain after some of its steps.
    ChainHead, 32
}

byte_newtype! {
    /// What binds a worker to the roots of a run before anybody sees its result.
    RunCommitment, 32
}

impl RunCommitment {
    /// The commitment of a worker to all roots of a run, hidden by a salt (SPEC.md 12.5).
    pub fn of(job: JobId, epoch: LeaseEpoch, worker: NodeId, salt: &Salt, roots: &[Root]) -> Self {
        let mut writer = Writer::new();
        job.encode(&mut writer);
        epoch.encode(&mut writer);
        worker.encode(&mut writer);
        salt.encode(&mut writer);
        writer.seq(roots);
        Self(*Domain::RunCommitment.hash(&writer.into_bytes()).as_bytes())
    }
}

/// The places at which a job commits, in stream order: each point with layers 1 to L + 1. Made by
/// [`crate::job::JobHeader::geometry`], so it is within the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    points: Vec<u32>,
    layers: u16,
}

impl Geometry {
    pub(crate) fn new(points: Vec<u32>, layers: u16) -> Self {
        Self { points, layers }
    }

    /// The transformer layers L.
    pub fn layers(&self) -> u16 {
        self.layers
    }

    /// The layers that are streamed at each point: L + 1.
    pub fn streamed_layers(&self) -> u16 {
        self.layers + 1
    }

    /// The commitment points, ascending.
    pub fn points(&self) -> &[u32] {
        &self.points
    }

    /// How many roots a complete run streams.
    pub fn len(&self) -> usize {
        self.points.len() * usize::from(self.streamed_layers())
    }

    /// Whether there is no place: never, for a geometry of a job.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// The place of root `index` of the stream.
    pub fn place(&self, index: usize) -> Option<Place> {
        let per_point = usize::from(self.streamed_layers());
        let point = *self.points.get(index / per_point)?;
        let layer = u16::try_from(index % per_point).ok()? + 1;
        Some(Place { point, layer })
    }

    /// All places in stream order.
    pub fn places(&self) -> impl Iterator<Item = Place> + '_ {
        (0..self.len()).filter_map(|index| self.place(index))
    }

    /// The chain's last head over a complete run's roots; `None` where their number is wrong.
    pub fn head(&self, job: JobId, epoch: LeaseEpoch, roots: &[Root]) -> Option<ChainHead> {
        (roots.len() == self.len()).then(|| {
            let start = ChainHead::start(job, epoch);
            self.places().zip(roots).fold(start, |head, (place, root)| head.step(place, root))
        })
    }

    /// The first place, in stream order, at which two runs differ: by another root, or because one of
    /// them has no root there.
    pub fn first_difference(&self, a: &[Root], b: &[Root]) -> Option<Difference> {
        self.places().enumerate().find_map(|(index, place)| {
            let (a, b) = (a.get(index).copied(), b.get(index).copied());
            (a != b).then_some(Difference { place, a, b })
        })
    }
}

/// The first disagreement of two runs of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub place: Place,
    /// What the first run has there.
    pub a: Option<Root>,
    /// What the second run has there.
    pub b: Option<Root>,
}

impl ChainHead {
    /// The chain of one assignment, before its first root.
    pub fn start(job: JobId, epoch: LeaseEpoch) -> Self {
        let mut writer = Writer::new();
        job.encode(&mut writer);
        epoch.encode(&mut writer);
        Self(*Domain::ChainStart.hash(&writer.into_bytes()).as_bytes())
    }

    /// The chain after one more root.
    #[must_use]
    pub fn step(self, place: Place, root: &Root) -> Self {
        let mut writer = Writer::new();
        self.encode(&mut writer);
        place.encode(&mut writer);
        root.encode(&mut writer);
        Self(*Domain::ChainStep.hash(&writer.into_bytes()).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(value: u8) -> Root {
        Root::from_bytes([value; 32])
    }

    #[test]
    fn places_go_by_point_then_layer() {
        let geometry = Geometry::new(vec![3, 4], 2);
        let places: Vec<_> = geometry.places().map(|place| (place.point, place.layer)).collect();
        assert_eq!(places, [(3, 1), (3, 2), (3, 3), (4, 1), (4, 2), (4, 3)]);
        assert!(geometry.places().is_sorted());
        assert_eq!(geometry.place(6), None);
    }

    #[test]
    fn the_first_difference_is_the_earliest_in_stream_order() {
        let geometry = Geometry::new(vec![0, 1], 1);
        let a = [root(1), root(2), root(3), root(4)];
        assert_eq!(geometry.first_difference(&a, &a), None);
        for index in 0..4 {
            let mut b = a;
            for value in &mut b[index..] {
                *value = root(9);
            }
            let found = geometry.first_difference(&a, &b).unwrap();
            assert_eq!(Some(found.place), geometry.place(index));
            assert_eq!((found.a, found.b), (Some(a[index]), Some(root(9))));
            let short = geometry.first_difference(&a, &a[..index]).unwrap();
            assert_eq!((Some(short.place), short.b), (geometry.place(index), None));
        }
    }

    #[test]
    fn a_run_commitment_binds_everything_that_it_is_made_of() {
        let of = |job: u8, epoch, worker: u8, salt: u8, roots: &[Root]| {
            let (job, worker) = (JobId::from_bytes([job; 32]), NodeId::from_bytes([worker; 32]));
            RunCommitment::of(job, LeaseEpoch(epoch), worker, &Salt::from_bytes([salt; 32]), roots)
        };
        let roots = [root(1), root(2)];
        let base = of(1, 2, 3, 4, &roots);
        assert_eq!(base, of(1, 2, 3, 4, &roots));
        let others = [
            of(9, 2, 3, 4, &roots),
            of(1, 9, 3, 4, &roots),
            of(1, 2, 9, 4, &roots),
            of(1, 2, 3, 9, &roots),
            of(1, 2, 3, 4, &roots[..1]),
        ];
        assert!(others.iter().all(|other| *other != base));
    }

    #[test]
    fn a_head_binds_job_epoch_places_and_roots() {
        let job = JobId::from_bytes([1; 32]);
        let geometry = Geometry::new(vec![5], 2);
        let roots = [root(1), root(2), root(3)];
        let head = geometry.head(job, LeaseEpoch(1), &roots).unwrap();
        let others = [
            geometry.head(JobId::from_bytes([2; 32]), LeaseEpoch(1), &roots),
            geometry.head(job, LeaseEpoch(2), &roots),
            geometry.head(job, LeaseEpoch(1), &[root(1), root(3), root(2)]),
            Geometry::new(vec![6], 2).head(job, LeaseEpoch(1), &roots),
        ];
        assert!(others.iter().all(|other| other.is_some_and(|other| other != head)));
        assert_eq!(geometry.head(job, LeaseEpoch(1), &roots[..2]), None);
    }
}
