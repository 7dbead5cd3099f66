//! Numbers, and what is true.

use std::cmp::Ordering;

use crate::evaluate::negated;
use crate::value::{Number, Value};

/// As many as `range` makes at most (go-cty).
const LONGEST_RANGE: usize = 1024;

/// A number among converted arguments.
pub(super) fn of(value: &Value) -> Number {
    match value {
        Value::Number(number) => *number,
        _ => Number::Whole(0),
    }
}

/// A whole number among them.
pub(super) fn whole<T: TryFrom<i128>>(value: &Value, name: &str) -> Result<T, String> {
    of(value).whole().ok_or_else(|| format!("{name} must be a whole number that fits"))
}

pub(crate) fn add(one: Number, two: Number) -> Option<Number> {
    one.combine(two, i128::checked_add, |one, two| one + two)
}

pub(crate) fn subtract(one: Number, two: Number) -> Option<Number> {
    one.combine(two, i128::checked_sub, |one, two| one - two)
}

pub(crate) fn multiply(one: Number, two: Number) -> Option<Number> {
    one.combine(two, i128::checked_mul, |one, two| one * two)
}

pub(crate) fn divide(one: Number, two: Number) -> Option<Number> {
    let exact = |one: i128, two: i128| if one.checked_rem(two)? == 0 { one.checked_div(two) } else { None };
    one.combine(two, exact, |one, two| one / two)
}

/// With the sign of the dividend.
pub(crate) fn modulo(one: Number, two: Number) -> Option<Number> {
    one.combine(two, i128::checked_rem, |one, two| one % two)
}

fn made(number: Option<Number>) -> Result<Value, String> {
    number.map(Value::Number).ok_or_else(|| "the result is no number that can be used".to_owned())
}

pub(super) fn binary(values: &[Value], run: impl FnOnce(Number, Number) -> Option<Number>) -> Result<Value, String> {
    made(run(of(&values[0]), of(&values[1])))
}

pub(super) fn division(values: &[Value], run: impl FnOnce(Number, Number) -> Option<Number>) -> Result<Value, String> {
    match of(&values[1]) == Number::Whole(0) {
        true => Err("division by zero".to_owned()),
        false => binary(values, run),
    }
}

pub(super) fn logic(values: &[Value], run: impl FnOnce(bool, bool) -> bool) -> Result<Value, String> {
    let truth = |value: &Value| *value == Value::Bool(true);
    Ok(Value::Bool(run(truth(&values[0]), truth(&values[1]))))
}

pub(super) fn comparison(values: &[Value], is_so: impl FnOnce(Ordering) -> bool) -> Result<Value, String> {
    Ok(Value::Bool(is_so(of(&values[0]).compare(of(&values[1])))))
}

pub(super) fn rounded(values: &[Value], round: impl FnOnce(f64) -> f64) -> Result<Value, String> {
    match of(&values[0]) {
        Number::Whole(whole) => Ok(whole.into()),
        Number::Fraction(value) => made(Number::of(round(value))),
    }
}

pub(super) fn absolute(values: &[Value]) -> Result<Value, String> {
    let number = of(&values[0]);
    Ok(Value::Number(if number.compare(Number::Whole(0)).is_lt() { negated(number) } else { number }))
}

pub(super) fn negate(values: &[Value]) -> Result<Value, String> {
    Ok(Value::Number(negated(of(&values[0]))))
}

pub(super) fn signum(values: &[Value]) -> Result<Value, String> {
    let number = of(&values[0]);
    if number.whole::<i128>().is_none() {
        return Err("number must be whole".to_owned());
    }
    Ok(Value::from(number.compare(Number::Whole(0)) as i128))
}

pub(super) fn log(values: &[Value]) -> Result<Value, String> {
    // As Go: the quotient of two natural ones.
    made(Number::calculated(of(&values[0]).float().ln() / of(&values[1]).float().ln()))
}

pub(super) fn pow(values: &[Value]) -> Result<Value, String> {
    let exact = |base: i128, power: i128| base.checked_pow(u32::try_from(power).ok()?);
    made(of(&values[0]).combine(of(&values[1]), exact, f64::powf))
}

pub(super) fn extreme(values: &[Value], is_so: impl Fn(Ordering) -> bool) -> Result<Value, String> {
    let numbers = values.iter().map(of);
    let found = numbers.reduce(|best, number| if is_so(number.compare(best)) { number } else { best });
    found.map(Value::Number).ok_or_else(|| "must pass at least one number".to_owned())
}

