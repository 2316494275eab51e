//! The figures of all runs: a table in Markdown, and JSON.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Figures in the order in which they came up first.
#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

struct Row {
    what: String,
    unit: &'static str,
    target: &'static str,
    conditions: &'static str,
    runs: Vec<f64>,
}

impl Table {
    /// One run's figure.
    pub(crate) fn add(
        &mut self,
        what: &str,
        value: f64,
        unit: &'static str,
        target: &'static str,
        conditions: &'static str,
    ) {
        eprintln!("{what}: {} {unit}", number(value));
        if let Some(row) = self.0.iter_mut().find(|row| row.what == what) {
            row.runs.push(value);
            return;
        }
        self.0.push(Row {
            what: what.to_owned(),
            unit,
            target,
            conditions,
            runs: vec![value],
        });
    }

    /// Prints the table, and writes the JSON if it is wanted.
    pub(crate) fn finish(&self, json: Option<&Path>) -> Result<()> {
        println!("nats: {}\n", machine());
        println!("| | stock | target | ours | runs | conditions |\n| --- | --- | --- | --- | --- | --- |");
        for row in &self.0 {
            let runs: Vec<String> = row.runs.iter().map(|run| number(*run)).collect();
            let (middle, runs) = (number(median(&row.runs)), runs.join(", "));
            let Row {
                what,
                unit,
                target,
                conditions,
                ..
            } = row;
            println!("| {what} | | {target} | {middle} {unit} | {runs} | {conditions} |");
        }
        let Some(path) = json else { return Ok(()) };
        let rows = self.0.iter().map(|row| {
            json!({
                "what": row.what, "value": median(&row.runs), "unit": row.unit, "target": row.target, "stock": "",
                "runs": row.runs, "conditions": row.conditions,
            })
        });
        let whole = json!({"bench": "nats", "machine": machine(), "rows": rows.collect::<Vec<Value>>()});
        fs::write(path, format!("{whole:#}\n")).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The middle one; of two, the larger.
fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn number(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// Processor, cores, and how much else ran.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name"));
    let name = name.map_or("unknown processor", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("?").to_owned();
    format!("{name}, {cores} cores, load {load}")
}
