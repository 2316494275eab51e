//! A private home, the real daemon in it, and clients written from the protocol's description.

mod fake_remoted;

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use muster_proto::ipc::control::{DaemonStatus, Request, Response};
use muster_service::client::Client;
use muster_test_ports::Port;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
};

pub(crate) use fake_remoted::FakeRemoted;

/// Nothing here takes longer unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A home with certificate, groups `g1` and `g2`, and a configuration.
pub(crate) struct Home {
    directory: tempfile::TempDir,
    pub(crate) port: u16,
    _reserved: Port,
}

impl Home {
    /// `auth` stands in the `<auth>` block behind port and address.
    pub(crate) fn new(auth: &str) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let reserved = Port::free().expect("a port");
        let home = Self {
            port: reserved.number,
            _reserved: reserved,
            directory,
        };
        for group in ["g1", "g2"] {
            fs::create_dir_all(home.path(&format!("etc/shared/{group}"))).expect("made");
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::default().self_signed(&key).expect("a certificate");
        home.write("etc/sslmanager.cert", &certificate.pem());
        home.write("etc/sslmanager.key", &key.serialize_pem());
        home.configure(auth);
        home
    }

    pub(crate) fn configure(&self, auth: &str) {
        self.write(
            "etc/ossec.conf",
            &format!(
                "<ossec_config>\n<auth>\n<port>{}</port>\n<local_ip>127.0.0.1</local_ip>\n{auth}\n</auth>\n</ossec_config>\n",
                self.port
            ),
        );
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, content).expect("written");
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub(crate) fn keys(&self) -> String {
        self.read("etc/client.keys")
    }

    /// `action id` of every event in the outbox.
    pub(crate) fn events(&self) -> Vec<String> {
        let database = rusqlite::Connection::open(self.path("queue/db/enrollment.db")).expect("opened");
        let mut statement = database
            .prepare("SELECT event FROM outbox ORDER BY number")
            .expect("prepared");
        let blobs = statement
            .query_map([], |row| row.get::<_, Vec<u8>>(0))
            .expect("queried");
        blobs.map(|blob| summary(&blob.expect("blob"))).collect()
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster-authd"));
        command.arg("--home").arg(self.root()).stdin(Stdio::null());
        command
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub(crate) fn start(&self) -> Daemon {
        let log = format!("--log-file={}", self.path("authd.log").display());
        let mut child = self
            .command()
            .args(["-f", "--detached", &log])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("read");
        assert_eq!(line, "ready\n", "{}", self.read("authd.log"));
        Daemon { child }
    }

    /// Starts the daemon where it must not start; gives its exit code and what it says.
    pub(crate) fn start_in_vain(&self) -> (Option<i32>, String) {
        let output = self.command().arg("-f").output().expect("started");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// A connection to the enrollment port on which TLS stands.
    pub(crate) fn connect(&self) -> Tls {
        self.connect_with(client_config(None))
    }

    pub(crate) fn connect_with(&self, config: ClientConfig) -> Tls {
        self.try_connect_with(config).expect("connected")
    }

    pub(crate) fn try_connect(&self) -> io::Result<Tls> {
        self.try_connect_with(client_config(None))
    }

    pub(crate) fn try_connect_with(&self, config: ClientConfig) -> io::Result<Tls> {
        handshake(TcpStream::connect(("127.0.0.1", self.port))?, config)
    }

    pub(crate) fn connect_to(&self, host: &str) -> Tls {
        handshake(
            TcpStream::connect((host, self.port)).expect("connected"),
            client_config(None),
        )
        .expect("a handshake")
    }

    /// From another address of this host.
    pub(crate) fn connect_from(&self, source: &str) -> Tls {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let address = |ip: &str, port| SocketAddr::new(ip.parse().expect("an address"), port);
        socket.bind(&address(source, 0).into()).expect("bound");
        socket
            .connect(&address("127.0.0.1", self.port).into())
            .expect("connected");
        handshake(socket.into(), client_config(None)).expect("a handshake")
    }

    pub(crate) fn tcp(&self) -> TcpStream {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).expect("connected");
        tcp.set_read_timeout(Some(PATIENCE)).expect("set");
        tcp.set_write_timeout(Some(PATIENCE)).expect("set");
        tcp
    }

    /// Sends bytes and reads until close_notify.
    pub(crate) fn exchange(&self, bytes: &[u8]) -> String {
        let mut tls = self.connect();
        tls.write_all(bytes).expect("sent");
        tls.flush().expect("sent");
        answer(&mut tls)
    }

    /// Sends a line and gives the answer.
    pub(crate) fn request(&self, line: &str) -> String {
        self.exchange(format!("{line}\n").as_bytes())
    }

    /// Enrolls and gives the four fields of the key.
    pub(crate) fn enroll(&self, line: &str) -> Vec<String> {
        let answer = self.request(line);
        let inner = answer
            .strip_prefix("OSSEC K:'")
            .and_then(|rest| rest.strip_suffix('\''))
            .expect(&answer);
        inner.split(' ').map(str::to_owned).collect()
    }

    /// One request on the local socket.
    pub(crate) fn local(&self, payload: &str) -> String {
        self.try_local(payload).expect("answered")
    }

    pub(crate) fn try_local(&self, payload: &str) -> io::Result<String> {
        let mut frame = u32::try_from(payload.len()).expect("fits").to_le_bytes().to_vec();
        frame.extend_from_slice(payload.as_bytes());
        let mut socket = self.local_socket();
        socket.write_all(&frame)?;
        let mut header = [0; 4];
        socket.read_exact(&mut header)?;
        let mut body = vec![0; u32::from_le_bytes(header) as usize];
        socket.read_exact(&mut body)?;
        assert_eq!(socket.read(&mut [0; 1])?, 0, "the server closes behind its answer");
        Ok(String::from_utf8(body).expect("UTF-8"))
    }

    /// What the daemon answers on its control socket.
    pub(crate) fn ask(&self, request: &Request) -> Response {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let path = self.path("queue/muster/authd.ctl");
            let mut client = Client::connect(&path, "test", PATIENCE).await.expect("connected");
            client.ask(request).await.expect("answered")
        })
    }

    pub(crate) fn status(&self) -> DaemonStatus {
        let Response::Status(status) = self.ask(&Request::Status) else {
            unreachable!("a status request is answered with a status")
        };
        *status
    }

    /// One of the daemon's counters.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let counters = self.status().counters;
        counters
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| *value)
            .expect(name)
    }

    pub(crate) fn local_socket(&self) -> UnixStream {
        let socket = UnixStream::connect(self.path("queue/sockets/auth")).expect("connected");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        socket
    }
}

