//! Two reports side by side: ratios, and a verdict that knows how far apart equal runs are.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::{APART, Figure, MOST_SPREAD, Report, Row, lower_is_better};
use crate::environment::Environment;

/// Change that no spread is needed to call noise.
const NOISE: f64 = 0.02;
/// No measurement is larger, in any unit.
const MOST: f64 = 1e18;

/// What a figure of the second report says beside the same one of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Better by more than both spreads together.
    Better,
    /// Worse by more than both spreads together.
    Worse,
    /// The difference is within the spreads.
    Same,
    /// One of the runs was disturbed, or samples are so far apart that nothing can be said.
    Unclear,
    /// One of them was measured only once.
    NoSpread,
}

impl Verdict {
    /// As tables spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "same",
            Self::Unclear => "unclear",
            Self::NoSpread => "no spread known",
        }
    }

    /// Of a ratio second / first, with the spreads of both.
    fn of(name: &str, ratio: f64, spreads: [Option<f64>; 2], is_disturbed: bool) -> Self {
        let [Some(first), Some(second)] = spreads else { return Self::NoSpread };
        // Half of each spread lies on either side of its median.
        let noise = NOISE.max((first + second) / 2.0);
        let gain = if lower_is_better(name) { 1.0 / ratio } else { ratio };
        let is_clear = gain.is_finite() && gain > 0.0 && noise <= MOST_SPREAD && !is_disturbed;
        match gain {
            _ if !is_clear => Self::Unclear,
            gain if gain > 1.0 + noise => Self::Better,
            gain if gain < 1.0 / (1.0 + noise) => Self::Worse,
            _ => Self::Same,
        }
    }
}

/// A line of a report in JSON.
type Line = Map<String, Value>;

/// A report in JSON lines.
struct Lines {
    /// By what they measured.
    rows: BTreeMap<String, Line>,
    /// Rows that another one with the same labels followed.
    repeated: usize,
    /// Where the first row was measured.
    environment: Environment,
}

fn parse(text: &str) -> Result<Lines> {
    let mut lines = Lines { rows: BTreeMap::new(), repeated: 0, environment: Environment::default() };
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let object: Line =
            serde_json::from_str(line).with_context(|| format!("line {} is not a row of a report", number + 1))?;
        let Some(labels) = object.get("labels").and_then(Value::as_array) else { continue };
        let bench = object.get("bench").and_then(Value::as_str).unwrap_or("?");
        let mut key = bench.to_owned();
        for name in labels.iter().filter_map(Value::as_str) {
            let value = object.get(name).cloned().unwrap_or_default();
            let value = value.as_str().map_or_else(|| format!("{name} {value}"), str::to_owned);
            key += &format!(" {value}");
        }
        for name in compared(&object) {
            // What divides by nothing is null.
            let value = object.get(name).filter(|value| !value.is_null());
            if let Some(value) = value
                && !value.as_f64().is_some_and(|value| (0.0..=MOST).contains(&value))
            {
                bail!("line {}: {name} is {value}, which nothing can measure", number + 1);
            }
        }
        if lines.rows.is_empty() {
            let environment = object.get("environment").cloned().unwrap_or_else(|| json!({}));
            lines.environment = serde_json::from_value(environment)
                .with_context(|| format!("the environment of line {}", number + 1))?;
        }
        lines.repeated += usize::from(lines.rows.insert(key, object).is_some());
    }
    ensure!(!lines.rows.is_empty(), "there is no row of a report: make one with `lockstep bench ... --json`");
    Ok(lines)
}

/// Names of the figures that were measured: those that have a spread, known or not.
fn compared(line: &Line) -> impl Iterator<Item = &str> {
    line.keys().filter_map(|name| name.strip_suffix("_spread"))
}

fn is_disturbed(line: &Line) -> bool {
    // A spread counts where it belongs: with its own figure.
    let is_outside = |seen: &Value| !seen.as_str().is_some_and(|seen| seen.starts_with(APART));
    line.get("disturbed").and_then(Value::as_array).is_some_and(|seen| seen.iter().any(is_outside))
}

