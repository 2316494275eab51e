//! Taking a merged file apart, as agents do.

use thiserror::Error;

/// A merged file's parts, borrowed from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked<'a> {
    /// The group, or the directory's name of several.
    pub title: &'a str,
    /// Paths and contents, in the file's order.
    pub files: Vec<(&'a str, &'a [u8])>,
}

/// Why this is no merged file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// It does not begin with a group's line.
    #[error("first line names no group")]
    NoTitle,
    /// A line that should name a file does not.
    #[error("line at byte {0} names no file")]
    NoFile(usize),
    /// It ends within a file.
    #[error("ends within a file that begins at byte {0}")]
    CutShort(usize),
}

/// Takes it apart.
///
/// # Errors
/// It is no merged file, or a damaged one.
pub fn unpack(merged: &[u8]) -> Result<Unpacked<'_>, UnpackError> {
    let (title, mut rest) = line(merged).ok_or(UnpackError::NoTitle)?;
    let title = title.strip_prefix('#').ok_or(UnpackError::NoTitle)?;
    let mut files = Vec::new();
    while !rest.is_empty() {
        let place = merged.len().saturating_sub(rest.len());
        let (head, behind) = line(rest).ok_or(UnpackError::NoFile(place))?;
        let (size, path) = head
            .strip_prefix('!')
            .and_then(|head| head.split_once(' '))
            .ok_or(UnpackError::NoFile(place))?;
        let size: usize = size.parse().map_err(|_| UnpackError::NoFile(place))?;
        let (content, after) = behind.split_at_checked(size).ok_or(UnpackError::CutShort(place))?;
        files.push((path, content));
        rest = after;
    }
    Ok(Unpacked { title, files })
}

/// The text before the first line feed, and what is behind it.
fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (line, rest) = bytes.split_at_checked(memchr::memchr(b'\n', bytes)?)?;
    Some((std::str::from_utf8(line).ok()?, rest.get(1..)?))
}
