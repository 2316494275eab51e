//! What strangers and agents send to port 1514.

use std::{cell::RefCell, io::Write, sync::LazyLock};

use flate2::{Compression, Decompress, FlushDecompress, Status, write::ZlibEncoder};
use md5::{Digest, Md5};
use muster_proto::{
    keys::cipher::CipherKeys,
    transport::{
        MAX_MESSAGE_LEN, MAX_PAYLOAD_LEN,
        control::{FromAgent, HEADER, MAX_PIECE_LEN, Pieces, ToAgent, is_control, startup_verdict},
        counter::{Counter, LAST_LOCAL, MAX_LOCAL, SenderCounter, Verdict, verify},
        envelope::{CryptoForm, OpenError, Opener, Sealer, is_ping, split},
        frame::{self, FrameReader, MAX_FRAME_LEN, Split},
        keepalive::Keepalive,
        proxy::{self, Preface},
    },
};

use super::draw::Draw;

static KEYS: LazyLock<CipherKeys> = LazyLock::new(|| CipherKeys::derive("001", "web-01", "0123456789abcdef"));
const FORMS: [CryptoForm; 3] = [CryptoForm::WazuhAes, CryptoForm::OssecAes, CryptoForm::Blowfish];

thread_local! {
    // Used again and again, as daemons do: what is left of one message must not matter to the next.
    static OPENER: RefCell<Opener> = RefCell::new(Opener::new());
    static SEALER: RefCell<Sealer> = RefCell::new(Sealer::new());
}

/// Packets as they are; streams and messages sealed with the right key, to get behind the cipher and the checksum.
pub(super) fn envelope(input: &[u8]) {
    OPENER.with_borrow_mut(|opener| SEALER.with_borrow_mut(|sealer| message(input, opener, sealer)));
}

fn message(input: &[u8], opener: &mut Opener, sealer: &mut Sealer) {
    let mut draw = Draw::new(input);
    let (mode, form, iv) = (draw.below(4), FORMS[draw.below(3)], [draw.byte(); 16]);
    match mode {
        0 => whole_packet(opener, draw.rest()),
        1 => {
            // Any zlib stream, good or bad.
            if let Ok(sealed) = sealer.seal_stream(&KEYS, form, iv, draw.rest(), None) {
                let _ = open(opener, sealed);
            }
        }
        2 => {
            // Any text behind a right checksum, packed in any way, and with a bit of that changed.
            let (level, place, bit) = (draw.below(10), usize::from(draw.byte()), draw.byte());
            let inner = draw.rest();
            let sum = Md5::digest(inner)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>();
            let text = [sum.as_bytes(), inner].concat();
            let mut read = |stream: &[u8]| {
                let sealed = sealer.seal_stream(&KEYS, form, iv, stream, None);
                sealed.ok().map(|sealed| open(opener, sealed))
            };
            let expected = read(&deflate(&text, 0));
            let mut stream = deflate(&text, level);
            assert_eq!(read(&stream), expected, "however it is packed");
            let length = stream.len();
            if let Some(byte) = stream.get_mut(place % length) {
                *byte ^= bit;
            }
            let is_same = inflate(&stream).is_some_and(|other| other == text);
            let outcome = read(&stream);
            assert!(
                if is_same {
                    outcome == expected
                } else {
                    !matches!(outcome, Some(Ok(_)))
                },
                "zlib's word counts"
            );
        }
        _ => {
            let counter = Counter {
                global: draw.u32(),
                local: u32::from(draw.u16()),
            };
            let random = draw.u16();
            let payload = draw.rest();
            let sealed = sealer.seal(&KEYS, form, counter, random, iv, payload, None);
            let Ok(sealed) = sealed else {
                assert!(payload.is_empty() || payload.len() > MAX_PAYLOAD_LEN || counter.local > MAX_LOCAL);
                return;
            };
            assert!(sealed.len() <= MAX_MESSAGE_LEN);
            let opened = opener.open(&KEYS, sealed, None).expect("opens what was sealed");
            assert_eq!((opened.form, opened.counter, opened.payload), (form, counter, payload));
        }
    }
}

