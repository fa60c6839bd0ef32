//! Two reports side by side: ratios, and a verdict that knows how far apart equal runs are.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};

use super::{Figure, Report, Row, lower_is_better};

/// Change that no spread is needed to call noise.
const NOISE: f64 = 0.02;

/// What a figure of the second report says beside the same one of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Better by more than both spreads together.
    Better,
    /// Worse by more than both spreads together.
    Worse,
    /// The difference is within the spreads.
    Same,
    /// One of the runs was disturbed, so that nothing can be said.
    Disturbed,
}

impl Verdict {
    /// As tables spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "same",
            Self::Disturbed => "disturbed",
        }
    }

    /// Of a ratio second / first, with the spreads of both.
    fn of(name: &str, ratio: f64, spreads: [f64; 2], is_disturbed: bool) -> Self {
        // Half of each spread lies on either side of its median.
        let noise = NOISE.max((spreads[0] + spreads[1]) / 2.0);
        let gain = if lower_is_better(name) { 1.0 / ratio } else { ratio };
        // A change in which neither the better nor the worse side is beyond the noise is none; NaN is none either.
        if gain > 1.0 + noise {
            if is_disturbed { Self::Disturbed } else { Self::Better }
        } else if gain < 1.0 / (1.0 + noise) {
            if is_disturbed { Self::Disturbed } else { Self::Worse }
        } else {
            Self::Same
        }
    }
}

/// Lines of a report in JSON, by what they measured.
type Lines = BTreeMap<String, Map<String, Value>>;

fn parse(text: &str) -> Result<Lines> {
    let mut lines = Lines::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let object: Map<String, Value> =
            serde_json::from_str(line).with_context(|| format!("line {} is not a row of a report", number + 1))?;
        let Some(labels) = object.get("labels").and_then(Value::as_array) else { continue };
        let bench = object.get("bench").and_then(Value::as_str).unwrap_or("?");
        let mut key = bench.to_owned();
        for name in labels.iter().filter_map(Value::as_str) {
            let value = object.get(name).cloned().unwrap_or_default();
            let value = value.as_str().map_or_else(|| format!("{name} {value}"), str::to_owned);
            key += &format!(" {value}");
        }
        lines.insert(key, object);
    }
    ensure!(!lines.is_empty(), "there is no row of a report: make one with `lockstep bench ... --json`");
    Ok(lines)
}

fn is_disturbed(line: &Map<String, Value>) -> bool {
    line.get("disturbed").and_then(Value::as_array).is_some_and(|seen| !seen.is_empty())
}

/// Compares reports in JSON lines: every figure with a spread that both have for the same labels. A report has a row for
/// each, with the ratio of the second to the first.
///
/// # Errors
/// A text has no rows, or the two have none in common.
pub fn compare(first: &str, second: &str) -> Result<Report> {
    let (first, second) = (parse(first).context("the first report")?, parse(second).context("the second report")?);
    let mut report = Report::new("compare", "second / first; better or worse only beyond the spreads of both".into());
    for (key, a) in &first {
        let Some(b) = second.get(key) else { continue };
        let number = |line: &Map<String, Value>, name: &str| line.get(name).and_then(Value::as_f64);
        for name in a.keys().filter_map(|name| name.strip_suffix("_spread")) {
            let (Some(x), Some(y)) = (number(a, name), number(b, name)) else { continue };
            let spread = |line| number(line, &format!("{name}_spread")).unwrap_or(0.0);
            let verdict = Verdict::of(name, y / x, [spread(a), spread(b)], is_disturbed(a) || is_disturbed(b));
            report.rows.push(
                Row::new([
                    ("measured", key.clone().into()),
                    ("figure", name.into()),
                    ("verdict", verdict.name().into()),
                ])
                .figure(Figure::exact("first", "first", x))
                .figure(Figure::exact("second", "second", y))
                .figure(Figure::exact("second_to_first", "ratio", y / x)),
            );
        }
    }
    ensure!(!report.rows.is_empty(), "the two reports have no measurement in common");
    let only = |a: &Lines, b: &Lines| a.keys().filter(|key| !b.contains_key(*key)).count();
    let (gone, new) = (only(&first, &second), only(&second, &first));
    if gone + new > 0 {
        report.summary = Some(format!("only in the first: {gone} rows; only in the second: {new}"));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::report::Format;
    use crate::samples::Samples;

    #[test]
    fn a_verdict_respects_the_spread_and_the_direction() {
        let verdict = |name, ratio, spread| Verdict::of(name, ratio, [spread, spread], false);
        assert_eq!(verdict("tokens_per_second", 1.2, 0.05), Verdict::Better);
        assert_eq!(verdict("tokens_per_second", 1.2, 0.25), Verdict::Same);
        assert_eq!(verdict("tokens_per_second", 0.8, 0.05), Verdict::Worse);
        assert_eq!(verdict("seconds", 0.8, 0.05), Verdict::Better);
        assert_eq!(verdict("seconds", 1.2, 0.05), Verdict::Worse);
        assert_eq!(verdict("seconds", 1.01, 0.0), Verdict::Same);
        assert_eq!(verdict("seconds", f64::NAN, 0.0), Verdict::Same);
        assert_eq!(Verdict::of("seconds", 2.0, [0.0, 0.0], true), Verdict::Disturbed);
    }

    fn lines(scale: f64) -> String {
        let mut report = Report::new("ops", String::new());
        for (op, seconds) in [("add", 1.0), ("matmul", 2.0 * scale)] {
            let samples = Samples(vec![seconds; 3]);
            let row = Row::new([("op", op.into()), ("threads", 2.into())]);
            report
                .rows
                .push(row.figure(Figure::of("seconds", "s", &samples)).figure(Figure::exact("bytes", "bytes", 4.0)));
        }
        report.render(Format::Json)
    }

    #[test]
    fn rows_are_compared_by_their_labels() {
        let report = compare(&lines(1.0), &lines(2.0)).expect("comparable");
        let rows: Vec<Value> =
            report.render(Format::Json).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!((&rows[0]["verdict"], &rows[0]["second_to_first"]), (&json!("same"), &json!(1.0)));
        assert_eq!((&rows[1]["verdict"], &rows[1]["second_to_first"]), (&json!("worse"), &json!(2.0)));
        assert_eq!(rows[1]["measured"], json!("ops matmul threads 2"));
    }

    #[test]
    fn what_is_no_report_is_refused() {
        assert!(compare("", &lines(1.0)).is_err());
        assert!(compare(&lines(1.0), "not JSON\n").is_err());
        let other = lines(1.0).replace("\"ops\"", "\"other\"");
        assert!(compare(&lines(1.0), &other).is_err());
    }
}
