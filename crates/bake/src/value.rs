//! Values of the language, and their kinds, as go-cty has them: lists differ from tuples, and maps from objects.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

/// A number. Whole ones are exact.
///
/// go-cty's numbers have 512 bits; here fractions have a double's 53, of which 15 digits are shown of what was calculated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    Whole(i128),
    Fraction(f64),
}

impl Number {
    /// None of what is no number, or infinite.
    pub fn of(value: f64) -> Option<Number> {
        const EXACT: f64 = (1_i64 << 53) as f64;
        match value {
            _ if !value.is_finite() => None,
            _ if value.fract() == 0.0 && value.abs() <= EXACT => Some(Number::Whole(value as i128)),
            _ => Some(Number::Fraction(value)),
        }
    }

    /// A result of calculating: what the last digits of a double have wrong is rounded away, so that 0.1 + 0.2 is 0.3.
    pub fn calculated(value: f64) -> Option<Number> {
        Number::of(format!("{value:.14e}").parse().ok()?)
    }

    /// Decimal, with an exponent or without.
    pub fn parse(text: &str) -> Option<Number> {
        if let Ok(whole) = text.parse() {
            return Some(Number::Whole(whole));
        }
        // Rust reads words as numbers, too.
        let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
        text.parse().ok().filter(|_| is_decimal).and_then(Number::of)
    }

    pub fn float(self) -> f64 {
        match self {
            Number::Whole(whole) => whole as f64,
            Number::Fraction(value) => value,
        }
    }

    /// A whole number that fits.
    pub fn whole<T: TryFrom<i128>>(self) -> Option<T> {
        match self {
            Number::Whole(whole) => T::try_from(whole).ok(),
            Number::Fraction(_) => None,
        }
    }

    pub fn compare(self, other: Number) -> Ordering {
        match (self, other) {
            (Number::Whole(own), Number::Whole(other)) => own.cmp(&other),
            _ => self.float().total_cmp(&other.float()),
        }
    }

    /// Exactly where both are whole and the result is, too.
    pub fn combine(
        self,
        other: Number,
        exact: impl FnOnce(i128, i128) -> Option<i128>,
        rough: impl FnOnce(f64, f64) -> f64,
    ) -> Option<Number> {
        if let (Number::Whole(own), Number::Whole(other)) = (self, other)
            && let Some(whole) = exact(own, other)
        {
            return Some(Number::Whole(whole));
        }
        Number::calculated(rough(self.float(), other.float()))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Whole(whole) => whole.fmt(formatter),
            Number::Fraction(value) => value.fmt(formatter),
        }
    }
}

/// What a value is, or is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Any,
    Bool,
    Number,
    String,
    List(Box<Kind>),
    Set(Box<Kind>),
    Map(Box<Kind>),
    Tuple(Vec<Kind>),
    Object(BTreeMap<String, Kind>),
    /// Within an object: it may be missing, and is null then.
    Optional(Box<Kind>),
}

impl Kind {
    pub fn list(of: Kind) -> Kind {
        Kind::List(Box::new(of))
    }

    pub fn map(of: Kind) -> Kind {
        Kind::Map(Box::new(of))
    }

    pub fn is_primitive(&self) -> bool {
        matches!(self, Kind::Bool | Kind::Number | Kind::String)
    }

    /// The kind that both can be made to be.
    pub fn unite(&self, other: &Kind) -> Option<Kind> {
        match (self, other) {
            (one, two) if one == two => Some(one.clone()),
            (Kind::Any, kind) | (kind, Kind::Any) => Some(kind.clone()),
            (Kind::String, Kind::Bool | Kind::Number) | (Kind::Bool | Kind::Number, Kind::String) => Some(Kind::String),
            (Kind::Tuple(own), Kind::Tuple(others)) if own.len() == others.len() => {
                own.iter().zip(others).map(|(own, other)| own.unite(other)).collect::<Option<_>>().map(Kind::Tuple)
            }
            (Kind::Tuple(_) | Kind::List(_), Kind::Tuple(_) | Kind::List(_)) => {
                Some(Kind::list(self.element()?.unite(&other.element()?)?))
            }
            (Kind::Tuple(_) | Kind::Set(_), Kind::Tuple(_) | Kind::Set(_)) => {
                Some(Kind::Set(Box::new(self.element()?.unite(&other.element()?)?)))
            }
            (Kind::Object(own), Kind::Object(others)) if own.keys().eq(others.keys()) => {
                let both = own.iter().map(|(name, kind)| Some((name.clone(), kind.unite(others.get(name)?)?)));
                both.collect::<Option<_>>().map(Kind::Object)
            }
            (Kind::Object(_) | Kind::Map(_), Kind::Object(_) | Kind::Map(_)) => {
                Some(Kind::map(self.element()?.unite(&other.element()?)?))
            }
            _ => None,
        }
    }

