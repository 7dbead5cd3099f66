//! Lists, sets, maps, and what is like them.

use std::collections::BTreeMap;

use super::{numbers, text};
use crate::evaluate::indexed;
use crate::value::{Kind, Value, set, united};

/// As many as `setproduct` makes at most.
const LARGEST_PRODUCT: usize = 1 << 16;

fn elements(value: &Value) -> Result<&[Value], String> {
    value.elements().ok_or_else(|| format!("a list, set or tuple is required, not {}", value.kind()))
}

/// Values as a list where they are of one kind, else as a tuple.
fn like(model: &Value, values: Vec<Value>) -> Value {
    match model {
        Value::List(of, _) | Value::Set(of, _) => Value::List(of.clone(), values),
        _ => Value::Tuple(values),
    }
}

pub(super) fn chunklist(values: &[Value]) -> Result<Value, String> {
    let list = elements(&values[0])?;
    let size: usize = numbers::whole(&values[1], "the size argument").map_err(|_| "the size argument must be positive")?;
    let chunks: Vec<Value> = match size {
        0 => vec![values[0].clone()],
        size => list.chunks(size).map(|chunk| like(&values[0], chunk.to_vec())).collect(),
    };
    Ok(Value::Tuple(chunks))
}

pub(super) fn coalesce(values: &[Value]) -> Result<Value, String> {
    let found = values.iter().find(|value| **value != Value::Null);
    let value = found.ok_or("no non-null arguments")?;
    let kinds: Vec<Kind> = values.iter().map(Value::kind).collect();
    let kind = united(&kinds);
    value.convert(&kind.ok_or("all arguments must have the same type")?)
}

pub(super) fn coalescelist(values: &[Value]) -> Result<Value, String> {
    if values.is_empty() {
        return Err("at least one argument is required".to_owned());
    }
    let is_filled = |value: &&Value| value.elements().is_some_and(|values| !values.is_empty());
    if let Some(wrong) = values.iter().find(|value| **value != Value::Null && value.elements().is_none()) {
        return Err(format!("coalescelist arguments must be lists or tuples, not {}", wrong.kind()));
    }
    values.iter().find(is_filled).cloned().ok_or_else(|| "no non-null arguments".to_owned())
}

pub(super) fn compact(values: &[Value]) -> Result<Value, String> {
    let filled = elements(&values[0])?.iter().filter_map(Value::as_str).filter(|text| !text.is_empty());
    Ok(Value::strings(filled.map(str::to_owned)))
}

pub(super) fn concat(values: &[Value]) -> Result<Value, String> {
    let Some(first) = values.first() else { return Err("at least one argument is required".to_owned()) };
    let mut all = Vec::new();
    for value in values {
        match value {
            Value::List(_, values) | Value::Tuple(values) => all.extend(values.iter().cloned()),
            _ => return Err("all arguments must be lists or tuples".to_owned()),
        }
    }
    let is_one_kind = values.iter().all(|value| matches!(value, Value::List(..)) && value.kind() == first.kind());
    Ok(if is_one_kind { like(first, all) } else { Value::Tuple(all) })
}

/// Whether two values are one after they have been made of one kind.
fn is_same(one: &Value, two: &Value) -> bool {
    one == two
        || one
            .kind()
            .unite(&two.kind())
            .is_some_and(|kind| one.kind().is_primitive() && one.kind() == two.kind() && one.convert(&kind) == two.convert(&kind))
}

pub(super) fn contains(values: &[Value]) -> Result<Value, String> {
    let list = values[0].elements().ok_or("argument must be list, tuple, or set")?;
    Ok(Value::Bool(list.iter().any(|value| is_same(value, &values[1]))))
}

pub(super) fn distinct(values: &[Value]) -> Result<Value, String> {
    let list = list_of(&values[0])?;
    let mut seen: Vec<Value> = Vec::new();
    for value in elements(&list)? {
        if !seen.contains(value) {
            seen.push(value.clone());
        }
    }
    Ok(like(&list, seen))
}

/// A list, for functions that take nothing else.
fn list_of(value: &Value) -> Result<Value, String> {
    value.convert(&Kind::list(Kind::Any))
}

