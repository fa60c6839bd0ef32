//! The table below a plot: what each number stands for.

use std::fmt::Write;

use super::axes::PLOT;
use super::{KINDS, Point, RADIUS, WIDTH, spoken, text};

const COLUMNS: usize = 3;
const LINE: f64 = 17.0;
/// Lines of a column at the least, so that few ops stand below each other.
const FEWEST: usize = 8;
/// Left and right of all columns, and between two.
const MARGIN: f64 = 20.0;
const GAP: f64 = 20.0;
/// From the right of a column to the ends of what is in it.
const RATE: f64 = 58.0;
const SHARE: f64 = 9.0;
const TOP: f64 = PLOT.y + PLOT.height + 76.0;

enum Line<'a> {
    /// A kind of op.
    Heading(&'static str, &'static str),
    Entry(&'a Point),
}

/// Kinds and their ops in columns.
pub(super) struct Table<'a> {
    columns: Vec<Vec<Line<'a>>>,
    notes: Vec<&'static str>,
}

impl<'a> Table<'a> {
    pub(super) fn of(points: &'a [Point]) -> Self {
        let mut lines = Vec::new();
        for (class, name) in KINDS {
            let of_kind = points.iter().filter(|point| point.class == class);
            let first = lines.len();
            lines.extend(of_kind.map(Line::Entry));
            if lines.len() > first {
                lines.insert(first, Line::Heading(class, name));
            }
        }
        let length = lines.len().div_ceil(COLUMNS).max(FEWEST);
        let mut columns: Vec<Vec<Line<'a>>> = Vec::new();
        for line in lines {
            let is_heading = matches!(line, Line::Heading(..));
            // No heading stands at the end of a column.
            let is_full = |column: &Vec<Line<'a>>| column.len() + usize::from(is_heading) >= length;
            if columns.last().is_none_or(is_full) && columns.len() < COLUMNS {
                columns.push(Vec::new());
            }
            columns.last_mut().expect("one was pushed").push(line);
        }
        let mut notes = Vec::new();
        if points.iter().any(|point| point.is_in_cache) {
            notes.push("* in a cache: its bytes come faster than memory gives them");
        }
        if points.iter().any(|point| point.is_disturbed) {
            notes.push("! disturbed: other programs, heat, or samples far apart");
        }
        Self { columns, notes }
    }

    /// Where the page ends.
    pub(super) fn bottom(&self) -> f64 {
        let lines = self.columns.iter().map(Vec::len).max().unwrap_or(0);
        let notes = if self.notes.is_empty() { 0.0 } else { 2.0 };
        TOP + LINE * (lines as f64 + 0.5 + notes)
    }

    pub(super) fn draw(&self, out: &mut String) {
        let width = (WIDTH - 2.0 * MARGIN - GAP * (COLUMNS - 1) as f64) / COLUMNS as f64;
        for (index, column) in self.columns.iter().enumerate() {
            let left = MARGIN + (width + GAP) * index as f64;
            let right = left + width;
            text(out, right - RATE, TOP - 3.0, "about", "end", "rate");
            text(out, right - SHARE, TOP - 3.0, "about", "end", "of roof");
            for (row, line) in column.iter().enumerate() {
                let y = TOP + LINE * (row as f64 + 1.0);
                match line {
                    Line::Heading(class, name) => heading(out, [left, y], class, name),
                    Line::Entry(point) => entry(out, [left, right, y], point),
                }
            }
        }
        if !self.notes.is_empty() {
            text(out, MARGIN, self.bottom() - LINE, "about", "start", &self.notes.join(" · "));
        }
    }
}

fn heading(out: &mut String, [left, y]: [f64; 2], class: &str, name: &str) {
    let (x, middle) = (left + 17.0, y - 4.0);
    let _ = writeln!(out, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{middle:.1}\" r=\"{RADIUS}\"/>");
    text(out, left + 28.0, y, "heading", "start", name);
}

fn entry(out: &mut String, [left, right, y]: [f64; 3], point: &Point) {
    text(out, left + 21.0, y, &format!("number {}", point.class), "end", &point.number.to_string());
    text(out, left + 28.0, y, "label", "start", &point.label);
    text(out, right - RATE, y, "tick", "end", &spoken(point.rate, point.unit()));
    text(out, right - SHARE, y, "tick", "end", &format!("{:.0}%", 100.0 * point.share));
    // What is remarkable stands after the numbers, which so stay below each other.
    let marks = [(point.is_in_cache, "*"), (point.is_disturbed, "!")];
    let marks: String = marks.into_iter().filter_map(|(is_so, mark)| is_so.then_some(mark)).collect();
    if !marks.is_empty() {
        text(out, right - SHARE + 1.0, y, "tick", "start", &marks);
    }
}
