//! Settings back to text: the effective configuration, which reads back to the same settings, and the list of what
//! differs between two of them.

use std::fmt::Write as _;

use crate::{
    Settings,
    kind::Kind,
    secret::MASK,
    walk::{Block, Need, Origin, Repeated, Walk, element_name},
};

/// What becomes of secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// A mask stands in their place: for eyes and logs.
    Masked,
    /// They are written out: for a file of mode 0640.
    Revealed,
}

/// The configuration that is in effect, defaults included, as `ossec.conf` would say it. The internal options are not
/// part of that file; see [`crate::show_internal`].
pub fn show(settings: &Settings, secrets: Secrets) -> String {
    let mut printer = Printer {
        secrets,
        frames: vec![Frame::default()],
    };
    settings.clone().walk(&mut printer);
    let body = printer.frames.pop().map(|frame| frame.children).unwrap_or_default();
    format!("<ossec_config>\n{body}</ossec_config>\n")
}

/// The walk that prints.
struct Printer {
    secrets: Secrets,
    frames: Vec<Frame>,
}

/// A block that is being printed: its start tag can only be written when its attributes are known.
#[derive(Default)]
struct Frame {
    attributes: String,
    text: Option<String>,
    children: String,
}

impl Printer {
    fn written<T, K: Kind<T>>(&self, kind: &K, value: &T) -> Option<String> {
        let written = kind.write(value)?;
        Some(if kind.is_secret() && self.secrets == Secrets::Masked {
            MASK.to_owned()
        } else {
            written
        })
    }

    fn indent(&self) -> String {
        "  ".repeat(self.frames.len())
    }

    fn push_line(&mut self, line: &str) {
        if let Some(frame) = self.frames.last_mut() {
            frame.children.push_str(line);
        }
    }

    fn element(&mut self, name: &str, text: &str) {
        let line = format!("{}<{name}>{}</{name}>\n", self.indent(), escape(text));
        self.push_line(&line);
    }

    fn inside<B: Block>(&mut self, name: &str, block: &mut B) {
        let (name, value) = element_name(name);
        let indent = self.indent();
        self.frames.push(Frame::default());
        if let Some(value) = value {
            self.push_attribute("name", value);
        }
        block.walk(self);
        let Frame {
            attributes,
            text,
            children,
        } = self.frames.pop().unwrap_or_default();
        let printed = match text {
            Some(text) => format!("{indent}<{name}{attributes}>{}</{name}>\n", escape(&text)),
            None if children.is_empty() => format!("{indent}<{name}{attributes}/>\n"),
            None => format!("{indent}<{name}{attributes}>\n{children}{indent}</{name}>\n"),
        };
        self.push_line(&printed);
    }

    fn push_attribute(&mut self, name: &str, value: &str) {
        if let Some(frame) = self.frames.last_mut() {
            let _ = write!(frame.attributes, " {name}=\"{}\"", escape(value));
        }
    }
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

impl Walk for Printer {
    fn option<T, K: Kind<T>>(&mut self, _: Origin, _: Need, name: &'static str, kind: K, field: &mut T) {
        if let Some(text) = self.written(&kind, field) {
            self.element(name, &text);
        }
    }

    fn attribute<T, K: Kind<T>>(&mut self, _: Origin, _: Need, name: &'static str, kind: K, field: &mut T) {
        if let Some(text) = self.written(&kind, field) {
            self.push_attribute(name, &text);
        }
    }

    fn text<T, K: Kind<T>>(&mut self, kind: K, field: &mut T) {
        let text = self.written(&kind, field);
        if let Some(frame) = self.frames.last_mut() {
            frame.text = text;
        }
    }

    fn list<T, K: Kind<T>>(&mut self, _: Origin, _: Need, name: &'static str, kind: K, field: &mut Vec<T>) {
        for value in field {
            if let Some(text) = self.written(&kind, value) {
                self.element(name, &text);
            }
        }
    }

    fn block<B: Block>(&mut self, _: Origin, name: &'static str, field: &mut B) {
        self.inside(name, field);
    }

