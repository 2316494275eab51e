//! "Did you mean": the known name that is nearest to an unknown one.

/// Longer names are not compared: they are no slips of the pen.
const MAX_NAME: usize = 48;

/// The nearest of the known names, if it is near enough to be what was meant.
pub(crate) fn nearest<'n>(unknown: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let unknown = plain(unknown);
    if unknown.is_empty() || unknown.len() > MAX_NAME {
        return None;
    }
    known
        .into_iter()
        .filter(|name| name.len() <= MAX_NAME)
        .map(|name| (distance(&unknown, &plain(name)), name))
        .filter(|(distance, name)| *distance <= allowed(name.len()))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Case, hyphens and underscores are the commonest slips and cost nothing.
fn plain(name: &str) -> Vec<u8> {
    name.bytes()
        .filter(|byte| !matches!(byte, b'-' | b'_'))
        .map(|byte| byte.to_ascii_lowercase())
        .collect()
}

/// A third of the letters may be wrong, up to three.
fn allowed(length: usize) -> usize {
    (length / 3).clamp(1, 3)
}

/// Insertions, deletions, replacements, and two neighbours exchanged.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1; b.len() + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(x != y);
            row[j + 1] = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && x == &b[j - 1] && &a[i - 1] == y {
                row[j + 1] = row[j + 1].min(before[j - 1] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = [
        "port",
        "protocol",
        "queue_size",
        "allowed-ips",
        "connection_overtake_time",
    ];

    #[test]
    fn slips_find_what_was_meant() {
        let cases = [
            ("prot", "port"),
            ("Port", "port"),
            ("ports", "port"),
            ("protocoll", "protocol"),
            ("queuesize", "queue_size"),
            ("queue-size", "queue_size"),
            ("allowed_ips", "allowed-ips"),
            ("conection_overtake_tme", "connection_overtake_time"),
        ];
        for (slip, meant) in cases {
            assert_eq!(nearest(slip, NAMES), Some(meant), "{slip}");
        }
    }

    #[test]
    fn what_is_far_from_everything_gets_no_suggestion() {
        for name in ["", "-", "banana", "po", "x", "jsonout_output"] {
            assert_eq!(nearest(name, NAMES), None, "{name}");
        }
    }
}
