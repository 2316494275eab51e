use tokio::sync::oneshot;

use super::*;

async fn pair() -> (Connection, Connection) {
    let (client, server) = UnixStream::pair().expect("pair");
    let server = tokio::spawn(Connection::accept(server, "natsd"));
    let client = Connection::greet(client, "authd", Role::Client).await.expect("greeted");
    (client, server.await.expect("joined").expect("greeted"))
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let (client, server) = pair().await;
    assert_eq!(
        (client.hello.name.as_str(), server.hello.name.as_str()),
        ("natsd", "authd")
    );
    assert_eq!(server.peer.uid, geteuid().as_raw());
    assert!(server.peer.is_ours());
}

#[tokio::test]
async fn messages_arrive_in_order_and_close_is_none() {
    let (mut client, mut server) = pair().await;
    let sending = tokio::spawn(async move {
        for number in 0..1000_u32 {
            client.send(&number).await.expect("sent");
        }
    });
    for number in 0..1000_u32 {
        assert_eq!(server.receive::<u32>().await.expect("received"), Some(number));
    }
    assert_eq!(server.receive::<u32>().await.expect("closed"), None);
    sending.await.expect("all sent");
}

#[tokio::test]
async fn dropped_receive_loses_no_bytes() {
    let (client, server) = UnixStream::pair().expect("pair");
    let (half, _keep) = server.into_split();
    let mut reader = FrameReader {
        half,
        buffer: Vec::new(),
        limit: 100,
        version: 1,
    };
    let bytes = codec::encode(1, &7_u32).expect("encodes");
    let mut client = client;
    client.write_all(&bytes[..3]).await.expect("written");
    tokio::select! {
        biased;
        _ = reader.receive::<u32>() => panic!("half a frame is no message"),
        () = tokio::task::yield_now() => {}
    }
    client.write_all(&bytes[3..]).await.expect("written");
    assert_eq!(reader.receive::<u32>().await.expect("received"), Some(7));
}

#[tokio::test]
async fn close_inside_a_frame_is_an_error() {
    let (mut client, server) = UnixStream::pair().expect("pair");
    let (half, _keep) = server.into_split();
    let mut reader = FrameReader {
        half,
        buffer: Vec::new(),
        limit: 100,
        version: 1,
    };
    client.write_all(&[1, 9, 0]).await.expect("written");
    drop(client);
    assert!(matches!(reader.receive::<u32>().await, Err(IpcError::ClosedEarly)));
}

#[tokio::test]
async fn hello_over_its_cap_is_refused_before_it_has_arrived() {
    let (mut client, server) = UnixStream::pair().expect("pair");
    client.write_all(&[1, 0xff, 0xff, 0, 0]).await.expect("written");
    let error = Connection::accept(server, "natsd").await.expect_err("refused");
    assert!(matches!(error, IpcError::Codec(CodecError::TooLong { .. })), "{error}");
}

#[tokio::test]
async fn no_version_in_common_is_told_to_both() {
    let (mut client, server) = UnixStream::pair().expect("pair");
    let server = tokio::spawn(Connection::accept(server, "natsd"));
    let hello = Hello {
        name: "control".to_owned(),
        release: "9.0.0".to_owned(),
        oldest: VERSION + 1,
        newest: VERSION + 2,
    };
    client
        .write_all(&codec::encode(1, &hello).expect("encodes"))
        .await
        .expect("written");
    let error = server.await.expect("joined").expect_err("refused");
    assert!(error.to_string().contains("control 9.0.0"), "{error}");
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.expect("read");
    let (frame, _) = codec::split(&answer, 1000).expect("a frame").expect("whole");
    assert_eq!(codec::decode::<Hello>(frame.payload).expect("a hello").name, "natsd");
}

#[tokio::test(start_paused = true)]
async fn peer_that_never_says_hello_is_left() {
    let (_client, server) = UnixStream::pair().expect("pair");
    let error = Connection::accept(server, "natsd").await.expect_err("refused");
    assert!(matches!(error, IpcError::TooSlow(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn peer_that_never_reads_is_left() {
    let (mut client, _server) = pair().await;
    let error = client
        .send(&vec![0_u8; codec::MAX_PAYLOAD_LEN - 100])
        .await
        .expect_err("left");
    assert!(matches!(error, IpcError::TooSlow("read")), "{error}");
}

#[tokio::test]
async fn connections_over_the_limit_wait_and_are_served_later() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).expect("bound");
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve_connections(listener, 1, stop.clone(), |stream| async move {
        if let Ok(mut connection) = Connection::accept(stream, "x").await {
            while let Ok(Some(number)) = connection.receive::<u32>().await {
                let _ = connection.send(&number).await;
            }
        }
    }));
    let mut first = Connection::connect(&path, "a").await.expect("connected");
    let (sender, mut second_served) = oneshot::channel();
    let second_path = path.clone();
    tokio::spawn(async move {
        let second = Connection::connect(&second_path, "b").await;
        let _ = sender.send(second.is_ok());
    });
    first.send(&1_u32).await.expect("sent");
    assert_eq!(first.receive::<u32>().await.expect("received"), Some(1));
    assert!(
        second_served.try_recv().is_err(),
        "the second is served while the first is connected"
    );
    drop(first);
    assert!(second_served.await.expect("told"));
    stop.cancel();
    served.await.expect("ends when told to");
}
