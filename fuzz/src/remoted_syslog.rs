//! Lines of hosts without an agent, out of a stream.

use muster_remoted::syslog::{
    clean,
    framing::{MAX_LINE_LEN, Splitter},
};

use super::draw::Draw;

/// However a stream of syslog lines is cut into reads, the same lines come out, and little is kept.
pub(super) fn syslog(input: &[u8]) {
    let mut draw = Draw::new(input);
    let (step, repeat) = (usize::from(draw.byte()) + 1, draw.below(32));
    // Lines that are too long are reached by repeating what there is.
    let long = repeat == 31;
    let bytes = if long {
        draw.rest().repeat(2000)
    } else {
        draw.rest().to_vec()
    };
    let read = |step: usize| {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for read in bytes.chunks(step) {
            splitter.feed(read, |line| lines.push(line.to_vec()));
            assert!(splitter.kept() <= MAX_LINE_LEN + 16);
        }
        splitter.finish(|line| lines.push(line.to_vec()));
        lines
    };
    let whole = read(bytes.len().max(1));
    assert_eq!(whole, read(if long { step * 256 } else { step }));
    for line in whole {
        assert!(line.len() <= MAX_LINE_LEN);
        if let Some(clean) = clean(&line) {
            assert!(!clean.is_empty() && !clean.contains(&0) && clean.len() <= line.len());
        }
    }
}