pub(super) fn element(values: &[Value]) -> Result<Value, String> {
    let list = match &values[0] {
        Value::List(_, values) | Value::Tuple(values) => values,
        other => return Err(format!("cannot read elements from {}", other.kind())),
    };
    let index: i128 = numbers::whole(&values[1], "index").map_err(|_| "invalid index: must be a whole number")?;
    let count = list.len() as i128;
    if count == 0 {
        return Err("cannot use element function with an empty list".to_owned());
    }
    let at = usize::try_from(index.rem_euclid(count)).unwrap_or_default();
    Ok(list[at].clone())
}

pub(super) fn flatten(values: &[Value]) -> Result<Value, String> {
    fn add(value: &Value, flat: &mut Vec<Value>) {
        match value.elements() {
            Some(values) => values.iter().for_each(|value| add(value, flat)),
            None => flat.push(value.clone()),
        }
    }
    elements(&values[0]).map_err(|_| "can only flatten lists, sets and tuples")?;
    let mut flat = Vec::new();
    add(&values[0], &mut flat);
    Ok(Value::Tuple(flat))
}

pub(super) fn hasindex(values: &[Value]) -> Result<Value, String> {
    match &values[0] {
        Value::List(..) | Value::Tuple(_) | Value::Map(..) => {
            Ok(Value::Bool(is_key(&values[0], &values[1]) && indexed(&values[0], &values[1]).is_ok()))
        }
        _ => Err("collection must be a list, a map or a tuple".to_owned()),
    }
}

/// Numbers are keys of lists, and strings of maps.
fn is_key(collection: &Value, key: &Value) -> bool {
    match collection {
        Value::List(..) | Value::Tuple(_) => matches!(key, Value::Number(_)),
        Value::Map(..) => matches!(key, Value::String(_)),
        _ => false,
    }
}

pub(super) fn index(values: &[Value]) -> Result<Value, String> {
    match is_key(&values[0], &values[1]) {
        true => indexed(&values[0], &values[1]).map_err(|_| "invalid index".to_owned()),
        false if values[0].elements().is_some() => Err("key for list must be number".to_owned()),
        false if matches!(values[0], Value::Map(..)) => Err("key for map must be string".to_owned()),
        false => Err("collection must be a list, a map or a tuple".to_owned()),
    }
}

pub(super) fn indexof(values: &[Value]) -> Result<Value, String> {
    let list = match &values[0] {
        Value::List(_, values) | Value::Tuple(values) => values,
        _ => return Err("argument must be a list or tuple".to_owned()),
    };
    if list.is_empty() {
        return Err("cannot search an empty list".to_owned());
    }
    list.iter().position(|value| *value == values[1]).map(Value::from).ok_or_else(|| "item not found".to_owned())
}

pub(super) fn keys(values: &[Value]) -> Result<Value, String> {
    let map = values[0].attributes().ok_or_else(|| format!("must have map or object type, not {}", values[0].kind()))?;
    Ok(Value::strings(map.keys().cloned()))
}

pub(super) fn values(values: &[Value]) -> Result<Value, String> {
    let map = values[0].attributes().ok_or("values() requires a map as the first argument")?;
    let all = map.values().cloned().collect();
    Ok(match &values[0] {
        Value::Map(of, _) => Value::List(of.clone(), all),
        _ => Value::Tuple(all),
    })
}

pub(super) fn length(values: &[Value]) -> Result<Value, String> {
    let count = match &values[0] {
        Value::Map(_, map) => Some(map.len()),
        other => other.elements().map(<[Value]>::len),
    };
    count.map(Value::from).ok_or_else(|| "collection must be a list, a map or a tuple".to_owned())
}

pub(super) fn lookup(values: &[Value]) -> Result<Value, String> {
    let map = values[0].attributes().ok_or("lookup() requires a map as the first argument")?;
    let found = map.get(text::of(&values[1])).unwrap_or(&values[2]);
    match &values[0] {
        Value::Map(of, _) => {
            found.convert(of).map_err(|_| "the default value must have the same type as the map elements".to_owned())
        }
        _ => Ok(found.clone()),
    }
}