fn whole_packet(opener: &mut Opener, packet: &[u8]) {
    let _ = is_ping(packet);
    let Ok(envelope) = split(packet) else { return };
    let again = envelope.id.map_or_else(
        || envelope.sealed.to_vec(),
        |id| [b"!", id.as_bytes(), b"!", envelope.sealed].concat(),
    );
    assert_eq!(again, packet);
    let _ = open(opener, envelope.sealed);
}

/// A hint changes neither counter nor payload nor failure.
fn open(opener: &mut Opener, sealed: &[u8]) -> Result<(Counter, Vec<u8>), OpenError> {
    let mut first = None;
    for hint in [None, Some(FORMS[0]), Some(FORMS[1]), Some(FORMS[2])] {
        let opened = opener.open(&KEYS, sealed, hint).map(|opened| {
            assert!(opened.payload.len() <= MAX_MESSAGE_LEN);
            (opened.counter, opened.payload.to_vec())
        });
        let known = first.get_or_insert_with(|| opened.clone());
        assert_eq!(*known, opened, "hint {hint:?}");
    }
    let other = CipherKeys::derive("001", "web-01", "another");
    if matches!(first, Some(Ok(_))) {
        assert!(matches!(
            opener.open(&other, sealed, None),
            Err(OpenError::WrongKey | OpenError::Corrupt(_))
        ));
    }
    first.expect("opened at least once")
}

fn deflate(text: &[u8], level: usize) -> Vec<u8> {
    let level = u32::try_from(level).unwrap_or(0);
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(text).expect("a Vec takes everything");
    encoder.finish().expect("a Vec takes everything")
}

/// What a whole stream says, if zlib takes it for one.
fn inflate(stream: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; MAX_MESSAGE_LEN];
    let mut inflate = Decompress::new(true);
    let status = inflate.decompress(stream, &mut out, FlushDecompress::Finish);
    out.truncate(usize::try_from(inflate.total_out()).unwrap_or(0));
    matches!(status, Ok(Status::StreamEnd)).then_some(out)
}

/// However a stream is cut into reads, the same messages come out, and nothing announced is allocated.
pub(super) fn frame(input: &[u8]) {
    let mut draw = Draw::new(input);
    let (step, offset) = (draw.below(64) + 1, draw.below(7));
    let stream = draw.rest();

    let mut whole = Vec::new();
    let mut rest = stream;
    let fails = loop {
        match frame::split(rest) {
            Ok(Split::Message { message, rest: behind }) => {
                whole.push(message.to_vec());
                rest = behind;
            }
            Ok(Split::Partial { missing }) => {
                assert!((1..=MAX_FRAME_LEN).contains(&missing));
                break false;
            }
            Err(_) => break true,
        }
    };

    let mut reader = FrameReader::new();
    let mut pieces = Vec::new();
    let mut failed = false;
    'reads: for read in stream.chunks(step + offset) {
        reader.push(read);
        loop {
            match reader.next_message() {
                Ok(Some(message)) => pieces.push(message.to_vec()),
                Ok(None) => break,
                Err(_) => {
                    failed = true;
                    break 'reads;
                }
            }
        }
        assert!(reader.pending() <= frame::HEADER_LEN + MAX_FRAME_LEN);
        reader.release();
    }
    assert_eq!((&whole, fails), (&pieces, failed));

    let mut again = Vec::new();
    whole.iter().for_each(|message| frame::append(&mut again, message));
    assert!(stream.starts_with(&again));
}