pub(super) fn parseint(values: &[Value]) -> Result<Value, String> {
    let Value::String(text) = &values[0] else {
        return Err(format!("first argument must be a string, not {}", values[0].kind()));
    };
    let base: u32 = of(&values[1])
        .whole()
        .filter(|base| (2..=62).contains(base))
        .ok_or("base must be a whole number between 2 and 62 inclusive")?;
    let wrong = || format!("cannot parse {text:?} as a base {base} integer");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() {
        return Err(wrong());
    }
    let digit = |character: char| {
        // Beyond 36 capitals are digits of their own (Go, `big.Int.SetString`).
        let value = match character {
            '0'..='9' => character as u32 - '0' as u32,
            'a'..='z' => character as u32 - 'a' as u32 + 10,
            'A'..='Z' if base <= 36 => character as u32 - 'A' as u32 + 10,
            'A'..='Z' => character as u32 - 'A' as u32 + 36,
            _ => return None,
        };
        (value < base).then_some(i128::from(value))
    };
    let add = |sum: i128, character: char| sum.checked_mul(i128::from(base))?.checked_add(digit(character)?);
    digits.chars().try_fold(0, add).map(|sum| Value::from(sign * sum)).ok_or_else(wrong)
}

pub(super) fn range(values: &[Value]) -> Result<Value, String> {
    let zero = Number::Whole(0);
    let numbers: Vec<Number> = values.iter().map(of).collect();
    let towards = |start: Number, end: Number| Number::Whole(if end.compare(start).is_lt() { -1 } else { 1 });
    let (start, end, step) = match numbers[..] {
        [end] => (zero, end, towards(zero, end)),
        [start, end] => (start, end, towards(start, end)),
        [start, end, step] => (start, end, step),
        _ => return Err("must have one, two, or three arguments".to_owned()),
    };
    let is_down = end.compare(start).is_lt();
    if step == zero {
        return Err("step must not be zero".to_owned());
    }
    if is_down != step.compare(zero).is_lt() && start != end {
        let (must, how) = if is_down { ("less", "negative") } else { ("greater", "positive") };
        return Err(format!(
            "end must be {must} than start when step is {}",
            if how == "negative" { "positive" } else { "negative" }
        ));
    }
    let mut made = Vec::new();
    let mut next = start;
    while if is_down { next.compare(end).is_gt() } else { next.compare(end).is_lt() } {
        if made.len() >= LONGEST_RANGE {
            return Err(format!(
                "more than {LONGEST_RANGE} values were generated; either decrease the difference between start and end or use a smaller step"
            ));
        }
        made.push(Value::Number(next));
        next = add(next, step).ok_or("the range leaves what can be counted")?;
    }
    Ok(Value::List(crate::value::Kind::Number, made))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(values: &[i128]) -> Vec<Value> {
        values.iter().map(|value| Value::from(*value)).collect()
    }

    #[test]
    fn whole_numbers_stay_whole() {
        let whole = |value| Number::Whole(value);
        assert_eq!(divide(whole(10), whole(4)), Some(Number::Fraction(2.5)));
        assert_eq!((divide(whole(10), whole(5)), modulo(whole(-7), whole(3))), (Some(whole(2)), Some(whole(-1))));
        assert_eq!(multiply(whole(1 << 62), whole(1 << 60)), Some(whole(1 << 122)));
        assert_eq!(pow(&numbers(&[2, 100])), Ok(Value::from(1_i128 << 100)));
        assert!(division(&numbers(&[1, 0]), divide).is_err());
    }

    #[test]
    fn integers_of_any_base_are_read() {
        let read = |text: &str, base: i128| parseint(&[text.into(), base.into()]);
        assert_eq!(
            (read("ff", 16), read("-101", 2), read("aA", 62)),
            (Ok(255_i128.into()), Ok((-5_i128).into()), Ok(656_i128.into()))
        );
        assert!(read("fg", 16).is_err() && read("", 10).is_err() && read("1", 63).is_err());
    }

    #[test]
    fn ranges_go_both_ways_and_end() {
        let count = |values: &[i128]| range(&numbers(values)).map(|made| made.elements().unwrap().len());
        assert_eq!((count(&[3]), count(&[1, -2]), count(&[0, 10, 3])), (Ok(3), Ok(3), Ok(4)));
        assert!(count(&[0, 10, -1]).is_err() && count(&[0, 10, 0]).is_err() && count(&[5000]).is_err());
    }
}
