//! Versions, and what is asked of them (Masterminds' semver, which buildx calls).

use std::cmp::Ordering;

use super::text::of;
use crate::value::Value;

/// Three numbers, some of which may be left out, and what is before a release.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    numbers: [u64; 3],
    /// How many were given: those behind are anything.
    given: usize,
    before: Vec<String>,
}

impl Version {
    /// `1.2.3-rc.1+build`, with a `v` in front or not; parts may be missing, or `x` where wildcards are allowed.
    fn parse(text: &str, wildcards: bool) -> Option<Version> {
        let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
        let text = text.split_once('+').map_or(text, |(version, _)| version);
        let (core, before) = text.split_once('-').map_or((text, None), |(core, before)| (core, Some(before)));
        let mut version = Version { numbers: [0; 3], given: 0, before: Vec::new() };
        let mut is_open = false;
        for (index, part) in core.split('.').enumerate() {
            if wildcards && matches!(part, "x" | "X" | "*") {
                is_open = true;
            } else if !is_open {
                *version.numbers.get_mut(index)? = part.parse().ok()?;
                version.given = index + 1;
            }
        }
        if let Some(before) = before {
            let is_identifier =
                |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            version.before = before.split('.').map(str::to_owned).collect();
            version.before.iter().all(|part| is_identifier(part)).then_some(())?;
        }
        Some(version)
    }

    /// By Semantic Versioning 2.0, 11.
    fn compare(&self, other: &Version) -> Ordering {
        let number = |text: &String| text.parse::<u64>().ok();
        let part = |one: &String, two: &String| match (number(one), number(two)) {
            (Some(one), Some(two)) => one.cmp(&two),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => one.cmp(two),
        };
        self.numbers.cmp(&other.numbers).then_with(|| match (self.before.is_empty(), other.before.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let pairs = self.before.iter().zip(&other.before).map(|(one, two)| part(one, two));
                pairs.fold(Ordering::Equal, Ordering::then).then(self.before.len().cmp(&other.before.len()))
            }
        })
    }

    /// The first version behind all that share the numbers up to this one.
    fn after(&self, index: usize) -> Version {
        let mut numbers = [0; 3];
        numbers[..=index].copy_from_slice(&self.numbers[..=index]);
        numbers[index] = numbers[index].saturating_add(1);
        Version { numbers, given: 3, before: Vec::new() }
    }
}

/// Whether a version does what one term asks: `>= 1.2`, `~1.2.3`, `^1`, `1.x`.
fn satisfies(version: &Version, term: &str) -> Option<bool> {
    let end = term.find(|character: char| !"=!<>~^".contains(character)).unwrap_or(term.len());
    let (operator, bound) = (&term[..end], term[end..].trim());
    if matches!(bound, "*" | "x" | "X" | "") && matches!(operator, "" | "=" | "~" | "^" | ">=" | "=>" | "<=" | "=<") {
        return (!bound.is_empty()).then_some(version.before.is_empty());
    }
    let bound = Version::parse(bound, true)?;
    // What is before a release is only looked at where it is asked for.
    if !version.before.is_empty() && bound.before.is_empty() {
        return Some(operator == "!=");
    }
    let is_from = version.compare(&bound).is_ge();
    let is_below = |index: usize| version.compare(&bound.after(index)).is_lt();
    let is_open = bound.given < 3;
    let within = || if bound.given == 0 { true } else { is_from && is_below(bound.given - 1) };
    Some(match operator {
        "" | "=" if is_open => within(),
        "" | "=" => version.compare(&bound).is_eq(),
        "!=" if is_open => !within(),
        "!=" => version.compare(&bound).is_ne(),
        ">" if is_open => version.compare(&bound.after(bound.given.max(1) - 1)).is_ge(),
        ">" => version.compare(&bound).is_gt(),
        "<" => version.compare(&bound).is_lt(),
        ">=" | "=>" => is_from,
        "<=" | "=<" if is_open => is_below(bound.given.max(1) - 1),
        "<=" | "=<" => version.compare(&bound).is_le(),
        "~" | "~>" => is_from && (bound.given == 0 || is_below(if bound.given == 1 { 0 } else { 1 })),
        // Up to the next version that may break: that of the first number which is not 0.
        "^" => {
            let first = bound.numbers.iter().position(|number| *number != 0).unwrap_or(2);
            is_from && (bound.given == 0 || is_below(first.min(bound.given - 1)))
        }
        _ => return None,
    })
}

/// Terms that have all to hold: separated by commas or blanks, with ranges `1.2 - 2.0`.
fn terms(text: &str) -> Vec<String> {
    let mut terms: Vec<String> = Vec::new();
    let mut words = text.split([',', ' ']).filter(|word| !word.is_empty()).peekable();
    while let Some(word) = words.next() {
        if word == "-"
            && let (Some(low), Some(high)) = (terms.pop(), words.peek())
        {
            terms.extend([format!(">={low}"), format!("<={high}")]);
            words.next();
        } else if word.chars().all(|character| "=!<>~^".contains(character))
            && let Some(bound) = words.next()
        {
            terms.push(format!("{word}{bound}"));
        } else {
            terms.push(word.to_owned());
        }
    }
    terms
}

pub(super) fn compare(values: &[Value]) -> Result<Value, String> {
    let version = Version::parse(of(&values[0]), false).ok_or("invalid semantic version")?;
    let constraint = of(&values[1]);
    let wrong = || format!("improper constraint: {constraint}");
    let mut holds = false;
    for alternative in constraint.split("||") {
        let terms = terms(alternative);
        if terms.is_empty() {
            return Err(wrong());
        }
        let mut all = true;
        for term in terms {
            all &= satisfies(&version, &term).ok_or_else(wrong)?;
        }
        holds |= all;
    }
    Ok(Value::Bool(holds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_satisfy_what_is_asked() {
        let holds = |version: &str, constraint: &str| compare(&[version.into(), constraint.into()]) == Ok(Value::Bool(true));
        for (version, constraint) in [
            ("1.2.3", ">= 1.2"),
            ("v1.2.3", "1.2.x"),
            ("1.2.3", "^1"),
            ("0.2.5", "^0.2.3"),
            ("1.2.9", "~1.2.3"),
            ("1.9.0", "~1"),
            ("1.2.3", ">1.1, <2"),
            ("1.5.0", "1.2 - 2.0"),
            ("3.0.0", "1.x || >=3"),
            ("1.2.3-rc.2", ">1.2.3-rc.1"),
            ("2", "*"),
            ("1.2.3", "!=1.2.4"),
            ("1.2.3", "<=1.2"),
            ("1.2.3+build", "=1.2.3"),
        ] {
            assert!(holds(version, constraint), "{version} {constraint}");
        }
        for (version, constraint) in [
            ("1.2.3", "^2"),
            ("0.3.0", "^0.2.3"),
            ("1.3.0", "~1.2.3"),
            ("1.2.3-rc.1", ">=1.0"),
            ("1.2.3", ">1.2"),
            ("1.3.0", "<=1.2"),
        ] {
            assert!(!holds(version, constraint), "{version} {constraint}");
        }
        assert!(compare(&["x".into(), "1".into()]).is_err() && compare(&["1".into(), "".into()]).is_err());
    }
}
