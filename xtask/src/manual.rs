//! Man pages and completions, from the same definitions that parse the command lines.
//!
//! The definitions are in the daemons' crates, which take long to build; so these tasks run again with the feature
//! `programs`, and all others never wait for it.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

/// make the man pages of section 8
#[derive(Args)]
pub(crate) struct Man {
    /// change nothing, and fail when a page in man/ is not what would be made
    #[arg(long)]
    check: bool,
}

#[cfg(not(feature = "programs"))]
impl Man {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        again(if self.check { &["man", "--check"] } else { &["man"] })
    }
}

#[cfg(not(feature = "programs"))]
pub(crate) fn completions() -> Result<ExitCode> {
    again(&["completions"])
}

#[cfg(not(feature = "programs"))]
fn again(task: &[&str]) -> Result<ExitCode> {
    use crate::shell;

    let mut command = shell::cargo(&[
        "run",
        "--quiet",
        "--locked",
        "--package",
        "xtask",
        "--features",
        "programs",
        "--",
    ]);
    shell::run(command.args(task))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "programs")]
pub(crate) use with_programs::completions;

#[cfg(feature = "programs")]
mod with_programs {
    use std::{fs, process::ExitCode};

    use anyhow::{Context, Result, bail};
    use clap::{Command, CommandFactory};
    use clap_complete::Shell;
    use clap_mangen::Man as Page;

    use super::Man;
    use crate::shell;

    impl Man {
        pub(crate) fn run(&self) -> Result<ExitCode> {
            let folder = shell::root().join("man");
            let mut stale = Vec::new();
            for program in programs() {
                let name = program.get_name().to_owned();
                let path = folder.join(format!("{name}.8"));
                let prose = folder.join("prose").join(format!("{name}.roff"));
                let prose = fs::read_to_string(&prose).with_context(|| format!("cannot read {}", prose.display()))?;
                let page = page(program, &prose)?;
                let there = fs::read(&path).unwrap_or_default();
                if there == page {
                    continue;
                }
                if self.check {
                    stale.push(path.display().to_string());
                } else {
                    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
                    println!("{}", path.display());
                }
            }
            if !stale.is_empty() {
                bail!(
                    "these man pages are not up to date, run `cargo xtask man`: {}",
                    stale.join(", ")
                );
            }
            Ok(ExitCode::SUCCESS)
        }
    }

    pub(crate) fn completions() -> Result<ExitCode> {
        let folder = shell::target().join("completions");
        fs::create_dir_all(&folder)?;
        for mut program in programs() {
            let name = program.get_name().to_owned();
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                let path = clap_complete::generate_to(shell, &mut program, &name, &folder)?;
                println!("{}", path.display());
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn programs() -> [Command; 6] {
        [
            muster_authd::cli::Cli::command(),
            muster_control::command(),
            muster_keypolld::cli::Cli::command(),
            muster_natsd::command(),
            muster_remoted::cli::Cli::command(),
            muster_swarm::cli::Cli::command(),
        ]
    }

    /// Name, synopsis, description, options; then each command of the program; then the prose.
    fn page(program: Command, prose: &str) -> Result<Vec<u8>> {
        let mut program = program.disable_help_subcommand(true);
        program.build();
        let mut page = Vec::new();
        let manual = Page::new(program.clone())
            .section("8")
            .source("Muster")
            .manual("Muster")
            .date("");
        manual.render_title(&mut page)?;
        manual.render_name_section(&mut page)?;
        manual.render_synopsis_section(&mut page)?;
        manual.render_description_section(&mut page)?;
        manual.render_options_section(&mut page)?;
        commands(&program, &mut page)?;
        page.extend_from_slice(prose.as_bytes());
        Ok(page)
    }

    /// Every command that does something, each under a heading of its own.
    fn commands(parent: &Command, page: &mut Vec<u8>) -> Result<()> {
        for command in parent.get_subcommands().filter(|command| !command.is_hide_set()) {
            if command.has_subcommands() {
                commands(command, page)?;
                continue;
            }
            let name = command.get_bin_name().unwrap_or(command.get_name()).to_uppercase();
            page.extend_from_slice(format!(".SH \"{name}\"\n").as_bytes());
            // Its own sections become paragraphs of this one.
            let mut sections = Vec::new();
            let own = Page::new(without_global(command));
            own.render_synopsis_section(&mut sections)?;
            own.render_description_section(&mut sections)?;
            own.render_options_section(&mut sections)?;
            let sections = String::from_utf8(sections).context("clap_mangen writes UTF-8")?;
            for line in sections.lines() {
                let line = if line.starts_with(".SH ") { ".PP" } else { line };
                page.extend_from_slice(line.as_bytes());
                page.push(b'\n');
            }
        }
        Ok(())
    }

    /// The options that every command takes are told once, at the top.
    fn without_global(command: &Command) -> Command {
        let global: Vec<_> = command
            .get_arguments()
            .filter(|arg| arg.is_global_set())
            .map(|arg| arg.get_id().clone())
            .collect();
        global
            .into_iter()
            .fold(command.clone(), |command, id| command.mut_arg(id, |arg| arg.hide(true)))
    }
}
