//! `queue/muster/events`: daemons bring their events here.
//!
//! A connection whose peer sends garbage is closed and told in the log; the others go on. When the spool is slow, the
//! connection is not read, and the producer's outbox holds what follows.

use std::{collections::VecDeque, sync::Arc};

use muster_proto::{
    event::body::MAX_BODY_LEN,
    ipc::events::{FromNatsd, ToNatsd},
};
use muster_service::ipc::{Connection, FrameWriter, IpcError};
use thiserror::Error;
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot},
};

use crate::{
    keeper::{Batch, Shared},
    status::Counters,
};

/// Daemons of one manager, and some room.
pub(crate) const MAX_PRODUCERS: usize = 64;
/// The longest name of a producer.
const MAX_NAME_LEN: usize = 32;
/// Batches of one producer that may be under way, however large; its next one is not read before.
const LARGE_BATCHES_UNDER_WAY: usize = 4;
/// The same of small ones: who brings a few at a time waits for no more syncs than who brings many.
const BATCHES_UNDER_WAY: usize = 128;
/// Bytes of bodies up to which batches are small, all that are under way together.
const SMALL_LEN: usize = 256 * 1024;

/// Why a connection ended.
#[derive(Debug, Error)]
pub(crate) enum IntakeError {
    #[error(transparent)]
    Ipc(#[from] IpcError),
    #[error("the producer did not say who it is")]
    NoProducer,
    #[error("the producer's name is not 1 to 32 letters, digits, `-` or `_`")]
    Name,
    #[error("the producer sent numbers that do not grow")]
    Order,
    #[error("the producer sent an event with a body of {0} bytes; {MAX_BODY_LEN} are the limit")]
    TooLong(usize),
    #[error("the producer introduced itself twice")]
    Twice,
    #[error("natsd is stopping")]
    Stopping,
}

/// Takes events from one connection until it ends.
pub(crate) async fn serve(
    stream: UnixStream,
    shared: Arc<Shared>,
    keeper: mpsc::Sender<Batch>,
    counters: Arc<Counters>,
) {
    let outcome = async {
        let connection = Connection::accept(stream, "natsd").await?;
        let (name, peer) = (connection.hello.name.clone(), connection.peer);
        let outcome = converse(connection, &shared, &keeper, &counters).await;
        if let Err(error) = &outcome {
            counters.producers_refused_total.increment();
            tracing::warn!(
                producer = name.escape_default().to_string(),
                uid = peer.uid,
                error = crate::keeper::chain(error),
                "connection of a producer ended"
            );
        }
        outcome
    };
    // A failed hello is the peer's affair, and was told to it.
    if let Err(error) = outcome.await {
        tracing::debug!(error = crate::keeper::chain(&error), "producer is gone");
    }
}

async fn converse(
    mut connection: Connection,
    shared: &Shared,
    keeper: &mpsc::Sender<Batch>,
    counters: &Counters,
) -> Result<(), IntakeError> {
    let Some(ToNatsd::Produce { producer, incarnation }) = connection.receive().await? else {
        return Err(IntakeError::NoProducer);
    };
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !(1..=MAX_NAME_LEN).contains(&producer.len()) || !producer.bytes().all(fits) {
        return Err(IntakeError::Name);
    }
    let mut taken = shared.spool().taken(&producer, incarnation);
    tracing::info!(producer, taken, "producer connected");
    connection.send(&FromNatsd::Resume { taken }).await?;
    let (mut reader, mut writer) = connection.into_split();
    let mut under_way: VecDeque<UnderWay> = VecDeque::new();
    loop {
        tokio::select! {
            biased;
            number = first(&mut under_way), if !under_way.is_empty() => {
                under_way.pop_front();
                acknowledge(&mut writer, number?, &mut taken).await?;
            }
            message = reader.receive(), if may_read(&under_way) => match message? {
                Some(ToNatsd::Batch(events)) => {
                    let (mut last, mut len) = (0, 0);
                    for event in &events {
                        if event.number <= last {
                            return Err(IntakeError::Order);
                        }
                        if event.event.body.len() > MAX_BODY_LEN {
                            return Err(IntakeError::TooLong(event.event.body.len()));
                        }
                        last = event.number;
                        len += event.event.body.len();
                    }
                    counters.events_received_total.add(u64::try_from(events.len()).unwrap_or(0));
                    let (sender, receiver) = oneshot::channel();
                    let batch = Batch { producer: producer.clone(), incarnation, events, taken: sender };
                    keeper.send(batch).await.map_err(|_| IntakeError::Stopping)?;
                    under_way.push_back(UnderWay { taken: receiver, len });
                }
                Some(ToNatsd::Produce { .. }) => return Err(IntakeError::Twice),
                None => return Ok(()),
            },
        }
    }
}

/// A batch that is not yet safe.
struct UnderWay {
    taken: oneshot::Receiver<u64>,
    len: usize,
}

fn may_read(under_way: &VecDeque<UnderWay>) -> bool {
    match under_way.len() {
        0..LARGE_BATCHES_UNDER_WAY => true,
        count => count < BATCHES_UNDER_WAY && under_way.iter().map(|batch| batch.len).sum::<usize>() < SMALL_LEN,
    }
}

async fn first(under_way: &mut VecDeque<UnderWay>) -> Result<u64, IntakeError> {
    match under_way.front_mut() {
        Some(batch) => (&mut batch.taken).await.map_err(|_| IntakeError::Stopping),
        None => std::future::pending().await,
    }
}

async fn acknowledge(writer: &mut FrameWriter, number: u64, taken: &mut u64) -> Result<(), IntakeError> {
    if number > *taken {
        *taken = number;
        writer.send(&FromNatsd::Taken { number }).await?;
    }
    Ok(())
}
