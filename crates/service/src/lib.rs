//! What all daemons share: command line, privileges, sandbox, sockets, readiness, signals, logging, the server and the
//! client of our own frames, and the outbox that carries events to natsd.
//!
//! **It must never** know what one particular daemon does, and its decisions (who may ask what, which path may be
//! removed) are functions that a test can call without a process.
//!
//! Read first: [`Startup`], which takes a daemon from its arguments to its final rights, and [`Running`], into which it
//! puts its tasks. A whole `main.rs`:
//!
//! ```no_run
//! use std::{process::ExitCode, sync::Arc};
//!
//! use clap::Parser;
//! use muster_proto::ipc::control::DaemonStatus;
//! use muster_service::{Common, FileAccess, Reloader, Startup, control::{Handler, StatusSource}, exit, ipc};
//!
//! /// takes events from all daemons
//! #[derive(Parser)]
//! #[command(name = "muster-exampled", version)]
//! struct Cli {
//!     #[command(flatten)]
//!     common: Common,
//! }
//!
//! struct Exampled {
//!     status: StatusSource,
//!     reloader: Reloader,
//! }
//!
//! impl Handler for Exampled {
//!     async fn status(&self) -> DaemonStatus {
//!         DaemonStatus { listening: vec!["queue/muster/example".to_owned()], ..self.status.status() }
//!     }
//!
//!     async fn reload(&self) -> Result<String, String> {
//!         self.reloader.load().map(|_settings| "nothing has changed".to_owned())
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     exit::report("muster-exampled", start(&Cli::parse()))
//! }
//!
//! fn start(cli: &Cli) -> anyhow::Result<ExitCode> {
//!     let mut startup = Startup::begin("exampled", &cli.common)?;
//!     let control = startup.control_socket()?;
//!     let example = startup.stream_socket("example", "queue/muster/example")?;
//!     startup.own_directory("queue/example")?;
//!     startup.drop_privileges(FileAccess::new().write(["queue/example"]))?;
//!     startup.run(async move |running| {
//!         let handler = Exampled { status: running.status_source(), reloader: running.reloader() };
//!         running.serve_control(control, Arc::new(handler))?;
//!         let example = tokio::net::UnixListener::from_std(example)?;
//!         let stop = running.stopping();
//!         running.spawn("example", async move {
//!             ipc::serve_connections(example, 64, stop, |stream| async move {
//!                 if let Ok(mut connection) = ipc::Connection::accept(stream, "exampled").await {
//!                     while let Ok(Some(number)) = connection.receive::<u64>().await {
//!                         let _ = connection.send(&number).await;
//!                     }
//!                 }
//!             })
//!             .await;
//!             Ok(())
//!         });
//!         Ok(())
//!     })
//! }
//! ```

pub mod background;
pub mod client;
pub mod clock;
pub mod command_line;
pub mod control;
pub mod exit;
pub mod ipc;
pub mod logging;
pub mod metrics;
pub mod new_file;
pub mod notify;
pub mod outbox;
pub mod pid_file;
pub mod privileges;
pub mod run;
pub mod sandbox;
pub mod signals;
pub mod socket;
pub mod startup;
pub mod trace;
pub mod version;

pub use command_line::{Common, LogFormat};
pub use run::Running;
pub use sandbox::FileAccess;
pub use startup::{Reloader, Startup};
