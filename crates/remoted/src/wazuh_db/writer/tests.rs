use std::{net::SocketAddr, path::Path};

use muster_proto::keys::file;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::*;
use crate::slot::{Protocol, Said};

const SOON: Duration = Duration::from_secs(20);

/// What stands in the database's place.
struct Database(UnixListener);

impl Database {
    fn listen(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        Self(UnixListener::bind(path).unwrap())
    }

    async fn accept(&self) -> UnixStream {
        timeout(SOON, self.0.accept()).await.unwrap().unwrap().0
    }
}

async fn command(stream: &mut UnixStream) -> String {
    let read = async {
        let length = stream.read_u32_le().await.unwrap();
        let mut text = vec![0; length as usize];
        stream.read_exact(&mut text).await.unwrap();
        assert_eq!(text.pop(), Some(0));
        String::from_utf8(text).unwrap()
    };
    timeout(SOON, read).await.unwrap()
}

async fn answer(stream: &mut UnixStream, text: &str) {
    stream.write_u32_le(u32::try_from(text.len()).unwrap()).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
}

fn keepalive(id: u32) -> News {
    let line = format!("{id:03} a any {}\n", "k".repeat(64));
    let peer: SocketAddr = "127.0.0.1:7".parse().unwrap();
    News::Keepalive {
        slot: Arc::new(AgentSlot::new(&file::parse(line.as_bytes()).entries.remove(0))),
        at: Millis::now(),
        peer,
        protocol: Protocol::Udp,
        said: Arc::new(Said::new("Linux |h - Wazuh v4.14.7\nx merged.mg\n")),
    }
}

#[tokio::test]
async fn rows_are_written_also_after_the_database_was_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wdb");
    let rows = StockRows::new("vm".to_owned(), "undefined".to_owned());
    rows.hear(&keepalive(1));
    assert_eq!(
        rows.rows().sizes(),
        (0, 0),
        "nothing is kept for a database that never was"
    );
    assert_eq!(rows.queue(), None);

    let database = Database::listen(&path);
    let stop = CancellationToken::new();
    let writing = tokio::spawn(rows.clone().write_to(path.clone(), stop.clone()));
    let mut stream = database.accept().await;
    assert_eq!(command(&mut stream).await, RESET);
    answer(&mut stream, "ok").await;
    while rows.is_away() || rows.queue().is_none() {
        tokio::task::yield_now().await;
    }
    rows.hear(&keepalive(2));
    assert!(
        command(&mut stream)
            .await
            .starts_with(r#"global update-agent-data {"id":2,"#)
    );
    // It goes before it has answered.
    drop((stream, database));
    while !rows.is_away() {
        tokio::task::yield_now().await;
    }
    rows.hear(&keepalive(3));
    rows.hear(&keepalive(3));

    let database = Database::listen(&path);
    let mut stream = database.accept().await;
    let mut written = Vec::new();
    for _ in 0..2 {
        written.push(command(&mut stream).await);
        answer(&mut stream, "ok").await;
    }
    assert!(
        written.iter().any(|command| command.contains(r#"data {"id":2,"#)),
        "{written:?}"
    );
    assert!(
        written.iter().any(|command| command.contains(r#"data {"id":3,"#)),
        "{written:?}"
    );
    stop.cancel();
    writing.await.unwrap().unwrap();
    assert_eq!(rows.0.counters.stock_rows_connections_lost_total.value(), 1);
}

#[tokio::test]
async fn refusal_is_counted_and_the_next_agent_has_its_turn() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wdb");
    let database = Database::listen(&path);
    let rows = StockRows::new("vm".to_owned(), "undefined".to_owned());
    let stop = CancellationToken::new();
    let writing = tokio::spawn(rows.clone().write_to(path, stop.clone()));
    let mut stream = database.accept().await;
    command(&mut stream).await;
    answer(&mut stream, "ok").await;
    while rows.queue().is_none() {
        tokio::task::yield_now().await;
    }
    rows.hear(&keepalive(1));
    command(&mut stream).await;
    answer(&mut stream, "err Cannot execute Global database query").await;
    rows.hear(&keepalive(2));
    command(&mut stream).await;
    answer(&mut stream, "ok").await;
    while rows.0.counters.stock_rows_written_total.value() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(rows.0.counters.stock_rows_refused_total.value(), 1);
    stop.cancel();
    writing.await.unwrap().unwrap();
}
