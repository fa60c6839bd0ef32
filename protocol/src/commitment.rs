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

byte_newtype! {
    /// The digest of all roots of one commitment point.
    PointDigest, 32
}

impl PointDigest {
    /// The digest of a point's roots, layers 1 to L + 1 (SPEC.md 12.3).
    pub fn of(roots: &[Root]) -> Self {
        let mut writer = Writer::new();
        writer.seq(roots);
        Self(*Domain::Point.hash(&writer.into_bytes()).as_bytes())
    }
}

impl RunCommitment {
    /// The commitment of a worker to a run, by the last head of its chain, hidden by a salt (SPEC.md 12.5).
    pub fn of(job: JobId, epoch: LeaseEpoch, worker: NodeId, salt: &Salt, head: &ChainHead) -> Self {
        let mut writer = Writer::new();
        job.encode(&mut writer);
        epoch.encode(&mut writer);
        worker.encode(&mut writer);
        salt.encode(&mut writer);
        head.encode(&mut writer);
        Self(*Domain::RunCommitment.hash(&writer.into_bytes()).as_bytes())
    }
}

/// The places at which a job may commit, in stream order: each point with layers 1 to L + 1. An embedding has one point. A
/// generation has as many as tokens were drawn, so that its roots may end with any point. Made by
/// [`crate::job::JobHeader::geometry`], so it is within the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    first: u32,
    points: u32,
    layers: u16,
    is_open: bool,
}

/// The roots of a run as they are signed: each point before the last one by its digest, and the roots of the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    /// Of all points but the last.
    pub points: Vec<PointDigest>,
    /// Of the last point, at least one; of a run that was stopped early maybe not for all layers.
    pub roots: Vec<Root>,
}

impl Geometry {
    /// One point.
    pub(crate) fn closed(point: u32, layers: u16) -> Self {
        Self { first: point, points: 1, layers, is_open: false }
    }

    /// At least one point, and at most so many.
    pub(crate) fn open(first: u32, points: u32, layers: u16) -> Self {
        Self { first, points, layers, is_open: true }
    }

    /// The transformer layers L.
    pub fn layers(&self) -> u16 {
        self.layers
    }

    /// The layers that are streamed at each point: L + 1.
    pub fn streamed_layers(&self) -> u16 {
        self.layers + 1
    }

    /// What stands for the layer where the log-probabilities of a point are meant: one after the last that is streamed.
    pub fn logprobs_layer(&self) -> u16 {
        self.streamed_layers() + 1
    }

    /// The first commitment point.
    pub fn first_point(&self) -> u32 {
        self.first
    }

    /// The most commitment points of a run.
    pub fn max_points(&self) -> usize {
        self.points as usize
    }

    /// The most roots of a run.
    pub fn max_roots(&self) -> usize {
        self.max_points() * usize::from(self.streamed_layers())
    }

    /// The commitment point `index`, counted from 0.
    pub fn point(&self, index: usize) -> Option<u32> {
        let index = u32::try_from(index).ok().filter(|index| *index < self.points)?;
        self.first.checked_add(index)
    }

    /// Whether so many roots can be those of a complete run: all of some points, of all that there are where the job says
    /// how many.
    pub fn is_whole(&self, roots: usize) -> bool {
        let per_point = usize::from(self.streamed_layers());
        let is_some_points = roots > 0 && roots.is_multiple_of(per_point) && roots <= self.max_roots();
        is_some_points && (self.is_open || roots == self.max_roots())
    }

    /// The place of root `index` of the stream.
    pub fn place(&self, index: usize) -> Option<Place> {
        let per_point = usize::from(self.streamed_layers());
        let point = self.point(index / per_point)?;
        let layer = u16::try_from(index % per_point).ok()? + 1;
        Some(Place { point, layer })
    }

    /// Where in the stream a place is.
    pub fn index_of(&self, place: Place) -> Option<usize> {
        let point = place.point.checked_sub(self.first).filter(|point| *point < self.points)?;
        let layer = (1..=self.streamed_layers()).contains(&place.layer).then(|| place.layer - 1)?;
        Some(point as usize * usize::from(self.streamed_layers()) + usize::from(layer))
    }

