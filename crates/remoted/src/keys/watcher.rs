//! Watches `etc/client.keys` and hands each new snapshot to the workers, after the roster was told what changed.
//!
//! The file is looked at every `remoted.keyupdate_interval`, and at once when somebody says that it was written. authd
//! may write a hundred times a second: then one reading follows the other, but never takes more than about half of
//! the time. Where lines were only added behind the others, only those are taken apart.

use std::{
    collections::HashSet,
    fs::File,
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use muster_proto::{
    keys::file::{self, KeyFile},
    paths,
};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use super::{Changes, KeyTable, taken::taken};
use crate::{
    counters::received::Keeper,
    slot::{AgentSlot, News},
};

/// After a reading that took so long, the next one waits so many times as long.
const REST_AFTER_READING: u32 = 1;
/// But never longer than this.
const LONGEST_REST: Duration = Duration::from_secs(2);
/// How soon a roster that had no room is tried again.
const ROSTER_RETRY: Duration = Duration::from_millis(10);
/// A file of a million agents has about 100 bytes for each.
const MAX_FILE_LEN: u64 = 1 << 30;
/// Lines whose problems are logged one by one.
const LOGGED_PROBLEMS: usize = 20;

/// A running watcher.
pub struct KeyWatcher {
    orders: SyncSender<Order>,
    looks: Arc<Looks>,
    thread: Option<JoinHandle<()>>,
}

/// How often the file was looked at since the start.
struct Looks {
    begun: AtomicU64,
    done: watch::Sender<u64>,
}

enum Order {
    Look,
    Stop,
}

/// What tells one state of the file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    modified: (i64, i64),
    inode: u64,
    length: u64,
}

/// What is remembered of a file's bytes up to its last agent: enough to see that another file begins with the same, and
/// nothing of the keys. Behind the agents stand the lines of removed ones; new agents come between the two.
#[derive(Default)]
struct Content {
    /// Keyed at random.
    hash: RandomState,
    length: usize,
    lines: usize,
    value: Option<u64>,
}

impl Content {
    /// Remembers these bytes. When they begin with the agents of the last time: where the rest begins.
    fn take(&mut self, bytes: &[u8]) -> Option<usize> {
        let end = end_of_agents(bytes);
        let agents = bytes.get(..end).unwrap_or_default();
        let (old, new) = agents.split_at_checked(self.length).unwrap_or((agents, &[]));
        let mut hasher = self.hash.build_hasher();
        hasher.write(old);
        let is_same = old.len() == self.length && self.value == Some(hasher.finish());
        hasher.write(new);
        *self = Self {
            hash: std::mem::take(&mut self.hash),
            length: end,
            lines: agents.iter().filter(|byte| **byte == b'\n').count(),
            // A line without an end may be an agent, and another one once it has its end.
            value: matches!(bytes.last(), None | Some(b'\n')).then(|| hasher.finish()),
        };
        is_same.then_some(old.len())
    }
}

/// The end of the last whole line that is an agent.
fn end_of_agents(bytes: &[u8]) -> usize {
    let end_of_line = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    let mut end = end_of_line(bytes);
    while end > 0 {
        let begin = end_of_line(bytes.get(..end - 1).unwrap_or_default());
        let line = bytes.get(begin..end).unwrap_or_default();
        if !file::parse(line).entries.is_empty() {
            break;
        }
        end = begin;
    }
    end
}

/// The file as it was last read.
pub struct KeySource {
    path: PathBuf,
    signature: Option<Signature>,
    content: Content,
    table: Arc<KeyTable>,
    /// The snapshot before it: given back here, not by a worker that happens to be the last to let go of it.
    before: Arc<KeyTable>,
    /// The same failure is logged once.
    last_failure: Option<io::ErrorKind>,
}

