//! What expressions come to.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use hcl_edit::Span;
use hcl_edit::expr::{
    BinaryOp, BinaryOperator, Conditional, Expression, ForExpr, FuncCall, ObjectKey, Traversal, TraversalOperator, UnaryOperator,
};

use crate::fault::Fault;
use crate::functions;
use crate::template;
use crate::value::{Kind, Number, Value};

pub(crate) type Evaluated = Result<Value, Fault>;

/// What names stand for.
pub(crate) trait Names {
    /// A variable of the definition.
    fn variable(&self, name: &str) -> Result<Option<Value>, Fault>;

    /// An attribute of a block, `target.NAME.ATTRIBUTE`, or all of it: outside if there is no such kind of blocks.
    fn block(&self, kind: &str, name: &str, attribute: Option<&str>) -> Option<Result<Option<Value>, Fault>>;

    /// A function of the definition.
    fn function(&self, name: &str) -> Option<&Function>;
}

/// A function that the definition has.
#[derive(Debug)]
pub(crate) struct Function {
    pub parameters: Vec<String>,
    pub variadic: Option<String>,
    pub result: Expression,
    pub file: usize,
}

/// Where an expression stands: the file, and names that count there alone.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub names: &'a dyn Names,
    pub file: usize,
    pub locals: &'a [(String, Value)],
}

impl Scope<'_> {
    fn local(&self, name: &str) -> Option<&Value> {
        self.locals.iter().rev().find(|(local, _)| local == name).map(|(_, value)| value)
    }

    fn variable(&self, name: &str, span: Option<Range<usize>>) -> Evaluated {
        if let Some(value) = self.local(name) {
            return Ok(value.clone());
        }
        let unknown = || Fault::new("Unknown variable", format!("There is no variable named {name:?}."));
        let found = self.names.variable(name).and_then(|found| found.ok_or_else(unknown));
        found.map_err(|fault| fault.at(self.file, span))
    }

    /// The same place with more names.
    pub fn with<T>(&self, more: impl IntoIterator<Item = (String, Value)>, then: impl FnOnce(&Scope<'_>) -> T) -> T {
        let mut locals = self.locals.to_vec();
        locals.extend(more);
        then(&Scope { locals: &locals, ..*self })
    }
}

/// How deep values may depend on each other, expression by expression.
const DEEPEST: usize = 4096;
/// Of a value, in bytes of strings and elements of lists.
const LARGEST: usize = 16 << 20;

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// One expression within others, as long as it is evaluated.
struct Within;

impl Within {
    fn enter() -> Result<Within, Fault> {
        DEPTH.with(|depth| match depth.get() {
            DEEPEST.. => {
                Err(Fault::new("Too deep", format!("Values depend on each other more than {DEEPEST} expressions deep.")))
            }
            own => {
                depth.set(own + 1);
                Ok(Within)
            }
        })
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(depth.get() - 1));
    }
}

