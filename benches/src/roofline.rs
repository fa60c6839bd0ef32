//! A roofline as an SVG: what each op reaches, under what the machine allows it to reach.
//!
//! Across, how many operations an op makes for each byte that it has to move; upwards, how many it makes a second; both in
//! decades. Products count as the operations on bytes that they become. The slope is the memory's, the ceiling the
//! multipliers'. The drawing needs neither script nor fonts of its own, and follows the reader's light or dark theme.

use std::fmt::Write;

use crate::ceilings::Ceilings;
use crate::ops::Measured;

const WIDTH: f64 = 1280.0;
const HEIGHT: f64 = 860.0;
/// Left, top, right and bottom of the plot.
const PLOT: Area = Area { x: 84.0, y: 76.0, width: WIDTH - 84.0 - 36.0, height: HEIGHT - 76.0 - 64.0 };
/// Size of the labels, and what a character of them takes, rounded up.
const FONT: f64 = 11.5;
const CHARACTER: f64 = 6.8;
const RADIUS: f64 = 4.5;
/// What comes at so many times the rate of memory comes from a cache.
const IN_CACHE: f64 = 1.1;

const STYLE: &str = "
  text { font-family: system-ui, 'DejaVu Sans', Helvetica, Arial, sans-serif; fill: #24292f }
  .paper { fill: #ffffff } .grid { stroke: #e3e6ea; stroke-width: 1 } .minor { stroke: #f2f4f6; stroke-width: 1 }
  .frame { fill: none; stroke: #8c959f; stroke-width: 1 } .roof { fill: none; stroke: #57606a; stroke-width: 2.2 }
  .under { fill: #57606a; fill-opacity: 0.045 } .leader { stroke: #8c959f; stroke-width: 0.8 }
  .title { font-size: 21px; font-weight: 600 } .about { font-size: 12.5px; fill: #57606a }
  .axis { font-size: 13px } .tick { font-size: 12px; fill: #57606a } .label { font-size: 11.5px }
  .ceiling { font-size: 13px; font-weight: 600; fill: #57606a }
  .product { fill: #0969da; color: #0969da } .attention { fill: #bc4c00; color: #bc4c00 }
  .other { fill: #1a7f37; color: #1a7f37 } .point { stroke: #ffffff; stroke-width: 1 }
  .hollow { fill: #ffffff; stroke: currentColor; stroke-width: 1.8 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .paper { fill: #0d1117 } .grid { stroke: #262c36 } .minor { stroke: #161b22 }
    .frame { stroke: #6e7681 } .roof { stroke: #9198a1 } .under { fill: #9198a1 } .leader { stroke: #6e7681 }
    .about, .tick, .ceiling { fill: #9198a1 } .product { fill: #58a6ff; color: #58a6ff }
    .attention { fill: #ffa657; color: #ffa657 } .other { fill: #56d364; color: #56d364 }
    .point { stroke: #0d1117 } .hollow { fill: #0d1117; stroke: currentColor }
  }
";

#[derive(Clone, Copy, Debug, PartialEq)]
struct Area {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Area {
    fn right(self) -> f64 {
        self.x + self.width
    }

    fn bottom(self) -> f64 {
        self.y + self.height
    }

    fn overlaps(self, other: Self) -> bool {
        self.x < other.right() && other.x < self.right() && self.y < other.bottom() && other.y < self.bottom()
    }

    fn holds(self, other: Self) -> bool {
        other.x >= self.x && other.right() <= self.right() && other.y >= self.y && other.bottom() <= self.bottom()
    }
}

/// One op as a point.
struct Point {
    label: String,
    class: &'static str,
    /// Operations for each byte; nothing where rows are only moved.
    intensity: f64,
    /// Operations a second; bytes a second where rows are only moved.
    rate: f64,
    /// Whether its measurement was.
    is_disturbed: bool,
}

fn points(measured: &[Measured], ceilings: &Ceilings) -> Vec<Point> {
    let point = |m: &Measured| {
        let operations = m.counts.byte_operations.max(m.counts.operations) as f64;
        let share = 100.0 * m.least_seconds(&ceilings.roof())? / m.seconds.median();
        let cached = if m.bandwidth() > IN_CACHE * ceilings.memory { ", in a cache" } else { "" };
        let variant = m.spec.variant.name();
        let space = if variant.is_empty() { "" } else { " " };
        Some(Point {
            label: format!("{}{space}{variant} {} · {share:.0}%{cached}", m.spec.op, m.spec),
            class: match m.spec.op {
                "matmul" => "product",
                "attention" => "attention",
                _ => "other",
            },
            intensity: operations / m.counts.bytes as f64,
            rate: if operations > 0.0 { operations / m.seconds.median() } else { m.bandwidth() },
            is_disturbed: m.is_disturbed(),
        })
    };
    measured.iter().filter_map(point).collect()
}

/// Decades of both axes on the page.
struct Scale {
    x: [f64; 2],
    y: [f64; 2],
}

impl Scale {
    fn over(points: &[Point], ceilings: &Ceilings) -> Self {
        let ridge = ceilings.int8 / ceilings.memory;
        let points: Vec<&Point> = points.iter().filter(|point| point.intensity > 0.0).collect();
        let range = |values: &mut dyn Iterator<Item = f64>, low: f64, high: f64| {
            let (mut least, mut most) = (low, high);
            for value in values.filter(|v| v.is_finite() && *v > 0.0) {
                (least, most) = (least.min(value), most.max(value));
            }
            [least.log10() - 0.25, most.log10() + 0.35]
        };
        let x = range(&mut points.iter().map(|p| p.intensity), ridge / 100.0, ridge * 4.0);
        let y = range(&mut points.iter().map(|p| p.rate), ceilings.int8 / 1e3, ceilings.int8);
        Self { x, y }
    }

    /// Where a point is. What only moves rows has no place on a logarithmic axis: it stands at the edge, as far below the
    /// slope as it is below the rate of memory.
    fn centre(&self, point: &Point) -> [f64; 2] {
        if point.intensity > 0.0 {
            return [self.across(point.intensity), self.up(point.rate)];
        }
        [PLOT.x, self.up(point.rate * 10_f64.powf(self.x[0])).clamp(PLOT.y, PLOT.bottom())]
    }

    fn across(&self, intensity: f64) -> f64 {
        PLOT.x + PLOT.width * (intensity.log10() - self.x[0]) / (self.x[1] - self.x[0])
    }

    fn up(&self, rate: f64) -> f64 {
        PLOT.bottom() - PLOT.height * (rate.log10() - self.y[0]) / (self.y[1] - self.y[0])
    }
}

/// A number with a unit that people say: 20 GOP/s, 3 kOP/s.
fn spoken(value: f64, unit: &str) -> String {
    let steps = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")];
    let (step, prefix) = steps.into_iter().find(|(step, _)| value >= *step * 0.999).unwrap_or((1.0, ""));
    let digits = usize::from(value / step < 9.95 && (value / step).fract() > 0.004) * 2;
    format!("{:.digits$} {prefix}{unit}", value / step)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The plot. `about` says where it was measured.
pub fn svg(measured: &[Measured], ceilings: &Ceilings, about: &str) -> String {
    let points = points(measured, ceilings);
    let scale = Scale::over(&points, ceilings);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n<title>Roofline</title>\n\
         <style>{STYLE}</style>\n<rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n"
    );
    text(&mut out, PLOT.x, 32.0, "title", "start", "Roofline");
    text(&mut out, PLOT.x, 52.0, "about", "start", about);
    if !ceilings.disturbed.is_empty() {
        let doubt = format!("! the roof was disturbed, so shares are too high: {}", ceilings.disturbed.join("; "));
        text(&mut out, PLOT.x, 69.0, "about", "start", &doubt);
    }
    key(&mut out);
    grid(&mut out, &scale);
    let taken = roof(&mut out, &scale, ceilings);
    draw_points(&mut out, &points, &scale, taken);
    out + "</svg>\n"
}

fn text(out: &mut String, x: f64, y: f64, class: &str, anchor: &str, what: &str) {
    let what = escape(what);
    let _ = writeln!(out, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{what}</text>");
}

fn line(out: &mut String, class: &str, [x1, y1, x2, y2]: [f64; 4]) {
    let _ = writeln!(out, "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
}

/// What colours and hollow points mean.
fn key(out: &mut String) {
    let mut x = PLOT.right() - 4.0;
    for (class, what) in
        [("other hollow", "disturbed"), ("other", "others"), ("attention", "attention"), ("product", "products")]
    {
        text(out, x, 32.0, "tick", "end", what);
        x -= 7.0 * what.len() as f64 + 9.0;
        let _ = writeln!(out, "<circle class=\"key {class}\" cx=\"{x:.1}\" cy=\"28\" r=\"{RADIUS}\"/>");
        x -= 16.0;
    }
}

/// Decades with numbers, and lines for their multiples.
fn grid(out: &mut String, scale: &Scale) {
    for is_major in [false, true] {
        let class = if is_major { "grid" } else { "minor" };
        let multiples = if is_major { 1..=1 } else { 2..=9 };
        for (axis, range) in [scale.x, scale.y].into_iter().enumerate() {
            for decade in range[0].floor() as i32..=range[1].ceil() as i32 {
                for value in multiples.clone().map(|m| f64::from(m) * 10_f64.powi(decade)) {
                    if !(range[0]..=range[1]).contains(&value.log10()) {
                        continue;
                    }
                    if axis == 0 {
                        let x = scale.across(value);
                        line(out, class, [x, PLOT.y, x, PLOT.bottom()]);
                        if is_major {
                            text(out, x, PLOT.bottom() + 20.0, "tick", "middle", &format!("{value}"));
                        }
                    } else {
                        let y = scale.up(value);
                        line(out, class, [PLOT.x, y, PLOT.right(), y]);
                        if is_major {
                            text(out, PLOT.x - 8.0, y + 4.0, "tick", "end", &spoken(value, "OP/s"));
                        }
                    }
                }
            }
        }
    }
    let Area { x, y, width, height } = PLOT;
    let _ = writeln!(out, "<rect class=\"frame\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"/>");
    let below = HEIGHT - 18.0;
    text(out, PLOT.x + PLOT.width / 2.0, below, "axis", "middle", "operations for each byte of operands and result");
}

/// The roof with its names. Returns what these cover.
fn roof(out: &mut String, scale: &Scale, ceilings: &Ceilings) -> Vec<Area> {
    let ridge = ceilings.int8 / ceilings.memory;
    let start = 10_f64.powf(scale.x[0]).max(10_f64.powf(scale.y[0]) / ceilings.memory);
    let [x0, y0] = [scale.across(start), scale.up(start * ceilings.memory)];
    let [x1, y1] = [scale.across(ridge), scale.up(ceilings.int8)];
    let end = PLOT.right();
    let path = format!("{x0:.1},{y0:.1} {x1:.1},{y1:.1} {end:.1},{y1:.1}");
    let bottom = PLOT.bottom();
    let _ = writeln!(out, "<polygon class=\"under\" points=\"{path} {end:.1},{bottom:.1} {x0:.1},{bottom:.1}\"/>");
    let _ = writeln!(out, "<polyline class=\"roof\" points=\"{path}\"/>");
    let unit = format!("int8, {}: {}", ceilings.unit.name(), spoken(ceilings.int8, "OP/s"));
    text(out, end - 10.0, y1 - 9.0, "ceiling", "end", &unit);
    let memory = format!("memory: {:.1} GB/s", ceilings.memory / 1e9);
    // Along the slope, a quarter of the way up.
    let (x, y) = (x0 + (x1 - x0) * 0.3, y0 + (y1 - y0) * 0.3);
    let angle = (y1 - y0).atan2(x1 - x0).to_degrees();
    let turn = format!("translate({x:.1} {y:.1}) rotate({angle:.2})");
    let _ = writeln!(out, "<text class=\"ceiling\" transform=\"{turn}\" x=\"0\" y=\"-9\">{memory}</text>");
    let length = 8.5 * memory.len() as f64;
    let (sin, cos) = angle.to_radians().sin_cos();
    let mut taken =
        vec![Area { x: end - 9.0 * unit.len() as f64, y: y1 - 24.0, width: 9.0 * unit.len() as f64, height: 26.0 }];
    // Small boxes along the line and its name, which is not level.
    for step in 0..=60 {
        let t = f64::from(step) / 60.0;
        let (x, y) = (x0 + (x1 - x0) * t, y0 + (y1 - y0) * t);
        taken.push(Area { x: x - 5.0, y: y - 5.0, width: 10.0, height: 10.0 });
    }
    for step in 0..=12 {
        let along = length * f64::from(step) / 12.0;
        let (x, y) = (x + along * cos + 13.0 * sin, y + along * sin - 13.0 * cos);
        taken.push(Area { x: x - 9.0, y: y - 9.0, width: 18.0, height: 18.0 });
    }
    taken.push(Area { x: x1, y: y1 - 4.0, width: end - x1, height: 8.0 });
    taken
}

fn draw_points(out: &mut String, points: &[Point], scale: &Scale, mut taken: Vec<Area>) {
    let centres: Vec<[f64; 2]> = points.iter().map(|point| scale.centre(point)).collect();
    let dot = |[x, y]: [f64; 2]| {
        let size = RADIUS + 1.5;
        Area { x: x - size, y: y - size, width: 2.0 * size, height: 2.0 * size }
    };
    taken.extend(centres.iter().map(|centre| dot(*centre)));
    // The loneliest first would be fairest; from the top down is nearly so, and keeps order in a column.
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|a, b| centres[*a][1].total_cmp(&centres[*b][1]));
    let mut labels = String::new();
    for index in order {
        let [x, y] = centres[index];
        let Point { label, class, is_disturbed, .. } = &points[index];
        let hollow = if *is_disturbed { " hollow" } else { "" };
        if let Some(area) = place([x, y], label, &taken) {
            taken.push(area);
            let near = [x.clamp(area.x, area.right()), y.clamp(area.y, area.bottom())];
            if (near[0] - x).hypot(near[1] - y) > 2.5 * RADIUS {
                line(out, "leader", [x, y, near[0], near[1]]);
            }
            // Letters may be wider or narrower than thought: they run away from the point, not into it.
            let (at, anchor) = if area.right() <= x { (area.right() - 2.0, "end") } else { (area.x + 2.0, "start") };
            text(&mut labels, at, area.bottom() - 3.5, "label", anchor, label);
        }
        let title = escape(label);
        let _ = writeln!(
            labels,
            "<circle class=\"point {class}{hollow}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{RADIUS}\"><title>{title}</title></circle>"
        );
    }
    *out += &labels;
}

/// The free place for a label that is nearest to its point.
fn place([x, y]: [f64; 2], label: &str, taken: &[Area]) -> Option<Area> {
    let (width, height) = (CHARACTER * label.chars().count() as f64 + 4.0, FONT + 4.0);
    let gap = RADIUS + 3.0;
    // To the right, to the left, above, below; then the same from ever wider circles around the point.
    for ring in 0..60 {
        let distance = f64::from(ring) * 9.0;
        for step in 0..if ring == 0 { 1 } else { 16 } {
            let (sin, cos) = (f64::from(step) * std::f64::consts::TAU / 16.0).sin_cos();
            let (px, py) = (x + distance * cos, y + distance * sin);
            let corners = [
                [px + gap, py - height / 2.0],
                [px - gap - width, py - height / 2.0],
                [px - width / 2.0, py - gap - height],
                [px - width / 2.0, py + gap],
            ];
            for [x, y] in corners {
                let area = Area { x, y, width, height };
                if PLOT.holds(area) && !taken.iter().any(|other| other.overlaps(area)) {
                    return Some(area);
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ceilings::Unit;
    use crate::ops::cases::{Spec, Variant};
    use crate::ops::counts::Counts;
    use crate::samples::Samples;
    use crate::watch::Seen;

    fn ceilings() -> Ceilings {
        Ceilings { memory: 20e9, int8: 1.2e12, unit: Unit::Portable, disturbed: Vec::new() }
    }

    /// Points in heaps, as ops that are alike make them.
    fn measured(count: usize) -> Vec<Measured> {
        let one = |index: usize| Measured {
            spec: Spec::new("matmul", &[1 + index, 64, 32], Variant::W8).expect("a shape"),
            counts: Counts { operations: 1_000, byte_operations: 2_000, bytes: 500 + 40 * (index as u64 % 3) },
            seconds: Samples(vec![1e-7 * (1.0 + (index % 5) as f64)]),
            copies: 2,
            seen: Seen::default(),
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn every_op_has_a_point_and_a_label() {
        let svg = svg(&measured(40), &ceilings(), "a <machine>");
        assert_eq!(svg.matches("<circle class=\"point").count(), 40);
        assert_eq!(svg.matches("class=\"label\"").count(), 40);
        assert!(svg.contains("a &lt;machine&gt;") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn what_only_moves_rows_stands_at_the_edge_and_disturbed_points_are_hollow() {
        let mut measured = measured(3);
        measured[0].counts = Counts { operations: 0, byte_operations: 0, bytes: 1_000 };
        measured[1].seen.disturbances.push("heat".into());
        measured[2].seconds = Samples(vec![1.0, 2.0, 3.0]);
        let drawn = svg(&measured, &ceilings(), "a machine");
        let edge = format!("cx=\"{:.1}\"", PLOT.x);
        let points: Vec<&str> = drawn.lines().filter(|line| line.starts_with("<circle class=\"point")).collect();
        assert_eq!(points.iter().filter(|point| point.contains(&edge)).count(), 1, "{points:?}");
        assert_eq!(points.iter().filter(|point| point.contains("hollow")).count(), 2, "{points:?}");
        assert!(!drawn.contains("the roof was disturbed"));
        let doubtful = Ceilings { disturbed: vec!["heat".into()], ..ceilings() };
        assert!(
            svg(&measured, &doubtful, "a machine").contains("the roof was disturbed, so shares are too high: heat")
        );
    }

    #[test]
    fn what_a_cache_holds_is_named_so() {
        let mut measured = measured(1);
        measured[0].seconds = Samples(vec![measured[0].counts.bytes as f64 / 50e9]);
        assert!(svg(&measured, &ceilings(), "a machine").contains("%, in a cache"));
    }

    #[test]
    fn labels_overlap_neither_each_other_nor_points() {
        let points = points(&measured(40), &ceilings());
        let scale = Scale::over(&points, &ceilings());
        let mut taken = Vec::new();
        for point in &points {
            let centre = scale.centre(point);
            let area = place(centre, &point.label, &taken).expect("a place");
            assert!(PLOT.holds(area) && taken.iter().all(|other| !area.overlaps(*other)));
            taken.push(area);
        }
    }

    #[test]
    fn numbers_are_spoken() {
        assert_eq!(spoken(1e9, "OP/s"), "1 GOP/s");
        assert_eq!(spoken(1.21e12, "OP/s"), "1.21 TOP/s");
        assert_eq!(spoken(250.0, "B"), "250 B");
    }
}
