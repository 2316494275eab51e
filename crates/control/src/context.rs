//! Where we are and whom we ask.

use std::{
    env,
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use muster_config::{Loaded, Settings};
use muster_proto::{
    ipc::control::{Request, Response},
    paths,
};
use muster_service::{
    client::{Client, ClientError},
    command_line::{self, HOME_VARIABLE},
    exit::{BAD_CONFIG, Exit, FAILED, NOT_PERMITTED, UNREACHABLE},
};

use crate::cli::OutputFormat;

/// How long a daemon may take for an answer.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// What we say hello as.
pub(crate) const OUR_NAME: &str = "control";

/// A home that we have changed into, and how to print.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) home: PathBuf,
    /// Where the operator was, for files named on the command line.
    pub(crate) here: PathBuf,
    pub(crate) output: OutputFormat,
}

impl Context {
    pub(crate) fn open(home: Option<&Path>, output: OutputFormat) -> anyhow::Result<Self> {
        let here = env::current_dir().unwrap_or_default();
        let home = command_line::home(home, None, env::var_os(HOME_VARIABLE))?;
        // Socket paths are relative to the home: an absolute one may be too long for the kernel.
        env::set_current_dir(&home).with_context(|| format!("changing into {}", home.display()))?;
        Ok(Self { home, here, output })
    }

    /// The configuration in force, or all its faults.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        self.load(None).map(|loaded| loaded.settings)
    }

    /// The configuration of a file, or of the home.
    pub(crate) fn load(&self, file: Option<&Path>) -> anyhow::Result<Loaded> {
        let path = file.unwrap_or(Path::new(paths::CONFIG));
        if let Err(error) = File::open(path)
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            let exit = Exit::new(NOT_PERMITTED, format!("cannot read {}", path.display()));
            return Err(anyhow::Error::new(error).context(exit));
        }
        muster_config::load(&self.home, file).map_err(|faults| Exit::new(BAD_CONFIG, faults.to_string()).into())
    }

    pub(crate) async fn connect(&self, daemon: &str) -> anyhow::Result<Client> {
        self.try_connect(daemon).await.map_err(|error| explain(daemon, error))
    }

    /// As [`connect`](Self::connect), with the error as it is.
    pub(crate) async fn try_connect(&self, daemon: &str) -> Result<Client, ClientError> {
        Client::connect(Path::new(&paths::control_socket(daemon)), OUR_NAME, ANSWER_DEADLINE).await
    }

    pub(crate) async fn ask(&self, daemon: &str, request: &Request) -> anyhow::Result<Response> {
        let mut client = self.connect(daemon).await?;
        ask(&mut client, daemon, request).await
    }
}

/// Asks, and turns answers that say no into errors.
pub(crate) async fn ask(client: &mut Client, daemon: &str, request: &Request) -> anyhow::Result<Response> {
    match client.ask(request).await.map_err(|error| explain(daemon, error))? {
        Response::Denied => Err(denied(daemon)),
        Response::Unknown => Err(unknown(daemon)),
        Response::Failed(why) => Err(Exit::new(FAILED, format!("{daemon}: {why}")).into()),
        response => Ok(response),
    }
}

/// The daemon's user or root must ask.
pub(crate) fn denied(daemon: &str) -> anyhow::Error {
    Exit::new(
        NOT_PERMITTED,
        format!("{daemon} refuses: only root and its own user may do this"),
    )
    .into()
}

/// The daemon is of another release.
pub(crate) fn unknown(daemon: &str) -> anyhow::Error {
    Exit::new(
        FAILED,
        format!("{daemon} does not know this request; is it of an older release?"),
    )
    .into()
}

/// The answer belongs to another question.
pub(crate) fn mismatched(daemon: &str) -> anyhow::Error {
    Exit::new(FAILED, format!("{daemon} answered something else than was asked")).into()
}

/// Gives an error its exit code.
pub(crate) fn explain(daemon: &str, error: ClientError) -> anyhow::Error {
    let exit = match &error {
        ClientError::Unreachable { .. } => Exit::new(UNREACHABLE, format!("{daemon} does not run in this home")),
        ClientError::NotPermitted { .. } => Exit::new(NOT_PERMITTED, format!("{daemon} is not for you to ask")),
        ClientError::TimedOut { .. } => Exit::new(UNREACHABLE, format!("{daemon} does not answer")),
        _ => Exit::new(FAILED, format!("asking {daemon}")),
    };
    anyhow::Error::new(error).context(exit)
}
