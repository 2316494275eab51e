//! XML text to a tree of elements that know where they stand.
//!
//! The library's events are taken one by one and the stack of open elements is kept here, because the library neither
//! reports an element left open at the end of the file nor minds several roots: the first is an error, the second is
//! how stock configurations are written. After a wrong end tag reading goes on, so that one slip does not hide the
//! other problems of the file.
//!
//! Two habits of stock files that are no XML are accepted: an ampersand that begins no entity, and `\<` for a `<` that
//! opens nothing.

use quick_xml::{
    Reader,
    escape::resolve_predefined_entity,
    events::{BytesStart, Event},
};

use crate::{
    limits::MAX_DEPTH,
    source::{Report, Source, Span},
};

/// Attributes of one element. Real ones have up to five.
const MAX_ATTRIBUTES: usize = 64;
/// How far after `\<` the end of a would-be tag is looked for.
const MAX_ESCAPED_TAG: usize = 512;
/// Stands for an escaped `<` while the library reads. It may not occur in XML, so nothing else can be mistaken for it.
const ESCAPED_LT: u8 = 0x01;

/// One element.
pub(crate) struct Element<'s> {
    pub(crate) source: &'s Source,
    pub(crate) name: String,
    pub(crate) name_span: Span,
    pub(crate) attributes: Vec<Attribute>,
    /// What is wrong with its attributes. Kept here because it only matters where the element does.
    pub(crate) flaws: Vec<(Span, String)>,
    pub(crate) children: Vec<Self>,
    /// Its own text without that of its children, trimmed.
    pub(crate) text: String,
    /// From the first to the last character of the text.
    pub(crate) text_span: Option<Span>,
}

/// One attribute.
pub(crate) struct Attribute {
    pub(crate) name: String,
    pub(crate) name_span: Span,
    pub(crate) value: String,
    pub(crate) value_span: Span,
}

impl<'s> Element<'s> {
    fn new(source: &'s Source, name: String, name_span: Span) -> Self {
        let (attributes, flaws, children) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            source,
            name,
            name_span,
            attributes,
            flaws,
            children,
            text: String::new(),
            text_span: None,
        }
    }

    /// The last attribute of this name.
    pub(crate) fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().rev().find(|attribute| attribute.name == name)
    }

    fn push_text(&mut self, text: &str, span: Span) {
        let leading = text.len() - text.trim_start().len();
        let trailing = text.len() - text.trim_end().len();
        if leading < text.len() {
            // An entity is longer in the file than in the value: only spaces are cut off, and those are not entities.
            let end = (span.end.saturating_sub(trailing)).max(span.start + leading + 1);
            let part = Span::new(span.start + leading, end);
            let whole = self.text_span.get_or_insert(part);
            whole.end = part.end;
        }
        self.text.push_str(text);
    }

    fn finish(&mut self) {
        let trimmed = self.text.trim();
        if trimmed.len() != self.text.len() {
            self.text = trimmed.to_owned();
        }
    }
}

/// Reads one file's roots. What is broken is reported, and what could still be read is returned.
pub(crate) fn parse<'s>(source: &'s Source, report: &mut Report) -> Vec<Element<'s>> {
    if let Some(span) = source.damage {
        let message = "this is not UTF-8; such bytes are read as question marks";
        report.warning(source, span, message);
    }
    let masked = mask_escaped_tags(&source.text);
    let mut tree = Tree {
        source,
        roots: Vec::new(),
        open: Vec::new(),
    };
    let mut reader = Reader::from_str(&masked);
    let config = reader.config_mut();
    config.check_end_names = false;
    config.allow_unmatched_ends = true;
    config.allow_dangling_amp = true;

    loop {
        let start = usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX);
        let event = reader.read_event();
        let end = usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX);
        let span = Span::new(start, end);
        match event {
            Ok(Event::Start(tag)) => {
                if tree.open.len() >= MAX_DEPTH {
                    let message = format!("elements are nested more than {MAX_DEPTH} deep; reading stops here");
                    report.error(source, span, &message);
                    return tree.close_all();
                }
                if is_stray(&tag) {
                    report.error(source, Span::new(start, start + 1), STRAY);
                    continue;
                }
                let element = tree.element(&tag, start);
                tree.open.push(element);
            }
            Ok(Event::Empty(tag)) if is_stray(&tag) => {
                report.error(source, Span::new(start, start + 1), STRAY);
            }
            Ok(Event::Empty(tag)) => {
                let element = tree.element(&tag, start);
                tree.add(element);
            }
            Ok(Event::End(tag)) => tree.end(tag.name().as_ref(), span, report),
            Ok(Event::Text(text)) => tree.text(&unmask(&text), span, report),
            Ok(Event::CData(text)) => {
                let inner = Span::new(start + "<![CDATA[".len(), end.saturating_sub("]]>".len()));
                tree.text(&unmask(&text), inner, report);
            }
            Ok(Event::GeneralRef(reference)) => {
                let text = match reference.resolve_char_ref() {
                    Ok(Some(c)) => c.to_string(),
                    // What names no entity stands for itself, as stock takes it.
                    _ => match resolve_predefined_entity(&reference) {
                        Some(text) => text.to_owned(),
                        None => format!("&{};", &*reference),
                    },
                };
                tree.text(&text, span, report);
            }
            Ok(Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_)) => {}
            Ok(Event::Eof) => {
                tree.report_open(report);
                return tree.close_all();
            }
            Err(error) => {
                let at = usize::try_from(reader.error_position()).unwrap_or(start).max(start);
                report.error(
                    source,
                    Span::new(at, at + 1),
                    &format!("broken XML: {error}; reading stops here"),
                );
                return tree.close_all();
            }
        }
    }
}

