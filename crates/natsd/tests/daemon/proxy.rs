//! A network between natsd and the server that can be cut, slowed down, and made to swallow what it carries.

#![expect(clippy::disallowed_methods, reason = "a slow network takes its time")]

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// Carries as much at a time.
const CHUNK: usize = 16 * 1024;

pub(crate) struct Proxy {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    server: u16,
    ended: AtomicBool,
    delay_ms: AtomicU64,
    connections: Mutex<Vec<Arc<Connection>>>,
    accepted: AtomicUsize,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// Neither side hears anything of the other, nor that it is gone.
    swallows: AtomicBool,
    /// How many bytes towards the server are carried before it is cut.
    left: Mutex<Option<usize>>,
}

impl Connection {
    fn cut(&self) {
        for stream in [&self.client, &self.server] {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Proxy {
    /// In front of the server on this port of 127.0.0.1.
    pub(crate) fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            server,
            ended: AtomicBool::new(false),
            delay_ms: AtomicU64::new(0),
            connections: Mutex::new(vec![]),
            accepted: AtomicUsize::new(0),
        });
        let of_listener = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if of_listener.ended.load(Ordering::Relaxed) {
                    return;
                }
                of_listener.accept(client);
            }
        });
        Self { port, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// How many connections there were, whose server could be reached.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        self.each(Connection::cut);
    }

    /// Makes the connections that there are half-open: they stand, and carry nothing any more. New ones do.
    pub(crate) fn swallow(&self) {
        self.each(|connection| connection.swallows.store(true, Ordering::Relaxed));
    }

    /// Cuts each connection once it has carried as many more bytes to the server.
    pub(crate) fn cut_after(&self, bytes: usize) {
        self.each(|connection| *connection.left.lock().expect("no panic") = Some(bytes));
    }

    /// From now on, whatever is carried in either direction takes as long.
    pub(crate) fn delay(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).expect("small");
        self.shared.delay_ms.store(delay, Ordering::Relaxed);
    }

    fn each(&self, work: impl Fn(&Connection)) {
        let connections = self.shared.connections.lock().expect("no panic");
        connections.iter().for_each(|connection| work(connection));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.cut();
        // Wakes the listener, which then sees that it is over.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, client: TcpStream) {
        // A server that is away is away for the client, too.
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.server)) else {
            return;
        };
        let streams = [client, server].map(|stream| {
            stream.set_nodelay(true).expect("sets the option");
            (stream.try_clone().expect("clones"), stream)
        });
        let [(from_client, client), (from_server, server)] = streams;
        let connection = Arc::new(Connection {
            client,
            server,
            swallows: AtomicBool::new(false),
            left: Mutex::new(None),
        });
        self.connections.lock().expect("no panic").push(Arc::clone(&connection));
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let (shared, other) = (Arc::clone(self), Arc::clone(&connection));
        thread::spawn(move || shared.carry(from_client, &other, Direction::ToServer));
        let shared = Arc::clone(self);
        thread::spawn(move || shared.carry(from_server, &connection, Direction::ToClient));
    }

    fn carry(&self, mut from: TcpStream, connection: &Connection, direction: Direction) {
        let mut bytes = [0; CHUNK];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            let delay = self.delay_ms.load(Ordering::Relaxed);
            if delay > 0 {
                thread::sleep(Duration::from_millis(delay));
            }
            if connection.swallows.load(Ordering::Relaxed) {
                continue;
            }
            let carried = match direction {
                Direction::ToServer => connection.allowance(count),
                Direction::ToClient => count,
            };
            let mut to = match direction {
                Direction::ToServer => &connection.server,
                Direction::ToClient => &connection.client,
            };
            if to.write_all(&bytes[..carried]).is_err() || carried < count {
                break;
            }
        }
        if !connection.swallows.load(Ordering::Relaxed) {
            connection.cut();
        }
    }
}

impl Connection {
    /// How many of these bytes are carried still.
    fn allowance(&self, count: usize) -> usize {
        let mut left = self.left.lock().expect("no panic");
        let Some(left) = &mut *left else {
            return count;
        };
        let carried = count.min(*left);
        *left -= carried;
        carried
    }
}

#[derive(Clone, Copy)]
enum Direction {
    ToServer,
    ToClient,
}
