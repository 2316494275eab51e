//! How late agents' messages are while another agent sends as much as it can: to the same daemon, or to one of its own
//! on the same machine, so that the only difference is what the daemon does.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixDatagram,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use super::fleet::Sealed;

/// Agents that bring an event now and then.
const TALKERS: usize = 20;
/// Agents that send keepalives.
const KEEPERS: usize = 10;
/// Agents of a measurement: those, and the one that floods.
pub const AGENTS: usize = TALKERS + KEEPERS + 1;
/// Events of each talker.
const EVENTS: usize = 150;
/// Keepalives of all keepers together.
const KEEPALIVES: u32 = 600;
/// How long all of it takes.
const MEASURED: Duration = Duration::from_secs(6);
/// Before that, the flood runs for so long.
const WARM_UP: Duration = Duration::from_secs(1);
/// Bytes of an event's frame.
const EVENT_LEN: usize = 174;
/// Different events of the one that floods.
const VARIETY: u32 = 64;
/// What is not there by then is lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// Times from a message's sending to what it is waited for, in milliseconds, in order of their length.
pub struct Latencies {
    /// Of events, until the reader in the analysis daemon's place has them.
    pub events: Vec<f64>,
    /// Of keepalives, until they are acknowledged.
    pub keepalives: Vec<f64>,
    /// Events of the flood, a second.
    pub flood: f64,
}

/// The time that so many of a hundred are not above.
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or(f64::NAN)
}

/// When each event of each talker was sent, in nanoseconds from a common beginning.
struct Sent {
    begun: Instant,
    times: Vec<AtomicU64>,
}

impl Sent {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Measures with the first [`AGENTS`] of a fleet, at a remoted that listens at `port` with its home at `home`. The flood
/// goes to `flooded`.
pub fn measure(home: &Path, port: u16, agents: &[Sealed], flooded: u16) -> Result<Latencies> {
    let (talkers, rest) = agents.split_at_checked(TALKERS).context("too few agents")?;
    let (keepers, flooder) = rest.split_at_checked(KEEPERS).context("too few agents")?;
    let flooder = flooder.first().context("too few agents")?;
    let sent = Arc::new(Sent {
        begun: Instant::now(),
        times: (0..TALKERS * EVENTS).map(|_| AtomicU64::new(0)).collect(),
    });
    let stop = Arc::new(AtomicBool::new(false));
    let reader = read(home, &sent, &stop)?;
    let flood = flood(flooder, flooded, &stop)?;
    let (mut talk, mut keep) = (Talk::new(talkers, port)?, connect_all(keepers, port)?);
    let keepalives: Vec<Vec<u8>> = keepers.iter().map(|agent| agent.keepalive(0)).collect();
    thread::park_timeout(WARM_UP);

    let begun = Instant::now();
    let keeping = thread::spawn(move || -> Result<Vec<f64>> {
        let mut took = Vec::new();
        for number in 0..KEEPALIVES {
            wait_until(begun + MEASURED * number / KEEPALIVES);
            let place = usize::try_from(number)? % KEEPERS;
            let now = Instant::now();
            keep[place].write_all(&keepalives[place])?;
            read_frame(&mut keep[place])?;
            took.push(now.elapsed().as_secs_f64() * 1e3);
        }
        Ok(took)
    });
    talk.run(&sent, begun)?;
    let mut keepalives = keeping.join().map_err(|_| anyhow!("a thread panicked"))??;
    // What is still on its way comes soon, or never.
    let deadline = Instant::now() + PATIENCE;
    while !reader.is_finished() && Instant::now() < deadline {
        thread::park_timeout(Duration::from_millis(20));
    }
    stop.store(true, Ordering::Relaxed);
    let mut events = reader.join().map_err(|_| anyhow!("a thread panicked"))?;
    let flood = flood.join().map_err(|_| anyhow!("a thread panicked"))??;
    ensure!(
        events.len() == TALKERS * EVENTS,
        "only {} of {} events came",
        events.len(),
        TALKERS * EVENTS
    );
    events.sort_by(f64::total_cmp);
    keepalives.sort_by(f64::total_cmp);
    Ok(Latencies {
        events,
        keepalives,
        flood,
    })
}

struct Talk {
    streams: Vec<TcpStream>,
    events: Vec<Vec<Vec<u8>>>,
}

impl Talk {
    fn new(agents: &[Sealed], port: u16) -> Result<Self> {
        let numbers = 0..u32::try_from(EVENTS)?;
        Ok(Self {
            streams: connect_all(agents, port)?,
            events: agents
                .iter()
                .map(|agent| numbers.clone().map(|number| agent.event(number, EVENT_LEN)).collect())
                .collect::<Result<_>>()?,
        })
    }

