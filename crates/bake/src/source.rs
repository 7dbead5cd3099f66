//! Files of definitions, in HCL or JSON, as attributes and blocks. Values are not looked at yet.

use std::fmt;
use std::ops::Range;

use hcl_edit::expr::{Array, Expression, Object, ObjectKey};
use hcl_edit::structure::{Body as HclBody, Structure};
use hcl_edit::template::{Element, HeredocTemplate, StringTemplate};
use hcl_edit::visit_mut::{VisitMut, visit_heredoc_template_mut};
use hcl_edit::{Decorated, Span, parser};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::fault::{Fault, NOWHERE};

/// How deep values of JSON may be nested.
const DEEPEST: usize = 64;

/// A file that was given.
#[derive(Clone, Debug)]
pub struct Source {
    /// As it was asked for.
    pub name: String,
    pub text: String,
}

/// What stands between braces.
#[derive(Debug, Default)]
pub(crate) struct Body {
    pub attributes: Vec<Attribute>,
    pub blocks: Vec<Block>,
}

/// `NAME = VALUE`.
#[derive(Clone, Debug)]
pub(crate) struct Attribute {
    pub name: String,
    pub value: Expression,
    pub file: usize,
    /// Of the value.
    pub span: Option<Range<usize>>,
    /// What the value's own places are of: of the file, or of nothing.
    pub places: usize,
}

/// `KIND "LABEL" {…}`.
#[derive(Debug)]
pub(crate) struct Block {
    pub kind: String,
    pub labels: Vec<String>,
    pub body: Body,
    pub file: usize,
    /// Of its label, or of its kind where it has none.
    pub span: Option<Range<usize>>,
}

impl Body {
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }
}

impl Attribute {
    /// What is written as it is, not for its value: a type, a parameter. In JSON it is in a string.
    pub fn verbatim(&self, value: &Expression) -> Result<Expression, String> {
        match value {
            Expression::String(text) if self.places == NOWHERE => {
                parser::parse_expr(text).map_err(|error| format!("{:?}: {}", text.as_str(), error.message()))
            }
            other => Ok(other.clone()),
        }
    }
}

/// What is a block within another one, or in no other, and how many labels it has: JSON does not tell blocks from attributes.
fn labels_of(kind: &str, within: Option<&str>) -> Option<usize> {
    match (kind, within) {
        ("target" | "group" | "variable" | "function", None) => Some(1),
        ("validation", Some("variable")) => Some(0),
        _ => None,
    }
}

/// Reads a file: as what its name says, or else as what it can be read as.
pub(crate) fn parse(source: &Source, file: usize) -> Result<Body, Fault> {
    let json = || {
        let wrong = |error: serde_json::Error| {
            let at = offset(&source.text, error.line(), error.column());
            Fault::new("Invalid JSON", error.to_string()).at(file, Some(at..at + 1))
        };
        let document: &RawValue = serde_json::from_str(&source.text).map_err(wrong)?;
        Json { text: &source.text, file }.body(document, None, 0)
    };
    let hcl = || {
        let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
        let mut body = parser::parse_body(text).map_err(|error| {
            let at = error.location().offset();
            Fault::new("Invalid syntax", error.message()).at(file, Some(at..at + 1))
        })?;
        Heredocs { text }.visit_body_mut(&mut body);
        Ok(hcl_body(body, file))
    };
    match source.name.rsplit('.').next() {
        Some("json") => json(),
        Some("hcl") => hcl(),
        _ => hcl().or_else(|fault| json().map_err(|_| fault)),
    }
}

/// The byte at a line and a column, both from 1.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let lines: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    lines + column.saturating_sub(1)
}

/// Gives heredocs the text that they have in the file: the parser has taken the indent of some lines, which depends on more than it
/// looks at. Those that are to lose it have an indent afterwards, whichever.
struct Heredocs<'a> {
    text: &'a str,
}

impl VisitMut for Heredocs<'_> {
    fn visit_heredoc_template_mut(&mut self, node: &mut HeredocTemplate) {
        let is_flush = node.span().and_then(|span| self.text.get(span)).is_some_and(|text| text.starts_with("<<-"));
        if is_flush {
            for element in node.template.iter_mut() {
                if let Element::Literal(literal) = element
                    && let Some(text) = literal.span().and_then(|span| self.text.get(span))
                {
                    *literal.as_mut() = text.replace("$${", "${").replace("%%{", "%{");
                }
            }
            node.set_indent(0);
        }
        visit_heredoc_template_mut(self, node);
    }
}

fn hcl_body(body: HclBody, file: usize) -> Body {
    let mut read = Body::default();
    for structure in body {
        match structure {
            Structure::Attribute(attribute) => {
                let name = attribute.key.as_str().to_owned();
                let span = attribute.value.span();
                read.attributes.push(Attribute { name, value: attribute.value, file, span, places: file });
            }
            Structure::Block(block) => {
                let span = block.labels.first().map_or_else(|| block.ident.span(), Span::span);
                let labels = block.labels.iter().map(|label| label.as_str().to_owned()).collect();
                let kind = block.ident.as_str().to_owned();
                read.blocks.push(Block { kind, labels, body: hcl_body(block.body, file), file, span });
            }
        }
    }
    read
}

