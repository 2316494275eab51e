//! Port 1515: accepts agents, speaks TLS with them, reads one line, writes one answer.
//!
//! What a stranger can do here is bounded in count (`<limits>`), in time (each step has a deadline) and in size
//! ([`MAX_REQUEST_LEN`](muster_proto::enrollment::MAX_REQUEST_LEN)).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use muster_proto::enrollment::{
    AddressWish, Granted, Rejection, Request,
    line::{LineReader, Progress},
    request::GivenAddress,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{
    admission::{Admission, TurnedAway},
    change::RejectedFor,
    enroll::{Enroller, Outcome},
    groups, host_check,
    live::{Live, LiveSettings},
    registry::{Ask, Clash, Method, Refused},
};

/// The type of the record that a TLS connection begins with.
const TLS_HANDSHAKE: u8 = 0x16;
/// As much is read at a time; a request has some hundred bytes.
const READ_LEN: usize = 4096;
/// How long an answer may take to be written.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long we wait for the agent to close behind its answer. Closing while it still sends would reset the connection,
/// and the answer could be lost.
const LINGER: Duration = Duration::from_secs(1);
/// As much is read and thrown away while lingering.
const MAX_LINGER_BYTES: usize = 256 * 1024;
/// How long accepting pauses when there is no file descriptor or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long connections may go on after the daemon was told to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// What every connection needs.
pub struct Gate {
    /// Grants keys.
    pub enroller: Arc<Enroller>,
    /// Settings of the moment.
    pub live: LiveSettings,
    /// Who may connect; a token closes a connection.
    pub admission: Arc<Mutex<Admission<CancellationToken>>>,
}

/// Accepts until told to stop; then lets open connections end.
pub async fn serve(gate: Arc<Gate>, listener: TcpListener, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Some(guest) = Guest::admit(&gate, peer) {
                    connections.spawn(guest.visit(Arc::clone(&gate), stream));
                }
            }
            // The peer was gone before we came.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection, trying again in a second");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(STOP_DEADLINE, all).await.is_err() {
        connections.shutdown().await;
    }
}

/// A connection that holds a place; dropping it gives the place back.
struct Guest {
    peer: IpAddr,
    number: u64,
    evicted: CancellationToken,
    admission: Arc<Mutex<Admission<CancellationToken>>>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        lock(&self.admission).closed(self.peer, self.number);
    }
}

impl Guest {
    fn admit(gate: &Gate, peer: SocketAddr) -> Option<Self> {
        let counters = &gate.enroller.counters;
        counters.enrollment_connections_total.increment();
        let peer = peer.ip().to_canonical();
        let evicted = CancellationToken::new();
        let outcome = lock(&gate.admission).admit(peer, evicted.clone(), Instant::now());
        match outcome {
            Ok(admitted) => {
                if let Some(other) = admitted.evicted {
                    counters.enrollment_connections_evicted_total.increment();
                    other.cancel();
                }
                Some(Self {
                    peer,
                    number: admitted.number,
                    evicted,
                    admission: Arc::clone(&gate.admission),
                })
            }
            Err(TurnedAway::Full) => {
                counters.enrollment_connections_over_cap_total.increment();
                tracing::debug!(%peer, "closed a connection: all places are taken");
                None
            }
            Err(TurnedAway::AddressRate | TurnedAway::TotalRate) => {
                counters.enrollment_connections_rate_limited_total.increment();
                gate.enroller.reject_stranger(RejectedFor::RateLimited, peer);
                tracing::debug!(%peer, "closed a connection: too many came");
                None
            }
        }
    }

    async fn visit(self, gate: Arc<Gate>, stream: TcpStream) {
        let peer = self.peer;
        if let Err(end) = self.converse(&gate, stream).await {
            tracing::debug!(%peer, %end, "an enrollment connection ended");
        }
    }