    /// What all elements can be made to be.
    fn element(&self) -> Option<Kind> {
        match self {
            Kind::List(of) | Kind::Set(of) | Kind::Map(of) => Some((**of).clone()),
            Kind::Tuple(kinds) => united(kinds),
            Kind::Object(kinds) => united(kinds.values()),
            _ => None,
        }
    }
}

/// What all can be made to be, in whatever order they come.
pub(crate) fn united<'a>(kinds: impl IntoIterator<Item = &'a Kind>) -> Option<Kind> {
    let kinds: Vec<&Kind> = kinds.into_iter().filter(|kind| **kind != Kind::Any).collect();
    if kinds.iter().all(|kind| kind.is_primitive()) && kinds.contains(&&Kind::String) {
        return Some(Kind::String);
    }
    kinds.into_iter().try_fold(Kind::Any, |all, kind| all.unite(kind))
}

/// As errors and lists call it (go-cty, `FriendlyNameForConstraint`).
impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Any => formatter.write_str("any type"),
            Kind::Bool => formatter.write_str("bool"),
            Kind::Number => formatter.write_str("number"),
            Kind::String => formatter.write_str("string"),
            Kind::List(of) | Kind::Set(of) | Kind::Map(of) => {
                let what = match self {
                    Kind::List(_) => "list",
                    Kind::Set(_) => "set",
                    _ => "map",
                };
                match **of {
                    Kind::Any => write!(formatter, "{what} of any single type"),
                    ref of => write!(formatter, "{what} of {of}"),
                }
            }
            Kind::Optional(of) => of.fmt(formatter),
            Kind::Tuple(_) => formatter.write_str("tuple"),
            Kind::Object(_) => formatter.write_str("object"),
        }
    }
}

/// A value. Elements of lists, sets and maps are of the kind that stands beside them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Value {
    #[default]
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    List(Kind, Vec<Value>),
    /// In order, each once.
    Set(Kind, Vec<Value>),
    Map(Kind, BTreeMap<String, Value>),
    Tuple(Vec<Value>),
    Object(BTreeMap<String, Value>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::String(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Bool(value)
    }
}

impl From<i128> for Value {
    fn from(whole: i128) -> Value {
        Value::Number(Number::Whole(whole))
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Value {
        Value::from(count as i128)
    }
}

impl Value {
    pub fn strings(texts: impl IntoIterator<Item = String>) -> Value {
        Value::List(Kind::String, texts.into_iter().map(Value::String).collect())
    }

    pub fn kind(&self) -> Kind {
        match self {
            Value::Null => Kind::Any,
            Value::Bool(_) => Kind::Bool,
            Value::Number(_) => Kind::Number,
            Value::String(_) => Kind::String,
            Value::List(of, _) => Kind::list(of.clone()),
            Value::Set(of, _) => Kind::Set(Box::new(of.clone())),
            Value::Map(of, _) => Kind::map(of.clone()),
            Value::Tuple(values) => Kind::Tuple(values.iter().map(Value::kind).collect()),
            Value::Object(values) => Kind::Object(values.iter().map(|(name, value)| (name.clone(), value.kind())).collect()),
        }
    }

    /// Elements of lists, sets and tuples.
    pub fn elements(&self) -> Option<&[Value]> {
        match self {
            Value::List(_, values) | Value::Set(_, values) | Value::Tuple(values) => Some(values),
            _ => None,
        }
    }

