//! The steps of a message's way through this crate, each as a closure that does it once: timed by `hot_path` here, and
//! counted in instructions by remoted's `instructions`.

use std::hint::black_box;

use muster_proto::{
    keys::cipher::CipherKeys,
    transport::{
        control::{ACK, FromAgent},
        counter::Counter,
        envelope::{CryptoForm, Effort, Opener, Sealer, split},
        frame::{self, Split},
        keepalive::Keepalive,
    },
};

/// A name, and what is done once for each call.
pub type Step = (String, Box<dyn FnMut()>);

const FORMS: [CryptoForm; 3] = [CryptoForm::WazuhAes, CryptoForm::OssecAes, CryptoForm::Blowfish];
/// What an agent says of itself.
pub const KEEPALIVE: &str = "#!-Linux |web-01 |6.1.0-28-amd64 |#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 |x86_64 [Debian \
     GNU/Linux|debian: 12 (bookworm)] - Wazuh v4.14.7 / ab73af41699f13fdd81903b5f23d8d00\n\"site\":\"north\"\n\
     4a8724b20dee0124ff9656783c490c4e merged.mg\n#\"_agent_ip\":10.0.0.1\n";

/// The keys of the agent that speaks here.
pub fn keys() -> CipherKeys {
    let key = "9f1c6b0e5a7d4832c1e0f9a8b7c6d5e4f30211aa42bb53cc64dd75ee86ff9700";
    CipherKeys::derive("001", "web-01", key)
}

/// A payload as an agent seals it, token first.
pub fn sealed(form: CryptoForm, payload: &[u8]) -> Vec<u8> {
    let counter = Counter { global: 7, local: 42 };
    let mut sealer = Sealer::with_effort(Effort::Best);
    sealer
        .seal(&keys(), form, counter, 12_345, [7; 16], payload, None)
        .unwrap()
        .to_vec()
}

/// A line of a log: a frame of 174 bytes.
pub fn short_event() -> Vec<u8> {
    b"1:/var/log/auth.log:sshd[4242]: Accepted publickey for qjzkvwxnbpyh from 10.20.30.40 port 52144 ssh2".to_vec()
}

/// Some JSON, 4 kB of it.
fn long_event() -> Vec<u8> {
    let mut text = b"1:/var/log/app.json:{".to_vec();
    for number in 0_u32.. {
        text.extend_from_slice(format!("\"field{number}\":\"{:08x}\",", number.wrapping_mul(2_654_435_761)).as_bytes());
        if text.len() > 4000 {
            break;
        }
    }
    text
}

/// All of them.
pub fn all() -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for form in FORMS {
        for (size, payload) in [("short", short_event()), ("long", long_event())] {
            let (keys, sealed, mut opener) = (keys(), sealed(form, &payload), Opener::new());
            let open = move || {
                let opened = opener.open(&keys, black_box(&sealed), Some(form)).unwrap();
                black_box(opened.payload.len());
            };
            steps.push((format!("open {form}, {size}"), Box::new(open)));
        }
    }
    for form in FORMS {
        for (size, payload) in [("ack", ACK.to_vec()), ("long", long_event())] {
            let (keys, mut sealer) = (keys(), Sealer::new());
            let counter = Counter { global: 7, local: 42 };
            let seal = move || {
                let payload = black_box(&payload);
                let sealed = sealer.seal(&keys, form, counter, 12_345, [7; 16], payload, None);
                black_box(sealed.unwrap().len());
            };
            steps.push((format!("seal {form}, {size}"), Box::new(seal)));
        }
    }
    let frames = frame_stream();
    let cut = move || {
        let (mut rest, mut count) = (black_box(frames.as_slice()), 0_u32);
        while let Ok(Split::Message { message, rest: behind }) = frame::split(rest) {
            count += u32::from(split(message).is_ok());
            rest = behind;
        }
        black_box(count);
    };
    steps.push(("cut 94 frames".to_owned(), Box::new(cut)));
    let parse = || {
        let Some(FromAgent::Keepalive(text)) = FromAgent::parse(black_box(KEEPALIVE.as_bytes())) else {
            unreachable!("a line feed makes a keepalive");
        };
        black_box(Keepalive::parse(&text).fields().os_name);
    };
    steps.push(("parse keepalive".to_owned(), Box::new(parse)));
    steps
}

/// What one read brings of a busy agent.
fn frame_stream() -> Vec<u8> {
    let mut stream = Vec::new();
    let message = [b"!001!".as_slice(), &sealed(CryptoForm::WazuhAes, &short_event())].concat();
    for _ in 0..94 {
        frame::append(&mut stream, &message);
    }
    stream
}
