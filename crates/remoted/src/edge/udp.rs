//! Agents over UDP: datagrams are read many at a time and handled where they lie.

use std::{
    array,
    io::{self, IoSliceMut},
    net::SocketAddr,
    ops::ControlFlow,
    os::fd::AsRawFd,
    rc::Rc,
};

use muster_proto::transport::MAX_MESSAGE_LEN;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg};
use tokio::{io::Interest, net::UdpSocket};
use tracing::debug;

use super::{
    tally::Tally,
    worker::{Shared, Stop},
};
use crate::{
    session::Origin,
    slot::{Millis, Route},
};

/// Datagrams read at once. Afterwards others get their turn.
const BATCH: usize = 32;

/// The datagrams of one read: where each came from and how long it is.
type Envelopes = [Option<(SocketAddr, usize)>; BATCH];

/// Serves one socket for as long as its worker runs.
pub(crate) async fn serve(worker: Shared, socket: Rc<UdpSocket>, number: usize, block: usize) {
    // Touched page by page, as datagrams need it.
    let mut buffer = vec![0; BATCH * MAX_MESSAGE_LEN];
    // One set for each socket: the kernel writes the length of its addresses into it.
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    loop {
        if let Err(error) = socket.readable().await {
            debug!(%error, "waiting for datagrams failed");
            return;
        }
        let mut envelopes: Envelopes = [None; BATCH];
        let read = socket.try_io(Interest::READABLE, || {
            receive(&socket, &mut headers, &mut buffer, &mut envelopes)
        });
        match read {
            Ok(count) => {
                handle(&worker, &buffer, &envelopes, number, block);
                if count == BATCH {
                    tokio::task::yield_now().await;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Mostly answers of the network to what we sent: an agent that is gone.
            Err(error) => debug!(%error, "receiving datagrams failed"),
        }
    }
}

fn receive(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<SockaddrStorage>,
    buffer: &mut [u8],
    envelopes: &mut Envelopes,
) -> io::Result<usize> {
    let mut pieces = buffer.chunks_exact_mut(MAX_MESSAGE_LEN);
    let mut slices: [_; BATCH] = array::from_fn(|_| [IoSliceMut::new(pieces.next().unwrap_or_default())]);
    let received = recvmmsg(
        socket.as_raw_fd(),
        headers,
        slices.iter_mut(),
        MsgFlags::MSG_DONTWAIT,
        None,
    )?;
    let mut count = 0;
    for (envelope, message) in envelopes.iter_mut().zip(received) {
        *envelope = message.address.and_then(peer_of).map(|peer| (peer, message.bytes));
        count += 1;
    }
    Ok(count)
}

fn peer_of(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().copied().map(SocketAddr::from);
    v4.or_else(|| address.as_sockaddr_in6().copied().map(SocketAddr::from))
}

fn handle(worker: &Shared, buffer: &[u8], envelopes: &Envelopes, socket: usize, block: usize) {
    let mut worker = worker.borrow_mut();
    let worker = &mut *worker;
    let now = Millis::now();
    worker.refresh_table();
    for (piece, envelope) in buffer.chunks_exact(MAX_MESSAGE_LEN).zip(envelopes) {
        let Some((peer, length)) = envelope else { continue };
        worker.tallies.add(Tally::BytesReceived, *length as u64);
        let datagram = piece.get(..*length).unwrap_or_default();
        if datagram.is_empty() {
            continue;
        }
        let origin = Origin {
            route: Route::Udp {
                worker: worker.index,
                socket,
                peer: *peer,
            },
        };
        match worker.handle(&origin, block, None, datagram, now) {
            ControlFlow::Continue(()) | ControlFlow::Break(Stop::Close(_) | Stop::Tell(_)) => {}
        }
    }
    worker.outgoing.send_acks();
    worker.analysis.flush(now);
}