impl KeySource {
    /// The file at `path`, not yet read.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            signature: None,
            content: Content::default(),
            table: Arc::default(),
            before: Arc::default(),
            last_failure: None,
        }
    }

    /// The latest snapshot.
    pub fn table(&self) -> &Arc<KeyTable> {
        &self.table
    }

    /// Reads the file if it is another than the last time. A file that cannot be read leaves everything as it is.
    pub fn look(&mut self) -> Option<Changes> {
        let read = self.read_if_changed();
        let failure = read.as_ref().err().map(io::Error::kind);
        if let (Err(error), true) = (&read, failure != self.last_failure) {
            warn!(%error, path = %self.path.display(), agents = self.table.len(), "cannot read the agents' keys: going on with those known");
        }
        self.last_failure = failure;
        let bytes = read.ok().flatten()?;
        let lines_before = self.content.lines;
        let (table, changes) = match self.content.take(&bytes).and_then(|begin| bytes.get(begin..)) {
            Some(new) => {
                let file = file::parse(new);
                self.log_problems(&file, lines_before);
                self.table.grown(&file)
            }
            None => {
                let file = file::parse(&bytes);
                self.log_problems(&file, 0);
                let (table, mut changes) = self.table.next(&file);
                changes.vanished = vanished(&changes.removed, &file);
                (table, changes)
            }
        };
        self.before = std::mem::replace(&mut self.table, Arc::new(table));
        Some(changes)
    }

    fn log_problems(&self, file: &KeyFile, lines_before: usize) {
        for problem in file.problems.iter().take(LOGGED_PROBLEMS) {
            let line = lines_before + problem.line_number;
            warn!(path = %self.path.display(), line, agent_id = problem.id, error = %problem.kind, "line of the key file is skipped");
        }
    }

    fn read_if_changed(&mut self) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        if self.signature.is_some() && signature(&self.path.metadata()?) == self.signature {
            return Ok(None);
        }
        let file = File::open(&self.path)?;
        // Of the open file: the path may lead to the next one already.
        let metadata = file.metadata()?;
        let signature = signature(&metadata);
        if signature == self.signature {
            return Ok(None);
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1));
        file.take(MAX_FILE_LEN).read_to_end(&mut bytes)?;
        self.signature = signature;
        Ok(Some(bytes))
    }
}

/// Those of the removed agents whose lines are not kept as those of removed ones.
fn vanished(removed: &[Arc<AgentSlot>], file: &KeyFile) -> Vec<Arc<AgentSlot>> {
    if removed.is_empty() {
        return Vec::new();
    }
    let marked: HashSet<&str> = file.removed.iter().map(|line| line.id.as_str()).collect();
    let is_marked = |slot: &&Arc<AgentSlot>| marked.contains(slot.id.as_str());
    removed.iter().filter(|slot| !is_marked(slot)).cloned().collect()
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "compared with the signature of a file that may never have been read"
)]
fn signature(metadata: &std::fs::Metadata) -> Option<Signature> {
    Some(Signature {
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        inode: metadata.ino(),
        length: metadata.len(),
    })
}

impl KeyWatcher {
    /// Starts the thread. The roster hears of a change before any worker can: it knows every agent that it is told of.
    pub fn start(
        source: KeySource,
        interval: Duration,
        tables: watch::Sender<Arc<KeyTable>>,
        news: mpsc::Sender<News>,
        keeper: Keeper,
    ) -> io::Result<Self> {
        // One order waiting is enough: it leads to a look at the file as it is then.
        let (orders, inbox) = sync_channel(1);
        let looks = Arc::new(Looks {
            begun: AtomicU64::new(0),
            done: watch::Sender::new(0),
        });
        let counted = Arc::clone(&looks);
        let thread = std::thread::Builder::new()
            .name("keys".to_owned())
            .spawn(move || watch_file(source, interval, &inbox, &counted, &tables, &news, &keeper))?;
        Ok(Self {
            orders,
            looks,
            thread: Some(thread),
        })
    }