    /// What maps and objects hold.
    pub fn attributes(&self) -> Option<&BTreeMap<String, Value>> {
        match self {
            Value::Map(_, values) | Value::Object(values) => Some(values),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// As a primitive is written into a template.
    pub fn text(&self) -> Option<String> {
        match self {
            Value::Bool(value) => Some(value.to_string()),
            Value::Number(number) => Some(number.to_string()),
            Value::String(text) => Some(text.clone()),
            _ => None,
        }
    }

    /// Whether a condition holds: true and false may be written as strings.
    pub fn truth(&self) -> Option<bool> {
        match self.convert(&Kind::Bool) {
            Ok(Value::Bool(value)) => Some(value),
            _ => None,
        }
    }

    /// Makes it what it is to be (go-cty, `convert.Convert`); else what is required instead.
    pub fn convert(&self, kind: &Kind) -> Result<Value, String> {
        let required = || Err(format!("{kind} required"));
        match (kind, self) {
            (Kind::Any, _) | (_, Value::Null) => Ok(self.clone()),
            (Kind::Optional(kind), value) => value.convert(kind),
            (Kind::String, value) => value.text().map_or_else(required, |text| Ok(Value::String(text))),
            (Kind::Bool, Value::Bool(_)) | (Kind::Number, Value::Number(_)) => Ok(self.clone()),
            (Kind::Bool, Value::String(text)) => match text.as_str() {
                "true" | "1" => Ok(Value::Bool(true)),
                "false" | "0" => Ok(Value::Bool(false)),
                "True" | "TRUE" => Err("a bool is required; to convert from string, use lowercase \"true\"".to_owned()),
                "False" | "FALSE" => Err("a bool is required; to convert from string, use lowercase \"false\"".to_owned()),
                _ => Err("a bool is required".to_owned()),
            },
            (Kind::Number, Value::String(text)) => {
                Number::parse(text).map(Value::Number).ok_or_else(|| "a number is required".to_owned())
            }
            (Kind::Bool | Kind::Number, _) => required(),
            (Kind::List(of) | Kind::Set(of), value) => {
                let Some(values) = value.elements() else { return required() };
                let of = if **of == Kind::Any {
                    value.kind().element().ok_or("all list elements must have the same type")?
                } else {
                    (**of).clone()
                };
                let converted = values.iter().map(|value| value.convert(&of)).collect::<Result<Vec<_>, _>>();
                let converted = converted.map_err(|_| format!("{kind} required"))?;
                Ok(if matches!(kind, Kind::List(_)) { Value::List(of, converted) } else { set(of, converted) })
            }
            (Kind::Map(of), value) => {
                let Some(values) = value.attributes() else { return required() };
                let of = if **of == Kind::Any {
                    value.kind().element().ok_or("all map elements must have the same type")?
                } else {
                    (**of).clone()
                };
                let one = |(name, value): (&String, &Value)| Ok((name.clone(), value.convert(&of)?));
                let converted = values.iter().map(one).collect::<Result<_, String>>().map_err(|_| format!("{kind} required"))?;
                Ok(Value::Map(of, converted))
            }
            (Kind::Tuple(kinds), Value::Tuple(values)) if kinds.len() == values.len() => {
                let converted = values.iter().zip(kinds).map(|(value, kind)| value.convert(kind));
                converted.collect::<Result<_, _>>().map(Value::Tuple)
            }
            (Kind::Tuple(_), _) => required(),
            (Kind::Object(kinds), value) => {
                let Some(values) = value.attributes() else { return required() };
                let one = |(name, kind): (&String, &Kind)| {
                    let missing = || {
                        if matches!(kind, Kind::Optional(_)) {
                            Ok(&Value::Null)
                        } else {
                            Err(format!("attribute {name:?} is required"))
                        }
                    };
                    let value = values.get(name).map_or_else(missing, Ok)?;
                    let wrong = |why| format!("attribute {name:?}: {why}");
                    Ok((name.clone(), value.convert(kind).map_err(wrong)?))
                };
                kinds.iter().map(one).collect::<Result<_, String>>().map(Value::Object)
            }
        }
    }

    /// As JSON (go-cty, `json.Marshal`).
    pub fn json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Number(number) => match number {
                Number::Whole(whole) => match (u64::try_from(*whole), i64::try_from(*whole)) {
                    (Ok(value), _) => value.into(),
                    (_, Ok(value)) => value.into(),
                    _ => number.float().into(),
                },
                Number::Fraction(value) => (*value).into(),
            },
            Value::String(text) => text.as_str().into(),
            Value::List(_, values) | Value::Set(_, values) | Value::Tuple(values) => values.iter().map(Value::json).collect(),
            Value::Map(_, values) | Value::Object(values) => {
                Json::Object(values.iter().map(|(name, value)| (name.clone(), value.json())).collect())
            }
        }
    }

