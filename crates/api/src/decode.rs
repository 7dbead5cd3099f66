//! Reading JSON as Go does: field names in any case, unknown fields ignored, `null` as the zero value, one document only.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Decodes a request's body. An empty body is the zero value if `empty_ok`.
///
/// # Errors
/// The texts are Docker's.
pub fn decode<T: DeserializeOwned + Serialize + Default>(body: &[u8], empty_ok: bool) -> Result<T, String> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return if empty_ok { Ok(T::default()) } else { Err("invalid JSON: got EOF while reading request body".to_owned()) };
    }
    let mut documents = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    let mut value = match documents.next() {
        Some(Ok(value)) => value,
        Some(Err(error)) => return Err(format!("invalid JSON: {error}")),
        None => return Err("invalid JSON: got EOF while reading request body".to_owned()),
    };
    if documents.next().is_some() {
        return Err("unexpected content after JSON".to_owned());
    }
    if value.is_null() {
        return Ok(T::default());
    }
    let model = serde_json::to_value(T::default()).unwrap_or(Value::Null);
    normalize(&mut value, &model);
    serde_json::from_value(value).map_err(|error| format!("invalid JSON: {error}"))
}

/// Gives keys the case that the model has, and drops nulls. Keys of maps are data and stay: a model knows none of them.
fn normalize(value: &mut Value, model: &Value) {
    match value {
        Value::Object(fields) => {
            let old = std::mem::take(fields);
            for (key, mut field) in old {
                if field.is_null() {
                    continue;
                }
                let known = model.as_object().and_then(|model| model.iter().find(|(name, _)| name.eq_ignore_ascii_case(&key)));
                let (name, below) = known.map_or((key.as_str(), &Value::Null), |(name, below)| (name.as_str(), below));
                normalize(&mut field, below);
                fields.insert(name.to_owned(), field);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| normalize(item, &Value::Null)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, CreateRequest};

    #[test]
    fn names_in_any_case_and_nulls() {
        let config: Config =
            decode(br#"{"image":"x","CMD":"sh","hostName":null,"Labels":{"A":"b"},"Unknown":1}"#, false).unwrap();
        assert_eq!((config.image.as_str(), config.cmd.unwrap()), ("x", vec!["sh".to_owned()]));
        assert_eq!(config.labels.unwrap()["A"], "b");
    }

    #[test]
    fn one_document_only() {
        assert_eq!(decode::<Config>(b"{} {}", true).unwrap_err(), "unexpected content after JSON");
        assert_eq!(decode::<Config>(b"", false).unwrap_err(), "invalid JSON: got EOF while reading request body");
        assert!(decode::<Config>(b"", true).is_ok());
        let request: CreateRequest = decode(br#"{"Image":"x","HostConfig":{"memory":5}}"#, false).unwrap();
        assert_eq!((request.config.image.as_str(), request.host_config.memory), ("x", 5));
    }
}
