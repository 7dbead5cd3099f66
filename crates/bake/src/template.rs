//! Templates: text with `${…}` and `%{…}` in it.

use hcl_edit::Span;
use hcl_edit::template::{Directive, Element, ForDirective, IfDirective, Strip, Template};

use crate::evaluate::{Evaluated, Scope, evaluate as expression, pairs};
use crate::fault::Fault;
use crate::value::Value;

/// A template of one `${…}` alone is that value, whatever it is; all others are strings.
pub(crate) fn evaluate(template: &Template, scope: &Scope<'_>) -> Evaluated {
    if template.len() == 1
        && let Some(Element::Interpolation(interpolation)) = template.get(0)
    {
        return expression(&interpolation.expr, scope);
    }
    let mut text = Text::default();
    write(template, scope, &mut text)?;
    Ok(Value::String(text.0))
}

/// What is written. `~` takes the white space before it and behind it.
#[derive(Default)]
struct Text(String);

fn strips_start(strip: Strip) -> bool {
    matches!(strip, Strip::Start | Strip::Both)
}

fn strips_end(strip: Strip) -> bool {
    matches!(strip, Strip::End | Strip::Both)
}

/// The marks of an element, at its first and at its last `~`.
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

fn write(template: &Template, scope: &Scope<'_>, text: &mut Text) -> Result<(), Fault> {
    within(template, (false, false), scope, text)
}

/// Writes what stands between two marks.
fn within(template: &Template, (start, end): (bool, bool), scope: &Scope<'_>, text: &mut Text) -> Result<(), Fault> {
    let elements: Vec<&Element> = template.iter().collect();
    for (index, element) in elements.iter().enumerate() {
        match element {
            Element::Literal(literal) => {
                let mut literal = literal.as_str();
                let before = index.checked_sub(1).map_or(start, |index| outer(elements[index]).1);
                let after = elements.get(index + 1).map_or(end, |element| outer(element).0);
                if before {
                    literal = literal.trim_start();
                }
                if after {
                    literal = literal.trim_end();
                }
                text.0 += literal;
            }
            Element::Interpolation(interpolation) => {
                let value = expression(&interpolation.expr, scope)?;
                text.0 += &shown(&value).map_err(|fault| fault.at(scope.file, interpolation.expr.span()))?;
            }
            Element::Directive(directive) => match &**directive {
                Directive::If(one) => condition(one, scope, text)?,
                Directive::For(one) => repeat(one, scope, text)?,
            },
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

fn condition(directive: &IfDirective, scope: &Scope<'_>, text: &mut Text) -> Result<(), Fault> {
    let IfDirective { if_expr, else_expr, endif_expr, .. } = directive;
    let value = expression(&if_expr.cond_expr, scope)?;
    let wrong = || Fault::new("Incorrect condition type", "The condition expression must be of type bool.");
    let truth = value.truth().ok_or_else(|| wrong().at(scope.file, if_expr.cond_expr.span()))?;
    let end = strips_start(endif_expr.strip);
    match else_expr {
        _ if truth => {
            let end = else_expr.as_ref().map_or(end, |other| strips_start(other.strip));
            within(&if_expr.template, (strips_end(if_expr.strip), end), scope, text)
        }
        Some(other) => within(&other.template, (strips_end(other.strip), end), scope, text),
        None => Ok(()),
    }
}

fn repeat(directive: &ForDirective, scope: &Scope<'_>, text: &mut Text) -> Result<(), Fault> {
    let ForDirective { for_expr, endfor_expr, .. } = directive;
    let collection = expression(&for_expr.collection_expr, scope)?;
    let pairs = pairs(&collection).map_err(|fault| fault.at(scope.file, for_expr.collection_expr.span()))?;
    let marks = (strips_end(for_expr.strip), strips_start(endfor_expr.strip));
    pairs.into_iter().try_for_each(|(key, value)| {
        let key = for_expr.key_var.as_ref().map(|name| (name.as_str().to_owned(), key));
        let names = key.into_iter().chain([(for_expr.value_var.as_str().to_owned(), value)]);
        scope.with(names, |scope| within(&for_expr.template, marks, scope, text))
    })
}
