//! A local program at `queue/sockets/remote`, and one that drops orders at a datagram socket, as stock ones do.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};

/// Sends one request and reads the answer; `None` when the connection is closed without one.
pub fn ask(home: &Path, request: &[u8], patience: Duration) -> Result<Option<Vec<u8>>> {
    let path = home.join("queue/sockets/remote");
    let mut stream = UnixStream::connect(&path).with_context(|| format!("connecting to {}", path.display()))?;
    stream.set_read_timeout(Some(patience))?;
    let mut frame = u32::try_from(request.len())?.to_le_bytes().to_vec();
    frame.extend_from_slice(request);
    stream.write_all(&frame)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("reading the answer")?;
    if answer.is_empty() {
        return Ok(None);
    }
    let (header, payload) = answer.split_first_chunk::<4>().context("half a length")?;
    anyhow::ensure!(
        usize::try_from(u32::from_le_bytes(*header))? == payload.len(),
        "the length does not fit the answer"
    );
    Ok(Some(payload.to_vec()))
}

/// The same for answers that are text.
pub fn ask_text(home: &Path, request: &str, patience: Duration) -> Result<String> {
    let answer = ask(home, request.as_bytes(), patience)?.context("closed without an answer")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Drops a datagram at a socket of the home.
pub fn drop_at(home: &Path, socket: &str, datagram: &[u8]) -> Result<()> {
    let path = home.join(socket);
    UnixDatagram::unbound()?
        .send_to(datagram, &path)
        .with_context(|| format!("sending to {}", path.display()))?;
    Ok(())
}
