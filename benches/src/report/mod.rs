//! What a benchmark found, and the one way in which all benchmarks say it: as a table, Markdown, CSV or JSON lines.

pub mod compare;
mod text;

use serde_json::{Map, Value, json};

use crate::environment::Environment;
use crate::samples::Samples;
use crate::watch::Seen;

/// Spread above which a row counts as disturbed.
pub const MOST_SPREAD: f64 = 0.15;

/// How a disturbance begins that is nothing but a spread: that of one figure, and no fault of the others.
const APART: &str = "samples of ";

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
    /// What is known of how far apart samples are.
    pub spread: Spread,
}

/// How far apart the samples of a figure are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    /// A count, or something that follows from other figures: no report is compared by it.
    None,
    /// It was measured once.
    Unknown,
    /// [`Samples::spread`] of several samples.
    Of(f64),
}

impl Spread {
    fn of(samples: &Samples) -> Self {
        if samples.0.len() > 1 { Self::Of(samples.spread()) } else { Self::Unknown }
    }

    /// Where it is known.
    pub fn known(self) -> Option<f64> {
        if let Self::Of(spread) = self { Some(spread) } else { None }
    }
}

impl Figure {
    /// A count, or something that follows from other figures.
    pub const fn exact(name: &'static str, heading: &'static str, value: f64) -> Self {
        Self { name, heading, value, spread: Spread::None }
    }

    /// A number that was measured once.
    pub const fn once(name: &'static str, heading: &'static str, value: f64) -> Self {
        Self { name, heading, value, spread: Spread::Unknown }
    }

    /// The median of samples, in their unit.
    pub fn of(name: &'static str, heading: &'static str, samples: &Samples) -> Self {
        Self { name, heading, value: samples.median(), spread: Spread::of(samples) }
    }

    /// A rate: so much in the time of a sample.
    pub fn rate(name: &'static str, heading: &'static str, amount: f64, seconds: &Samples) -> Self {
        Self { name, heading, value: amount / seconds.median(), spread: Spread::of(seconds) }
    }
}

