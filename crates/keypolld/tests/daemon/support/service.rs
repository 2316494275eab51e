//! A service on a socket that knows keys, as an operator writes it.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

use super::Home;

/// Answers a request on its connection.
type Answer = dyn Fn(&str, &mut UnixStream) + Send + Sync;

/// Listens at `service.sock` in the home until it is dropped.
pub(crate) struct Service {
    path: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Service {
    /// Writes what `answer` gives, in one piece.
    pub(crate) fn answering(home: &Home, answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::serving(home, move |request, stream| {
            let _ = stream.write_all(answer(request).as_bytes());
        })
    }

    pub(crate) fn serving(home: &Home, answer: impl Fn(&str, &mut UnixStream) + Send + Sync + 'static) -> Self {
        let path = home.path("service.sock");
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("bound");
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (log, answer): (_, Arc<Answer>) = (Arc::clone(&asked), Arc::new(answer));
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                thread::spawn(move || {
                    let mut buffer = [0; 128];
                    let length = stream.read(&mut buffer).unwrap_or(0);
                    let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    log.lock().expect("lock").push(request.clone());
                    answer(&request, &mut stream);
                    // Stays open until the other side closes: it must not need our end.
                    let _ = stream.read(&mut buffer);
                });
            }
        });
        Self { path, asked }
    }

    /// Every request so far, as it came.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("lock").clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
