//! The walk that fills settings from the elements of a file, and complains.

use crate::{
    catalog::{Catalog, Entry},
    diagnostic::Severity,
    kind::{Kind, Reading},
    source::{Report, Source, Span, quoted},
    suggest,
    walk::{Block, Need, Origin, Repeated, Walk, element_name},
    xml::{Attribute, Element},
};

/// How many values that do not count are still looked at.
const MAX_REPEATS: usize = 16;

/// What a home looks like, as far as it decides about defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HomeKind {
    /// Wazuh's layout, or a fresh home.
    #[default]
    Wazuh,
    /// OSSEC's layout, in which agents use UDP only.
    Ossec,
}

/// Walks over elements.
pub(crate) struct Reader<'t, 's, 'r> {
    scopes: Vec<Scope<'t, 's>>,
    report: &'r mut Report,
    home: HomeKind,
    everything: Vec<Entry>,
}

/// The block that is being read: usually one element, several where they count as one.
struct Scope<'t, 's> {
    elements: Vec<&'t Element<'s>>,
    known: Vec<&'static str>,
    known_attributes: Vec<&'static str>,
    has_text: bool,
    foreign: bool,
}

impl<'t, 's> Scope<'t, 's> {
    fn new(elements: Vec<&'t Element<'s>>) -> Self {
        Self {
            elements,
            known: Vec::new(),
            known_attributes: Vec::new(),
            has_text: false,
            foreign: false,
        }
    }

    fn name(&self) -> &str {
        self.elements.first().map_or("ossec_config", |element| &element.name)
    }
}

impl<'t, 's, 'r> Reader<'t, 's, 'r> {
    /// Reads one block from the elements that make it up.
    pub(crate) fn read<B: Block>(elements: Vec<&'t Element<'s>>, home: HomeKind, report: &'r mut Report) -> B {
        let mut reader = Self {
            scopes: Vec::new(),
            report,
            home,
            everything: Catalog::of_settings(),
        };
        let mut block = B::default();
        reader.walk_block(elements, &mut block);
        block
    }

    fn walk_block<B: Block>(&mut self, elements: Vec<&'t Element<'s>>, block: &mut B) {
        for element in &elements {
            self.report_flaws(element);
        }
        if !elements.is_empty() {
            block.found();
        }
        self.scopes.push(Scope::new(elements));
        block.walk(self);
        if let Some(scope) = self.scopes.pop() {
            self.report_unknown(&scope);
        }
    }

    fn elements(&self) -> &[&'t Element<'s>] {
        self.scopes.last().map_or(&[], |scope| &scope.elements)
    }

    /// The elements of this name in the block, in order.
    fn children(&self, name: &str) -> Vec<&'t Element<'s>> {
        self.elements()
            .iter()
            .flat_map(|element| &element.children)
            .filter(|child| fits(child, name))
            .collect()
    }

    fn find_attribute(&self, name: &str) -> Option<(&'t Element<'s>, &'t Attribute)> {
        self.elements()
            .iter()
            .rev()
            .find_map(|element| Some((*element, element.attribute(name)?)))
    }