/// Whether less of a figure is better. Rates are not; times, bytes, shares of cost and ratios of cost are.
pub fn lower_is_better(name: &str) -> bool {
    // What an idle worker takes is a rate too.
    name == "idle_micros_per_second"
        || ["seconds", "micros", "nanos", "commit_share", "ratio", "_bytes", "_layers"]
            .iter()
            .any(|end| name.ends_with(end))
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
    /// What disturbed the ceilings that its shares are of.
    pub doubts: Vec<String>,
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

    /// With what a watch saw.
    #[must_use]
    pub fn seen(self, seen: &Seen) -> Self {
        self.disturbed(seen.disturbances.clone()).detail("conditions", json!(seen))
    }

    /// With what disturbed the ceilings that its shares are of.
    #[must_use]
    pub fn doubted(mut self, doubts: &[String]) -> Self {
        self.doubts = doubts.to_vec();
        self
    }

    /// With what disturbed it; a large spread is a disturbance too.
    #[must_use]
    pub fn disturbed(mut self, mut seen: Vec<String>) -> Self {
        let spreads = self.figures.iter().filter_map(|figure| Some((figure.heading, figure.spread.known()?)));
        if let Some((heading, spread)) = spreads.max_by(|a, b| a.1.total_cmp(&b.1))
            && spread > MOST_SPREAD
        {
            seen.push(format!("{APART}{heading} spread by {:.0}%", 100.0 * spread));
        }
        self.disturbed = seen;
        self
    }

    fn json(&self, bench: &str, environment: Option<&Environment>) -> Value {
        let mut object = Map::new();
        object.insert("bench".into(), bench.into());
        object.extend(self.labels.iter().map(|(name, value)| ((*name).into(), value.clone())));
        for figure in &self.figures {
            object.insert(figure.name.into(), figure.value.into());
            // Reports are compared by what has a spread, known or not.
            if figure.spread != Spread::None {
                object.insert(format!("{}_spread", figure.name), json!(figure.spread.known()));
            }
        }
        object.extend(self.details.clone());
        object.insert("labels".into(), self.labels.iter().map(|(name, _)| *name).collect());
        object.insert("disturbed".into(), self.disturbed.clone().into());
        object.insert("ceilings_disturbed".into(), self.doubts.clone().into());
        if let Some(environment) = environment {
            object.insert("environment".into(), json!(environment));
        }
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
    /// Where it was measured; none for a comparison, which has two.
    pub environment: Option<Environment>,
    /// Labels that all rows have before their own.
    pub labels: Vec<(&'static str, Value)>,
    /// Details that all rows have.
    pub details: Map<String, Value>,
    /// What was found.
    pub rows: Vec<Row>,
    /// The last line, for people.
    pub summary: Option<String>,
    /// The last line in JSON, where there is something to say of all rows together.
    pub json_summary: Option<Value>,
}

impl Report {
    /// A report without rows, about this machine now.
    pub fn new(bench: &'static str, about: String) -> Self {
        Self { environment: Some(Environment::capture()), ..Self::elsewhere(bench, about) }
    }

    /// A report without rows, about no machine or several.
    pub fn elsewhere(bench: &'static str, about: String) -> Self {
        let (labels, details, rows) = (Vec::new(), Map::new(), Vec::new());
        Self { bench, about, environment: None, labels, details, rows, summary: None, json_summary: None }
    }

    /// With a label that all rows have, behind those that it has already.
    #[must_use]
    pub fn label(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.labels.push((name, value.into()));
        self
    }

    /// With a detail that all rows have.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.into(), value.into());
        self
    }

    /// Adds a row, with what all rows have. Returns it as a line of JSON.
    pub fn push(&mut self, mut row: Row) -> String {
        row.labels.splice(0..0, self.labels.iter().cloned());
        row.details.extend(self.details.clone());
        row.disturbed.extend(self.crowd(&row));
        let line = row.json(self.bench, self.environment.as_ref()).to_string() + "\n";
        self.rows.push(row);
        line
    }

    /// That a row was measured with more threads than there are cores.
    fn crowd(&self, row: &Row) -> Option<String> {
        let cores = self.environment.as_ref()?.cores;
        let threads = row.labels.iter().find(|(name, _)| *name == "threads")?.1.as_u64()?;
        (threads > cores as u64).then(|| format!("{threads} threads shared {cores} cores"))
    }

    /// The report as text, every line ended.
    pub fn render(&self, format: Format) -> String {
        let heading = self.environment.iter().fold(self.about.clone(), |about, here| about + "\n" + &here.line());
        let heading = heading.lines().map(text::printable);
        match format {
            Format::Json => {
                let rows = self.rows.iter().map(|row| row.json(self.bench, self.environment.as_ref()));
                rows.chain(self.json_summary.clone()).map(|line| line.to_string() + "\n").collect()
            }
            Format::Csv => text::csv(&self.rows, self.environment.as_ref().map(Environment::line)),
            Format::Markdown => {
                let heading: String = heading.map(|line| line + "\n\n").collect();
                heading + &text::Grid::of(&self.rows).markdown() + &self.ending()
            }
            Format::Table => {
                let heading: String = heading.map(|line| line + "\n").collect();
                heading + "\n" + &text::Grid::of(&self.rows).aligned() + &self.ending()
            }
        }
    }

    /// The summary, and a word about rows that are not to be relied on.
    fn ending(&self) -> String {
        let mut ending = String::new();
        if let Some(summary) = &self.summary {
            ending += &format!("\n{}\n", text::printable(summary));
        }
        if let Some(row) = self.rows.iter().find(|row| !row.doubts.is_empty()) {
            let doubts = row.doubts.join("; ");
            ending += &format!("\n! The ceilings were disturbed, so shares of them are too high: {doubts}\n");
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
        assert_eq!(lines[1]["disturbed"], json!(["heat", "samples of s spread by 100%"]));
        assert!(lines[1]["environment"]["cores"].as_u64().is_some_and(|cores| cores > 0));
    }

    #[test]
    fn tables_have_a_column_for_each_name_and_blanks_where_a_row_lacks_it() {
        let text = report().render(Format::Csv);
        let lines: Vec<&str> = text.lines().collect();
        let starts = [
            "op,threads,seconds,seconds_spread,gigabytes_per_second,gigabytes_per_second_spread,disturbed,environment",
            "add,2,0.5,0,8,0,,",
            "\"a, \"\"b\"\"\",,2,1,,,heat; samples of s spread by 100%,",
        ];
        assert_eq!(lines.len(), starts.len());
        assert!(lines.iter().zip(starts).all(|(line, start)| line.starts_with(start)), "{text}");
        assert!(lines[1..].iter().all(|line| line.contains(env!("CARGO_PKG_VERSION"))), "{text}");
        let text = report().render(Format::Markdown);
        assert!(text.contains("| op | threads | s | GB/s |  |\n|:--|--:|--:|--:|:--|\n"), "{text}");
        assert!(text.contains("1 of 2 rows were disturbed, as by: heat; samples of s spread by 100%"), "{text}");
        let text = report().render(Format::Table);
        let add = text.lines().find(|line| line.starts_with("add")).expect("a row");
        assert!(add.contains("0.5000 ±0%") && add.contains("8 ±0%"), "{text}");
    }

    #[test]
    fn what_all_rows_have_stands_before_what_is_a_row_s_own() {
        let mut report = Report::new("ops", String::new()).label("model", "a").label("threads", 2).detail("id", "b");
        let line = report.push(Row::new([("op", "add".into())]));
        let row: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&row["labels"], &row["id"]), (&json!(["model", "threads", "op"]), &json!("b")));
        assert_eq!(report.render(Format::Json), line);
    }

    #[test]
    fn more_threads_than_cores_disturb_each_other() {
        let mut report = Report::new("ops", String::new());
        let cores = report.environment.as_ref().expect("a machine").cores;
        for threads in [cores, cores + 1] {
            report.push(Row::new([("threads", threads.into())]));
        }
        let disturbed = report.rows.iter().map(|row| row.disturbed.len());
        assert_eq!(disturbed.collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn one_sample_has_no_spread() {
        let mut report = Report::new("ops", String::new());
        let (once, count) = (Figure::once("b_seconds", "b", 2.0), Figure::exact("bytes", "bytes", 3.0));
        let one = Figure::of("seconds", "s", &Samples(vec![0.5]));
        let line = report.push(Row::new([("op", "add".into())]).figure(one).figure(once).figure(count));
        let row: Value = serde_json::from_str(&line).expect("JSON");
        let spreads: Vec<&String> = row.as_object().expect("a row").keys().filter(|k| k.ends_with("_spread")).collect();
        assert_eq!(spreads, ["b_seconds_spread", "seconds_spread"]);
        assert!(row["seconds_spread"].is_null() && row["b_seconds_spread"].is_null(), "{row}");
        assert!(!report.render(Format::Table).contains('±'));
    }

    #[test]
    fn shares_of_disturbed_ceilings_are_marked() {
        let mut report = Report::new("ops", String::new());
        let figures = [Figure::exact("roof_share", "of the roof", 0.5), Figure::exact("commit_share", "commit", 0.25)];
        let row = figures.into_iter().fold(Row::new([("op", "add".into())]), Row::figure);
        report.push(row.doubted(&["the host withheld 5% of the machine".into()]));
        let text = report.render(Format::Table);
        assert!(text.contains("0.5000!") && text.contains("0.2500\n"), "{text}");
        assert!(text.contains("too high: the host withheld 5%"), "{text}");
        assert!(report.render(Format::Csv).contains("ceilings: the host withheld 5%"));
    }

    #[test]
    fn what_would_steer_a_terminal_or_end_a_row_is_written_out() {
        let mut report = Report::new("ops", "about \u{1b}[2J".into());
        report.push(Row::new([("op", "a\u{1b}[31m\n| b \u{9b}".into())]));
        for format in [Format::Table, Format::Markdown, Format::Csv, Format::Json] {
            let text = report.render(format);
            assert!(!text.contains(['\u{1b}', '\r']), "{text:?}");
            assert!(format == Format::Json || !text.contains('\u{9b}'), "{text:?}");
        }
        let markdown = report.render(Format::Markdown);
        assert!(markdown.contains("| a\\u{1b}[31m\\n\\| b \\u{9b} |"), "{markdown}");
    }

    #[test]
    fn what_costs_is_better_lower() {
        let costs = ["seconds", "commit_share", "audit_ratio", "referee_micros", "referee_bytes", "engine_nanos"];
        for name in costs.into_iter().chain(["idle_micros_per_second", "player_layers"]) {
            assert!(lower_is_better(name), "{name}");
        }
        for name in ["tokens_per_second", "tera_ops_per_second", "roof_share", "workers", "disputes_per_core_second"] {
            assert!(!lower_is_better(name), "{name}");
        }
    }
}