/// The properties of an object, in order; one name may be there several times.
struct Properties<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Properties<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Properties<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Properties(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// One value, not looked into further.
enum Node<'a> {
    Object(Vec<(String, &'a RawValue)>),
    Array(Vec<&'a RawValue>),
    Null,
    Bool(bool),
    Number(&'a str),
    String(String),
}

/// A file in JSON.
struct Json<'a> {
    text: &'a str,
    file: usize,
}

impl<'a> Json<'a> {
    fn node(&self, value: &'a RawValue, depth: usize) -> Result<Node<'a>, Fault> {
        let text = value.get();
        let wrong = |error: serde_json::Error| self.wrong(value, "Invalid JSON", &error.to_string());
        if depth > DEEPEST {
            return Err(self.wrong(value, "Invalid JSON", &format!("values are nested deeper than {DEEPEST} levels")));
        }
        Ok(match text.as_bytes().first() {
            Some(b'{') => Node::Object(serde_json::from_str::<Properties<'a>>(text).map_err(wrong)?.0),
            Some(b'[') => Node::Array(serde_json::from_str(text).map_err(wrong)?),
            Some(b'"') => Node::String(serde_json::from_str(text).map_err(wrong)?),
            Some(b'n') => Node::Null,
            Some(b't' | b'f') => Node::Bool(text == "true"),
            _ => Node::Number(text),
        })
    }

    /// Where a value is: raw values are parts of the text.
    fn span(&self, value: &RawValue) -> Option<Range<usize>> {
        let start = (value.get().as_ptr() as usize).checked_sub(self.text.as_ptr() as usize)?;
        Some(start..start + value.get().len())
    }

    fn wrong(&self, value: &RawValue, summary: &'static str, detail: &str) -> Fault {
        // What is long is told of by where it begins.
        let start = self.span(value).map(|span| span.start..span.start + 1);
        Fault::new(summary, detail).at(self.file, start)
    }

    /// What an object has of attributes and blocks.
    fn body(&self, value: &'a RawValue, within: Option<&str>, depth: usize) -> Result<Body, Fault> {
        let Node::Object(properties) = self.node(value, depth)? else {
            let detail = "A JSON object is required here, setting the arguments for this block.";
            return Err(self.wrong(value, "Incorrect JSON value type", detail));
        };
        let mut read = Body::default();
        for (name, value) in properties {
            match labels_of(&name, within) {
                Some(labels) => self.blocks(&name, labels, &mut Vec::new(), value, depth + 1, &mut read.blocks)?,
                // Comments.
                None if name == "//" => {}
                None => {
                    let (expression, span) = (self.value(value, depth + 1)?, self.span(value));
                    read.attributes.push(Attribute { name, value: expression, file: self.file, span, places: NOWHERE });
                }
            }
        }
        Ok(read)
    }

    /// Blocks are objects below their labels; several are arrays of those, at any height.
    fn blocks(
        &self,
        kind: &str,
        missing: usize,
        labels: &mut Vec<String>,
        value: &'a RawValue,
        depth: usize,
        into: &mut Vec<Block>,
    ) -> Result<(), Fault> {
        match self.node(value, depth)? {
            Node::Null => Ok(()),
            Node::Array(values) => {
                values.into_iter().try_for_each(|value| self.blocks(kind, missing, labels, value, depth + 1, into))
            }
            Node::Object(properties) if missing > 0 => properties.into_iter().try_for_each(|(label, value)| {
                labels.push(label);
                let done = self.blocks(kind, missing - 1, labels, value, depth + 1, into);
                labels.pop();
                done
            }),
            Node::Object(_) => {
                let span = self.span(value).map(|span| span.start..span.start + 1);
                let body = self.body(value, Some(kind), depth)?;
                into.push(Block { kind: kind.to_owned(), labels: labels.clone(), body, file: self.file, span });
                Ok(())
            }
            _ => {
                let detail = "A JSON object is required here, setting the arguments for this block.";
                Err(self.wrong(value, "Incorrect JSON value type", detail))
            }
        }
    }

    /// Strings are templates (HCL's JSON syntax, "Expressions").
    fn value(&self, value: &'a RawValue, depth: usize) -> Result<Expression, Fault> {
        Ok(match self.node(value, depth)? {
            Node::Null => Expression::null(),
            Node::Bool(value) => Expression::Bool(Decorated::new(value)),
            // One that is too large for the parser is as good as a string.
            Node::Number(number) => {
                parser::parse_expr(number).unwrap_or_else(|_| Expression::String(Decorated::new(number.to_owned())))
            }
            Node::String(text) => self.template(&text, value)?,
            Node::Array(values) => {
                let mut array = Array::new();
                values.into_iter().try_for_each(|value| self.value(value, depth + 1).map(|value| array.push(value)))?;
                Expression::Array(array)
            }
            Node::Object(properties) => {
                let mut object = Object::new();
                for (name, value) in properties.into_iter().filter(|(name, _)| name != "//") {
                    let key = ObjectKey::Expression(self.template(&name, value)?);
                    object.insert(key, self.value(value, depth + 1)?);
                }
                Expression::Object(object)
            }
        })
    }

    fn template(&self, text: &str, value: &RawValue) -> Result<Expression, Fault> {
        if !text.contains("${") && !text.contains("%{") {
            return Ok(Expression::String(Decorated::new(text.to_owned())));
        }
        let template = parser::parse_template(text);
        let template =
            template.map_err(|error| self.wrong(value, "Invalid template", &format!("{text:?}: {}", error.message())))?;
        Ok(Expression::StringTemplate(StringTemplate::from(template.into_iter().collect::<Vec<_>>())))
    }
}