    fn optional<B: Block>(&mut self, _: Origin, name: &'static str, _: Repeated, field: &mut Option<B>) {
        if let Some(block) = field {
            self.inside(name, block);
        }
    }

    fn blocks<B: Block>(&mut self, _: Origin, name: &'static str, field: &mut Vec<B>) {
        for block in field {
            self.inside(name, block);
        }
    }

    fn old<T, K: Kind<T>>(&mut self, _: &'static str, _: K, _: &'static str) -> Option<T> {
        None
    }
}

/// The options in which two configurations differ, by path, such as `remote[2]/port`. A reload uses it to say what it
/// changed, and what has to wait for a restart.
pub fn differences(old: &Settings, new: &Settings) -> Vec<String> {
    let (old, new) = (Flat::of(old), Flat::of(new));
    let mut paths: Vec<String> = Vec::new();
    for (path, value) in old.iter().chain(&new) {
        let is_in = |list: &[(String, String)]| list.iter().any(|(p, v)| p == path && v == value);
        let is_same = is_in(&old) && is_in(&new);
        if !is_same && !paths.contains(path) {
            paths.push(path.clone());
        }
    }
    paths
}

/// The walk that makes a flat list of paths and values.
#[derive(Default)]
struct Flat {
    path: String,
    values: Vec<(String, String)>,
}

impl Flat {
    fn of(settings: &Settings) -> Vec<(String, String)> {
        let mut settings = settings.clone();
        let mut flat = Self::default();
        settings.walk(&mut flat);
        flat.path = "internal/".to_owned();
        settings.internal.walk(&mut flat);
        flat.values
    }

    fn add<T, K: Kind<T>>(&mut self, name: &str, kind: &K, field: &T) {
        if let Some(value) = kind.write(field) {
            self.values.push((format!("{}{name}", self.path), value));
        }
    }

    fn inside<B: Block>(&mut self, name: &str, block: &mut B) {
        let length = self.path.len();
        self.path.push_str(name);
        self.path.push('/');
        // That it is there is a difference of its own.
        self.values
            .push((self.path.trim_end_matches('/').to_owned(), String::new()));
        block.walk(self);
        self.path.truncate(length);
    }
}

impl Walk for Flat {
    fn option<T, K: Kind<T>>(&mut self, _: Origin, _: Need, name: &'static str, kind: K, field: &mut T) {
        self.add(name, &kind, field);
    }

    fn attribute<T, K: Kind<T>>(&mut self, _: Origin, _: Need, name: &'static str, kind: K, field: &mut T) {
        let path = self.path.trim_end_matches('/').len();
        if let Some(value) = kind.write(field) {
            self.values
                .push((format!("{}@{name}", self.path.get(..path).unwrap_or("")), value));
        }
    }

    fn text<T, K: Kind<T>>(&mut self, kind: K, field: &mut T) {
        if let Some(value) = kind.write(field) {
            self.values.push((self.path.trim_end_matches('/').to_owned(), value));
        }
    }

    fn list<T, K: Kind<T>>(&mut self, _: Origin, _: Need, name: &'static str, kind: K, field: &mut Vec<T>) {
        for (index, value) in field.iter().enumerate() {
            self.add(&format!("{name}[{}]", index + 1), &kind, value);
        }
    }

    fn block<B: Block>(&mut self, _: Origin, name: &'static str, field: &mut B) {
        self.inside(name, field);
    }

    fn optional<B: Block>(&mut self, _: Origin, name: &'static str, _: Repeated, field: &mut Option<B>) {
        if let Some(block) = field {
            self.inside(element_name(name).0, block);
        }
    }

    fn blocks<B: Block>(&mut self, _: Origin, name: &'static str, field: &mut Vec<B>) {
        for (index, block) in field.iter_mut().enumerate() {
            self.inside(&format!("{name}[{}]", index + 1), block);
        }
    }

    fn old<T, K: Kind<T>>(&mut self, _: &'static str, _: K, _: &'static str) -> Option<T> {
        None
    }
}