    fn run(&mut self, sent: &Sent, begun: Instant) -> Result<()> {
        let pause = MEASURED / u32::try_from(TALKERS * EVENTS)?;
        for number in 0..EVENTS {
            for (talker, stream) in self.streams.iter_mut().enumerate() {
                wait_until(begun + pause * u32::try_from(number * TALKERS + talker)?);
                sent.times[talker * EVENTS + number].store(sent.now(), Ordering::Relaxed);
                stream.write_all(&self.events[talker][number])?;
            }
        }
        Ok(())
    }
}

/// Reads until all events of the talkers have come, or it is told to stop. Until then it reads the flood's, too.
fn read(home: &Path, sent: &Arc<Sent>, stop: &Arc<AtomicBool>) -> Result<JoinHandle<Vec<f64>>> {
    let path = home.join("queue/sockets/queue");
    let _ = fs::remove_file(&path);
    let socket = UnixDatagram::bind(&path).with_context(|| format!("binding {}", path.display()))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let (sent, stop) = (Arc::clone(sent), Arc::clone(stop));
    Ok(thread::spawn(move || {
        let (mut buffer, mut took) = (vec![0; 70_000], Vec::new());
        while took.len() < TALKERS * EVENTS && !stop.load(Ordering::Relaxed) {
            let Ok(length) = socket.recv(&mut buffer) else { continue };
            if let Some(place) = place_of(&buffer[..length]) {
                let nanoseconds = sent.now().saturating_sub(sent.times[place].load(Ordering::Relaxed));
                took.push(Duration::from_nanos(nanoseconds).as_secs_f64() * 1e3);
            }
        }
        took
    }))
}

/// Which event of which talker a datagram is: `1:[001] (bench-00001) any->/var/log/auth.log:sshd[7]: ...`
fn place_of(datagram: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(datagram.get(..datagram.len().min(100))?).ok()?;
    let (_, behind) = text.split_once("(bench-")?;
    let (agent, behind) = behind.split_once(')')?;
    let talker = agent
        .parse::<usize>()
        .ok()?
        .checked_sub(1)
        .filter(|agent| *agent < TALKERS)?;
    let (_, behind) = behind.split_once("sshd[")?;
    let number = behind.split_once(']')?.0.parse::<usize>().ok()?;
    (number < EVENTS).then_some(talker * EVENTS + number)
}

/// Sends until it is told to stop, and gives the events a second.
fn flood(agent: &Sealed, port: u16, stop: &Arc<AtomicBool>) -> Result<JoinHandle<Result<f64>>> {
    let events: Vec<Vec<u8>> = (0..VARIETY)
        .map(|number| agent.event(number, EVENT_LEN))
        .collect::<Result<_>>()?;
    let together = events.concat();
    let mut stream = connect(port)?;
    // The daemon stops reading it now and then.
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    let stop = Arc::clone(stop);
    Ok(thread::spawn(move || {
        let (begun, mut bytes) = (Instant::now(), 0_usize);
        while !stop.load(Ordering::Relaxed) {
            let rest = &together[bytes % together.len()..];
            match stream.write(rest) {
                Ok(written) => bytes += written,
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) => {}
                Err(error) => return Err(error).context("the flood's connection ended"),
            }
        }
        let events = f64::from(u32::try_from(bytes / EVENT_LEN)?);
        Ok(events / begun.elapsed().as_secs_f64())
    }))
}

fn connect_all(agents: &[Sealed], port: u16) -> Result<Vec<TcpStream>> {
    agents.iter().map(|_| connect(port)).collect()
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn read_frame(stream: &mut TcpStream) -> Result<()> {
    let mut header = [0; 4];
    stream.set_read_timeout(Some(PATIENCE))?;
    stream
        .read_exact(&mut header)
        .context("waiting for an acknowledgement")?;
    let mut message = vec![0; usize::try_from(u32::from_le_bytes(header))?.min(65_536)];
    stream.read_exact(&mut message)?;
    Ok(())
}

fn wait_until(due: Instant) {
    while let Some(left) = due.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_of_an_event_is_in_its_text_and_the_flood_has_none() {
        let text = b"1:[002] (bench-00002) any->/var/log/auth.log:sshd[7]: Accepted publickey for x";
        assert_eq!(place_of(text), Some(EVENTS + 7));
        let flood = b"1:[031] (bench-00031) any->/var/log/auth.log:sshd[7]: Accepted publickey for x";
        assert_eq!(place_of(flood), None);
    }

    #[test]
    fn percentile_is_the_time_that_so_many_are_not_above() {
        let sorted: Vec<f64> = (0..100).map(f64::from).collect();
        assert!((percentile(&sorted, 99) - 99.0).abs() < f64::EPSILON);
        assert!((percentile(&sorted, 50) - 50.0).abs() < f64::EPSILON);
    }
}