/// Whether there is room for a value; otherwise nothing is left of it.
fn weigh(value: &Value, room: usize) -> Option<usize> {
    let room = room.checked_sub(1)?;
    match value {
        Value::String(text) => room.checked_sub(text.len()),
        Value::List(_, values) | Value::Set(_, values) | Value::Tuple(values) => {
            values.iter().try_fold(room, |room, value| weigh(value, room))
        }
        Value::Map(_, values) | Value::Object(values) => {
            values.iter().try_fold(room, |room, (name, value)| weigh(value, room.checked_sub(name.len())?))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Some(room),
    }
}

pub(crate) fn evaluate(expression: &Expression, scope: &Scope<'_>) -> Evaluated {
    let _within = Within::enter().map_err(|fault| fault.at(scope.file, expression.span()))?;
    let value = evaluated(expression, scope)?;
    // What is only handed on has been weighed.
    let is_made = !matches!(expression, Expression::Variable(_) | Expression::Parenthesis(_));
    match is_made && weigh(&value, LARGEST).is_none() {
        true => {
            Err(Fault::new("Too large", format!("The value is larger than {LARGEST} bytes.")).at(scope.file, expression.span()))
        }
        false => Ok(value),
    }
}

fn evaluated(expression: &Expression, scope: &Scope<'_>) -> Evaluated {
    let done = match expression {
        Expression::Null(_) => Ok(Value::Null),
        Expression::Bool(value) => Ok(Value::Bool(**value)),
        Expression::Number(number) => literal(number.value()),
        Expression::String(text) => Ok(Value::String(text.value().clone())),
        Expression::Array(array) => array.iter().map(|value| evaluate(value, scope)).collect::<Result<_, _>>().map(Value::Tuple),
        Expression::Object(object) => {
            let one = |(name, value): (&ObjectKey, &hcl_edit::expr::ObjectValue)| {
                Ok((key(name, scope)?, evaluate(value.expr(), scope)?))
            };
            object.iter().map(one).collect::<Result<_, _>>().map(Value::Object)
        }
        Expression::StringTemplate(text) => template::evaluate(text, scope),
        Expression::HeredocTemplate(text) => template::heredoc(text, scope),
        Expression::Parenthesis(inner) => evaluate(inner.inner(), scope),
        Expression::Variable(name) => scope.variable(name.as_str(), name.span()),
        Expression::Conditional(conditional) => choose(conditional, scope),
        Expression::FuncCall(call) => called(call, scope),
        Expression::Traversal(traversal) => traverse(traversal, scope),
        Expression::UnaryOp(operation) => {
            let value = evaluate(&operation.expr, scope)?;
            match operation.operator.value() {
                UnaryOperator::Neg => {
                    number(&value, "Unsuitable value for unary operand").map(|number| Value::Number(negated(number)))
                }
                UnaryOperator::Not => value
                    .truth()
                    .map(|truth| Value::Bool(!truth))
                    .ok_or_else(|| operand("Unsuitable value for unary operand: bool required")),
            }
        }
        Expression::BinaryOp(operation) => operate(operation, scope),
        Expression::ForExpr(each) => for_each(each, scope),
    };
    done.map_err(|fault| fault.at(scope.file, expression.span()))
}

pub(crate) fn negated(number: Number) -> Number {
    match number {
        Number::Whole(whole) => Number::Whole(whole.saturating_neg()),
        Number::Fraction(value) => Number::Fraction(-value),
    }
}

fn literal(number: &hcl_edit::Number) -> Evaluated {
    let whole = number.as_u64().map(i128::from).or_else(|| number.as_i64().map(i128::from));
    let read = whole.map(Number::Whole).or_else(|| number.as_f64().and_then(Number::of));
    read.map(Value::Number).ok_or_else(|| Fault::new("Invalid number literal", format!("{number} is no number that can be used")))
}

/// A name is its own key; anything else is evaluated.
fn key(key: &ObjectKey, scope: &Scope<'_>) -> Result<String, Fault> {
    let expression = match key {
        ObjectKey::Ident(name) => return Ok(name.as_str().to_owned()),
        ObjectKey::Expression(expression) => expression,
    };
    // As a key stands for itself, so does one that was read as an expression.
    if let Expression::Variable(name) = expression {
        return Ok(name.as_str().to_owned());
    }
    let value = evaluate(expression, scope)?;
    let fault = match &value {
        Value::Null => Fault::new("Null value as key", "Can't use a null value as a key."),
        _ => Fault::new("Incorrect key type", "Can't use this value as a key: string required."),
    };
    value.text().ok_or_else(|| fault.at(scope.file, expression.span()))
}

fn choose(conditional: &Conditional, scope: &Scope<'_>) -> Evaluated {
    let condition = evaluate(&conditional.cond_expr, scope)?;
    let place = conditional.cond_expr.span();
    let wrong = |fault: Fault| fault.at(scope.file, place.clone());
    if condition == Value::Null {
        return Err(wrong(Fault::new("Null condition", "The condition value is null. Conditions must either be true or false.")));
    }
    let truth = condition.truth();
    let truth =
        truth.ok_or_else(|| wrong(Fault::new("Incorrect condition type", "The condition expression must be of type bool.")))?;
    let (chosen, other) =
        if truth { (&conditional.true_expr, &conditional.false_expr) } else { (&conditional.false_expr, &conditional.true_expr) };
    let chosen = evaluate(chosen, scope)?;
    // What is not chosen need not come to anything; but where it does, both are of one kind.
    let Ok(other) = evaluate(other, scope) else { return Ok(chosen) };
    let (own, others) = (chosen.kind(), other.kind());
    match own.unite(&others) {
        Some(kind) => Ok(chosen.convert(&kind).unwrap_or(chosen)),
        None => {
            let (yes, no) = if truth { (own, others) } else { (others, own) };
            let detail = format!(
                "The true and false result expressions must have consistent types. The 'true' value is {yes}, but the 'false' value is {no}."
            );
            Err(Fault::new("Inconsistent conditional result types", detail))
        }
    }
}

fn called(call: &FuncCall, scope: &Scope<'_>) -> Evaluated {
    let name = call.name.name.as_str();
    if call.name.is_namespaced() {
        let place = call.name.name.span();
        return Err(Fault::new("Call to unknown function", format!("There is no function named {name:?} in a namespace."))
            .at(scope.file, place));
    }
    // These two see their arguments fail.
    let mut last = None;
    match name {
        "can" => return Ok(Value::Bool(call.args.iter().all(|argument| evaluate(argument, scope).is_ok()))),
        "try" => {
            for argument in call.args.iter() {
                match evaluate(argument, scope) {
                    Ok(value) => return Ok(value),
                    Err(fault) => last = Some(fault),
                }
            }
            let why = last.map_or_else(
                || "at least one argument is required".to_owned(),
                |fault| format!("no expression succeeded:\n- {}\n  {}", fault.summary, fault.detail),
            );
            return Err(failed(name, &why));
        }
        "convert" => return convert(call, scope),
        _ => {}
    }
    let mut values = Vec::with_capacity(call.args.len());
    for (index, argument) in call.args.iter().enumerate() {
        let value = evaluate(argument, scope)?;
        if call.args.expand_final() && index + 1 == call.args.len() {
            let wrong = || {
                Fault::new(
                    "Invalid expanding argument value",
                    "The expanding argument (indicated by ...) must be of a tuple, list, or set type.",
                )
            };
            values.extend(value.elements().ok_or_else(|| wrong().at(scope.file, argument.span()))?.iter().cloned());
        } else {
            values.push(value);
        }
    }
    if let Some(done) = functions::call(name, &values) {
        return done.map_err(|wrong| match wrong {
            functions::Wrong::Result(why) => failed(name, &why),
            functions::Wrong::Argument(index, why) => {
                let place = call.args.get(index).and_then(Span::span);
                Fault::new(
                    "Invalid function argument",
                    format!("Invalid value for {:?} parameter: {why}.", functions::parameter(name, index)),
                )
                .at(scope.file, place)
            }
            functions::Wrong::TooFew(missing) => {
                Fault::new("Not enough function arguments", format!("Function {name:?} expects {missing}."))
            }
            functions::Wrong::TooMany(count) => {
                Fault::new("Too many function arguments", format!("Function {name:?} expects only {count} argument(s)."))
            }
        });
    }
    let Some(function) = scope.names.function(name) else {
        let fault = Fault::new("Call to unknown function", format!("There is no function named {name:?}."));
        return Err(fault.at(scope.file, call.name.name.span()));
    };
    let count = function.parameters.len();
    if values.len() < count {
        let missing = &function.parameters[values.len()];
        let detail = format!("Function {name:?} expects {count} argument(s). Missing value for {missing:?}.");
        return Err(Fault::new("Not enough function arguments", detail));
    }
    if let Some(index) = values.iter().position(|value| *value == Value::Null) {
        let parameter = function.parameters.get(index).or(function.variadic.as_ref()).map_or("", String::as_str);
        let detail = format!("Invalid value for {parameter:?} parameter: argument must not be null.");
        let place = call.args.get(index).and_then(Span::span);
        return Err(Fault::new("Invalid function argument", detail).at(scope.file, place));
    }
    let rest = values.split_off(count);
    if function.variadic.is_none() && !rest.is_empty() {
        return Err(Fault::new("Too many function arguments", format!("Function {name:?} expects only {count} argument(s).")));
    }
    let mut locals: Vec<(String, Value)> = function.parameters.iter().cloned().zip(values).collect();
    locals.extend(function.variadic.iter().map(|name| (name.clone(), Value::Tuple(rest.clone()))));
    evaluate(&function.result, &Scope { names: scope.names, file: function.file, locals: &locals })
}

fn failed(name: &str, why: &str) -> Fault {
    Fault::new("Error in function call", format!("Call to function {name:?} failed: {why}."))
}

/// `convert(VALUE, KIND)`: the second argument is no value.
fn convert(call: &FuncCall, scope: &Scope<'_>) -> Evaluated {
    let (Some(value), Some(kind), None) = (call.args.get(0), call.args.get(1), call.args.get(2)) else {
        return Err(Fault::new("Not enough function arguments", "Function \"convert\" expects 2 argument(s)."));
    };
    let kind = kind_of(kind).map_err(|fault| fault.at(scope.file, kind.span()))?;
    evaluate(value, scope)?.convert(&kind).map_err(|why| failed("convert", &why))
}

/// A kind as it is written: `string`, `list(number)`, `object({a = bool})` (HCL, `typeexpr`).
pub(crate) fn kind_of(expression: &Expression) -> Result<Kind, Fault> {
    let invalid = |detail: &str| Fault::new("Invalid type specification", detail);
    match expression {
        Expression::Variable(name) => match name.as_str() {
            "bool" => Ok(Kind::Bool),
            "number" => Ok(Kind::Number),
            "string" => Ok(Kind::String),
            "any" => Ok(Kind::Any),
            "list" | "set" | "map" => Err(invalid(&format!(
                "The {} type constructor requires one argument specifying the element type.",
                name.as_str()
            ))),
            "object" => Err(invalid(
                "The object type constructor requires one argument specifying the attribute types and values as a map.",
            )),
            "tuple" => Err(invalid("The tuple type constructor requires one argument specifying the element types as a list.")),
            other => Err(invalid(&format!("The keyword {other:?} is not a valid type specification."))),
        },
        Expression::FuncCall(call) => match (call.name.name.as_str(), call.args.get(0), call.args.len()) {
            ("list", Some(of), 1) => Ok(Kind::list(kind_of(of)?)),
            ("set", Some(of), 1) => Ok(Kind::Set(Box::new(kind_of(of)?))),
            ("map", Some(of), 1) => Ok(Kind::map(kind_of(of)?)),
            ("tuple", Some(Expression::Array(kinds)), 1) => kinds.iter().map(kind_of).collect::<Result<_, _>>().map(Kind::Tuple),
            ("object", Some(Expression::Object(kinds)), 1) => {
                let one = |(name, kind): (&ObjectKey, &hcl_edit::expr::ObjectValue)| {
                    let name = match name {
                        ObjectKey::Ident(name) => name.as_str().to_owned(),
                        ObjectKey::Expression(Expression::Variable(name)) => name.as_str().to_owned(),
                        ObjectKey::Expression(Expression::String(name)) => name.value().clone(),
                        ObjectKey::Expression(_) => {
                            return Err(invalid("Object constructor map keys must be attribute names."));
                        }
                    };
                    Ok((name, optional(kind.expr())?))
                };
                kinds.iter().map(one).collect::<Result<_, _>>().map(Kind::Object)
            }
            (name, ..) => Err(invalid(&format!("Keyword {name:?} is not a valid type constructor."))),
        },
        _ => Err(invalid(
            "A type specification is either a primitive type keyword (bool, number, string) or a complex type constructor call, like list(string).",
        )),
    }
}

/// A kind in an object, which may be `optional(KIND)`.
fn optional(expression: &Expression) -> Result<Kind, Fault> {
    match expression {
        Expression::FuncCall(call) if call.name.name.as_str() == "optional" && call.args.len() == 1 => match call.args.get(0) {
            Some(kind) => kind_of(kind).map(|kind| Kind::Optional(Box::new(kind))),
            None => kind_of(expression),
        },
        other => kind_of(other),
    }
}

fn traverse(traversal: &Traversal, scope: &Scope<'_>) -> Evaluated {
    let operators: Vec<&TraversalOperator> = traversal.operators.iter().map(|operator| operator.value()).collect();
    if let Expression::Variable(root) = &traversal.expr
        && scope.local(root).is_none()
    {
        let step = |index: usize| {
            operators.get(index).and_then(|operator| match operator {
                TraversalOperator::GetAttr(name) => Some(name.as_str().to_owned()),
                TraversalOperator::Index(Expression::String(name)) => Some(name.value().clone()),
                _ => None,
            })
        };
        if let Some(name) = step(0) {
            let attribute = step(1);
            if let Some(found) = scope.names.block(root.as_str(), &name, attribute.as_deref()) {
                let span = traversal.span();
                let missing = || match &attribute {
                    Some(attribute) => Fault::new(
                        "Unsupported attribute",
                        format!("This object does not have an attribute named {attribute:?}."),
                    ),
                    None => Fault::new("Unknown variable", format!("There is no variable named {:?}.", root.as_str())),
                };
                let value = found.and_then(|found| found.ok_or_else(missing)).map_err(|fault| fault.at(scope.file, span))?;
                return follow(value, &operators[if attribute.is_some() { 2 } else { 1 }..], scope);
            }
        }
    }
    let value = evaluate(&traversal.expr, scope)?;
    follow(value, &operators, scope)
}

/// What is behind a value, step by step.
fn follow(mut value: Value, operators: &[&TraversalOperator], scope: &Scope<'_>) -> Evaluated {
    for (index, operator) in operators.iter().enumerate() {
        let rest = &operators[index + 1..];
        value = match operator {
            TraversalOperator::GetAttr(name) => attribute(&value, name.as_str())?,
            TraversalOperator::LegacyIndex(number) => indexed(&value, &Value::from(i128::from(*number.value())))?,
            TraversalOperator::Index(expression) => {
                let key = evaluate(expression, scope)?;
                indexed(&value, &key).map_err(|fault| fault.at(scope.file, expression.span()))?
            }
            TraversalOperator::AttrSplat(_) | TraversalOperator::FullSplat(_) => {
                let is_full = matches!(operator, TraversalOperator::FullSplat(_));
                let of_each = |operator: &&&TraversalOperator| match operator {
                    TraversalOperator::GetAttr(_) => true,
                    TraversalOperator::Index(_) | TraversalOperator::LegacyIndex(_) => is_full,
                    _ => false,
                };
                let (each, after) = rest.split_at(rest.iter().take_while(of_each).count());
                let values = match &value {
                    // Of nothing there is nothing, and what is no list is one of itself.
                    Value::Null => Vec::new(),
                    value => value.elements().map_or_else(|| vec![value.clone()], <[Value]>::to_vec),
                };
                let values = values.into_iter().map(|value| follow(value, each, scope)).collect::<Result<_, _>>()?;
                return follow(Value::Tuple(values), after, scope);
            }
        };
    }
    Ok(value)
}

fn attribute(value: &Value, name: &str) -> Evaluated {
    let (summary, detail) = match value {
        Value::Null => ("Attempt to get attribute from null value", "This value is null, so it does not have any attributes.".to_owned()),
        Value::Map(_, values) | Value::Object(values) => match (values.get(name), value) {
            (Some(value), _) => return Ok(value.clone()),
            (None, Value::Map(..)) => ("Missing map element", format!("This map does not have an element with the key {name:?}.")),
            (None, _) => ("Unsupported attribute", format!("This object does not have an attribute named {name:?}.")),
        },
        value if value.elements().is_some() => {
            ("Unsupported attribute", "Can't access attributes on a list of objects. Did you mean to access an attribute for a specific element of the list, or across all elements of the list?".to_owned())
        }
        value => ("Unsupported attribute", format!("Can't access attributes on a primitive-typed value ({}).", value.kind())),
    };
    Err(Fault::new(summary, detail))
}

/// `VALUE[KEY]`.
pub(crate) fn indexed(value: &Value, key: &Value) -> Evaluated {
    let invalid = |detail: &str| Fault::new("Invalid index", detail);
    match value {
        Value::Null => Err(Fault::new("Attempt to index null value", "This value is null, so it does not have any indices.")),
        Value::List(_, values) | Value::Tuple(values) => {
            let index = match key.convert(&Kind::Number) {
                Ok(Value::Number(number)) => number,
                _ => {
                    return Err(invalid("The given key does not identify an element in this collection value: number required."));
                }
            };
            let Some(index) = index.whole::<i128>() else {
                return Err(invalid(
                    "The given key does not identify an element in this collection value: indexing a sequence requires a whole number, but the given index has a fractional part.",
                ));
            };
            let found = usize::try_from(index).ok().and_then(|index| values.get(index));
            found.cloned().ok_or_else(|| match (index < 0, values.is_empty()) {
                (true, _) => invalid("The given key does not identify an element in this collection value: a negative number is not a valid index for a sequence."),
                (false, true) => invalid("The given key does not identify an element in this collection value: the collection has no elements."),
                (false, false) => invalid("The given key does not identify an element in this collection value: the given index is greater than or equal to the length of the collection."),
            })
        }
        Value::Map(_, values) | Value::Object(values) => {
            let key = key.text().ok_or_else(|| {
                invalid("The given key does not identify an element in this collection value: string required.")
            })?;
            values
                .get(&key)
                .cloned()
                .ok_or_else(|| invalid("The given key does not identify an element in this collection value."))
        }
        Value::Set(..) => Err(invalid(
            "Elements of a set are identified only by their value and don't have any separate index or key to select with, so it's only possible to perform operations across all elements of the set.",
        )),
        _ => Err(invalid("This value does not have any indices.")),
    }
}

fn operand(detail: &str) -> Fault {
    Fault::new("Invalid operand", format!("{detail}."))
}

fn number(value: &Value, what: &str) -> Result<Number, Fault> {
    match value.convert(&Kind::Number) {
        Ok(Value::Number(number)) => Ok(number),
        Ok(_) => Err(operand(&format!("{what}: argument must not be null"))),
        Err(why) => Err(operand(&format!("{what}: {why}"))),
    }
}

fn operate(operation: &BinaryOp, scope: &Scope<'_>) -> Evaluated {
    use BinaryOperator as Operator;
    let left = evaluate(&operation.lhs_expr, scope)?;
    let right = evaluate(&operation.rhs_expr, scope)?;
    let at = |expression: &Expression| (scope.file, expression.span());
    let truth = |value: &Value, side: &str, expression: &Expression| {
        let (file, span) = at(expression);
        value.truth().ok_or_else(|| operand(&format!("Unsuitable value for {side} operand: bool required")).at(file, span))
    };
    let operator = *operation.operator.value();
    match operator {
        Operator::Eq => return Ok(Value::Bool(left == right)),
        Operator::NotEq => return Ok(Value::Bool(left != right)),
        Operator::And | Operator::Or => {
            let left = truth(&left, "left", &operation.lhs_expr)?;
            let right = truth(&right, "right", &operation.rhs_expr)?;
            return Ok(Value::Bool(if operator == Operator::And { left && right } else { left || right }));
        }
        _ => {}
    }
    let side = |value: &Value, side: &str, expression: &Expression| {
        let (file, span) = at(expression);
        number(value, &format!("Unsuitable value for {side} operand")).map_err(|fault| fault.at(file, span))
    };
    let left = side(&left, "left", &operation.lhs_expr)?;
    let right = side(&right, "right", &operation.rhs_expr)?;
    let done = match operator {
        Operator::Plus => functions::numbers::add(left, right),
        Operator::Minus => functions::numbers::subtract(left, right),
        Operator::Mul => functions::numbers::multiply(left, right),
        Operator::Div => functions::numbers::divide(left, right),
        Operator::Mod => functions::numbers::modulo(left, right),
        Operator::Less => return Ok(Value::Bool(left.compare(right).is_lt())),
        Operator::LessEq => return Ok(Value::Bool(left.compare(right).is_le())),
        Operator::Greater => return Ok(Value::Bool(left.compare(right).is_gt())),
        Operator::GreaterEq => return Ok(Value::Bool(left.compare(right).is_ge())),
        Operator::Eq | Operator::NotEq | Operator::And | Operator::Or => None,
    };
    let by_zero = matches!(operator, Operator::Div | Operator::Mod) && right == Number::Whole(0);
    done.map(Value::Number).ok_or_else(|| match by_zero {
        true => Fault::new("Division by zero", "Cannot divide by zero."),
        false => Fault::new("Operation failed", "Error during operation: the result is no number that can be used."),
    })
}

/// The pairs that are gone through: keys of lists are their indexes, those of sets the elements.
pub(crate) fn pairs(value: &Value) -> Result<Vec<(Value, Value)>, Fault> {
    match value {
        Value::Null => {
            Err(Fault::new("Iteration over null value", "A null value cannot be used as the collection in a 'for' expression."))
        }
        Value::List(_, values) | Value::Tuple(values) => {
            Ok(values.iter().enumerate().map(|(index, value)| (Value::from(index), value.clone())).collect())
        }
        Value::Set(_, values) => Ok(values.iter().map(|value| (value.clone(), value.clone())).collect()),
        Value::Map(_, values) | Value::Object(values) => {
            Ok(values.iter().map(|(name, value)| (Value::from(name.as_str()), value.clone())).collect())
        }
        other => Err(Fault::new(
            "Iteration over non-iterable value",
            format!("A value of type {} cannot be used as the collection in a 'for' expression.", other.kind()),
        )),
    }
}

fn for_each(each: &ForExpr, scope: &Scope<'_>) -> Evaluated {
    let collection = evaluate(&each.intro.collection_expr, scope)?;
    let pairs = pairs(&collection).map_err(|fault| fault.at(scope.file, each.intro.collection_expr.span()))?;
    let (mut list, mut object, mut groups) = (Vec::new(), BTreeMap::new(), BTreeMap::<String, Vec<Value>>::new());
    for (key, value) in pairs {
        let key_name = each.intro.key_var.as_ref().map(|name| (name.as_str().to_owned(), key));
        let names = key_name.into_iter().chain([(each.intro.value_var.as_str().to_owned(), value)]);
        scope.with(names, |scope| {
            if let Some(condition) = &each.cond {
                let value = evaluate(&condition.expr, scope)?;
                let wrong = || Fault::new("Invalid 'for' condition", "The 'if' clause value is invalid: bool required.");
                if !value.truth().ok_or_else(|| wrong().at(scope.file, condition.expr.span()))? {
                    return Ok(());
                }
            }
            let value = evaluate(&each.value_expr, scope)?;
            let Some(expression) = &each.key_expr else {
                list.push(value);
                return Ok(());
            };
            let at = |fault: Fault| fault.at(scope.file, expression.span());
            let key = evaluate(expression, scope)?;
            let key = key.text().ok_or_else(|| at(Fault::new("Invalid object key", "The key expression produced an invalid result: string required.")))?;
            if each.grouping {
                groups.entry(key).or_default().push(value);
                return Ok(());
            }
            match object.entry(key) {
                Entry::Vacant(free) => {
 free.insert(value);
 }
                Entry::Occupied(taken) => {
                    let detail = format!(
                        "Two different items produced the key {:?} in this 'for' expression. If duplicates are expected, use the ellipsis (...) after the value expression to enable grouping by key.",
                        taken.key()
                    );
                    return Err(at(Fault::new("Duplicate object key", detail)));
                }
            }
            Ok(())
        })?;
    }
    Ok(match (&each.key_expr, each.grouping) {
        (None, _) => Value::Tuple(list),
        (Some(_), false) => Value::Object(object),
        (Some(_), true) => Value::Object(groups.into_iter().map(|(key, values)| (key, Value::Tuple(values))).collect()),
    })
}
