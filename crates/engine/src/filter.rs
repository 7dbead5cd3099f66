//! Filters of list and event requests: keys with values, of which any may match; different keys must all match.

use std::collections::BTreeMap;

use crate::{Error, Result};

#[derive(Clone, Debug, Default)]
pub struct Filters(pub BTreeMap<String, Vec<String>>);

impl Filters {
    /// Reads both forms of the wire: `{"key":{"value":true}}` and `{"key":["value"]}`.
    pub fn parse(text: &str) -> Result<Filters> {
        if text.is_empty() {
            return Ok(Filters::default());
        }
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Values {
            Map(BTreeMap<String, serde_json::Value>),
            List(Vec<String>),
        }
        let parsed: BTreeMap<String, Values> = serde_json::from_str(text).map_err(|_| Error::invalid("invalid filter"))?;
        let values = |values| match values {
            Values::Map(map) => map.into_keys().collect(),
            Values::List(list) => list,
        };
        Ok(Filters(parsed.into_iter().map(|(key, list)| (key, values(list))).collect()))
    }

    /// # Errors
    /// A key that is not among `known`.
    pub fn check(&self, known: &[&str]) -> Result<()> {
        match self.0.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(Error::invalid(format!("invalid filter '{key}'"))),
            None => Ok(()),
        }
    }

    /// One value more for a key.
    pub fn add(&mut self, key: &str, value: &str) {
        self.0.entry(key.to_owned()).or_default().push(value.to_owned());
    }

    pub fn get(&self, key: &str) -> &[String] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether the key is absent or one of its values satisfies `matches`.
    pub fn any(&self, key: &str, matches: impl Fn(&str) -> bool) -> bool {
        self.0.get(key).is_none_or(|values| values.iter().any(|value| matches(value)))
    }

    /// Labels of `label` must all be there, and none of `label!`: `key` or `key=value`.
    pub fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.pairs("label", labels) && !self.get("label!").iter().any(|wanted| has(labels, wanted))
    }

    /// The values of a filter, `key` or `key=value`, must all be among the pairs.
    pub fn pairs(&self, filter: &str, pairs: &BTreeMap<String, String>) -> bool {
        self.get(filter).iter().all(|wanted| has(pairs, wanted))
    }

    /// A yes-or-no filter: `None` when absent.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            [] => Ok(None),
            [value] if matches!(value.as_str(), "1" | "true" | "True" | "t") => Ok(Some(true)),
            [value] if matches!(value.as_str(), "0" | "false" | "False" | "f") => Ok(Some(false)),
            values => Err(Error::invalid(format!("invalid filter '{key}=[{}]'", values.join(" ")))),
        }
    }
}

/// Whether a pair is there: `key` or `key=value`.
fn has(pairs: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => pairs.get(key).is_some_and(|found| found == value),
        None => pairs.contains_key(wanted),
    }
}

/// The moment of a filter `until`, in nanoseconds: a duration before now, Unix seconds, or a time, in UTC if it has no zone.
pub(crate) fn until(filters: &Filters) -> Result<Option<i64>> {
    match filters.get("until") {
        [] => Ok(None),
        [text] => {
            moment(text).map(Some).ok_or_else(|| Error::invalid(format!("failed to parse value as time or duration: \"{text}\"")))
        }
        _ => Err(Error::invalid("more than one until filter specified")),
    }
}

fn moment(text: &str) -> Option<i64> {
    const SECOND: f64 = 1e9;
    if let Ok(seconds) = text.parse::<f64>() {
        return Some((seconds * SECOND) as i64);
    }
    if let Some(duration) = crate::units::parse_duration(text) {
        return Some(dhow_oci::time::now() - duration);
    }
    let full = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        13 => format!("{text}:00:00Z"),
        16 => format!("{text}:00Z"),
        19 => format!("{text}Z"),
        _ => text.to_owned(),
    };
    dhow_oci::time::parse(&full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_there_or_not() {
        let labels: BTreeMap<String, String> = [("a".to_owned(), "b".to_owned())].into();
        for (filter, matches) in [
            (r#"{"label":["a"]}"#, true),
            (r#"{"label":["a=c"]}"#, false),
            (r#"{"label!":["a=c","x"]}"#, true),
            (r#"{"label":["a"],"label!":["a=b"]}"#, false),
        ] {
            assert_eq!(Filters::parse(filter).unwrap().labels(&labels), matches, "{filter}");
        }
    }

    #[test]
    fn moments_have_many_forms() {
        let at =
            |text: &str| until(&Filters([("until".to_owned(), vec![text.to_owned()])].into())).map_err(|error| error.message);
        assert_eq!(at("1.5"), Ok(Some(1_500_000_000)));
        assert_eq!(at("2026-11-20T23:46:13Z"), at("2026-11-20T23:46:13"));
        assert_eq!(at("2026-11-20"), at("2026-11-20T00:00"));
        let hour_ago = at("1h").unwrap().unwrap();
        assert!((dhow_oci::time::now() - hour_ago).abs_diff(3_600_000_000_000) < 60_000_000_000);
        assert!(at("yesterday").unwrap_err().contains("\"yesterday\""));
        assert_eq!(until(&Filters::default()).unwrap(), None);
    }

    #[test]
    fn both_forms_mean_the_same() {
        let modern = Filters::parse(r#"{"label":{"a=b":true,"c":false}}"#).unwrap();
        let legacy = Filters::parse(r#"{"label":["a=b","c"]}"#).unwrap();
        assert_eq!(modern.get("label"), legacy.get("label"));
        assert_eq!(Filters::parse("zz").unwrap_err().message, "invalid filter");
        assert_eq!(modern.check(&["name"]).unwrap_err().message, "invalid filter 'label'");
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        assert!(!modern.labels(&labels));
        assert_eq!(
            Filters::parse(r#"{"dangling":["zz"]}"#).unwrap().boolean("dangling").unwrap_err().message,
            "invalid filter 'dangling=[zz]'"
        );
    }
}
