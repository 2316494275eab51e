//! `cargo xtask bench`: builds a release and measures it. Nothing here fails because a machine is slow: figures are
//! printed beside what we want, and kept with `--json`.

mod instructions;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::shell;

/// measure a release build, and print the figures beside what we want
#[derive(Args)]
pub(crate) struct Bench {
    /// what to measure; when left out, everything but `instructions`, which is no measurement but a test: it counts the
    /// instructions of the hot path's steps and fails when one takes more than before
    #[arg(value_name = "WHAT")]
    names: Vec<String>,
    /// write the figures there, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// of `instructions`: what is counted now is what counts from now on
    #[arg(long)]
    accept: bool,
    /// options for the programs that measure, such as --only events
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
}

/// What is run for a name. Add a line to measure something else.
struct Measurement {
    name: &'static str,
    /// The daemons that are measured, with whatever the home needs.
    packages: &'static [&'static str],
    /// The program that prints a table, and takes `--json FILE`: one of `muster-tests`, or an example.
    program: &'static str,
    /// The package that has the program as an example.
    example_of: Option<&'static str>,
}

const MEASUREMENTS: &[Measurement] = &[
    Measurement {
        name: "remoted",
        packages: &["muster-remoted", "muster-authd", "muster-natsd", "muster-control"],
        program: "bench_remoted",
        example_of: None,
    },
    Measurement {
        name: "authd",
        packages: &["muster-authd", "muster-remoted", "muster-natsd", "muster-control"],
        program: "bench_authd",
        example_of: None,
    },
    Measurement {
        name: "keypoll",
        packages: &[
            "muster-keypolld",
            "muster-authd",
            "muster-remoted",
            "muster-natsd",
            "muster-control",
            "muster-swarm",
        ],
        program: "bench_keypoll",
        example_of: None,
    },
    Measurement {
        name: "nats",
        packages: &["muster-natsd"],
        program: "bench_nats",
        example_of: Some("muster-natsd"),
    },
];

/// What is counted rather than measured.
const INSTRUCTIONS: &str = "instructions";

impl Bench {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        if self.names == [INSTRUCTIONS] {
            instructions::run(self.accept)?;
            return Ok(ExitCode::SUCCESS);
        }
        let chosen = self.chosen()?;
        let mut figures = Vec::new();
        for measurement in chosen {
            figures.push(self.measure(measurement)?);
        }
        if let Some(path) = &self.json {
            std::fs::write(path, format!("{:#}\n", Value::Array(figures)))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn chosen(&self) -> Result<Vec<&'static Measurement>> {
        if self.names.is_empty() {
            return Ok(MEASUREMENTS.iter().collect());
        }
        self.names
            .iter()
            .map(|name| {
                let found = MEASUREMENTS.iter().find(|measurement| measurement.name == name);
                match found {
                    Some(measurement) => Ok(measurement),
                    None => bail!("nothing is known about measuring {name}; there is {}", names()),
                }
            })
            .collect()
    }

    fn measure(&self, measurement: &Measurement) -> Result<Value> {
        let release = shell::target().join("release");
        let mut build = shell::cargo(&["build", "--quiet", "--locked", "--release"]);
        let folder = if let Some(package) = measurement.example_of {
            build.args(["--package", package, "--example", measurement.program]);
            release.join("examples")
        } else {
            build.args(["--package", "muster-tests"]);
            release.clone()
        };
        for package in measurement.packages {
            build.args(["--package", package]);
        }
        shell::run(build.arg("--bins"))?;
        let figures = release.join(format!("{}.json", measurement.program));
        let mut program = std::process::Command::new(folder.join(measurement.program));
        program
            .args(&self.options)
            .arg("--json")
            .arg(&figures)
            .env("MUSTER_BIN_DIR", &release);
        if measurement.name == "remoted" {
            program.env("MUSTER_SCHEDULER_BENCH", built_bench("scheduler")?);
        }
        shell::run(&mut program)?;
        let text = std::fs::read_to_string(&figures).with_context(|| format!("cannot read {}", figures.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", figures.display()))
    }
}

/// Builds a bench of remoted, and gives its path.
fn built_bench(name: &str) -> Result<PathBuf> {
    let mut build = shell::cargo(&[
        "bench",
        "--quiet",
        "--locked",
        "--package",
        "muster-remoted",
        "--bench",
        name,
    ]);
    let messages = shell::output(build.args(["--no-run", "--message-format", "json"]))?;
    let mut executables = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == name;
        message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
    });
    executables
        .next_back()
        .context("cargo says nothing of the program that it has built")
}

fn names() -> String {
    let names: Vec<&str> = MEASUREMENTS.iter().map(|measurement| measurement.name).collect();
    names.join(", ")
}
