//! Templates: text with `${…}` and `%{…}` in it.

use hcl_edit::Span;
use hcl_edit::expr::Expression;
use hcl_edit::template::{Directive, Element, ForTemplateExpr, HeredocTemplate, Strip, Template};

use crate::evaluate::{Evaluated, Scope, evaluate as expression, pairs};
use crate::fault::Fault;
use crate::value::Value;

/// More than any template has to come to.
const LARGEST: usize = 16 << 20;

/// A template of one `${…}` alone is that value, whatever it is; all others are strings.
pub(crate) fn evaluate(template: &Template, scope: &Scope<'_>) -> Evaluated {
    if template.len() == 1
        && let Some(Element::Interpolation(interpolation)) = template.get(0)
    {
        return expression(&interpolation.expr, scope);
    }
    let mut text = String::new();
    write(&parts(template, (false, false), false), scope, &mut text)?;
    Ok(Value::String(text))
}

/// The lines of `<<NAME`, without what `<<-NAME` has them indented by.
pub(crate) fn heredoc(heredoc: &HeredocTemplate, scope: &Scope<'_>) -> Evaluated {
    let mut parts = parts(&heredoc.template, (false, false), true);
    if heredoc.indent().is_some() {
        let mut indent = usize::MAX;
        each_line(&mut parts, &mut true, &mut |line| {
            let spaces = line.chars().take_while(|character| character.is_whitespace()).count();
            if !line.ends_with('\n') || spaces < line.chars().count() {
                indent = indent.min(spaces);
            }
        });
        each_line(&mut parts, &mut true, &mut |line| {
            let spaces = line.char_indices().take_while(|(_, character)| character.is_whitespace() && *character != '\n');
            let cut = spaces.take(indent).last().map_or(0, |(at, character)| at + character.len_utf8());
            line.drain(..cut);
        });
    }
    let mut text = String::new();
    write(&parts, scope, &mut text)?;
    Ok(Value::String(text))
}

/// What a template is made of, without the white space that marks (`~`) have taken.
enum Part<'a> {
    Text(String),
    Value(&'a Expression),
    If { condition: &'a Expression, then: Vec<Part<'a>>, otherwise: Vec<Part<'a>> },
    For { each: &'a ForTemplateExpr, body: Vec<Part<'a>> },
}

fn strips_start(strip: Strip) -> bool {
    matches!(strip, Strip::Start | Strip::Both)
}

fn strips_end(strip: Strip) -> bool {
    matches!(strip, Strip::End | Strip::Both)
}

/// The marks of an element, at its beginning and at its end.
fn outer(element: &Element) -> (bool, bool) {
    match element {
        Element::Literal(_) => (false, false),
        Element::Interpolation(one) => (strips_start(one.strip), strips_end(one.strip)),
        Element::Directive(directive) => match &**directive {
            Directive::If(one) => (strips_start(one.if_expr.strip), strips_end(one.endif_expr.strip)),
            Directive::For(one) => (strips_start(one.for_expr.strip), strips_end(one.endfor_expr.strip)),
        },
    }
}

/// The parts between two marks. In a heredoc each line is a part of its own, and marks take white space of one alone.
fn parts<'a>(template: &'a Template, (start, end): (bool, bool), by_line: bool) -> Vec<Part<'a>> {
    let elements: Vec<&'a Element> = template.iter().collect();
    let mut parts = Vec::new();
    for (index, element) in elements.iter().enumerate() {
        match element {
            Element::Literal(literal) => {
                let before = index.checked_sub(1).map_or(start, |index| outer(elements[index]).1);
                let after = elements.get(index + 1).map_or(end, |element| outer(element).0);
                let mut texts: Vec<&str> = match by_line {
                    true => literal.split_inclusive('\n').collect(),
                    false => vec![literal.as_str()],
                };
                if let Some(first) = texts.first_mut().filter(|_| before) {
                    *first = first.trim_start();
                }
                if let Some(last) = texts.last_mut().filter(|_| after) {
                    *last = last.trim_end();
                }
                parts.extend(texts.into_iter().map(|text| Part::Text(text.to_owned())));
            }
            Element::Interpolation(interpolation) => parts.push(Part::Value(&interpolation.expr)),
            Element::Directive(directive) => parts.push(match &**directive {
                Directive::If(one) => {
                    let (first, end) = (&one.if_expr, strips_start(one.endif_expr.strip));
                    let middle = one.else_expr.as_ref().map_or(end, |other| strips_start(other.strip));
                    let other = one.else_expr.as_ref();
                    Part::If {
                        condition: &first.cond_expr,
                        then: self::parts(&first.template, (strips_end(first.strip), middle), by_line),
                        otherwise: other
                            .map(|other| self::parts(&other.template, (strips_end(other.strip), end), by_line))
                            .unwrap_or_default(),
                    }
                }
                Directive::For(one) => {
                    let marks = (strips_end(one.for_expr.strip), strips_start(one.endfor_expr.strip));
                    Part::For { each: &one.for_expr, body: self::parts(&one.for_expr.template, marks, by_line) }
                }
            }),
        }
    }
    parts
}

/// The texts with which lines begin.
fn each_line(parts: &mut [Part<'_>], at_start: &mut bool, see: &mut impl FnMut(&mut String)) {
    for part in parts {
        match part {
            Part::Text(text) => {
                let ends = text.ends_with('\n');
                if *at_start {
                    see(text);
                }
                *at_start = ends;
            }
            Part::Value(_) => *at_start = false,
            Part::If { then, otherwise, .. } => {
                *at_start = false;
                each_line(then, at_start, see);
                *at_start = false;
                each_line(otherwise, at_start, see);
                *at_start = false;
            }
            Part::For { body, .. } => {
                *at_start = false;
                each_line(body, at_start, see);
                *at_start = false;
            }
        }
    }
}

fn write(parts: &[Part<'_>], scope: &Scope<'_>, text: &mut String) -> Result<(), Fault> {
    for part in parts {
        match part {
            _ if text.len() > LARGEST => {
                return Err(Fault::new("Too large", format!("The template comes to more than {LARGEST} bytes.")));
            }
            Part::Text(literal) => *text += literal,
            Part::Value(value) => {
                let shown = shown(&expression(value, scope)?);
                *text += &shown.map_err(|fault| fault.at(scope.file, value.span()))?;
            }
            Part::If { condition, then, otherwise } => {
                let value = expression(condition, scope)?;
                let wrong = || Fault::new("Incorrect condition type", "The condition expression must be of type bool.");
                let truth = value.truth().ok_or_else(|| wrong().at(scope.file, condition.span()))?;
                write(if truth { then } else { otherwise }, scope, text)?;
            }
            Part::For { each, body } => {
                let collection = expression(&each.collection_expr, scope)?;
                let pairs = pairs(&collection).map_err(|fault| fault.at(scope.file, each.collection_expr.span()))?;
                for (key, value) in pairs {
                    let key = each.key_var.as_ref().map(|name| (name.as_str().to_owned(), key));
                    let names = key.into_iter().chain([(each.value_var.as_str().to_owned(), value)]);
                    scope.with(names, |scope| write(body, scope, text))?;
                }
            }
        }
    }
    Ok(())
}

fn shown(value: &Value) -> Result<String, Fault> {
    const SUMMARY: &str = "Invalid template interpolation value";
    value.text().ok_or_else(|| match value {
        Value::Null => Fault::new(SUMMARY, "The expression result is null. Cannot include a null value in a string template."),
        _ => Fault::new(SUMMARY, "Cannot include the given value in a string template: string required."),
    })
}
