//! Rows as columns of text.

use serde_json::Value;

use super::{Row, Spread};

/// Cells, all rows equally long, the first one the headings.
pub(super) struct Grid {
    cells: Vec<Vec<String>>,
    /// Columns that are numbers go to the right.
    right: Vec<bool>,
}

/// Names in the order in which rows bring them.
fn names<'a>(
    rows: &'a [Row],
    of: impl Fn(&'a Row) -> Vec<(&'static str, &'static str)>,
) -> Vec<(&'static str, &'static str)> {
    let mut names = Vec::new();
    for name in rows.iter().flat_map(of) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn labels(rows: &[Row]) -> Vec<(&'static str, &'static str)> {
    names(rows, |row| row.labels.iter().map(|(name, _)| (*name, *name)).collect())
}

fn figures(rows: &[Row]) -> Vec<(&'static str, &'static str)> {
    names(rows, |row| row.figures.iter().map(|figure| (figure.name, figure.heading)).collect())
}

fn plain(value: &Value) -> String {
    printable(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// One line that no terminal takes for an order: control characters are written out.
pub(super) fn printable(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    text.chars().map(escape).collect()
}

fn label(row: &Row, name: &str) -> String {
    row.labels.iter().find(|(label, _)| *label == name).map_or_else(String::new, |(_, value)| plain(value))
}

fn is_share_of_ceiling(name: &str) -> bool {
    ["memory_share", "int8_share", "roof_share"].contains(&name)
}

/// Four digits that count.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "-".into();
    }
    if value == value.trunc() && value.abs() < 1e4 {
        return format!("{value}");
    }
    let size = value.abs().log10().floor() as i32;
    match size {
        -2..=3 => format!("{value:.*}", (3 - size) as usize),
        4..=14 => format!("{value:.0}"),
        _ => format!("{value:.3e}"),
    }
}

impl Grid {
    pub(super) fn of(rows: &[Row]) -> Self {
        let (labels, figures) = (labels(rows), figures(rows));
        let is_number = |name: &str| rows.iter().all(|row| row.labels.iter().all(|(n, v)| *n != name || v.is_number()));
        let mut right: Vec<bool> = labels.iter().map(|(name, _)| is_number(name)).collect();
        right.extend(figures.iter().map(|_| true));
        let mut cells =
            vec![labels.iter().chain(&figures).map(|(_, heading)| (*heading).to_owned()).collect::<Vec<_>>()];
        for row in rows {
            let mut line: Vec<String> = labels.iter().map(|(name, _)| label(row, name)).collect();
            line.extend(figures.iter().map(|(name, _)| {
                let figure = row.figures.iter().find(|figure| figure.name == *name);
                figure.map_or_else(String::new, |figure| match figure.spread {
                    Spread::Of(spread) => format!("{} ±{:.0}%", number(figure.value), 50.0 * spread),
                    _ if !row.doubts.is_empty() && is_share_of_ceiling(name) => number(figure.value) + "!",
                    _ => number(figure.value),
                })
            }));
            cells.push(line);
        }
        if rows.iter().any(|row| !row.disturbed.is_empty()) {
            right.push(false);
            cells[0].push(String::new());
            for (line, row) in cells[1..].iter_mut().zip(rows) {
                line.push(if row.disturbed.is_empty() { String::new() } else { "!".into() });
            }
        }
        Self { cells, right }
    }

    fn width(&self, column: usize) -> usize {
        self.cells.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
    }

    pub(super) fn aligned(&self) -> String {
        let widths: Vec<usize> = (0..self.right.len()).map(|column| self.width(column)).collect();
        let mut text = String::new();
        for line in &self.cells {
            let columns = line.iter().zip(&widths).zip(&self.right);
            let padded = columns.map(
                |((cell, width), right)| {
                    if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
                },
            );
            text += padded.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }

    pub(super) fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = String::new();
        for (index, cells) in self.cells.iter().enumerate() {
            text += &line(cells.iter().map(|cell| cell.replace('|', "\\|")).collect());
            if index == 0 {
                let rule = |right: &bool| if *right { "--:" } else { ":--" };
                text += &format!("|{}|\n", self.right.iter().map(rule).collect::<Vec<_>>().join("|"));
            }
        }
        text
    }
}

fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

/// All labels and figures at full precision, with a column for each spread, one for disturbances, and one for the machine.
pub(super) fn csv(rows: &[Row], environment: Option<String>) -> String {
    let (labels, figures) = (labels(rows), figures(rows));
    let has_spread =
        |name: &str| rows.iter().flat_map(|row| &row.figures).any(|f| f.name == name && f.spread != Spread::None);
    let mut header: Vec<String> = labels.iter().map(|(name, _)| (*name).to_owned()).collect();
    for (name, _) in &figures {
        header.push((*name).to_owned());
        header.extend(has_spread(name).then(|| format!("{name}_spread")));
    }
    header.push("disturbed".into());
    header.extend(environment.is_some().then(|| "environment".to_owned()));
    let mut text = header.join(",") + "\n";
    for row in rows {
        let mut line: Vec<String> = labels.iter().map(|(name, _)| quoted(&label(row, name))).collect();
        for (name, _) in &figures {
            let figure = row.figures.iter().find(|figure| figure.name == *name);
            line.push(figure.map_or_else(String::new, |figure| figure.value.to_string()));
            if has_spread(name) {
                let spread = figure.and_then(|figure| figure.spread.known());
                line.push(spread.map_or_else(String::new, |spread| spread.to_string()));
            }
        }
        let doubts = row.doubts.iter().map(|doubt| format!("ceilings: {doubt}"));
        line.push(quoted(&row.disturbed.iter().cloned().chain(doubts).collect::<Vec<_>>().join("; ")));
        line.extend(environment.as_deref().map(|line| quoted(&printable(line))));
        text += &(line.join(",") + "\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_have_four_digits_that_count() {
        for (value, text) in [
            (0.0, "0"),
            (0.5, "0.5000"),
            (0.012_345, "0.01235"),
            (1.234_56e-5, "1.235e-5"),
            (5.0, "5"),
            (12.0, "12"),
            (123.456, "123.5"),
            (123_456.7, "123457"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
