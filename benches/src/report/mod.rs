//! What a benchmark found, and the one way in which all benchmarks say it: as a table, Markdown, CSV or JSON lines.

pub mod compare;
mod text;

use serde_json::{Map, Value};

use crate::environment::Environment;
use crate::samples::Samples;

/// Spread above which a row counts as disturbed.
pub const MOST_SPREAD: f64 = 0.15;

/// How a report is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns, for people.
    #[default]
    Table,
    /// A Markdown table.
    Markdown,
    /// Comma-separated values, with a header.
    Csv,
    /// One JSON object on each line, each with all that is known about it.
    Json,
}

/// A number that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Key in JSON and CSV; ends in the unit. See [`lower_is_better`].
    pub name: &'static str,
    /// Heading in tables.
    pub heading: &'static str,
    /// The number, the median where there are several samples.
    pub value: f64,
    /// [`Samples::spread`] where it was measured more than once.
    pub spread: Option<f64>,
}

impl Figure {
    /// A number without a spread: a count, or something that follows from other figures.
    pub const fn exact(name: &'static str, heading: &'static str, value: f64) -> Self {
        Self { name, heading, value, spread: None }
    }

    /// The median of samples, in their unit.
    pub fn of(name: &'static str, heading: &'static str, samples: &Samples) -> Self {
        Self { name, heading, value: samples.median(), spread: Some(samples.spread()) }
    }

    /// A rate: so much in the time of a sample.
    pub fn rate(name: &'static str, heading: &'static str, amount: f64, seconds: &Samples) -> Self {
        Self { name, heading, value: amount / seconds.median(), spread: Some(seconds.spread()) }
    }
}

/// Whether less of a figure is better. Rates are not; times, shares of cost and ratios of cost are.
pub fn lower_is_better(name: &str) -> bool {
    ["seconds", "micros", "commit_share", "ratio", "_bytes"].iter().any(|end| name.ends_with(end))
        && !name.ends_with("per_second")
}

/// One thing that was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// What was measured: names and values that together are unique in a report.
    pub labels: Vec<(&'static str, Value)>,
    /// What was found.
    pub figures: Vec<Figure>,
    /// What only JSON shows: samples, ids.
    pub details: Map<String, Value>,
    /// What disturbed the measurement.
    pub disturbed: Vec<String>,
}

impl Row {
    /// A row without figures.
    pub fn new<const N: usize>(labels: [(&'static str, Value); N]) -> Self {
        Self { labels: labels.into(), ..Self::default() }
    }

    /// With one more figure.
    #[must_use]
    pub fn figure(mut self, figure: Figure) -> Self {
        self.figures.push(figure);
        self
    }

    /// With one more detail.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.into(), value.into());
        self
    }

    /// With what a watch saw; a large spread is a disturbance too.
    #[must_use]
    pub fn disturbed(mut self, mut seen: Vec<String>) -> Self {
        let spread = self.figures.iter().filter_map(|figure| figure.spread).fold(0.0, f64::max);
        if spread > MOST_SPREAD {
            seen.push(format!("samples spread by {:.0}%", 100.0 * spread));
        }
        self.disturbed = seen;
        self
    }

    fn json(&self, bench: &str, environment: &Environment) -> Value {
        let mut object = Map::new();
        object.insert("bench".into(), bench.into());
        object.extend(self.labels.iter().map(|(name, value)| ((*name).into(), value.clone())));
        for figure in &self.figures {
            object.insert(figure.name.into(), figure.value.into());
            if let Some(spread) = figure.spread {
                object.insert(format!("{}_spread", figure.name), spread.into());
            }
        }
        object.extend(self.details.clone());
        object.insert("labels".into(), self.labels.iter().map(|(name, _)| *name).collect());
        object.insert("disturbed".into(), self.disturbed.clone().into());
        object.insert("environment".into(), serde_json::to_value(environment).unwrap_or_default());
        Value::Object(object)
    }
}

/// What a benchmark found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Name of the benchmark.
    pub bench: &'static str,
    /// What is the same for all rows, for people.
    pub about: String,
    /// Where it was measured.
    pub environment: Environment,
    /// What was found.
    pub rows: Vec<Row>,
    /// The last line, for people.
    pub summary: Option<String>,
    /// The last line in JSON, where there is something to say of all rows together.
    pub json_summary: Option<Value>,
}