const STRAY: &str = "this '<' begins no element; write &lt; for the character itself";

/// Whether a `<` has no name behind it.
fn is_stray(tag: &BytesStart<'_>) -> bool {
    tag.name().as_ref().is_empty()
}

/// The roots that are complete, and the elements that are open.
struct Tree<'s> {
    source: &'s Source,
    roots: Vec<Element<'s>>,
    open: Vec<Element<'s>>,
}

impl<'s> Tree<'s> {
    /// A start tag whose `<` is at `start`.
    fn element(&self, tag: &BytesStart<'_>, start: usize) -> Element<'s> {
        let name = unmask(tag.name().as_ref());
        let name_start = start + 1;
        let mut element = Element::new(
            self.source,
            name.clone(),
            Span::new(name_start, name_start + name.len()),
        );
        let content: &str = tag;
        // Positions: the library hands out slices of the tag's content, which begins right after `<`.
        let place = |part: &str| {
            let at = (part.as_ptr() as usize).saturating_sub(content.as_ptr() as usize);
            if at <= content.len() {
                name_start + at
            } else {
                name_start
            }
        };
        for attribute in tag.attributes().with_checks(false).take(MAX_ATTRIBUTES) {
            match attribute {
                Ok(attribute) => {
                    let key = attribute.key.as_ref();
                    let at = place(key);
                    let value_at = place(&attribute.value);
                    element.attributes.push(Attribute {
                        name: unmask(key),
                        name_span: Span::new(at, at + key.len()),
                        value: unescape(&unmask(&attribute.value)).trim().to_owned(),
                        value_span: Span::new(value_at, value_at + attribute.value.len()),
                    });
                }
                Err(error) => {
                    let message = format!("broken attribute in <{name}>: {error}; write name=\"value\"");
                    element.flaws.push((element.name_span, message));
                    break;
                }
            }
        }
        element
    }

    fn add(&mut self, element: Element<'s>) {
        match self.open.last_mut() {
            Some(parent) => parent.children.push(element),
            None => self.roots.push(element),
        }
    }

    fn text(&mut self, text: &str, span: Span, report: &mut Report) {
        match self.open.last_mut() {
            Some(element) => element.push_text(text, span),
            None if text.trim().is_empty() => {}
            None => {
                let leading = text.len() - text.trim_start().len();
                let span = Span::new(span.start + leading, span.end);
                let message = "text outside of every block; is a '<' missing before it?";
                report.warning(self.source, span, message);
            }
        }
    }

    /// An end tag. The innermost open element of this name is closed, and what is open within it was forgotten.
    fn end(&mut self, name: &str, span: Span, report: &mut Report) {
        let name = unmask(name);
        let Some(depth) = self.open.iter().rposition(|element| element.name == name) else {
            let message = match self.open.last() {
                Some(open) => {
                    let line = self.source.line(open.name_span);
                    format!("</{name}> closes nothing; <{}> of line {line} is open here", open.name)
                }
                None => format!("</{name}> closes nothing; no element is open here"),
            };
            report.error(self.source, span, &message);
            return;
        };
        while self.open.len() > depth + 1 {
            if let Some(element) = self.open.last() {
                let line = self.source.line(span);
                let message = format!(
                    "<{0}> is not closed before </{name}> in line {line}; put </{0}> there",
                    element.name
                );
                report.error(self.source, element.name_span, &message);
            }
            self.close();
        }
        self.close();
    }

    fn close(&mut self) {
        if let Some(mut element) = self.open.pop() {
            element.finish();
            self.add(element);
        }
    }

    fn report_open(&self, report: &mut Report) {
        for element in &self.open {
            let message = format!(
                "<{0}> is not closed at the end of the file; put </{0}> where it ends",
                element.name
            );
            report.error(self.source, element.name_span, &message);
        }
    }

    fn close_all(mut self) -> Vec<Element<'s>> {
        while !self.open.is_empty() {
            self.close();
        }
        self.roots
    }
}

/// Entities of an attribute's value. What names no entity stands for itself.
fn unescape(value: &str) -> String {
    match quick_xml::escape::unescape(value) {
        Ok(text) => text.into_owned(),
        Err(_) => value.to_owned(),
    }
}

/// Hides each `<` that is escaped by a backslash, keeping every byte's place.
///
/// `\<Query\>` and `\</Query\>` are text, `C:\</dir>` ends with a real end tag: the `>` decides, and a start tag behind
/// a backslash is taken for text as stock does.
fn mask_escaped_tags(text: &str) -> String {
    if !text.contains("\\<") {
        return text.to_owned();
    }
    let mut bytes = text.as_bytes().to_vec();
    for at in 1..bytes.len() {
        if bytes.get(at - 1..=at) != Some(b"\\<") {
            continue;
        }
        let rest = bytes
            .get(at + 1..bytes.len().min(at + MAX_ESCAPED_TAG))
            .unwrap_or_default();
        let close = rest.iter().position(|&byte| byte == b'>');
        let close_is_escaped = close.is_some_and(|close| close > 0 && rest.get(close - 1) == Some(&b'\\'));
        if !rest.starts_with(b"/") || close_is_escaped {
            bytes[at] = ESCAPED_LT;
        }
    }
    // One ASCII byte took another's place.
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

fn unmask(text: &str) -> String {
    text.replace(char::from(ESCAPED_LT), "<")
}
