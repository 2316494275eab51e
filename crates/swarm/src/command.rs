//! Orders to a running fleet, one a line on standard input.
//!
//! | line | what happens |
//! | --- | --- |
//! | `kill 10` | ten agents vanish without goodbye; their connections close |
//! | `kill 10 silent` | the same, but their connections stay open and dead, as after a power cut |
//! | `kill-names a,b [silent]` | these agents vanish |
//! | `revive` | all killed agents come back |
//! | `status` | one `status` line |
//! | `stop` | every agent says goodbye as its family does, the account is told, the program ends |

use std::str::FromStr;

/// What a vanished agent leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vanish {
    /// A closed connection: its process was killed.
    Closed,
    /// An open connection with nobody behind it: its machine lost power.
    Silent,
}

/// One order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// So many agents vanish.
    Kill(usize, Vanish),
    /// These agents vanish.
    KillNames(Vec<String>, Vanish),
    /// The vanished come back.
    Revive,
    /// Tell how the fleet stands.
    Status,
    /// Say goodbye and end.
    Stop,
}

impl FromStr for Command {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let command = match (words.next(), words.next(), words.next()) {
            (Some("kill"), Some(count), how) => {
                let count = count
                    .parse()
                    .map_err(|_| format!("kill takes a number, not `{count}`"))?;
                Self::Kill(count, vanish(how)?)
            }
            (Some("kill-names"), Some(names), how) => {
                let names = names
                    .split(',')
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned)
                    .collect();
                Self::KillNames(names, vanish(how)?)
            }
            (Some("revive"), None, None) => Self::Revive,
            (Some("status"), None, None) => Self::Status,
            (Some("stop"), None, None) => Self::Stop,
            _ => {
                return Err(format!(
                    "`{}` is not one of kill N, kill-names A,B, revive, status, stop",
                    line.trim().escape_debug()
                ));
            }
        };
        match words.next() {
            None => Ok(command),
            Some(word) => Err(format!("`{word}` is too much")),
        }
    }
}

fn vanish(word: Option<&str>) -> Result<Vanish, String> {
    match word {
        None => Ok(Vanish::Closed),
        Some("silent") => Ok(Vanish::Silent),
        Some(word) => Err(format!("`{word}` should be `silent` or nothing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_understood() {
        assert_eq!("kill 10".parse(), Ok(Command::Kill(10, Vanish::Closed)));
        assert_eq!(" kill 3 silent \r".parse(), Ok(Command::Kill(3, Vanish::Silent)));
        assert_eq!(
            "kill-names a,b".parse(),
            Ok(Command::KillNames(vec!["a".to_owned(), "b".to_owned()], Vanish::Closed))
        );
        assert_eq!("revive".parse(), Ok(Command::Revive));
        assert_eq!("status".parse(), Ok(Command::Status));
        assert_eq!("stop".parse(), Ok(Command::Stop));
    }

    #[test]
    fn anything_else_is_refused_with_its_words() {
        for line in [
            "",
            "kill",
            "kill x",
            "kill 1 loud",
            "kill 1 silent 2",
            "revive now",
            "halt",
        ] {
            assert!(line.parse::<Command>().is_err(), "{line}");
        }
    }
}