fn handshake(mut tcp: TcpStream, config: ClientConfig) -> io::Result<Tls> {
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from("manager").expect("a name");
    let mut session = ClientConnection::new(Arc::new(config), name).expect("a session");
    while session.is_handshaking() {
        session.complete_io(&mut tcp)?;
    }
    Ok(StreamOwned::new(session, tcp))
}

pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Reads until the server closes; a missing close_notify is an error.
pub(crate) fn answer(tls: &mut Tls) -> String {
    let mut text = Vec::new();
    tls.read_to_end(&mut text).expect("an answer and close_notify");
    String::from_utf8(text).expect("UTF-8")
}

/// The daemon; killed when dropped.
pub(crate) struct Daemon {
    pub(crate) child: Child,
}

impl Daemon {
    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args(["-s", signal, &self.child.id().to_string()])
            .status()
            .expect("kill");
        assert!(status.success());
    }

    /// Ends it in good order and gives its exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        self.child.wait().expect("ended").code()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn summary(blob: &[u8]) -> String {
    let text = String::from_utf8_lossy(blob);
    let value = |name: &str| {
        let behind = text
            .split_once(&format!("\"{name}\":\""))
            .map_or("", |(_, behind)| behind);
        behind.split('"').next().unwrap_or_default().to_owned()
    };
    match value("action").as_str() {
        "" => format!("rejected {} {}", value("reason"), value("agent_name")),
        action => format!("{action} {} {}", value("agent_id"), value("agent_name")),
    }
}

/// Agents verify the manager only when told to, and these are not.
pub(crate) fn client_config(certificate: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12, &rustls::version::TLS13])
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate));
    match certificate {
        Some((certificate, key)) => builder
            .with_client_auth_cert(vec![certificate], key)
            .expect("a certificate"),
        None => builder.with_no_client_auth(),
    }
}

/// A client that stops at TLS 1.2, as OSSEC's `agent-auth` does.
pub(crate) fn tls12_config() -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("version")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth()
}

/// A CA and what it signs.
pub(crate) struct Ca {
    key: KeyPair,
    params: CertificateParams,
    pub(crate) pem: String,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { key, params, pem }
    }

    pub(crate) fn sign(&self, address: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(address.parse().expect("an address"))];
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        (
            certificate.der().clone(),
            PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
        )
    }
}

#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