    async fn converse(self, gate: &Gate, stream: TcpStream) -> Result<(), End> {
        let live = gate.live.borrow().clone();
        let counters = &gate.enroller.counters;
        let _ = stream.set_nodelay(true);
        let mut tls = tokio::select! {
            () = self.evicted.cancelled() => return Err(End::Evicted),
            tls = self.shake_hands(gate, &live, stream) => tls?,
        };
        let line = tokio::select! {
            () = self.evicted.cancelled() => return Err(End::Evicted),
            line = timeout(live.auth.limits.read_timeout, read_request(&mut tls)) => line,
        };
        let request = match line {
            Ok(Ok(line)) => line,
            Ok(Err(End::NoRequest)) => {
                counters.enrollment_requests_absent_total.increment();
                return Err(End::NoRequest);
            }
            Ok(Err(end)) => {
                counters.enrollment_requests_incomplete_total.increment();
                close(tls).await;
                return Err(end);
            }
            Err(_) => {
                counters.enrollment_requests_incomplete_total.increment();
                close(tls).await;
                return Err(End::TooSlow("send its request"));
            }
        };
        lock(&self.admission).serving(self.peer, self.number);

        match answer(gate, &live, &request, self.peer).await {
            Ok((granted, entry)) => {
                if let Err(error) = send(&mut tls, &granted.to_wire()).await {
                    counters.enrollments_not_delivered_total.increment();
                    tracing::info!(agent_id = entry.id.as_str(), peer = %self.peer, %error, "a key could not be delivered and is taken back");
                    gate.enroller.store().withdraw(&entry).await;
                    return Err(End::Io(error));
                }
                counters.enrollments_total.increment();
                tracing::info!(agent_id = entry.id.as_str(), name = entry.name, peer = %self.peer, "an agent was enrolled");
            }
            Err(rejection) => {
                counters.count_rejection(&rejection);
                tracing::debug!(peer = %self.peer, reason = %rejection, "an enrollment was refused");
                send(&mut tls, &rejection.to_wire()).await.map_err(End::Io)?;
            }
        }
        close(tls).await;
        Ok(())
    }

    async fn shake_hands(&self, gate: &Gate, live: &Live, stream: TcpStream) -> Result<TlsStream<TcpStream>, End> {
        let counters = &gate.enroller.counters;
        let Some(acceptor) = &live.acceptor else {
            return Err(End::Closed);
        };
        let handshake = async {
            if !begins_tls(&stream).await.map_err(End::Io)? {
                return Err(End::NotTls);
            }
            acceptor.accept(stream).await.map_err(End::Io)
        };
        let tls = match timeout(live.auth.limits.handshake_timeout, handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(end)) => {
                counters.enrollment_handshakes_failed_total.increment();
                if let End::Io(error) = &end
                    && live.auth.ssl_agent_ca.is_some()
                    && is_about_a_certificate(error)
                {
                    gate.enroller.reject_stranger(RejectedFor::BadCert, self.peer);
                }
                return Err(end);
            }
            Err(_) => {
                counters.enrollment_handshakes_failed_total.increment();
                return Err(End::TooSlow("finish the TLS handshake"));
            }
        };
        acknowledge_at_once(&tls);
        if live.verifies_host() && !has_matching_certificate(&tls, self.peer) {
            counters.enrollment_certificates_refused_total.increment();
            gate.enroller.reject_stranger(RejectedFor::BadCert, self.peer);
            close(tls).await;
            return Err(End::WrongHost);
        }
        Ok(tls)
    }
}

/// Why a connection ended without an answer.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Io(io::Error),
    #[error("it did not {0} in time")]
    TooSlow(&'static str),
    #[error("it does not speak TLS")]
    NotTls,
    #[error("it closed without a request")]
    NoRequest,
    #[error("its request is too long")]
    TooLong,
    #[error("its certificate does not name its address")]
    WrongHost,
    #[error("another address needed the place")]
    Evicted,
    #[error("the port is closed")]
    Closed,
}

/// Whether the first byte is that of a TLS handshake. Whoever begins with anything else is answered nothing, not even an
/// alert: closing over what it sent resets the connection, as stock.
async fn begins_tls(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    let count = stream.peek(&mut first).await?;
    Ok(count == 0 || first == [TLS_HANDSHAKE])
}