    /// All places in stream order.
    pub fn places(&self) -> impl Iterator<Item = Place> + '_ {
        (0..self.max_roots()).filter_map(|index| self.place(index))
    }

    /// The roots so far of a run, as they are signed; `None` where there are none, or more than a run has.
    pub fn trail(&self, roots: &[Root]) -> Option<Trail> {
        let is_possible = (1..=self.max_roots()).contains(&roots.len());
        let mut points = roots.chunks(usize::from(self.streamed_layers()));
        let last = points.next_back().filter(|_| is_possible)?;
        Some(Trail { points: points.map(PointDigest::of).collect(), roots: last.to_vec() })
    }

    /// The chain's head after these roots of a run, whole or not; `None` as for [`Geometry::trail`].
    pub fn head(&self, job: JobId, epoch: LeaseEpoch, roots: &[Root]) -> Option<ChainHead> {
        let Trail { points, roots } = self.trail(roots)?;
        self.head_of(job, epoch, &points, &roots)
    }

    /// The chain's head after a [`Trail`]; `None` where there is no root at its end, or more than a run has.
    pub fn head_of(&self, job: JobId, epoch: LeaseEpoch, points: &[PointDigest], roots: &[Root]) -> Option<ChainHead> {
        let fits = points.len() < self.max_points();
        let is_point = (1..=usize::from(self.streamed_layers())).contains(&roots.len());
        let mut head = (fits && is_point).then(|| ChainHead::start(job, epoch))?;
        let last = PointDigest::of(roots);
        for (index, digest) in points.iter().chain([&last]).enumerate() {
            head = head.step(self.point(index)?, digest);
        }
        Some(head)
    }

    /// The first place, in stream order, at which two runs differ: by another root, or because one of
    /// them has no root there.
    pub fn first_difference(&self, a: &[Root], b: &[Root]) -> Option<Difference> {
        let index = (0..a.len().max(b.len())).find(|index| a.get(*index) != b.get(*index))?;
        let place = self.place(index)?;
        Some(Difference { place, a: a.get(index).copied(), b: b.get(index).copied() })
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
    /// The chain of one assignment, before its first point.
    pub fn start(job: JobId, epoch: LeaseEpoch) -> Self {
        let mut writer = Writer::new();
        job.encode(&mut writer);
        epoch.encode(&mut writer);
        Self(*Domain::ChainStart.hash(&writer.into_bytes()).as_bytes())
    }

    /// The chain after one more point.
    #[must_use]
    pub fn step(self, point: u32, digest: &PointDigest) -> Self {
        let mut writer = Writer::new();
        self.encode(&mut writer);
        writer.u32(point);
        digest.encode(&mut writer);
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
        let geometry = Geometry::open(3, 2, 2);
        let places: Vec<_> = geometry.places().map(|place| (place.point, place.layer)).collect();
        assert_eq!(places, [(3, 1), (3, 2), (3, 3), (4, 1), (4, 2), (4, 3)]);
        assert!(geometry.places().is_sorted());
        assert_eq!((geometry.place(6), geometry.point(2)), (None, None));
        let indices: Vec<_> = geometry.places().filter_map(|place| geometry.index_of(place)).collect();
        assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
        let none = [(2, 1), (5, 1), (3, 0), (3, 4)];
        assert!(none.iter().all(|(point, layer)| geometry.index_of(Place { point: *point, layer: *layer }).is_none()));
    }

    #[test]
    fn a_run_is_whole_after_any_point_only_where_the_job_does_not_say_how_many() {
        let whole = |geometry: Geometry| (0..9).filter(|roots| geometry.is_whole(*roots)).collect::<Vec<_>>();
        assert_eq!(whole(Geometry::open(3, 2, 2)), [3, 6]);
        assert_eq!(whole(Geometry::closed(3, 2)), [3]);
    }

    #[test]
    fn the_first_difference_is_the_earliest_in_stream_order() {
        let geometry = Geometry::open(0, 2, 1);
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
    fn a_trail_has_the_digests_of_all_points_but_the_last() {
        let geometry = Geometry::open(5, 3, 1);
        let roots: Vec<_> = (1..=6).map(root).collect();
        for count in 1..=6 {
            let trail = geometry.trail(&roots[..count]).unwrap();
            let points = (count - 1) / 2;
            let digests: Vec<_> = roots[..2 * points].chunks(2).map(PointDigest::of).collect();
            assert_eq!((&trail.points, &trail.roots[..]), (&digests, &roots[2 * points..count]));
        }
        assert_eq!(geometry.trail(&[]), None);
        assert_eq!(geometry.trail(&[root(1); 7]), None);
        assert_eq!(Geometry::closed(5, 1).trail(&roots[..3]), None);
    }

    #[test]
    fn a_run_commitment_binds_everything_that_it_is_made_of() {
        let of = |job: u8, epoch, worker: u8, salt: u8, head: u8| {
            let (job, worker) = (JobId::from_bytes([job; 32]), NodeId::from_bytes([worker; 32]));
            let head = ChainHead::from_bytes([head; 32]);
            RunCommitment::of(job, LeaseEpoch(epoch), worker, &Salt::from_bytes([salt; 32]), &head)
        };
        let base = of(1, 2, 3, 4, 5);
        assert_eq!(base, of(1, 2, 3, 4, 5));
        let others = [of(9, 2, 3, 4, 5), of(1, 9, 3, 4, 5), of(1, 2, 9, 4, 5), of(1, 2, 3, 9, 5), of(1, 2, 3, 4, 9)];
        assert!(others.iter().all(|other| *other != base));
    }

    #[test]
    fn a_head_binds_job_epoch_places_and_roots() {
        let job = JobId::from_bytes([1; 32]);
        let geometry = Geometry::open(5, 2, 2);
        let roots: Vec<_> = (1..=6).map(root).collect();
        let head = geometry.head(job, LeaseEpoch(1), &roots).unwrap();
        let mut swapped = roots.clone();
        swapped.swap(1, 2);
        let mut moved = roots.clone();
        moved.swap(2, 3);
        let others = [
            geometry.head(JobId::from_bytes([2; 32]), LeaseEpoch(1), &roots),
            geometry.head(job, LeaseEpoch(2), &roots),
            geometry.head(job, LeaseEpoch(1), &swapped),
            geometry.head(job, LeaseEpoch(1), &moved),
            geometry.head(job, LeaseEpoch(1), &roots[..5]),
            geometry.head(job, LeaseEpoch(1), &roots[..3]),
            Geometry::open(6, 2, 2).head(job, LeaseEpoch(1), &roots),
        ];
        assert!(others.iter().all(|other| other.is_some_and(|other| other != head)));
        assert_eq!(geometry.head(job, LeaseEpoch(1), &[root(1); 7]), None);
        let trail = geometry.trail(&roots).unwrap();
        assert_eq!(geometry.head_of(job, LeaseEpoch(1), &trail.points, &trail.roots), Some(head));
        assert_eq!(geometry.head_of(job, LeaseEpoch(1), &[trail.points[0]; 2], &trail.roots), None, "too many points");
    }
}