    /// Of JSON, of the kind that it implies (go-cty, `json.ImpliedType`).
    pub fn from_json(json: &serde_json::Value) -> Value {
        use serde_json::Value as Json;
        match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => Number::parse(&number.to_string()).map_or(Value::Null, Value::Number),
            Json::String(text) => Value::String(text.clone()),
            Json::Array(values) => Value::Tuple(values.iter().map(Value::from_json).collect()),
            Json::Object(values) => {
                Value::Object(values.iter().map(|(name, value)| (name.clone(), Value::from_json(value))).collect())
            }
        }
    }
}

/// A set of values: each once, in an order of their own.
pub(crate) fn set(of: Kind, mut values: Vec<Value>) -> Value {
    values.sort_by(order);
    values.dedup();
    Value::Set(of, values)
}

/// The order within sets: that of primitives is natural, any other is some.
fn order(one: &Value, two: &Value) -> Ordering {
    match (one, two) {
        (Value::Bool(one), Value::Bool(two)) => one.cmp(two),
        (Value::Number(one), Value::Number(two)) => one.compare(*two),
        (Value::String(one), Value::String(two)) => one.cmp(two),
        _ => one.json().to_string().cmp(&two.json().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_exact_where_they_are_whole() {
        let text = |text: &str| Number::parse(text).unwrap().to_string();
        assert_eq!(text("20261123123456789012345"), "20261123123456789012345");
        assert_eq!((text("1e3").as_str(), text("1.50").as_str(), text("-0.25").as_str()), ("1000", "1.5", "-0.25"));
        assert_eq!((Number::parse("inf"), Number::parse("nan"), Number::parse("0x10")), (None, None, None));
        let third = Number::Whole(1).combine(Number::Whole(2), |_, _| None, |one, two| one / two).unwrap();
        assert_eq!(third, Number::Fraction(0.5));
    }

    #[test]
    fn values_become_what_is_asked_for_or_it_is_said_why_not() {
        let tuple = Value::Tuple(vec![1_i128.into(), "a".into()]);
        assert_eq!(tuple.convert(&Kind::list(Kind::String)).unwrap(), Value::strings(["1".to_owned(), "a".to_owned()]));
        assert_eq!(tuple.convert(&Kind::list(Kind::Any)).unwrap(), Value::strings(["1".to_owned(), "a".to_owned()]));
        assert_eq!(tuple.convert(&Kind::list(Kind::Number)), Err("list of number required".to_owned()));
        assert_eq!(Value::from("1").convert(&Kind::Bool), Ok(Value::Bool(true)));
        assert!(Value::from("yes").convert(&Kind::Bool).is_err() && Value::from(true).convert(&Kind::Number).is_err());
        let twice = Value::Tuple(vec![3_i128.into(), 1_i128.into(), 3_i128.into()]);
        assert_eq!(twice.convert(&Kind::Set(Box::new(Kind::Number))).unwrap().elements().unwrap().len(), 2);
        let object = Value::Object(BTreeMap::from([("a".to_owned(), 1_i128.into())]));
        let wanted = Kind::Object(BTreeMap::from([("a".to_owned(), Kind::String), ("b".to_owned(), Kind::String)]));
        assert_eq!(object.convert(&wanted), Err("attribute \"b\" is required".to_owned()));
    }
}