    fn know(&mut self, name: &'static str) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.known.push(element_name(name).0);
        }
    }

    /// An element that is to hold a value and nothing else.
    fn value<T, K: Kind<T>>(&mut self, element: &'t Element<'s>, kind: &K) -> Option<T> {
        self.report_flaws(element);
        for attribute in &element.attributes {
            let message = format!(
                "<{}> has no attribute {}; it is ignored",
                element.name,
                quoted(&attribute.name)
            );
            self.report.warning(element.source, attribute.name_span, &message);
        }
        for child in &element.children {
            let message = format!(
                "<{}> holds a value, not elements; <{}> is ignored",
                element.name, child.name
            );
            self.report.warning(child.source, child.name_span, &message);
        }
        let what = format!("<{}>", element.name);
        self.judge(
            kind,
            &what,
            element.source,
            &element.text,
            element.text_span.unwrap_or(element.name_span),
        )
    }

    fn judge<T, K: Kind<T>>(&mut self, kind: &K, what: &str, source: &Source, text: &str, span: Span) -> Option<T> {
        match kind.read(text) {
            Reading::Value(value) => Some(value),
            Reading::Doubtful(value, remark) => {
                self.report.warning(source, span, &format!("{what} {remark}"));
                Some(value)
            }
            Reading::Refused if text.is_empty() => {
                self.report
                    .error(source, span, &format!("{what} is empty; it must be {}", kind.accepts()));
                None
            }
            Reading::Refused => {
                let given = if kind.is_secret() {
                    String::new()
                } else {
                    format!(", not {}", quoted(text))
                };
                self.report
                    .error(source, span, &format!("{what} must be {}{given}", kind.accepts()));
                None
            }
            Reading::Because(reason) => {
                self.report.error(source, span, &format!("{what} {reason}"));
                None
            }
        }
    }

    fn report_flaws(&mut self, element: &Element<'s>) {
        for (span, message) in &element.flaws {
            self.report.error(element.source, *span, &message.clone());
        }
    }

    /// What stands in a block and was not asked for.
    fn report_unknown(&mut self, scope: &Scope<'t, 's>) {
        if scope.foreign {
            return;
        }
        for element in &scope.elements {
            for child in element
                .children
                .iter()
                .filter(|child| !scope.known.contains(&child.name.as_str()))
            {
                let cure = self.cure(&child.name, scope);
                let message = format!(
                    "unknown element <{}> in <{}> is ignored{cure}",
                    child.name, element.name
                );
                self.report.warning(child.source, child.name_span, &message);
            }
            for attribute in &element.attributes {
                if scope.known_attributes.contains(&attribute.name.as_str()) {
                    continue;
                }
                let meant = suggest::nearest(&attribute.name, scope.known_attributes.iter().copied());
                let cure = meant.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
                let message = format!(
                    "unknown attribute {} of <{}> is ignored{cure}",
                    quoted(&attribute.name),
                    element.name
                );
                self.report.warning(element.source, attribute.name_span, &message);
            }
            if let (false, Some(span)) = (scope.has_text, element.text_span) {
                let message = format!(
                    "text that means nothing in <{}>; is a '<' missing before it?",
                    element.name
                );
                self.report.warning(element.source, span, &message);
            }
        }
    }

    /// What may have been meant by an unknown name: something like it here, or just this elsewhere.
    fn cure(&self, name: &str, scope: &Scope<'t, 's>) -> String {
        if self.report.is_full() {
            return String::new();
        }
        if let Some(meant) = suggest::nearest(name, scope.known.iter().copied()) {
            return format!("; did you mean <{meant}>?");
        }
        let elsewhere = self
            .everything
            .iter()
            .find(|entry| entry.name() == name && !entry.is_attribute());
        match elsewhere.and_then(Entry::parent) {
            Some(parent) => format!("; it belongs in <{parent}>"),
            None => String::new(),
        }
    }

    fn complain(&mut self, severity: Severity, at: &str, message: &str) {
        let child = self.children(at).last().copied();
        let place = child
            .map(|child| (child.source, child.text_span.unwrap_or(child.name_span)))
            .or_else(|| {
                self.find_attribute(at)
                    .map(|(element, attribute)| (element.source, attribute.value_span))
            })
            .or_else(|| {
                self.elements()
                    .first()
                    .map(|element| (element.source, element.name_span))
            });
        if let Some((source, span)) = place {
            self.report.add(severity, source, span, message);
        }
    }

    fn report_missing(&mut self, need: Need, name: &str) {
        if need == Need::Required {
            let message = format!(
                "<{0}> has no <{name}>; it needs one",
                self.scopes.last().map_or("", Scope::name)
            );
            self.complain(Severity::Error, "", &message);
        }
    }
}

/// Whether this is the element that a block's name means.
fn fits(element: &Element<'_>, name: &str) -> bool {
    let (element_name, value) = element_name(name);
    element.name == element_name
        && value.is_none_or(|value| {
            element
                .attribute("name")
                .is_some_and(|attribute| attribute.value == value)
        })
}

