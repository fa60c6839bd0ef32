//! The plot without its points: scales, grid and roof.

use std::fmt::Write;

use super::labels::Area;
use super::{Point, WIDTH, line, spoken, text};
use crate::ceilings::Ceilings;

/// The plot.
pub(super) const PLOT: Area = Area { x: 96.0, y: 112.0, width: WIDTH - 96.0 - 24.0, height: 600.0 };

/// Decades of both axes on the page.
pub(super) struct Scale {
    x: [f64; 2],
    y: [f64; 2],
}

impl Scale {
    pub(super) fn over(points: &[Point], ceilings: &Ceilings) -> Self {
        let ridge = ceilings.int8 / ceilings.memory;
        let points: Vec<&Point> = points.iter().filter(|point| point.intensity > 0.0).collect();
        let range = |values: &mut dyn Iterator<Item = f64>, low: f64, high: f64| {
            let (mut least, mut most) = (low, high);
            for value in values.filter(|v| v.is_finite() && *v > 0.0) {
                (least, most) = (least.min(value), most.max(value));
            }
            [least.log10() - 0.25, most.log10() + 0.25]
        };
        let x = range(&mut points.iter().map(|p| p.intensity), ridge / 100.0, ridge * 4.0);
        let y = range(&mut points.iter().map(|p| p.rate), ceilings.int8 / 1e2, ceilings.int8);
        Self { x, y }
    }

    /// Where a point is. What only moves rows has no place on a logarithmic axis: it stands at the edge, as far below the
    /// slope as it is below the rate of memory.
    pub(super) fn centre(&self, point: &Point) -> [f64; 2] {
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

/// Decades with numbers, lines for their multiples, and what the axes are.
pub(super) fn grid(out: &mut String, scale: &Scale) {
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
                            text(out, x, PLOT.bottom() + 18.0, "tick", "middle", &format!("{value}"));
                        }
                    } else {
                        let y = scale.up(value);
                        line(out, class, [PLOT.x, y, PLOT.right(), y]);
                        if is_major {
                            text(out, PLOT.x - 9.0, y + 4.0, "tick", "end", &spoken(value, "OP/s"));
                        }
                    }
                }
            }
        }
    }
    let Area { x, y, width, height } = PLOT;
    let _ = writeln!(out, "<rect class=\"frame\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"/>");
    let what = "operational intensity: operations for each byte of operands and result (OP/B)";
    text(out, x + width / 2.0, PLOT.bottom() + 42.0, "axis", "middle", what);
    let middle = y + height / 2.0;
    let _ = writeln!(
        out,
        "<text class=\"axis\" transform=\"translate(16 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">operations a second</text>"
    );
}

/// What a roof covers of the page.
#[derive(Default)]
pub(super) struct Covered {
    pub(super) names: Vec<Area>,
    pub(super) lines: Vec<Area>,
}

/// The roof with its names.
pub(super) fn roof(out: &mut String, scale: &Scale, ceilings: &Ceilings) -> Covered {
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
    let length = 9.0 * unit.len() as f64;
    let mut covered = Covered {
        names: vec![Area { x: end - length, y: y1 - 24.0, width: length, height: 24.0 }],
        lines: vec![Area { x: x1, y: y1 - 4.0, width: end - x1, height: 8.0 }],
    };
    // Its name along the slope, above it, not far below the ridge.
    let memory = format!("memory: {:.1} GB/s", ceilings.memory / 1e9);
    let angle = (y1 - y0).atan2(x1 - x0);
    let (sin, cos) = angle.sin_cos();
    let length = 8.2 * memory.len() as f64;
    let (x, y) = (x1 - (length + 16.0) * cos, y1 - (length + 16.0) * sin);
    let turn = format!("translate({x:.1} {y:.1}) rotate({:.2})", angle.to_degrees());
    let _ = writeln!(out, "<text class=\"ceiling\" transform=\"{turn}\" x=\"0\" y=\"-9\">{memory}</text>");
    // Small boxes along the line and its name, which are not level.
    let along = |boxes: &mut Vec<Area>, [x0, y0]: [f64; 2], [x1, y1]: [f64; 2], half: f64| {
        let steps = ((x1 - x0).hypot(y1 - y0) / half).ceil().max(1.0);
        for step in 0..=steps as u32 {
            let t = f64::from(step) / steps;
            boxes.push(Area::around([x0 + (x1 - x0) * t, y0 + (y1 - y0) * t], 2.0 * half, 2.0 * half));
        }
    };
    along(&mut covered.lines, [x0, y0], [x1, y1], 3.0);
    let (above_x, above_y) = (x + 13.0 * sin, y - 13.0 * cos);
    along(&mut covered.names, [above_x, above_y], [above_x + length * cos, above_y + length * sin], 8.0);
    covered
}
