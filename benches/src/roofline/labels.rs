//! Where the numbers of points find a place: near them, and over nothing else.

use std::f64::consts::TAU;

use super::RADIUS;
use super::axes::{Covered, PLOT};

/// What a digit takes, and a line of them.
const DIGIT: f64 = 6.6;
const HEIGHT: f64 = 12.0;
/// Circles around a point on which a place is looked for, and how far apart they are.
const RINGS: u32 = 90;
const STEP: f64 = 6.0;
/// Directions in which a place is looked for.
const DIRECTIONS: u32 = 24;

/// A box on the page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Area {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

impl Area {
    pub(super) fn around([x, y]: [f64; 2], width: f64, height: f64) -> Self {
        Self { x: x - width / 2.0, y: y - height / 2.0, width, height }
    }

    pub(super) fn right(self) -> f64 {
        self.x + self.width
    }

    pub(super) fn bottom(self) -> f64 {
        self.y + self.height
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        self.x < other.right() && other.x < self.right() && self.y < other.bottom() && other.y < self.bottom()
    }

    pub(super) fn holds(self, other: Self) -> bool {
        other.x >= self.x && other.right() <= self.right() && other.y >= self.y && other.bottom() <= self.bottom()
    }

    /// Where a line from a point ends at it.
    pub(super) fn nearest(self, [x, y]: [f64; 2]) -> [f64; 2] {
        [x.clamp(self.x, self.right()), y.clamp(self.y, self.bottom())]
    }

    /// Whether a line goes through it. (Clipped at each side in turn, something of the line is left.)
    fn is_crossed(self, [from, to]: [[f64; 2]; 2]) -> bool {
        let (mut enters, mut leaves) = (0.0_f64, 1.0_f64);
        for (axis, low, high) in [(0, self.x, self.right()), (1, self.y, self.bottom())] {
            let (start, way) = (from[axis], to[axis] - from[axis]);
            if way.abs() < 1e-9 {
                if start <= low || start >= high {
                    return false;
                }
                continue;
            }
            let (a, b) = ((low - start) / way, (high - start) / way);
            (enters, leaves) = (enters.max(a.min(b)), leaves.min(a.max(b)));
        }
        enters < leaves
    }
}

/// So near to another point is one of a crowd.
const NEAR: f64 = 14.0;

/// A place for each point's number that overlaps neither another one's, nor a point, nor the roof. No line from a number
/// to its point goes through another number or a name where that can be had. None where the plot is full.
pub(super) fn places(centres: &[[f64; 2]], numbers: &[String], covered: Covered) -> Vec<Option<Area>> {
    let Covered { names, lines: mut taken } = covered;
    let dot = 2.0 * (RADIUS + 1.0);
    taken.extend(centres.iter().map(|centre| Area::around(*centre, dot, dot)));
    // From the top down, which nearly keeps the order of a column.
    let mut order: Vec<usize> = (0..centres.len()).collect();
    order.sort_by(|a, b| centres[*a][1].total_cmp(&centres[*b][1]));
    let mut places = vec![None; centres.len()];
    let mut leaders: Vec<[[f64; 2]; 2]> = Vec::new();
    let mut others: Vec<Area> = Vec::new();
    for index in order {
        let centre = centres[index];
        let width = DIGIT * numbers[index].len() as f64 + 3.0;
        let is_free = |area: &Area| {
            PLOT.holds(*area) && !taken.iter().chain(&names).chain(&others).any(|other| other.overlaps(*area))
        };
        let is_clear = |area: &Area| {
            let leader = [centre, area.nearest(centre)];
            !leaders.iter().any(|other| area.is_crossed(*other))
                && !names.iter().chain(&others).any(|other| other.is_crossed(leader))
        };
        let candidates = || around(centre, width, inner_radius(centre, centres)).filter(is_free);
        let place = candidates().find(is_clear).or_else(|| candidates().next());
        if let Some(area) = place {
            leaders.push([centre, area.nearest(centre)]);
            others.push(area);
        }
        places[index] = place;
    }
    places
}

