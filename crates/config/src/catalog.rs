//! The list of every option, made by walking over the settings themselves.

use crate::{
    Settings,
    kind::Kind,
    secret::MASK,
    walk::{Block, Need, Origin, Repeated, Walk, element_name},
};

/// One option, attribute or block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands, such as `remote/manager_keepalive/interval`; an attribute is `nats/publish@mode`.
    pub path: String,
    /// Where it comes from.
    pub origin: Origin,
    /// What it accepts; empty for a block.
    pub accepts: String,
    /// Its default, as it would be written; `None` when it is absent by default, and for a block.
    pub default: Option<String>,
    /// Whether it is only read from old files.
    pub is_old: bool,
}

impl Entry {
    /// The last part of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit(['/', '@']).next().unwrap_or(&self.path)
    }

    /// The element that it stands in, if it does not stand in the root.
    pub fn parent(&self) -> Option<&str> {
        let (parent, _) = self.path.rsplit_once(['/', '@'])?;
        parent.rsplit('/').next()
    }

    /// Whether it is an attribute.
    pub fn is_attribute(&self) -> bool {
        self.path.contains('@')
    }
}

/// The walk that lists.
#[derive(Default)]
pub(crate) struct Catalog {
    path: Vec<&'static str>,
    entries: Vec<Entry>,
}

impl Catalog {
    /// Everything that can be written into `ossec.conf`, with the defaults of absent blocks.
    pub(crate) fn of_settings() -> Vec<Entry> {
        Self::of::<Settings>()
    }

    pub(crate) fn of<B: Block>() -> Vec<Entry> {
        let mut catalog = Self::default();
        B::default().walk(&mut catalog);
        catalog.entries
    }

    fn add(&mut self, origin: Origin, name: &str, accepts: String, default: Option<String>, is_old: bool) {
        let mut path: String = self.path.iter().flat_map(|part| [element_name(part).0, "/"]).collect();
        if name.starts_with('@') {
            path.pop();
        }
        path.push_str(name);
        self.entries.push(Entry {
            path,
            origin,
            accepts,
            default,
            is_old,
        });
    }

    fn inside<B: Block>(&mut self, origin: Origin, name: &'static str) {
        self.add(origin, element_name(name).0, String::new(), None, false);
        self.path.push(name);
        let mut block = B::default();
        // A block that is there has other defaults than one that is not: `<auth>` is on once it is written.
        block.found();
        block.walk(self);
        self.path.pop();
    }
}

fn shown<T, K: Kind<T>>(kind: &K, value: &T) -> Option<String> {
    let written = kind.write(value)?;
    Some(if kind.is_secret() { MASK.to_owned() } else { written })
}

impl Walk for Catalog {
    fn option<T, K: Kind<T>>(&mut self, origin: Origin, need: Need, name: &'static str, kind: K, field: &mut T) {
        let default = if need == Need::Required {
            None
        } else {
            shown(&kind, field)
        };
        self.add(origin, name, kind.accepts(), default, false);
    }

    fn attribute<T, K: Kind<T>>(&mut self, origin: Origin, need: Need, name: &'static str, kind: K, field: &mut T) {
        let default = if need == Need::Required {
            None
        } else {
            shown(&kind, field)
        };
        self.add(origin, &format!("@{name}"), kind.accepts(), default, false);
    }

    fn text<T, K: Kind<T>>(&mut self, kind: K, field: &mut T) {
        // The text belongs to the block's own entry.
        let path: Vec<_> = self.path.iter().map(|part| element_name(part).0).collect();
        let path = path.join("/");
        if let Some(entry) = self.entries.iter_mut().rev().find(|entry| entry.path == path) {
            entry.accepts = kind.accepts();
            entry.default = shown(&kind, field).filter(|default| !default.is_empty());
        }
    }

    fn list<T, K: Kind<T>>(&mut self, origin: Origin, _: Need, name: &'static str, kind: K, _: &mut Vec<T>) {
        self.add(origin, name, kind.accepts(), None, false);
    }

    fn block<B: Block>(&mut self, origin: Origin, name: &'static str, _: &mut B) {
        self.inside::<B>(origin, name);
    }

    fn optional<B: Block>(&mut self, origin: Origin, name: &'static str, _: Repeated, _: &mut Option<B>) {
        self.inside::<B>(origin, name);
    }

    fn blocks<B: Block>(&mut self, origin: Origin, name: &'static str, _: &mut Vec<B>) {
        self.inside::<B>(origin, name);
    }

    fn old<T, K: Kind<T>>(&mut self, name: &'static str, kind: K, _: &'static str) -> Option<T> {
        self.add(Origin::Stock, name, kind.accepts(), None, true);
        None
    }
}
