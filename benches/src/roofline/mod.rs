//! A roofline as an SVG: what each op reaches, under what the machine allows it to reach.
//!
//! Across, how many operations an op makes for each byte that it has to move; upwards, how many it makes a second; both in
//! decades. Products count as the operations on bytes that they become. The slope is the memory's, the ceiling the
//! multipliers'. Every point has a number, which stands where nothing else does, and a table below says what it means. The
//! drawing needs neither script nor fonts of its own, and follows the reader's light or dark theme.
//!
//! - [`axes`]: the plot without its points. [`labels`]: where numbers find a place. [`table`]: what they mean.

mod axes;
mod labels;
mod table;

use std::fmt::Write;

use self::axes::{PLOT, Scale};
use self::table::Table;
use crate::ceilings::Ceilings;
use crate::ops::Measured;

const WIDTH: f64 = 1160.0;
const RADIUS: f64 = 4.2;
/// What comes at so many times the rate of memory comes from a cache.
const IN_CACHE: f64 = 1.1;

const STYLE: &str = "
  text { font-family: system-ui, 'DejaVu Sans', Helvetica, Arial, sans-serif; fill: #24292f; font-size: 12px }
  .paper { fill: #ffffff } .grid { stroke: #dfe3e8; stroke-width: 1 } .minor { stroke: #f1f3f5; stroke-width: 1 }
  .frame { fill: none; stroke: #8c959f; stroke-width: 1 } .roof { fill: none; stroke: #57606a; stroke-width: 2.2 }
  .under { fill: #57606a; fill-opacity: 0.05 } .leader { stroke: #8c959f; stroke-width: 0.7 }
  .title { font-size: 20px; font-weight: 600 } .about, .tick, .ceiling { fill: #57606a }
  .axis { font-size: 13px } .ceiling { font-size: 13px; font-weight: 600 }
  .heading { font-weight: 600 } .number { font-size: 10.5px; font-weight: 600 }
  .point { stroke: #ffffff; stroke-width: 0.8 }
  .w8 { fill: #0969da; color: #0969da } .w16 { fill: #8250df; color: #8250df }
  .attention { fill: #cf4a00; color: #cf4a00 } .norm { fill: #1a7f37; color: #1a7f37 }
  .element { fill: #bf2d7f; color: #bf2d7f } .rows { fill: #8a6100; color: #8a6100 }
  .hollow { fill: #ffffff; stroke: currentColor; stroke-width: 1.8 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .paper { fill: #0d1117 } .grid { stroke: #2a313b } .minor { stroke: #171c23 }
    .frame, .leader { stroke: #6e7681 } .roof { stroke: #9da7b3 } .under { fill: #9da7b3 }
    .about, .tick, .ceiling { fill: #9da7b3 } .point { stroke: #0d1117 }
    .w8 { fill: #58a6ff; color: #58a6ff } .w16 { fill: #c297ff; color: #c297ff }
    .attention { fill: #ff9a4d; color: #ff9a4d } .norm { fill: #56d364; color: #56d364 }
    .element { fill: #ff8ac4; color: #ff8ac4 } .rows { fill: #e3b341; color: #e3b341 }
    .hollow { fill: #0d1117; stroke: currentColor }
  }
";

/// Ops that are alike: the class of their colour, and what they are called.
const KINDS: [(&str, &str); 6] = [
    ("w8", "products, 8-bit weights"),
    ("w16", "products, 16-bit weights"),
    ("attention", "attention"),
    ("norm", "norms"),
    ("element", "element by element"),
    ("rows", "rows in and out"),
];

/// The class of an op's colour.
fn class(measured: &Measured) -> &'static str {
    match measured.spec.op {
        "matmul" => measured.spec.variant.name(),
        "attention" => "attention",
        "layer_norm" | "rms_norm" | "l2_normalize" => "norm",
        "add" | "multiply" | "shift" | "quantize" | "gelu" | "silu" | "rope" => "element",
        _ => "rows",
    }
}

/// One op as a point.
struct Point {
    /// What it stands under in plot and table.
    number: usize,
    label: String,
    class: &'static str,
    /// Operations for each byte; nothing where rows are only moved.
    intensity: f64,
    /// Operations a second; bytes a second where rows are only moved.
    rate: f64,
    /// Of the roof; nothing where there is no roof for it.
    share: f64,
    is_in_cache: bool,
    /// Whether its measurement was.
    is_disturbed: bool,
}

impl Point {
    fn of(measured: &Measured, ceilings: &Ceilings) -> Option<Self> {
        let operations = measured.counts.byte_operations.max(measured.counts.operations) as f64;
        let seconds = measured.seconds.median();
        let variant = measured.spec.variant.name();
        let space = if variant.is_empty() { "" } else { " " };
        Some(Self {
            number: 0,
            label: format!("{}{space}{variant} {}", measured.spec.op, measured.spec),
            class: class(measured),
            intensity: operations / measured.counts.bytes as f64,
            rate: if operations > 0.0 { operations / seconds } else { measured.bandwidth() },
            share: measured.least_seconds(&ceilings.roof())? / seconds,
            is_in_cache: measured.bandwidth() > IN_CACHE * ceilings.memory,
            is_disturbed: measured.is_disturbed(),
        })
    }

    /// Rows that are only moved have bytes and no operations.
    fn unit(&self) -> &'static str {
        if self.intensity > 0.0 { "OP/s" } else { "B/s" }
    }

    /// How it is drawn.
    fn dot(&self) -> String {
        format!("{}{}", self.class, if self.is_disturbed { " hollow" } else { "" })
    }
}

/// All ops, kind by kind, and numbered in that order.
fn points(measured: &[Measured], ceilings: &Ceilings) -> Vec<Point> {
    let mut points: Vec<Point> = measured.iter().filter_map(|m| Point::of(m, ceilings)).collect();
    points.sort_by_key(|point| KINDS.iter().position(|(class, _)| *class == point.class));
    for (index, point) in points.iter_mut().enumerate() {
        point.number = index + 1;
    }
    points
}

/// A number with a unit that people say, three digits of it: 20 GOP/s, 3.14 kOP/s.
fn spoken(value: f64, unit: &str) -> String {
    let steps = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")];
    let (step, prefix) = steps.into_iter().find(|(step, _)| value >= *step * 0.9995).unwrap_or((1.0, ""));
    let scaled = value / step;
    let digits =
        if scaled >= 99.95 || (scaled - scaled.round()).abs() < 1e-6 { 0 } else { 1 + usize::from(scaled < 9.995) };
    format!("{scaled:.digits$} {prefix}{unit}")
}

/// The plot. `on` says what was measured, where.
pub fn svg(measured: &[Measured], ceilings: &Ceilings, on: &str) -> String {
    let points = points(measured, ceilings);
    let scale = Scale::over(&points, ceilings);
    let table = Table::of(&points);
    let height = table.bottom();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>Roofline of {}</title>\n\
         <style>{STYLE}</style>\n<rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\"/>\n",
        escape(on)
    );
    text(&mut out, PLOT.x, 34.0, "title", "start", &format!("Roofline of {on}"));
    let about = "Products count as operations on bytes: two for each with 8-bit weights, four with 16-bit ones and in attention.";
    text(&mut out, PLOT.x, 56.0, "about", "start", about);
    if !ceilings.disturbed.is_empty() {
        let doubt = format!("! the roof was disturbed, so shares are too high: {}", ceilings.disturbed.join("; "));
        text(&mut out, PLOT.x, 74.0, "about", "start", &doubt);
    }
    key(&mut out, &points);
    axes::grid(&mut out, &scale);
    let covered = axes::roof(&mut out, &scale, ceilings);
    let centres: Vec<[f64; 2]> = points.iter().map(|point| scale.centre(point)).collect();
    let numbers: Vec<String> = points.iter().map(|point| point.number.to_string()).collect();
    let places = labels::places(&centres, &numbers, covered);
    draw(&mut out, &points, &centres, &places);
    table.draw(&mut out);
    out + "</svg>\n"
}

/// What colours and hollow points mean.
fn key(out: &mut String, points: &[Point]) {
    let kinds = KINDS.iter().filter(|(class, _)| points.iter().any(|point| point.class == *class)).copied();
    let hollow = points.iter().find(|point| point.is_disturbed).map(|_| ("rows hollow", "disturbed"));
    let mut x = PLOT.x + RADIUS;
    for (class, what) in kinds.chain(hollow) {
        let _ = writeln!(out, "<circle class=\"key {class}\" cx=\"{x:.1}\" cy=\"92\" r=\"{RADIUS}\"/>");
        text(out, x + 10.0, 96.0, "tick", "start", what);
        x += 6.6 * what.len() as f64 + 34.0;
    }
}

/// Points over leaders, so that none is crossed out; numbers over both.
fn draw(out: &mut String, points: &[Point], centres: &[[f64; 2]], places: &[Option<labels::Area>]) {
    for (&[x, y], area) in centres.iter().zip(places) {
        let Some(area) = area else { continue };
        let [to_x, to_y] = area.nearest([x, y]);
        if (to_x - x).hypot(to_y - y) > 2.0 * RADIUS {
            line(out, "leader", [x, y, to_x, to_y]);
        }
    }
    for (point, [x, y]) in points.iter().zip(centres) {
        let (dot, label) = (point.dot(), escape(&point.label));
        let reached = format!("{}, {:.0}% of the roof", spoken(point.rate, point.unit()), 100.0 * point.share);
        let _ = writeln!(
            out,
            "<circle class=\"point {dot}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{RADIUS}\"><title>{label}: {reached}</title></circle>"
        );
    }
    for (point, area) in points.iter().zip(places) {
        if let Some(area) = area {
            let class = format!("number {}", point.class);
            text(
                out,
                area.x + area.width / 2.0,
                area.y + area.height - 2.5,
                &class,
                "middle",
                &point.number.to_string(),
            );
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn text(out: &mut String, x: f64, y: f64, class: &str, anchor: &str, what: &str) {
    let what = escape(what);
    let _ = writeln!(out, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{what}</text>");
}

fn line(out: &mut String, class: &str, [x1, y1, x2, y2]: [f64; 4]) {
    let _ = writeln!(out, "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
}

#[cfg(test)]
mod tests {
    use lockstep_kernels::program::OP_NAMES;

    use super::*;
    use crate::ceilings::Unit;
    use crate::ops::cases::{Spec, Variant};
    use crate::ops::counts::Counts;
    use crate::ops::shapes::defaults;
    use crate::samples::Samples;
    use crate::watch::Seen;

    fn ceilings() -> Ceilings {
        Ceilings { memory: 20e9, int8: 1.2e12, unit: Unit::Portable, disturbed: Vec::new() }
    }

    fn one(spec: Spec, index: usize) -> Measured {
        Measured {
            spec,
            counts: Counts { operations: 1_000, byte_operations: 2_000, bytes: 500 + 40 * (index as u64 % 3) },
            seconds: Samples(vec![1e-7 * (1.0 + (index % 5) as f64)]),
            copies: 2,
            seen: Seen::default(),
        }
    }

    /// Points in heaps, as ops that are alike make them.
    fn measured(count: usize) -> Vec<Measured> {
        let spec = |index| Spec::new("matmul", &[1 + index, 64, 32], Variant::W8).expect("a shape");
        (0..count).map(|index| one(spec(index), index)).collect()
    }

    #[test]
    fn every_op_has_a_point_a_number_and_a_label() {
        let svg = svg(&measured(40), &ceilings(), "a <machine>");
        assert_eq!(svg.matches("<circle class=\"point").count(), 40);
        assert_eq!(svg.matches("class=\"label\"").count(), 40);
        // In the plot and in the table.
        assert_eq!(svg.matches("class=\"number w8\"").count(), 80);
        assert!(svg.contains("a &lt;machine&gt;") && svg.ends_with("</svg>\n"));
    }

    /// Numbers go through the kinds, and what was measured of a kind keeps its order.
    #[test]
    fn ops_are_numbered_kind_by_kind() {
        let specs = OP_NAMES.into_iter().flat_map(defaults);
        let measured: Vec<Measured> = specs.enumerate().map(|(index, spec)| one(spec, index)).collect();
        let points = points(&measured, &ceilings());
        assert_eq!(points.len(), measured.len());
        assert!(points.iter().enumerate().all(|(index, point)| point.number == index + 1));
        let mut kinds: Vec<&str> = points.iter().map(|point| point.class).collect();
        kinds.dedup();
        assert_eq!(kinds, KINDS.map(|(class, _)| class));
        assert_eq!(points[0].label, "matmul w8 1x576x576");
        let drawn = svg(&measured, &ceilings(), "a machine");
        assert!(
            KINDS.iter().all(|(class, name)| drawn.contains(&format!("class=\"{class}\"")) && drawn.contains(name))
        );
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
        let note = "* in a cache";
        assert!(!svg(&measured, &ceilings(), "a machine").contains(note));
        measured[0].seconds = Samples(vec![measured[0].counts.bytes as f64 / 50e9]);
        let drawn = svg(&measured, &ceilings(), "a machine");
        assert!(drawn.contains(note) && drawn.contains(">*</text>"));
    }

    #[test]
    fn numbers_are_spoken() {
        assert_eq!(spoken(1e9, "OP/s"), "1 GOP/s");
        assert_eq!(spoken(1.21e12, "OP/s"), "1.21 TOP/s");
        assert_eq!(spoken(6.001e9, "OP/s"), "6.00 GOP/s");
        assert_eq!(spoken(82.44e9, "OP/s"), "82.4 GOP/s");
        assert_eq!(spoken(250.0, "B"), "250 B");
    }
}