/// Compares reports in JSON lines: every measured figure that both have for the same labels. A report has a row for each,
/// with the ratio of the second to the first.
///
/// # Errors
/// A text has no rows, a figure is no measurement, or the two have none in common.
pub fn compare(first: &str, second: &str) -> Result<Report> {
    let (first, second) = (parse(first).context("the first report")?, parse(second).context("the second report")?);
    let [a, b] = [&first, &second].map(|report| report.environment.line());
    let about = format!("second / first; better or worse only beyond the spreads of both\nfirst: {a}\nsecond: {b}");
    let mut differences = first.environment.differences(&second.environment);
    let pairs = first.rows.iter().filter_map(|(key, a)| Some((key, a, second.rows.get(key)?)));
    let model = |line: &Line| line.get("model_id").cloned();
    if pairs.clone().any(|(_, a, b)| model(a) != model(b)) {
        differences.push("the model, under the same name".into());
    }
    let mut report = Report::elsewhere("compare", about)
        .detail("first_environment", json!(first.environment))
        .detail("second_environment", json!(second.environment))
        .detail("differences", differences.clone());
    pairs.flat_map(|(key, a, b)| rows(key, a, b)).for_each(|row| drop(report.push(row)));
    ensure!(!report.rows.is_empty(), "the two reports have no measurement in common");
    report.summary = notes(&first, &second, &differences);
    Ok(report)
}

/// A row for each figure that both lines have.
fn rows(key: &str, a: &Line, b: &Line) -> Vec<Row> {
    let number = |line: &Line, name: &str| line.get(name).and_then(Value::as_f64);
    let row = |name: &str| {
        let (first, second) = (number(a, name)?, number(b, name)?);
        let ratio = second / first;
        let spread = |line| number(line, &format!("{name}_spread"));
        let verdict = Verdict::of(name, ratio, [spread(a), spread(b)], is_disturbed(a) || is_disturbed(b));
        Some(
            Row::new([("measured", key.into()), ("figure", name.into()), ("verdict", verdict.name().into())])
                .figure(Figure::exact("first", "first", first))
                .figure(Figure::exact("second", "second", second))
                .figure(Figure::exact("second_to_first", "ratio", ratio)),
        )
    };
    compared(a).filter_map(row).collect()
}