/// How far from a point its number stands at the least: the more points there are in a heap, the wider is the circle that has
/// room for all of their numbers.
fn inner_radius(centre: [f64; 2], centres: &[[f64; 2]]) -> f64 {
    let is_near = |other: &&[f64; 2]| (other[0] - centre[0]).hypot(other[1] - centre[1]) < NEAR;
    let crowd = centres.iter().filter(is_near).count() as f64;
    let circle = 1.4 * crowd * HEIGHT / TAU;
    if circle > 2.0 * HEIGHT { circle } else { RADIUS + 2.0 }
}

/// Places around a point, the nearest first: to its right, and then on ever wider circles.
fn around([x, y]: [f64; 2], width: f64, inner: f64) -> impl Iterator<Item = Area> {
    (0..RINGS).flat_map(move |ring| {
        (0..DIRECTIONS).map(move |step| {
            let (sin, cos) = (f64::from(step) * TAU / f64::from(DIRECTIONS)).sin_cos();
            let distance = inner + f64::from(ring) * STEP;
            let centre = [x + (distance + width / 2.0) * cos, y + (distance + HEIGHT / 2.0) * sin];
            Area::around(centre, width, HEIGHT)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heaps of points, some of which are one point.
    #[test]
    fn numbers_overlap_neither_each_other_nor_points_nor_names() {
        let heap = |index: usize| {
            let (column, step) = ((index % 4) as f64, (index % 7) as f64);
            [PLOT.x + 200.0 + 220.0 * column, PLOT.y + 250.0 + 3.0 * step]
        };
        let centres: Vec<[f64; 2]> = (0..100).map(heap).collect();
        let numbers: Vec<String> = (1..=100).map(|number: usize| number.to_string()).collect();
        let name = Area { x: PLOT.x + 210.0, y: PLOT.y + 240.0, width: 80.0, height: 20.0 };
        let places = places(&centres, &numbers, Covered { names: vec![name], lines: Vec::new() });
        let places: Vec<Area> = places.into_iter().map(|place| place.expect("a place")).collect();
        for (index, area) in places.iter().enumerate() {
            assert!(PLOT.holds(*area) && !area.overlaps(name), "{index}");
            assert!(places[..index].iter().all(|other| !area.overlaps(*other)), "{index}");
            assert!(centres.iter().all(|centre| !area.overlaps(Area::around(*centre, RADIUS, RADIUS))), "{index}");
        }
    }

    /// Twenty ops that memory bounds are nearly one point.
    #[test]
    fn no_line_goes_through_a_number_of_its_heap() {
        let centres: Vec<[f64; 2]> =
            (0..20).map(|index| [PLOT.x + 400.0, PLOT.y + 300.0 + 0.7 * f64::from(index)]).collect();
        let numbers: Vec<String> = (20..40).map(|number: usize| number.to_string()).collect();
        let places: Vec<Area> =
            places(&centres, &numbers, Covered::default()).into_iter().map(|place| place.expect("a place")).collect();
        for (index, area) in places.iter().enumerate() {
            let others = places.iter().zip(&centres).enumerate().filter(|(other, _)| *other != index);
            let is_struck = |other: &Area, centre: &[f64; 2]| area.is_crossed([*centre, other.nearest(*centre)]);
            assert!(others.map(|(_, pair)| pair).all(|(other, centre)| !is_struck(other, centre)), "{index}");
        }
    }

    #[test]
    fn a_line_crosses_what_it_goes_through() {
        let area = Area { x: 10.0, y: 10.0, width: 10.0, height: 10.0 };
        for (line, is_crossed) in [
            ([[0.0, 15.0], [30.0, 15.0]], true),
            ([[0.0, 0.0], [30.0, 30.0]], true),
            ([[15.0, 15.0], [16.0, 15.0]], true),
            ([[0.0, 15.0], [9.0, 15.0]], false),
            ([[0.0, 25.0], [30.0, 25.0]], false),
            ([[0.0, 18.0], [18.0, 0.0]], false),
            ([[15.0, 0.0], [15.0, 9.0]], false),
        ] {
            assert_eq!(area.is_crossed(line), is_crossed, "{line:?}");
        }
    }

    #[test]
    fn where_all_is_taken_a_number_has_no_place() {
        assert_eq!(
            places(&[[PLOT.x + 9.0, PLOT.y + 9.0]], &["1".into()], Covered { names: Vec::new(), lines: vec![PLOT] }),
            [None]
        );
    }
}