/// Control messages in both directions, and files in pieces.
pub(super) fn control(input: &[u8]) {
    let mut draw = Draw::new(input);
    let mode = draw.below(3);
    let rest = draw.rest();
    let payload = if mode == 0 {
        rest.to_vec()
    } else {
        [HEADER, rest].concat()
    };

    if let Some(said) = FromAgent::parse(&payload) {
        assert!(is_control(&payload));
        assert_eq!(FromAgent::parse(&said.to_bytes()), Some(said.clone()));
        if let FromAgent::Startup(text) = &said {
            let strict = startup_verdict(text, "v4.14.7", false);
            let lenient = startup_verdict(text, "v4.14.7", true);
            assert!(
                strict == lenient
                    || !matches!(lenient, muster_proto::transport::control::StartupVerdict::Higher { .. })
            );
        }
        if let FromAgent::Keepalive(text) = &said {
            keepalive_text(text);
        }
    } else {
        assert!(!is_control(&payload));
    }

    let order = ToAgent::parse(&payload);
    assert_eq!(ToAgent::parse(&order.to_bytes()), order);

    let pieces: Vec<_> = Pieces::of(rest).collect();
    assert_eq!(pieces.concat(), rest);
    for (place, piece) in pieces.iter().enumerate() {
        assert!((1..=MAX_PIECE_LEN).contains(&piece.len()));
        assert!(place == 0 || !piece.starts_with(HEADER));
    }
}

/// The text of a keepalive.
pub(super) fn keepalive(input: &[u8]) {
    keepalive_text(&String::from_utf8_lossy(input));
}

fn keepalive_text(text: &str) {
    let keepalive = Keepalive::parse(text);
    let again = Keepalive::parse(&format!("{}\nrandom", keepalive.text()));
    assert_eq!(again, keepalive, "what is behind the last line feed does not count");
    let said = keepalive.fields();
    assert_eq!(said.merged_sum, keepalive.merged_sum());
    let _ = said.family();
    let fields = [
        said.version,
        said.config_sum,
        said.merged_sum,
        said.agent_ip,
        said.os_name,
        said.os_version,
        said.os_major,
        said.os_minor,
        said.os_codename,
        said.os_build,
        said.os_platform,
        said.os_uname,
        said.os_arch,
    ];
    for field in fields.into_iter().flatten().chain(said.labels.iter().copied()) {
        assert!(!field.contains('\n') && field.len() <= text.len());
    }
    let labels: usize = said.labels.iter().map(|label| label.len()).sum();
    assert!(labels <= text.len());
}

/// The text of a counter file, and the promise of reserved counters.
pub(super) fn counter(input: &[u8]) {
    if let Some(counter) = Counter::from_rids(input) {
        assert_eq!(Counter::from_rids(counter.to_rids().as_bytes()), Some(counter));
        // Stock writers do not truncate.
        let longer = [counter.to_rids().as_bytes(), input].concat();
        assert_eq!(Counter::from_rids(&longer), Some(counter));
    }
    let mut draw = Draw::new(input);
    let last = Counter {
        global: draw.u32(),
        local: u32::from(draw.u16()),
    };
    let messages = u32::from(draw.u16());
    // The global number begins at the time: its end is two thousand million steps away.
    if last.global > u32::MAX - 100 {
        return;
    }
    let mut sender = SenderCounter::resume(last);
    let reserved = sender.reserve(messages);
    let mut known = last;
    for _ in 0..messages {
        let next = sender.next();
        assert_eq!(verify(known, next), Verdict::Fresh, "{known:?} {next:?}");
        assert!((1..=LAST_LOCAL).contains(&next.local));
        known = next;
    }
    assert!(known <= reserved, "{known:?} was sent, {reserved:?} was reserved");
    assert!(SenderCounter::resume(reserved).next() > known);
}

/// What a load balancer writes in front of a connection: the same outcome however little of it has come.
pub(super) fn proxy(input: &[u8]) {
    let with_signature = [&proxy::SIGNATURE, input].concat();
    for bytes in [input, &with_signature] {
        let whole = proxy::parse(bytes);
        for length in 0..bytes.len().min(64) {
            let part = proxy::parse(&bytes[..length]);
            match (&whole, &part) {
                (_, Ok(Preface::Partial)) => {}
                (_, decided) => assert_eq!(*decided, whole, "the first {length} bytes decide otherwise"),
            }
        }
        if let Ok(Preface::Whole { length, source }) = whole {
            assert!((16..=proxy::MAX_HEADER_LEN.min(bytes.len())).contains(&length));
            if let Some(source) = source {
                let again = proxy::header(source, source);
                let expected = Preface::Whole {
                    length: again.len(),
                    source: Some(source),
                };
                assert_eq!(proxy::parse(&again), Ok(expected));
            }
        }
    }
}