/// What else is to be said, where there is anything.
fn notes(first: &Lines, second: &Lines, differences: &[String]) -> Option<String> {
    let only = |a: &Lines, b: &Lines| a.rows.keys().filter(|key| !b.rows.contains_key(*key)).count();
    let mut notes = Vec::new();
    if !differences.is_empty() {
        notes.push(format!("! the two differ in {}", differences.join(", ")));
    }
    for (name, report, other) in [("first", first, second), ("second", second, first)] {
        match only(report, other) {
            0 => {}
            rows => notes.push(format!("only in the {name}: {rows} rows")),
        }
        if report.repeated > 0 {
            notes.push(format!(
                "! {} rows of the {name} have another one's labels: the last one counts",
                report.repeated
            ));
        }
    }
    (!notes.is_empty()).then(|| notes.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::report::Format;
    use crate::samples::Samples;

    #[test]
    fn a_verdict_respects_the_spread_and_the_direction() {
        let verdict = |name, ratio, spread| Verdict::of(name, ratio, [Some(spread), Some(spread)], false);
        assert_eq!(verdict("tokens_per_second", 1.2, 0.05), Verdict::Better);
        assert_eq!(verdict("tokens_per_second", 1.1, 0.14), Verdict::Same);
        assert_eq!(verdict("tokens_per_second", 0.8, 0.05), Verdict::Worse);
        assert_eq!(verdict("seconds", 0.8, 0.05), Verdict::Better);
        assert_eq!(verdict("seconds", 1.2, 0.05), Verdict::Worse);
        assert_eq!(verdict("seconds", 1.01, 0.0), Verdict::Same);
    }

    #[test]
    fn what_nothing_can_be_said_of_has_no_verdict() {
        let verdict = |ratio, spread| Verdict::of("seconds", ratio, [Some(spread), Some(0.0)], false);
        // Samples that are far apart, and what divides by nothing.
        for (ratio, spread) in [(2.0, 3.0), (1.0, 0.5), (f64::NAN, 0.0), (f64::INFINITY, 0.0), (0.0, 0.0)] {
            assert_eq!(verdict(ratio, spread), Verdict::Unclear, "{ratio} {spread}");
        }
        for ratio in [1.0, 2.0] {
            assert_eq!(Verdict::of("seconds", ratio, [Some(0.0); 2], true), Verdict::Unclear);
            assert_eq!(Verdict::of("seconds", ratio, [Some(0.0), None], false), Verdict::NoSpread);
        }
    }

    fn lines(scale: f64) -> String {
        let mut report = Report::new("ops", String::new()).label("threads", 2);
        for (op, seconds) in [("add", 1.0), ("matmul", 2.0 * scale)] {
            let samples = Samples(vec![seconds; 3]);
            let row = Row::new([("op", op.into())]).figure(Figure::of("seconds", "s", &samples));
            report.push(row.figure(Figure::exact("bytes", "bytes", 4.0)).figure(Figure::once("ratio", "ratio", 0.5)));
        }
        report.render(Format::Json)
    }

    fn compared_rows(first: &str, second: &str) -> Vec<Value> {
        let text = compare(first, second).expect("comparable").render(Format::Json);
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn rows_are_compared_by_their_labels() {
        let rows = compared_rows(&lines(1.0), &lines(2.0));
        let said: Vec<_> = rows.iter().map(|row| [&row["figure"], &row["verdict"], &row["second_to_first"]]).collect();
        let once = [json!("ratio"), json!("no spread known"), json!(1.0)];
        let seconds = |verdict: &str, ratio: f64| [json!("seconds"), json!(verdict), json!(ratio)];
        assert_eq!(
            said,
            [once.each_ref(), seconds("same", 1.0).each_ref(), once.each_ref(), seconds("worse", 2.0).each_ref()]
        );
        assert_eq!(rows[2]["measured"], json!("ops threads 2 matmul"));
    }

    #[test]
    fn both_machines_are_named_and_what_differs_between_them() {
        let (a, b) = (lines(1.0), lines(1.0));
        let here = Environment::capture();
        let cores = format!("\"cores\":{}", here.cores);
        let other = b.replace(&cores, "\"cores\":4096") + &b.replace("\"add\"", "\"silu\"");
        let report = compare(&a, &other).expect("comparable");
        let text = report.render(Format::Table);
        assert!(text.contains("\nfirst: ") && text.contains("\nsecond: ") && text.contains("4096 cores"), "{text}");
        assert!(text.contains("the number of cores"), "{text}");
        assert!(text.contains("1 rows of the second have another one's labels"), "{text}");
        assert!(text.contains("only in the second: 1 rows"), "{text}");
        assert_eq!(compare(&a, &a).expect("comparable").summary, None);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        assert!(compare("", &lines(1.0)).is_err());
        assert!(compare(&lines(1.0), "not JSON\n").is_err());
        let other = lines(1.0).replace("\"ops\"", "\"other\"");
        assert!(compare(&lines(1.0), &other).is_err());
    }

    #[test]
    fn what_nothing_can_measure_is_refused_and_nothing_is_no_verdict() {
        let with = |value: &str| lines(1.0).replace("\"seconds\":1.0", &format!("\"seconds\":{value}"));
        for value in ["-5", "1e308", "\"fast\"", "[1]"] {
            let said = compare(&lines(1.0), &with(value)).map(drop).map_err(|error| format!("{error:#}"));
            assert!(said.as_ref().is_err_and(|said| said.contains("the second report: line 1: seconds")), "{said:?}");
        }
        assert_eq!(compared_rows(&lines(1.0), &with("0"))[1]["verdict"], json!("unclear"));
        assert_eq!(compared_rows(&lines(1.0), &with("null")).len(), 3);
    }
}