/// Reads until there is a line, also when it comes in many records.
async fn read_request(tls: &mut TlsStream<TcpStream>) -> Result<Zeroizing<Vec<u8>>, End> {
    let mut reader = LineReader::default();
    let mut buffer = Zeroizing::new(vec![0; READ_LEN]);
    loop {
        let count = match tls.read(&mut buffer).await {
            Ok(0) if reader.is_empty() => return Err(End::NoRequest),
            Ok(0) => return Err(End::Io(io::ErrorKind::UnexpectedEof.into())),
            // OSSEC's and old OpenSSL clients close TCP without a word; with nothing sent that is a plain good-bye.
            Err(_) if reader.is_empty() => return Err(End::NoRequest),
            Err(error) => return Err(End::Io(error)),
            Ok(count) => count,
        };
        match reader.push(buffer.get(..count).unwrap_or_default()) {
            Progress::More => {}
            Progress::Line(line) => return Ok(Zeroizing::new(line.to_vec())),
            Progress::TooLong => return Err(End::TooLong),
        }
    }
}

async fn answer(
    gate: &Gate,
    live: &Live,
    line: &[u8],
    peer: IpAddr,
) -> Result<(Granted, muster_proto::keys::file::KeyEntry), Rejection> {
    let request = Request::parse(line, &live.request_policy()).inspect_err(|rejection| {
        if *rejection == Rejection::InvalidPassword {
            gate.enroller.reject_stranger(RejectedFor::BadPassword, peer);
            gate.enroller
                .log(format_args!("Invalid password provided by {peer}. Closing connection."));
        }
    })?;
    groups::check(&request.groups, groups::has_directory)?;
    let given = match request.address {
        AddressWish::Given(given) => given,
        AddressWish::Source => GivenAddress::of_peer(peer),
        AddressWish::Unsaid if live.auth.use_source_ip => GivenAddress::of_peer(peer),
        AddressWish::Unsaid => GivenAddress::any(),
    };
    let ask = Ask {
        name: request.name,
        address: Some(given.clone()),
        id: None,
        key_hash: request.key_hash,
        rules: live.rules,
        groups: request.groups,
        method: Method::Remote,
        source: Some(peer),
    };
    match gate.enroller.enroll(&ask, None).await {
        Outcome::Granted(entry) => {
            let granted = Granted {
                id: entry.id.to_string(),
                name: ask.name,
                address: given.answer,
                key: entry.key.clone(),
            };
            Ok((granted, entry))
        }
        Outcome::Refused(refused) => Err(rejection(&refused, ask.name, given)),
        Outcome::Failed => Err(Rejection::Internal(ask.name)),
    }
}

fn rejection(refused: &Refused, name: String, given: GivenAddress) -> Rejection {
    match refused {
        Refused::InTheWay {
            clash: Clash::Address, ..
        } => Rejection::DuplicateAddress(given.answer),
        Refused::InTheWay { .. } => Rejection::DuplicateName(name),
        Refused::ManagerName => Rejection::InvalidName(name.into_bytes()),
        Refused::BadAddress => Rejection::InvalidAddress(given.answer.into_bytes()),
        Refused::Full => Rejection::Internal(name),
    }
}

/// One write, so that an agent reads it as one.
async fn send(tls: &mut TlsStream<TcpStream>, answer: &[u8]) -> io::Result<()> {
    let write = async {
        tls.write_all(answer).await?;
        tls.flush().await
    };
    timeout(WRITE_DEADLINE, write)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// close_notify, the end of TCP, and a moment for the agent to do the same. Whatever goes wrong now does not matter: the
/// answer is on its way.
async fn close(mut tls: TlsStream<TcpStream>) {
    let linger = async {
        tls.shutdown().await?;
        let (stream, _) = tls.get_mut();
        let (mut buffer, mut left) = ([0; 4096], MAX_LINGER_BYTES);
        while left > 0 {
            match stream.read(&mut buffer).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        Ok::<_, io::Error>(())
    };
    let _ = timeout(LINGER, linger).await;
}

/// The end of a TLS 1.3 handshake needs no answer, and an agent with Nagle's algorithm holds its request back until that
/// end is acknowledged: without this for 40 ms.
fn acknowledge_at_once(tls: &TlsStream<TcpStream>) {
    let (stream, _) = tls.get_ref();
    let _ = socket2::SockRef::from(stream).set_tcp_quickack(true);
}

fn has_matching_certificate(tls: &TlsStream<TcpStream>, peer: IpAddr) -> bool {
    let (_, connection) = tls.get_ref();
    connection
        .peer_certificates()
        .and_then(|chain| chain.first())
        .is_some_and(|certificate| host_check::names_address(certificate, peer))
}

fn is_about_a_certificate(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(
        cause,
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)
    )
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
