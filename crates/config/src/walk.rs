//! One description of every block, walked by whoever needs it.
//!
//! Each settings struct says once, in [`Block::walk`], which options it has, of which kind and where they come from.
//! The same walk fills the struct from a file ([`crate::reader`]), prints it ([`crate::show`]), lists the options for
//! the documentation ([`crate::catalog`]) and tells two configurations apart. So no option can be read and not shown,
//! or shown and not documented.

use crate::kind::Kind;

/// Where an option comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Stock daemons have it, and it means the same here.
    Stock,
    /// It is an addition: stock daemons refuse or ignore it.
    Own,
}

/// Whether something may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Optional,
    Required,
}

/// A block of options.
pub(crate) trait Block: Default {
    /// Names each option once, in the order in which they are shown.
    fn walk<W: Walk>(&mut self, walk: &mut W);

    /// The block was found in the file.
    fn found(&mut self) {}
}

/// What a block that is there several times means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeated {
    /// They are read as one, in order.
    Merged,
    /// Only the first counts.
    FirstCounts,
}

/// Somebody who walks over the options.
///
/// The name of a block may be `element@value`: it is the `<element>` whose attribute `name` has that value.
pub(crate) trait Walk {
    /// An element with a value. When it is there several times, the last one counts.
    fn option<T, K: Kind<T>>(&mut self, origin: Origin, need: Need, name: &'static str, kind: K, field: &mut T);

    /// An attribute of this block.
    fn attribute<T, K: Kind<T>>(&mut self, origin: Origin, need: Need, name: &'static str, kind: K, field: &mut T);

    /// The text of this block itself.
    fn text<T, K: Kind<T>>(&mut self, kind: K, field: &mut T);

    /// An element that may be there several times, each adding to the list. With [`Need::Required`], at least once.
    fn list<T, K: Kind<T>>(&mut self, origin: Origin, need: Need, name: &'static str, kind: K, field: &mut Vec<T>);

    /// A block with a meaning of its own even when it is missing.
    fn block<B: Block>(&mut self, origin: Origin, name: &'static str, field: &mut B);

    /// A block that makes a difference by being there.
    fn optional<B: Block>(&mut self, origin: Origin, name: &'static str, many: Repeated, field: &mut Option<B>);

    /// Blocks each of which is one thing.
    fn blocks<B: Block>(&mut self, origin: Origin, name: &'static str, field: &mut Vec<B>);

    /// An option that only old files have, and what stands in its place now. Its value, if it is there and good.
    fn old<T, K: Kind<T>>(&mut self, name: &'static str, kind: K, instead: &'static str) -> Option<T>;

    /// Elements that are known and mean nothing here.
    fn unused(&mut self, _names: &[&'static str]) {}

    /// The block belongs to somebody else: what we do not know in it is none of our business.
    fn foreign(&mut self) {}

    /// While reading: whether this element or attribute is missing. Otherwise never.
    fn lacks(&self, _name: &str) -> bool {
        false
    }

    /// While reading: the place of the first such element among its siblings.
    fn order(&self, _name: &str) -> Option<usize> {
        None
    }

    /// While reading: whether the home has OSSEC's layout.
    fn home_is_ossec(&self) -> bool {
        false
    }

    /// While reading: this block is wrong. `at` names an element of it, or is empty for the block itself.
    fn error(&mut self, _at: &str, _message: &str) {}

    /// While reading: this block is worth a look.
    fn warning(&mut self, _at: &str, _message: &str) {}

    /// A stock option.
    fn stock<T, K: Kind<T>>(&mut self, name: &'static str, kind: K, field: &mut T) {
        self.option(Origin::Stock, Need::Optional, name, kind, field);
    }

    /// An option of ours.
    fn own<T, K: Kind<T>>(&mut self, name: &'static str, kind: K, field: &mut T) {
        self.option(Origin::Own, Need::Optional, name, kind, field);
    }
}

/// The element of a block's name, and the value of its attribute `name` if the block's name asks for one.
pub(crate) fn element_name(name: &str) -> (&str, Option<&str>) {
    match name.split_once('@') {
        Some((element, value)) => (element, Some(value)),
        None => (name, None),
    }
}