    /// As [`look_now`](Self::look_now); what comes back is done when a look that began after this call has ended, and
    /// roster and workers know what it found.
    pub fn look(&self) -> impl Future<Output = ()> + Send + use<> {
        // A look that has begun already may have read the file as it was before.
        let wanted = self.looks.begun.load(Ordering::SeqCst) + 1;
        self.look_now();
        let mut done = self.looks.done.subscribe();
        async move {
            let _ = done.wait_for(|done| *done >= wanted).await;
        }
    }

    /// The file was written: look at it now.
    pub fn look_now(&self) {
        match self.orders.try_send(Order::Look) {
            Ok(()) | Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => debug!("key watcher has ended"),
        }
    }

    /// Ends the thread and waits for it.
    pub fn stop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch_file(
    mut source: KeySource,
    interval: Duration,
    orders: &Receiver<Order>,
    looks: &Looks,
    tables: &watch::Sender<Arc<KeyTable>>,
    news: &mpsc::Sender<News>,
    keeper: &Keeper,
) {
    let mut next_look = Instant::now() + interval;
    loop {
        if wait(orders, next_look) == Waited::Stop {
            return;
        }
        let begun = Instant::now();
        next_look = begun + interval;
        let look = looks.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let Some(changes) = source.look().filter(|changes| !changes.is_empty()) else {
            looks.done.send_replace(look);
            continue;
        };
        info!(
            agents = source.table().len(),
            added = changes.added.len(),
            changed = changes.changed.len(),
            removed = changes.removed.len(),
            "agents' keys read again"
        );
        for slot in &changes.retired {
            keeper.forget(slot);
        }
        let taken = taken(Path::new(paths::AUTH_SOCKET), &changes.vanished);
        if let Some(first) = taken.first() {
            warn!(
                agents = taken.len(),
                first = first.id.as_str(),
                "keys of connected agents went from the key file, and not by authd; it writes them again with its next change"
            );
            if tell(news, News::KeysTaken(taken), orders, &mut next_look) == Told::No {
                return;
            }
        }
        if tell(news, changes.into(), orders, &mut next_look) == Told::No {
            return;
        }
        tables.send_replace(Arc::clone(source.table()));
        looks.done.send_replace(look);

        let rested = Instant::now() + (begun.elapsed() * REST_AFTER_READING).min(LONGEST_REST);
        loop {
            match wait(orders, rested) {
                Waited::Stop => return,
                Waited::Asked => next_look = rested,
                Waited::Long => break,
            }
        }
    }
}

#[derive(PartialEq, Eq)]
enum Told {
    Yes,
    No,
}

/// Tells the roster, as soon as it has room. Not when it is gone, or when we are stopped before: a roster that ends must
/// not keep us.
fn tell(news: &mpsc::Sender<News>, mut change: News, orders: &Receiver<Order>, next_look: &mut Instant) -> Told {
    loop {
        match news.try_send(change) {
            Ok(()) => return Told::Yes,
            Err(mpsc::error::TrySendError::Closed(_)) => return Told::No,
            Err(mpsc::error::TrySendError::Full(back)) => change = back,
        }
        let retry = Instant::now() + ROSTER_RETRY;
        match wait(orders, retry) {
            Waited::Stop => return Told::No,
            Waited::Asked => *next_look = retry,
            Waited::Long => {}
        }
    }
}

#[derive(PartialEq, Eq)]
enum Waited {
    Asked,
    Long,
    Stop,
}

fn wait(orders: &Receiver<Order>, until: Instant) -> Waited {
    match orders.recv_timeout(until.saturating_duration_since(Instant::now())) {
        Ok(Order::Look) => Waited::Asked,
        Err(RecvTimeoutError::Timeout) => Waited::Long,
        Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => Waited::Stop,
    }
}

impl From<Changes> for News {
    fn from(changes: Changes) -> Self {
        Self::KeysReloaded {
            added: changes.added,
            changed: changes.changed,
            removed: changes.removed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Home {
        directory: tempfile::TempDir,
    }

    impl Home {
        fn new() -> Self {
            Self {
                directory: tempfile::tempdir().unwrap(),
            }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("client.keys")
        }

        /// As authd does it: whole, then renamed.
        fn write(&self, text: &str) {
            let new = self.directory.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, self.path()).unwrap();
        }
    }

    fn keeper(home: &Home) -> Keeper {
        let sender = Arc::new(crate::counters::SenderPair::open(home.directory.path(), 1));
        Keeper::start(home.directory.path(), sender, Duration::from_secs(3600))
            .unwrap()
            .0
    }

    #[test]
    fn missing_file_at_the_start_is_an_empty_table_and_a_missing_one_later_changes_nothing() {
        let home = Home::new();
        let mut source = KeySource::new(&home.path());
        assert!(source.look().is_none());
        assert!(source.table().is_empty());
        home.write("001 a any k\n");
        assert_eq!(source.look().unwrap().added.len(), 1);
        fs::remove_file(home.path()).unwrap();
        assert!(source.look().is_none());
        assert_eq!(source.table().len(), 1);
    }

    #[test]
    fn line_that_is_gone_has_vanished_and_one_that_is_marked_has_not() {
        let home = Home::new();
        home.write("001 a any k\n002 b any k\n003 c any k\n");
        let mut source = KeySource::new(&home.path());
        source.look();
        home.write("003 c any k\n002 !b any k\n");
        let changes = source.look().unwrap();
        let vanished: Vec<_> = changes.vanished.iter().map(|slot| slot.id.as_str()).collect();
        assert_eq!((changes.removed.len(), vanished), (2, vec!["001"]));
    }

    #[test]
    fn bad_lines_are_skipped_and_the_others_count() {
        let home = Home::new();
        home.write("001 a any k\n002 b\n003 c not-an-address k\n004 d any k\n");
        let mut source = KeySource::new(&home.path());
        source.look();
        assert_eq!(source.table().len(), 2);
    }

    #[test]
    fn whatever_follows_what_the_table_is_that_of_the_file() {
        let home = Home::new();
        let mut source = KeySource::new(&home.path());
        let long = (2..500)
            .map(|id| format!("{id:03} a{id} any k{id}\n"))
            .collect::<String>();
        for text in [
            "",
            "001 a any k\n",
            "001 a any k\n002 b any k",
            // What looked like a whole line was none.
            "001 a any k\n002 b any key\n",
            "001 a any k\n002 b any key\n002 c any k\n003 d 10.0.0.3 k\n",
            // As long, and begins as before, but not in the middle.
            "001 a any k\n002 x any key\n002 c any k\n003 d 10.0.0.3 k\n004 e 10.0.0.3 k\n",
            "001 a any k\n",
            &format!("001 a any k\n{long}"),
            &format!("001 a any k\n{long}500 last any k\n"),
            &format!("001 !a any k\n{long}500 last any k\n"),
            &format!("{long}500 last any k\n001 !a any k\n"),
            &format!("{long}500 last any k\n501 more any k\n001 !a any k\nbad\n"),
            &format!("{long}500 last any k\n501 more any k\n502 yet-more any k\n001 !a any k\n"),
            "",
        ] {
            home.write(text);
            source.look();
            let (expected, _) = KeyTable::default().next(&file::parse(text.as_bytes()));
            assert_eq!(source.table().len(), expected.len(), "{text}");
            for slot in expected.slots() {
                let found = source.table().by_id(slot.id.as_str()).unwrap();
                assert!(found.name == slot.name && found.has_key_of(slot), "{text}");
            }
        }
    }

    #[test]
    fn only_new_lines_are_taken_apart_where_lines_were_added() {
        let mut content = Content::default();
        assert_eq!(content.take(b"001 a any k\n"), None);
        assert_eq!(content.take(b"001 a any k\n002 b any k\n"), Some(12));
        assert_eq!(content.take(b"001 a any k\n002 b any k\n"), Some(24));
        assert_eq!(content.take(b"001 a any k\n002 b any k\n003 !c any k\nbad\n"), Some(24));
        // Between the agents and the lines of removed ones.
        assert_eq!(
            content.take(b"001 a any k\n002 b any k\n004 d any k\n003 !c any k\n"),
            Some(24)
        );
        assert_eq!(
            content.take(b"001 a any k\n002 b any k\n004 d any k\n005 e any ke"),
            Some(36)
        );
        // What was no whole line then is looked at again.
        assert_eq!(
            content.take(b"001 a any k\n002 b any k\n004 d any k\n005 e any key\n"),
            None
        );
        assert_eq!(
            content.take(b"001 b any k\n002 b any k\n004 d any k\n005 e any key\n"),
            None
        );
        assert_eq!(content.take(b"001 b any k\n"), None);
        assert_eq!(content.take(b""), None);
    }

    #[test]
    fn unchanged_file_is_not_read_again() {
        let home = Home::new();
        home.write("001 a any k\n");
        let mut source = KeySource::new(&home.path());
        assert!(source.look().is_some());
        assert!(source.look().is_none());
    }

    #[tokio::test]
    async fn look_that_was_waited_for_has_found_what_was_written_before() {
        let home = Home::new();
        let source = KeySource::new(&home.path());
        let (tables, table) = watch::channel(Arc::clone(source.table()));
        let (news, mut inbox) = mpsc::channel(64);
        let watcher = KeyWatcher::start(source, Duration::from_secs(3600), tables, news, keeper(&home)).unwrap();
        for number in 1..20 {
            home.write(
                &(0..number)
                    .map(|id| format!("{id:03} a{id} any k\n"))
                    .collect::<String>(),
            );
            watcher.look().await;
            assert_eq!(table.borrow().len(), number);
            assert!(inbox.try_recv().is_ok(), "the roster knows too");
        }
        watcher.look().await;
        assert!(inbox.try_recv().is_err(), "nothing has changed");
        drop(inbox);
        tokio::task::spawn_blocking(move || {
            let mut watcher = watcher;
            watcher.stop();
        })
        .await
        .unwrap();
    }

    #[test]
    fn roster_that_has_no_room_keeps_neither_the_news_nor_the_stop() {
        let home = Home::new();
        let source = KeySource::new(&home.path());
        let (tables, _table) = watch::channel(Arc::clone(source.table()));
        let (news, mut inbox) = mpsc::channel(1);
        news.try_send(Changes::default().into()).unwrap();
        let mut watcher = KeyWatcher::start(source, Duration::from_millis(1), tables, news, keeper(&home)).unwrap();
        home.write("001 a any k\n");
        watcher.look_now();
        inbox.blocking_recv();
        let Some(News::KeysReloaded { added, .. }) = inbox.blocking_recv() else {
            panic!("reload")
        };
        assert_eq!(added.len(), 1);

        for number in 2..5 {
            home.write(&format!("{number:03} a any k\n"));
            watcher.look_now();
            std::thread::park_timeout(Duration::from_millis(20));
        }
        watcher.stop();
    }

    #[test]
    fn change_that_is_announced_reaches_roster_and_workers_long_before_the_interval() {
        let home = Home::new();
        home.write("001 a any k\n");
        let mut source = KeySource::new(&home.path());
        source.look();
        let (tables, table) = watch::channel(Arc::clone(source.table()));
        let (news, mut inbox) = mpsc::channel(8);
        let mut watcher = KeyWatcher::start(source, Duration::from_secs(3600), tables, news, keeper(&home)).unwrap();

        home.write("001 a any k\n002 b any k\n");
        watcher.look_now();
        let Some(News::KeysReloaded {
            added,
            changed,
            removed,
        }) = inbox.blocking_recv()
        else {
            panic!("reload")
        };
        assert_eq!((added.len(), changed.len(), removed.len()), (1, 0, 0));
        // Announced while the watcher rests after the first reading.
        home.write("002 b any k\n");
        watcher.look_now();
        let Some(News::KeysReloaded { removed, .. }) = inbox.blocking_recv() else {
            panic!("reload")
        };
        assert_eq!(removed.len(), 1);
        watcher.stop();
        assert_eq!(table.borrow().len(), 1);
    }
}