impl Report {
    /// Labels and details that all rows have.
    pub fn stamp(&mut self, labels: &[(&'static str, Value)], details: &[(&str, Value)]) {
        for row in &mut self.rows {
            row.labels.splice(0..0, labels.iter().cloned());
            row.details.extend(details.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        }
    }

    /// A report without rows, about this machine now.
    pub fn new(bench: &'static str, about: String) -> Self {
        Self { bench, about, environment: Environment::capture(), rows: Vec::new(), summary: None, json_summary: None }
    }

    /// The report as text, every line ended.
    pub fn render(&self, format: Format) -> String {
        let grid = text::Grid::of(&self.rows);
        match format {
            Format::Json => {
                let rows = self.rows.iter().map(|row| row.json(self.bench, &self.environment));
                rows.chain(self.json_summary.clone()).map(|line| line.to_string() + "\n").collect()
            }
            Format::Csv => text::csv(&self.rows),
            Format::Markdown => {
                format!("{}\n\n{}\n\n{}{}", self.about, self.environment.line(), grid.markdown(), self.ending())
            }
            Format::Table => {
                format!("{}\n{}\n\n{}{}", self.about, self.environment.line(), grid.aligned(), self.ending())
            }
        }
    }

    /// The summary, and a word about rows that are not to be relied on.
    fn ending(&self) -> String {
        let mut ending = String::new();
        if let Some(summary) = &self.summary {
            ending += &format!("\n{summary}\n");
        }
        let mut seen: Vec<&String> = Vec::new();
        for disturbance in self.rows.iter().flat_map(|row| &row.disturbed) {
            if !seen.contains(&disturbance) && seen.len() < 4 {
                seen.push(disturbance);
            }
        }
        let count = self.rows.iter().filter(|row| !row.disturbed.is_empty()).count();
        if count > 0 {
            let seen: Vec<&str> = seen.into_iter().map(String::as_str).collect();
            ending += &format!("\n! {count} of {} rows were disturbed, as by: {}\n", self.rows.len(), seen.join("; "));
        }
        ending
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report() -> Report {
        let samples = Samples(vec![0.5, 0.5, 0.5]);
        let mut report = Report::new("ops", "ops on cpu".into());
        report.rows.push(
            Row::new([("op", "add".into()), ("threads", 2.into())])
                .figure(Figure::of("seconds", "s", &samples))
                .figure(Figure::rate("gigabytes_per_second", "GB/s", 4.0, &samples))
                .detail("samples", json!([0.5, 0.5, 0.5])),
        );
        let wild = Figure::of("seconds", "s", &Samples(vec![1.0, 2.0, 3.0]));
        report.rows.push(Row::new([("op", "a, \"b\"".into())]).figure(wild).disturbed(vec!["heat".into()]));
        report
    }

    #[test]
    fn each_line_of_json_is_an_object_with_all_that_is_known() {
        let text = report().render(Format::Json);
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            (&lines[0]["bench"], &lines[0]["op"], &lines[0]["threads"]),
            (&json!("ops"), &json!("add"), &json!(2))
        );
        assert_eq!((&lines[0]["seconds"], &lines[0]["seconds_spread"]), (&json!(0.5), &json!(0.0)));
        assert_eq!(lines[0]["gigabytes_per_second"], json!(8.0));
        assert_eq!(lines[0]["disturbed"], json!([]));
        assert_eq!(lines[1]["disturbed"], json!(["heat", "samples spread by 100%"]));
        assert!(lines[1]["environment"]["cores"].as_u64().is_some_and(|cores| cores > 0));
    }

    #[test]
    fn tables_have_a_column_for_each_name_and_blanks_where_a_row_lacks_it() {
        let text = report().render(Format::Csv);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "op,threads,seconds,seconds_spread,gigabytes_per_second,gigabytes_per_second_spread,disturbed",
                "add,2,0.5,0,8,0,",
                "\"a, \"\"b\"\"\",,2,1,,,heat; samples spread by 100%",
            ]
        );
        let text = report().render(Format::Markdown);
        assert!(text.contains("| op | threads | s | GB/s |  |\n|:--|--:|--:|--:|:--|\n"), "{text}");
        assert!(text.contains("1 of 2 rows were disturbed, as by: heat; samples spread by 100%"), "{text}");
        let text = report().render(Format::Table);
        let add = text.lines().find(|line| line.starts_with("add")).expect("a row");
        assert!(add.contains("0.5000 ±0%") && add.contains("8.000 ±0%"), "{text}");
    }

    #[test]
    fn what_costs_is_better_lower() {
        for name in ["seconds", "commit_share", "audit_ratio", "referee_micros", "referee_bytes"] {
            assert!(lower_is_better(name), "{name}");
        }
        for name in ["tokens_per_second", "tera_ops_per_second", "roof_share", "workers"] {
            assert!(!lower_is_better(name), "{name}");
        }
    }
}
