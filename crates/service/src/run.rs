//! From a daemon with its final rights to an exit code: the second half of every `main`.

use std::{
    future::Future, io::Write, os::unix::net::UnixListener, pin::Pin, process::ExitCode, sync::Arc, time::Duration,
};

use anyhow::Context;
use muster_config::Settings;
use nix::{sys::prctl, unistd::getppid};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    background::READY,
    control::{self, Handler, StatusSource},
    exit::{DONE, FAILED},
    logging, notify,
    pid_file::PidFile,
    signals::{Signal, Signals},
    startup::{Reloader, Startup},
};

/// How long tasks may take to end after they were told to.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

type Reload = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<String, String>>>>>;
type TaskEnd = (&'static str, anyhow::Result<()>);

/// What a daemon needs while it comes up: its settings, and a place to put its tasks.
pub struct Running {
    /// What the configuration said at the start.
    pub settings: Arc<Settings>,
    daemon: &'static str,
    reloader: Reloader,
    stop: CancellationToken,
    tasks: JoinSet<TaskEnd>,
    reload: Option<Reload>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Running")
            .field("daemon", &self.daemon)
            .finish_non_exhaustive()
    }
}

impl Running {
    fn new(daemon: &'static str, settings: Settings, reloader: Reloader) -> Self {
        Self {
            settings: Arc::new(settings),
            daemon,
            reloader,
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
            reload: None,
        }
    }

    /// Cancelled when the daemon ends; each task watches it.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Reads the configuration again, for [`Handler::reload`].
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// The common part of the status, counting from now.
    pub fn status_source(&self) -> StatusSource {
        StatusSource::new(self.daemon)
    }

    /// Starts a task that goes on until [`stopping`](Self::stopping) is cancelled. If it ends before, with or without an
    /// error, the whole daemon ends with code 1.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Serves the control socket with this handler, and gives it SIGHUP.
    pub fn serve_control<H: Handler>(&mut self, listener: UnixListener, handler: Arc<H>) -> anyhow::Result<()> {
        let listener = tokio::net::UnixListener::from_std(listener).context("taking over the control socket")?;
        let server = control::serve(self.daemon, listener, Arc::clone(&handler), self.stop.clone());
        self.spawn("control", async move {
            server.await;
            Ok(())
        });
        self.reload = Some(Box::new(move || {
            let handler = Arc::clone(&handler);
            Box::pin(async move { handler.reload().await })
        }));
        Ok(())
    }
}

impl Startup {
    /// Runs the daemon on a runtime of this thread: `start` spawns its tasks, then it is ready and goes on until a
    /// signal or the first task's end. Gives the exit code: 0 after a signal, 1 when a task ended by itself.
    ///
    /// # Errors
    /// What `start` returns, and what keeps the runtime, the signals or the pid file from being there.
    pub fn run(self, start: impl AsyncFnOnce(&mut Running) -> anyhow::Result<()>) -> anyhow::Result<ExitCode> {
        if let Some(supervisor) = self.supervisor {
            // Only now: changing the user would have undone it.
            prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)
                .context("binding this process to its supervisor")?;
            anyhow::ensure!(getppid() == supervisor, "the supervisor is gone");
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting tokio")?;
        runtime.block_on(async move {
            let Self {
                daemon,
                program,
                settings,
                reloader,
                detached,
                bound,
                lock,
                ..
            } = self;
            let mut signals = Signals::take().context("taking over signals")?;
            let mut running = Running::new(daemon, settings, reloader);
            start(&mut running).await?;
            let pid_file = PidFile::create(&program.name)?;
            notify::ready();
            if detached {
                tell_starter();
            }
            tracing::info!(release = env!("CARGO_PKG_VERSION"), "{} is ready", program.name);
            let code = until_end(&mut running, &mut signals).await;
            notify::stopping();
            let code = drain(running, code).await;
            drop((pid_file, bound));
            tracing::info!("{} ends", program.name);
            // Last of all: until here no other instance may bind our paths.
            drop(lock);
            Ok(ExitCode::from(code))
        })
    }
}

/// Whoever started us detached waits for this line. That it went away meanwhile does not matter.
fn tell_starter() {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{READY}").and_then(|()| stdout.flush());
    drop(stdout);
    if let Err(error) = logging::leave_terminal() {
        tracing::warn!(%error, "cannot leave the terminal");
    }
}

async fn until_end(running: &mut Running, signals: &mut Signals) -> u8 {
    let mut watchdog = notify::watchdog_period().map(tokio::time::interval);
    loop {
        let ping = async {
            match &mut watchdog {
                Some(interval) => {
                    interval.tick().await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Stop => return DONE,
                Signal::Reload => reload(running).await,
            },
            Some(ended) = running.tasks.join_next() => {
                match ended {
                    Ok((task, Ok(()))) => tracing::error!(task, "a task ended, so the daemon ends too"),
                    Ok((task, Err(error))) => {
                        tracing::error!(task, error = format!("{error:#}"), "a task failed, so the daemon ends too");
                    }
                    Err(error) => tracing::error!(%error, "a task broke off, so the daemon ends too"),
                }
                return FAILED;
            }
            () = ping => notify::watchdog(),
        }
    }
}

async fn reload(running: &Running) {
    logging::reopen();
    let Some(reload) = &running.reload else { return };
    notify::reloading();
    match reload().await {
        Ok(done) => tracing::info!("configuration reloaded: {done}"),
        Err(why) => tracing::error!("configuration not reloaded, the old one stays in force: {why}"),
    }
    notify::ready();
}

async fn drain(mut running: Running, mut code: u8) -> u8 {
    running.stop.cancel();
    let all = async {
        while let Some(ended) = running.tasks.join_next().await {
            if let Ok((task, Err(error))) = ended {
                tracing::error!(task, error = format!("{error:#}"), "a task failed while ending");
                code = FAILED;
            }
        }
    };
    if timeout(DRAIN_DEADLINE, all).await.is_err() {
        tracing::error!(
            tasks = running.tasks.len(),
            "tasks did not end in time and are broken off"
        );
        return FAILED;
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Running {
        Running::new("x", Settings::default(), Reloader::for_tests())
    }

    #[tokio::test]
    async fn task_that_ends_by_itself_ends_the_daemon_with_1() {
        let mut signals = Signals::take().expect("signals");
        let mut running = running();
        running.spawn("short", async { Ok(()) });
        assert_eq!(until_end(&mut running, &mut signals).await, FAILED);
    }

    #[tokio::test]
    async fn stop_waits_for_tasks_that_watch_the_token() {
        let mut running = running();
        let (stop, done) = (running.stopping(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
        let flag = Arc::clone(&done);
        running.spawn("patient", async move {
            stop.cancelled().await;
            tokio::task::yield_now().await;
            flag.store(true, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        });
        assert_eq!(drain(running, DONE).await, DONE);
        assert!(done.load(std::sync::atomic::Ordering::Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn task_that_ignores_the_token_is_broken_off_at_the_deadline() {
        let mut running = running();
        running.spawn("deaf", std::future::pending());
        assert_eq!(drain(running, DONE).await, FAILED);
    }
}
