//! Files of definitions, in HCL or JSON, as attributes and blocks. Values are not looked at yet.

use std::ops::Range;

use hcl_edit::expr::{Array, Expression, Object, ObjectKey};
use hcl_edit::structure::{Body as HclBody, Structure};
use hcl_edit::template::StringTemplate;
use hcl_edit::{Decorated, Span, parser};
use serde_json::Value as Json;

use crate::fault::Fault;

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
    pub span: Option<Range<usize>>,
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

/// What has labels, and how many: JSON does not tell blocks from attributes.
fn labels_of(kind: &str) -> Option<usize> {
    match kind {
        "target" | "group" | "variable" | "function" => Some(1),
        "validation" => Some(0),
        _ => None,
    }
}

/// Reads a file: as what its name says, or else as what it can be read as.
pub(crate) fn parse(source: &Source, file: usize) -> Result<Body, Fault> {
    let json = || {
        let document = serde_json::from_str(&source.text).map_err(|error| {
            let at = offset(&source.text, error.line(), error.column());
            Fault::new("Invalid JSON", error.to_string()).at(file, Some(at..at + 1))
        })?;
        json_body(&document, file)
    };
    let hcl = || {
        let body = parser::parse_body(&source.text).map_err(|error| {
            let at = error.location().offset();
            Fault::new("Invalid syntax", error.message()).at(file, Some(at..at + 1))
        })?;
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

fn hcl_body(body: HclBody, file: usize) -> Body {
    let mut read = Body::default();
    for structure in body {
        match structure {
            Structure::Attribute(attribute) => {
                let name = attribute.key.as_str().to_owned();
                let span = attribute.span();
                let mut value = attribute.value;
                dedent(&mut value);
                read.attributes.push(Attribute { name, value, file, span });
            }
            Structure::Block(block) => {
                let span = block.labels.first().map_or_else(|| block.ident.span(), |label| label.span());
                let labels = block.labels.iter().map(|label| label.as_str().to_owned()).collect();
                read.blocks.push(Block {
                    kind: block.ident.as_str().to_owned(),
                    labels,
                    body: hcl_body(block.body, file),
                    file,
                    span,
                });
            }
        }
    }
    read
}

/// Takes the indent from all `<<-` below a value, once.
fn dedent(value: &mut Expression) {
    struct Dedent;
    impl hcl_edit::visit_mut::VisitMut for Dedent {
        fn visit_heredoc_template_mut(&mut self, node: &mut hcl_edit::template::HeredocTemplate) {
            node.dedent();
            hcl_edit::visit_mut::visit_heredoc_template_mut(self, node);
        }
    }
    hcl_edit::visit_mut::VisitMut::visit_expr_mut(&mut Dedent, value);
}

/// An object, or several that are read as one.
fn json_body(document: &Json, file: usize) -> Result<Body, Fault> {
    let mut read = Body::default();
    let objects = match document {
        Json::Array(objects) => objects.as_slice(),
        object => std::slice::from_ref(object),
    };
    for object in objects {
        let Json::Object(properties) = object else {
            return Err(Fault::new(
                "Root value must be object",
                "The root value in a JSON-based configuration must be an object.",
            ));
        };
        for (name, value) in properties {
            match labels_of(name) {
                Some(labels) => json_blocks(name, labels, &mut Vec::new(), value, file, &mut read.blocks)?,
                // Comments.
                None if name == "//" => {}
                None => read.attributes.push(Attribute { name: name.clone(), value: json_value(value)?, file, span: None }),
            }
        }
    }
    Ok(read)
}

/// Blocks are objects below their labels; several are arrays of those, at any height.
fn json_blocks(
    kind: &str,
    missing: usize,
    labels: &mut Vec<String>,
    value: &Json,
    file: usize,
    into: &mut Vec<Block>,
) -> Result<(), Fault> {
    match value {
        Json::Null => Ok(()),
        Json::Array(values) => values.iter().try_for_each(|value| json_blocks(kind, missing, labels, value, file, into)),
        Json::Object(properties) if missing > 0 => properties.iter().try_for_each(|(label, value)| {
            labels.push(label.clone());
            let done = json_blocks(kind, missing - 1, labels, value, file, into);
            labels.pop();
            done
        }),
        Json::Object(_) => {
            let body = json_body(value, file)?;
            into.push(Block { kind: kind.to_owned(), labels: labels.clone(), body, file, span: None });
            Ok(())
        }
        _ => Err(Fault::new("Incorrect JSON value type", format!("{kind:?} has to be a JSON object."))),
    }
}

/// Strings are templates (HCL's JSON syntax, "Expressions").
fn json_value(value: &Json) -> Result<Expression, Fault> {
    Ok(match value {
        Json::Null => Expression::null(),
        Json::Bool(value) => Expression::Bool(Decorated::new(*value)),
        Json::Number(number) => parser::parse_expr(&number.to_string())
            .map_err(|error| Fault::new("Invalid number", format!("{number}: {}", error.message())))?,
        Json::String(text) => json_template(text)?,
        Json::Array(values) => {
            let mut array = Array::new();
            values.iter().try_for_each(|value| json_value(value).map(|value| array.push(value)))?;
            Expression::Array(array)
        }
        Json::Object(properties) => {
            let mut object = Object::new();
            for (name, value) in properties.iter().filter(|(name, _)| *name != "//") {
                object.insert(ObjectKey::Expression(json_template(name)?), json_value(value)?);
            }
            Expression::Object(object)
        }
    })
}

fn json_template(text: &str) -> Result<Expression, Fault> {
    if !text.contains("${") && !text.contains("%{") {
        return Ok(Expression::String(Decorated::new(text.to_owned())));
    }
    let template = parser::parse_template(text);
    let template = template.map_err(|error| Fault::new("Invalid template", format!("{text:?}: {}", error.message())))?;
    Ok(Expression::StringTemplate(StringTemplate::from(template.into_iter().collect::<Vec<_>>())))
}

/// What is written as it is, not for its value: a type, a parameter. In JSON it is in a string.
pub(crate) fn verbatim(value: &Expression) -> Option<Expression> {
    match value {
        Expression::String(text) => parser::parse_expr(text).ok(),
        other => Some(other.clone()),
    }
}