pub(super) fn merge(values: &[Value]) -> Result<Value, String> {
    let mut all = BTreeMap::new();
    for value in values.iter().filter(|value| **value != Value::Null) {
        let map =
            value.attributes().ok_or_else(|| format!("arguments must be maps or objects, got {:?}", value.kind().to_string()))?;
        all.extend(map.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    let first = values.iter().find(|value| **value != Value::Null);
    Ok(match first {
        Some(Value::Map(of, _))
            if values.iter().all(|value| *value == Value::Null || Some(value.kind()) == first.map(Value::kind)) =>
        {
            Value::Map(of.clone(), all)
        }
        _ => Value::Object(all),
    })
}

pub(super) fn reverselist(values: &[Value]) -> Result<Value, String> {
    let list = elements(&values[0]).map_err(|_| format!("can only reverse list or tuple values, not {}", values[0].kind()))?;
    Ok(like(&values[0], list.iter().rev().cloned().collect()))
}

pub(super) fn slice(values: &[Value]) -> Result<Value, String> {
    let list = match &values[0] {
        Value::List(_, values) | Value::Tuple(values) => values,
        other => return Err(format!("cannot slice a {}, because its elements do not have indices", other.kind())),
    };
    let bound = |value: &Value, name: &str| -> Result<usize, String> {
        let at =
            numbers::whole(value, &format!("{name} index")).map_err(|_| format!("{name} index must not be less than zero"))?;
        if at > list.len() { Err(format!("{name} index must not be greater than the length of the list")) } else { Ok(at) }
    };
    let (start, end) = (bound(&values[1], "start")?, bound(&values[2], "end")?);
    if start > end {
        return Err("start index must not be greater than end index".to_owned());
    }
    Ok(like(&values[0], list[start..end].to_vec()))
}

pub(super) fn sort(values: &[Value]) -> Result<Value, String> {
    let mut texts = Vec::new();
    for (index, value) in elements(&values[0])?.iter().enumerate() {
        texts.push(
            value
                .as_str()
                .ok_or_else(|| format!("given list element {index} is null; a null string cannot be sorted"))?
                .to_owned(),
        );
    }
    texts.sort();
    Ok(Value::strings(texts))
}

/// Arguments as sets of one kind.
fn sets(values: &[Value]) -> Result<(Kind, Vec<Vec<Value>>), String> {
    let made = values.iter().map(|value| match value.convert(&Kind::Set(Box::new(Kind::Any)))? {
        Value::Set(of, values) => Ok((of, values)),
        _ => Err("set required".to_owned()),
    });
    let made = made.collect::<Result<Vec<_>, String>>()?;
    let kind = united(made.iter().map(|(of, _)| of)).ok_or("given sets must all have compatible element types")?;
    let convert = |values: Vec<Value>| values.iter().map(|value| value.convert(&kind)).collect::<Result<_, _>>();
    let all = made.into_iter().map(|(_, values)| convert(values)).collect::<Result<_, String>>()?;
    Ok((kind, all))
}

pub(super) fn sethaselement(values: &[Value]) -> Result<Value, String> {
    let (of, all) = sets(&values[..1])?;
    let sought = values[1].convert(&of)?;
    Ok(Value::Bool(all.iter().flatten().any(|value| *value == sought)))
}

pub(super) fn setintersection(values: &[Value]) -> Result<Value, String> {
    let (of, all) = sets(values)?;
    let (first, others) = all.split_first().ok_or("a set is required")?;
    let common = first.iter().filter(|value| others.iter().all(|other| other.contains(value))).cloned().collect();
    Ok(set(of, common))
}

pub(super) fn setsubtract(values: &[Value]) -> Result<Value, String> {
    let (of, all) = sets(values)?;
    Ok(set(of, all[0].iter().filter(|value| !all[1].contains(value)).cloned().collect()))
}

pub(super) fn setunion(values: &[Value]) -> Result<Value, String> {
    let (of, all) = sets(values)?;
    Ok(set(of, all.concat()))
}

/// Of several: what is left of the first two is taken with the third, and so on.
pub(super) fn setsymmetricdifference(values: &[Value]) -> Result<Value, String> {
    let (of, all) = sets(values)?;
    let differ = |one: Vec<Value>, two: Vec<Value>| {
        let mut left: Vec<Value> = one.iter().filter(|value| !two.contains(value)).cloned().collect();
        left.extend(two.iter().filter(|value| !one.contains(value)).cloned());
        left
    };
    Ok(set(of, all.into_iter().reduce(differ).unwrap_or_default()))
}

pub(super) fn setproduct(values: &[Value]) -> Result<Value, String> {
    if values.len() < 2 {
        return Err("at least two arguments are required".to_owned());
    }
    let mut product: Vec<Vec<Value>> = vec![Vec::new()];
    for value in values {
        let choices = elements(value).map_err(|_| "a set or a list is required".to_owned())?;
        if product.len().saturating_mul(choices.len()) > LARGEST_PRODUCT {
            return Err(format!("more than {LARGEST_PRODUCT} combinations"));
        }
        let longer = |row: &Vec<Value>| {
            choices.iter().map(|choice| [row.as_slice(), std::slice::from_ref(choice)].concat()).collect::<Vec<_>>()
        };
        product = product.iter().flat_map(longer).collect();
    }
    let rows: Vec<Value> = product.into_iter().map(Value::Tuple).collect();
    let of = rows.first().map_or(Kind::Any, Value::kind);
    Ok(match values.iter().any(|value| matches!(value, Value::Set(..))) {
        true => set(of, rows),
        false => Value::List(of, rows),
    })
}

pub(super) fn zipmap(values: &[Value]) -> Result<Value, String> {
    let (names, all) = (elements(&values[0])?, elements(&values[1]).map_err(|_| "values must be a list or tuple value")?);
    if names.contains(&Value::Null) {
        return Err("keys must not be null".to_owned());
    }
    if names.len() != all.len() {
        return Err(format!("number of keys ({}) does not match number of values ({})", names.len(), all.len()));
    }
    let pairs = names.iter().map(|name| text::of(name).to_owned()).zip(all.iter().cloned()).collect();
    Ok(match &values[1] {
        Value::List(of, _) => Value::Map(of.clone(), pairs),
        _ => Value::Object(pairs),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(values: &[&str]) -> Value {
        Value::strings(values.iter().map(|value| (*value).to_owned()))
    }

    #[test]
    fn sets_are_taken_together() {
        let (one, two) = (list(&["b", "a"]), list(&["b", "c"]));
        let both = [one.clone(), two.clone()];
        assert_eq!(setunion(&both).unwrap().elements().unwrap(), ["a".into(), "b".into(), "c".into()]);
        assert_eq!(setintersection(&both).unwrap().elements().unwrap(), ["b".into()]);
        assert_eq!(setsubtract(&both).unwrap().elements().unwrap(), ["a".into()]);
        assert_eq!(setsymmetricdifference(&both).unwrap().elements().unwrap(), ["a".into(), "c".into()]);
        assert_eq!(setproduct(&both).unwrap().elements().unwrap().len(), 4);
        let numbers: Value = Value::Tuple((0..300_i128).map(Value::from).collect());
        assert!(setproduct(&[numbers.clone(), numbers.clone(), numbers]).is_err());
    }

    #[test]
    fn elements_go_round_and_slices_do_not() {
        let three = list(&["a", "b", "c"]);
        let at = |index: i128| element(&[three.clone(), index.into()]).unwrap();
        assert_eq!((at(0), at(4), at(-1)), ("a".into(), "b".into(), "c".into()));
        let cut = |start: i128, end: i128| slice(&[three.clone(), start.into(), end.into()]);
        assert_eq!(cut(1, 2).unwrap(), list(&["b"]));
        assert!(cut(2, 1).is_err() && cut(0, 4).is_err() && cut(-1, 2).is_err());
        assert_eq!(chunklist(&[three.clone(), 2_i128.into()]).unwrap().elements().unwrap().len(), 2);
    }
}
