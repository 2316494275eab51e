//! Where log lines go and how they look.
//!
//! Every line is one write: to standard error, or appended to a file that [`reopen`] opens anew after somebody has
//! rotated it away.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Write},
    os::unix::fs::{OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use jiff::Zoned;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{self, FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer, time::FormatTime},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::{command_line::LogFormat, privileges::Identity};

/// Replaces the filter that the `-d` flags make, in the syntax of `tracing_subscriber::EnvFilter`.
pub const FILTER_VARIABLE: &str = "MUSTER_LOG";

static FILE: OnceLock<Arc<LogFile>> = OnceLock::new();

/// How to log.
#[derive(Clone, Debug)]
pub(crate) struct Logging<'a> {
    pub(crate) debug: u8,
    pub(crate) format: LogFormat,
    pub(crate) file: Option<&'a Path>,
    pub(crate) owner: Option<&'a Identity>,
    /// The stock name, when lines shall look like those of its neighbours in `logs/ossec.log`.
    pub(crate) stock_name: Option<&'a str>,
}

/// Installs the subscriber of this process. A second call changes nothing.
pub(crate) fn install(logging: &Logging<'_>) -> io::Result<()> {
    let output = match logging.file {
        None => Output::Stderr,
        Some(path) => {
            let file = Arc::new(LogFile::open(path, logging.owner)?);
            Output::File(Arc::clone(FILE.get_or_init(|| file)))
        }
    };
    let to_journal = logging.file.is_none() && std::env::var_os("JOURNAL_STREAM").is_some();
    let colour = logging.file.is_none() && io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match logging.format {
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_timer(LocalTime)
            .with_writer(output)
            .boxed(),
        LogFormat::Text => match logging.stock_name {
            Some(name) => stock_layer(name, output).boxed(),
            // The journal knows the time itself.
            None if to_journal => fmt::layer().without_time().with_ansi(false).with_writer(output).boxed(),
            None => fmt::layer()
                .with_timer(LocalTime)
                .with_ansi(colour)
                .with_writer(output)
                .boxed(),
        },
    };
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(filter(logging.debug)));
    // Fails only when there is one already, which is then as good.
    let _ = subscriber.try_init();
    Ok(())
}

/// Opens the log file anew, if there is one: the old one may have been renamed.
pub fn reopen() {
    let Some(file) = FILE.get() else { return };
    if let Err(error) = file.reopen() {
        tracing::error!(%error, path = %file.path.display(), "cannot reopen the log file, writing on to the old one");
    }
}

/// From now on standard output goes nowhere and standard error into the log file, if there is one: whoever waits for
/// either to be closed shall not wait for as long as the daemon runs.
pub(crate) fn leave_terminal() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    match FILE.get() {
        Some(file) => dup2_stderr(&*file.file.lock().unwrap_or_else(PoisonError::into_inner))?,
        None => dup2_stderr(&null)?,
    }
    Ok(())
}

fn filter(debug: u8) -> EnvFilter {
    if let Ok(directives) = std::env::var(FILTER_VARIABLE) {
        return EnvFilter::new(directives);
    }
    // The client of NATS has a line for each attempt; natsd says the same once, and knows when it is news.
    EnvFilter::new(match debug {
        0 => "warn,async_nats=off,muster=info",
        1 => "info,async_nats=off,muster=debug",
        _ => "debug,muster=trace",
    })
}

/// Lines for a log that stock daemons write too: without colours, wherever they go.
fn stock_layer<S, W>(name: &str, output: W) -> impl Layer<S> + Send + Sync + use<S, W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    fmt::layer()
        .with_ansi(false)
        .event_format(StockFormat(name.to_owned()))
        .with_writer(output)
}

struct LocalTime;

impl FormatTime for LocalTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        write!(writer, "{}", Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%.3f%:z"))
    }
}

/// `2026/11/21 09:02:00 wazuh-remoted: INFO: message field=value`
struct StockFormat(String);

impl<S, N> FormatEvent<S, N> for StockFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARNING",
            Level::INFO => "INFO",
            Level::DEBUG | Level::TRACE => "DEBUG",
        };
        write!(
            writer,
            "{} {}: {level}: ",
            Zoned::now().strftime("%Y/%m/%d %H:%M:%S"),
            self.0
        )?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

#[derive(Clone)]
enum Output {
    Stderr,
    File(Arc<LogFile>),
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stderr => io::stderr().lock().write(line),
            Self::File(file) => file.file.lock().unwrap_or_else(PoisonError::into_inner).write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: Mutex<File>,
}

impl LogFile {
    fn open(path: &Path, owner: Option<&Identity>) -> io::Result<Self> {
        // A file that is there may belong to several daemons, and stays theirs.
        let exists = path.exists();
        let file = append_to(path)?;
        if let Some(owner) = owner.filter(|_| !exists) {
            fchown(&file, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
        }
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(file),
        })
    }

    fn reopen(&self) -> io::Result<()> {
        let file = append_to(&self.path)?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn reopened_file_is_a_new_one_after_rotation() {
        let directory = tempfile::tempdir().expect("directory");
        let (path, rotated) = (directory.path().join("x.log"), directory.path().join("x.log.1"));
        let file = Arc::new(LogFile::open(&path, None).expect("opened"));
        let mut output = Output::File(Arc::clone(&file));
        output.write_all(b"one\n").expect("written");
        fs::rename(&path, &rotated).expect("renamed");
        output.write_all(b"two\n").expect("written");
        file.reopen().expect("reopened");
        output.write_all(b"three\n").expect("written");
        assert_eq!(fs::read(&rotated).expect("read"), b"one\ntwo\n");
        assert_eq!(fs::read(&path).expect("read"), b"three\n");
    }

    #[test]
    fn line_among_stock_daemons_has_their_form_and_no_colours() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let writer = Mutex::new(file.reopen().expect("opened"));
        let subscriber = tracing_subscriber::registry().with(stock_layer("wazuh-authd", writer));
        tracing::subscriber::with_default(subscriber, || tracing::warn!(agents = 2, "agents are loaded"));
        let line = fs::read_to_string(file.path()).expect("read");
        let (time, rest) = line.split_at("2026/11/21 09:02:00".len());
        assert_eq!(rest, " wazuh-authd: WARNING: agents are loaded agents=2\n");
        assert!(
            jiff::civil::DateTime::strptime("%Y/%m/%d %H:%M:%S", time).is_ok(),
            "{time}"
        );
    }

    #[test]
    fn time_is_local_with_its_offset() {
        let mut text = String::new();
        LocalTime.format_time(&mut Writer::new(&mut text)).expect("formatted");
        assert!(text.parse::<jiff::Timestamp>().is_ok(), "{text}");
    }
}
