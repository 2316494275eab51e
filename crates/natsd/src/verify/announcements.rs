//! The announcements of keys that a server has, in the stream and in the bucket.

use anyhow::Context;
use async_nats::jetstream::{
    self,
    context::GetStreamErrorKind,
    stream::{RawMessageErrorKind, Stream},
};
use muster_proto::event;

use super::{Fate, Message, Verdict, Verifier, command::message};
use crate::publish::fence::KEYS;

/// Announcements that nobody believes yet. The oldest go.
const MAX_PENDING: usize = 1000;

/// Where announcements lie, and how far they were read.
struct Source {
    stream: Stream,
    subject: String,
    next: u64,
}

/// See the module.
pub(super) struct Announcements {
    sources: Vec<Source>,
    /// Signed with keys that are not known yet.
    pending: Vec<Message>,
}

impl Announcements {
    /// Those places that the server has and shows us.
    pub(super) async fn open(jetstream: &jetstream::Context, prefix: &str) -> Self {
        let mut sources = Vec::new();
        for (name, subject) in [
            (format!("KV_{KEYS}"), format!("$KV.{KEYS}.>")),
            (
                event::Stream::Audit.name().to_owned(),
                format!("{prefix}.manager.keys.>"),
            ),
        ] {
            match jetstream.get_stream(&name).await {
                Ok(stream) => sources.push(Source {
                    stream,
                    subject,
                    next: 1,
                }),
                // There is none: managers need not have a bucket.
                Err(error) if matches!(error.kind(), GetStreamErrorKind::JetStream(_)) => {}
                Err(error) => eprintln!("cannot read announcements of keys from {name}: {error}"),
            }
        }
        Self {
            sources,
            pending: Vec::new(),
        }
    }

    /// Lets the verifier hear what has come since.
    pub(super) async fn hear(&mut self, verifier: &mut Verifier) {
        let mut place = 0;
        while let Some(source) = self.sources.get_mut(place) {
            match source.next().await {
                Ok(Some(message)) => self.pending.push(message),
                Ok(None) => place += 1,
                Err(error) => {
                    eprintln!("{error:#}; they are not looked at again");
                    self.sources.remove(place);
                }
            }
        }
        let surplus = self.pending.len().saturating_sub(MAX_PENDING);
        self.pending.drain(..surplus);
        // One may make another believable that came before it.
        loop {
            let before = self.pending.len();
            self.pending.retain(|message| {
                let Verdict { fate, unannounced, .. } = verifier.hear(message);
                fate != Fate::Accept && unannounced
            });
            if self.pending.is_empty() || self.pending.len() == before {
                return;
            }
        }
    }
}

impl Source {
    /// The next one, if there is one now.
    async fn next(&mut self) -> anyhow::Result<Option<Message>> {
        let read = self.stream.get_first_raw_message_by_subject(&self.subject, self.next);
        match read.await {
            Ok(raw) => {
                self.next = raw.sequence + 1;
                Ok(Some(message(&raw)))
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading announcements of keys from {}", self.subject)),
        }
    }
}
