//! Who the user is to registries: docker's `config.json`, and the helpers that it names.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use dhow_oci::Reference;
use dhow_oci::reference::DEFAULT_DOMAIN;
use serde_json::{Map, Value, json};

/// The key under which credentials for the default registry are kept.
const HUB: &str = "https://index.docker.io/v1/";
/// What helpers call the user when they gave an identity token for him.
const TOKEN: &str = "<token>";

/// The header that tells a daemon who one is to the registry of an image.
pub fn header(folder: &Path, name: &Reference) -> (&'static str, String) {
    let credentials = of(folder, &name.domain).unwrap_or_default();
    ("X-Registry-Auth", URL_SAFE.encode(Value::Object(credentials).to_string()))
}

/// What is known of a registry; nothing that cannot be read keeps anybody from trying without.
fn of(folder: &Path, domain: &str) -> Option<Map<String, Value>> {
    let text = std::fs::read_to_string(folder.join("config.json")).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    let server = if domain == DEFAULT_DOMAIN { HUB } else { domain };
    let helper = config["credHelpers"][server].as_str().or(config["credsStore"].as_str()).filter(|name| !name.is_empty());
    if let Some(helper) = helper {
        return by_helper(helper, server);
    }
    let auths = config["auths"].as_object()?;
    let host = |key: &str| {
        let rest = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(key);
        rest.split('/').next().unwrap_or_default().to_owned()
    };
    let entry = auths.get(server).or_else(|| auths.iter().find(|(key, _)| host(key) == host(server)).map(|(_, entry)| entry))?;
    let mut credentials = Map::from_iter([("serveraddress".to_owned(), server.into())]);
    if let Some(pair) = entry["auth"].as_str() {
        let pair = String::from_utf8(STANDARD.decode(pair).ok()?).ok()?;
        let (user, password) = pair.split_once(':')?;
        credentials.insert("username".to_owned(), user.into());
        credentials.insert("password".to_owned(), password.trim_end_matches('\0').into());
    }
    for key in ["username", "password", "identitytoken", "registrytoken"] {
        if let Some(value) = entry[key].as_str() {
            credentials.insert(key.to_owned(), value.into());
        }
    }
    Some(credentials)
}

/// Asks `docker-credential-NAME get` (docker-credential-helpers).
fn by_helper(name: &str, server: &str) -> Option<Map<String, Value>> {
    let mut command = Command::new(format!("docker-credential-{name}"));
    let mut child = command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    child.stdin.take()?.write_all(server.as_bytes()).ok()?;
    let output = child.wait_with_output().ok().filter(|output| output.status.success())?;
    let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
    let (user, secret) = (answer["Username"].as_str()?, answer["Secret"].as_str()?);
    let credentials = match user {
        TOKEN => json!({ "identitytoken": secret, "serveraddress": server }),
        user => json!({ "username": user, "password": secret, "serveraddress": server }),
    };
    credentials.as_object().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_own_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "bWU6c2VjcmV0"}, "reg:5000": {"auth": "eDp5Og==", "identitytoken": "t"}},
            "credHelpers": {"other": "does-not-exist"}}"#;
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        let of = |domain: &str| of(folder.path(), domain).map(Value::Object);
        assert_eq!(of("docker.io"), Some(json!({"serveraddress": HUB, "username": "me", "password": "secret"})));
        let expected = json!({"serveraddress": "reg:5000", "username": "x", "password": "y:", "identitytoken": "t"});
        assert_eq!(of("reg:5000"), Some(expected));
        assert_eq!((of("other"), of("unknown")), (None, None));
        let name: Reference = "unknown/x".parse().unwrap();
        assert_eq!(header(folder.path(), &name).1.len() % 4, 0);
    }
}