impl Walk for Reader<'_, '_, '_> {
    fn option<T, K: Kind<T>>(&mut self, _: Origin, need: Need, name: &'static str, kind: K, field: &mut T) {
        self.know(name);
        let found = self.children(name);
        let Some((last, earlier)) = found.split_last() else {
            return self.report_missing(need, name);
        };
        for element in earlier.iter().rev().take(MAX_REPEATS) {
            // An earlier value does not count and is still checked: the file says something that cannot be.
            if let Some(_unused) = self.value(element, &kind)
                && self
                    .elements()
                    .iter()
                    .any(|parent| has(parent, element) && has(parent, last))
            {
                let line = last.source.line(last.name_span);
                let message = format!("<{name}> is given again in line {line}; the last one counts");
                self.report.warning(element.source, element.name_span, &message);
            }
        }
        if let Some(value) = self.value(last, &kind) {
            *field = value;
        }
    }

    fn attribute<T, K: Kind<T>>(&mut self, _: Origin, need: Need, name: &'static str, kind: K, field: &mut T) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.known_attributes.push(name);
        }
        let Some((element, attribute)) = self.find_attribute(name) else {
            if need == Need::Required {
                let block = self.scopes.last().map_or("", Scope::name);
                let message = format!("<{block}> has no attribute {name}; write <{block} {name}=\"...\">");
                self.complain(Severity::Error, "", &message);
            }
            return;
        };
        let what = format!("attribute {name} of <{}>", element.name);
        if let Some(value) = self.judge(&kind, &what, element.source, &attribute.value, attribute.value_span) {
            *field = value;
        }
    }

    fn text<T, K: Kind<T>>(&mut self, kind: K, field: &mut T) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.has_text = true;
        }
        let Some(element) = self.elements().last().copied() else {
            return;
        };
        let what = format!("<{}>", element.name);
        let span = element.text_span.unwrap_or(element.name_span);
        if let Some(value) = self.judge(&kind, &what, element.source, &element.text, span) {
            *field = value;
        }
    }

    fn list<T, K: Kind<T>>(&mut self, _: Origin, need: Need, name: &'static str, kind: K, field: &mut Vec<T>) {
        self.know(name);
        let found = self.children(name);
        if found.is_empty() {
            return self.report_missing(need, name);
        }
        field.clear();
        for element in found {
            field.extend(self.value(element, &kind));
        }
    }

    fn block<B: Block>(&mut self, _: Origin, name: &'static str, field: &mut B) {
        self.know(name);
        let elements = self.children(name);
        self.walk_block(elements, field);
    }

    fn optional<B: Block>(&mut self, _: Origin, name: &'static str, many: Repeated, field: &mut Option<B>) {
        self.know(name);
        let mut elements = self.children(name);
        if many == Repeated::FirstCounts {
            for element in elements.drain(1.min(elements.len())..) {
                let message = format!("only the first <{}> counts; this one is ignored", element.name);
                self.report.warning(element.source, element.name_span, &message);
            }
        }
        if !elements.is_empty() {
            self.walk_block(elements, field.get_or_insert_default());
        }
    }

    fn blocks<B: Block>(&mut self, _: Origin, name: &'static str, field: &mut Vec<B>) {
        self.know(name);
        for element in self.children(name) {
            let mut block = B::default();
            self.walk_block(vec![element], &mut block);
            field.push(block);
        }
    }

    fn old<T, K: Kind<T>>(&mut self, name: &'static str, kind: K, instead: &'static str) -> Option<T> {
        self.know(name);
        let element = self.children(name).last().copied()?;
        let message = format!("<{name}> is an old option; write {instead}");
        self.report.warning(element.source, element.name_span, &message);
        self.value(element, &kind)
    }

    fn unused(&mut self, names: &[&'static str]) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.known.extend(names);
        }
    }

    fn foreign(&mut self) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.foreign = true;
        }
    }

    fn lacks(&self, name: &str) -> bool {
        self.children(name).is_empty() && self.find_attribute(name).is_none()
    }

    fn order(&self, name: &str) -> Option<usize> {
        self.elements()
            .iter()
            .flat_map(|element| &element.children)
            .position(|child| fits(child, name))
    }

    fn home_is_ossec(&self) -> bool {
        self.home == HomeKind::Ossec
    }

    fn error(&mut self, at: &str, message: &str) {
        self.complain(Severity::Error, at, message);
    }

    fn warning(&mut self, at: &str, message: &str) {
        self.complain(Severity::Warning, at, message);
    }
}

/// Whether an element stands right in another.
fn has(parent: &Element<'_>, child: &Element<'_>) -> bool {
    parent.children.iter().any(|other| std::ptr::eq(other, child))
}
