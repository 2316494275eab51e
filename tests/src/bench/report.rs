//! The table and its JSON.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One measured figure.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The median of the runs.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What we want, in words.
    pub target: &'static str,
    /// What Wazuh 4.14 needs on such a machine, in words.
    pub stock: &'static str,
    /// All runs, in order.
    pub runs: Vec<f64>,
    /// Under which conditions.
    pub conditions: String,
}

/// All figures of a benchmark.
#[derive(Debug)]
pub struct Report {
    name: &'static str,
    machine: String,
    rows: Vec<Row>,
}

impl Report {
    /// An empty report.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            machine: super::process::machine(),
            rows: Vec::new(),
        }
    }

    /// Adds a figure, and says it at once: a run takes minutes.
    pub fn add(&mut self, row: Row) {
        eprintln!("{}: {} {} ({:?})", row.what, number(row.value), row.unit, row.runs);
        self.rows.push(row);
    }

    /// The figures as JSON.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "what": row.what, "value": row.value, "unit": row.unit, "target": row.target,
                    "stock": row.stock, "runs": row.runs, "conditions": row.conditions,
                })
            })
            .collect();
        json!({ "bench": self.name, "machine": self.machine, "rows": rows })
    }

    /// The figures as a table in Markdown.
    pub fn table(&self) -> String {
        let mut out = format!(
            "{}: {}\n\n| | stock | target | ours | runs | conditions |\n| --- | --- | --- | --- | --- | --- |\n",
            self.name, self.machine
        );
        for row in &self.rows {
            let runs: Vec<String> = row.runs.iter().map(|run| number(*run)).collect();
            out += &format!(
                "| {} | {} | {} | {} {} | {} | {} |\n",
                row.what,
                row.stock,
                row.target,
                number(row.value),
                row.unit,
                runs.join(", "),
                row.conditions
            );
        }
        out
    }

    /// Prints the table, and writes the JSON if it is wanted.
    pub fn finish(&self, json: Option<&Path>) -> Result<()> {
        println!("{}", self.table());
        if let Some(path) = json {
            std::fs::write(path, format!("{:#}\n", self.json()))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// The middle one; of two, the larger.
pub fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn number(value: f64) -> String {
    if value.abs() >= 100.0 || value == value.trunc() {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_whatever_the_order() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn every_row_is_in_the_table_and_in_the_json() {
        let mut report = Report::new("remoted");
        report.add(Row {
            what: "time".into(),
            value: 2.5,
            unit: "µs",
            target: "5 µs",
            stock: "15 µs",
            runs: vec![2.5, 3.0],
            conditions: "none".into(),
        });
        assert!(
            report
                .table()
                .contains("| time | 15 µs | 5 µs | 2.50 µs | 2.50, 3 | none |")
        );
        assert_eq!(report.json()["rows"][0]["value"], 2.5);
    }
}
