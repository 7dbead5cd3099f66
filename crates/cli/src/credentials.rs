//! Who the user is to registries: docker's `config.json`, and the helpers that it names.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use dhow_oci::Reference;
use dhow_oci::reference::DEFAULT_DOMAIN;
use serde_json::{Map, Value, json};

use crate::connect::contexts::Folder;
use crate::failure::{Failure, Result};

/// The key under which credentials for the default registry are kept.
pub const HUB: &str = "https://index.docker.io/v1/";
/// What helpers call the user when they gave an identity token for him.
const TOKEN: &str = "<token>";

/// The header that tells a daemon who one is to the registry of an image.
pub fn header(folder: &Path, name: &Reference) -> (&'static str, String) {
    let credentials = of(folder, server_of(&name.domain)).unwrap_or_default();
    ("X-Registry-Auth", URL_SAFE.encode(Value::Object(credentials).to_string()))
}

/// The key of a registry's domain.
pub fn server_of(domain: &str) -> &str {
    if domain == DEFAULT_DOMAIN { HUB } else { domain }
}

/// The helper that keeps the credentials of a server.
fn helper_of<'a>(settings: &'a Map<String, Value>, server: &str) -> Option<&'a str> {
    let own = settings.get("credHelpers").and_then(|helpers| helpers[server].as_str());
    own.or_else(|| settings.get("credsStore")?.as_str()).filter(|name| !name.is_empty())
}

/// What is known of a registry; nothing that cannot be read keeps anybody from trying without.
pub fn of(folder: &Path, server: &str) -> Option<Map<String, Value>> {
    let config = Folder::find(Some(folder)).settings().ok()?;
    if let Some(helper) = helper_of(&config, server) {
        return by_helper(helper, server);
    }
    let auths = config.get("auths")?.as_object()?;
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

/// Who one is to a registry from now on.
#[derive(Clone, Default)]
pub struct Login {
    pub username: String,
    pub password: String,
    /// To be shown instead of the password.
    pub identity_token: String,
}

/// Keeps credentials: the name of the file where everybody who may read it can read them, if no helper has them.
pub fn keep(folder: &Path, server: &str, login: &Login) -> Result<Option<PathBuf>> {
    let folder = Folder::find(Some(folder));
    let mut settings = folder.settings()?;
    if let Some(helper) = helper_of(&settings, server) {
        let (user, secret) = match login.identity_token.as_str() {
            "" => (login.username.as_str(), login.password.as_str()),
            token => (TOKEN, token),
        };
        let input = json!({ "ServerURL": server, "Username": user, "Secret": secret }).to_string();
        return ask_helper(helper, "store", &input).map(|_| None);
    }
    let mut entry = json!({ "auth": STANDARD.encode(format!("{}:{}", login.username, login.password)) });
    if !login.identity_token.is_empty() {
        entry["auth"] = STANDARD.encode(format!("{}:", login.username)).into();
        entry["identitytoken"] = login.identity_token.clone().into();
    }
    let auths = settings.entry("auths").or_insert_with(|| json!({}));
    match auths.as_object_mut() {
        Some(auths) => drop(auths.insert(server.to_owned(), entry)),
        None => *auths = json!({ server: entry }),
    }
    folder.save_settings(&settings)?;
    Ok(Some(folder.config()))
}

/// Forgets the credentials for a registry.
pub fn forget(folder: &Path, server: &str) -> Result {
    let folder = Folder::find(Some(folder));
    let mut settings = folder.settings()?;
    if let Some(helper) = helper_of(&settings, server) {
        return ask_helper(helper, "erase", server).map(drop);
    }
    let removed = settings.get_mut("auths").and_then(Value::as_object_mut).and_then(|auths| auths.remove(server));
    if removed.is_some() { folder.save_settings(&settings) } else { Ok(()) }
}

fn by_helper(name: &str, server: &str) -> Option<Map<String, Value>> {
    let answer: Value = serde_json::from_slice(&ask_helper(name, "get", server).ok()?).ok()?;
    let (user, secret) = (answer["Username"].as_str()?, answer["Secret"].as_str()?);
    let credentials = match user {
        TOKEN => json!({ "identitytoken": secret, "serveraddress": server }),
        user => json!({ "username": user, "password": secret, "serveraddress": server }),
    };
    credentials.as_object().cloned()
}

/// Asks `docker-credential-NAME` (docker-credential-helpers).
fn ask_helper(name: &str, action: &str, input: &str) -> Result<Vec<u8>> {
    let program = format!("docker-credential-{name}");
    let failed = |why: String| Failure::new(format!("{program} {action}: {why}"));
    let mut command = Command::new(&program);
    let child = command.arg(action).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read has no need of it.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(output.stdout),
        // Helpers tell on standard output why.
        false => Err(failed(String::from_utf8_lossy(&output.stdout).trim().to_owned())),
    }
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
        let of = |domain: &str| of(folder.path(), server_of(domain)).map(Value::Object);
        assert_eq!(of("docker.io"), Some(json!({"serveraddress": HUB, "username": "me", "password": "secret"})));
        let expected = json!({"serveraddress": "reg:5000", "username": "x", "password": "y:", "identitytoken": "t"});
        assert_eq!(of("reg:5000"), Some(expected));
        assert_eq!((of("other"), of("unknown")), (None, None));
        let name: Reference = "unknown/x".parse().unwrap();
        assert_eq!(header(folder.path(), &name).1.len() % 4, 0);

        let login = Login { username: "me".into(), password: "new".into(), ..Login::default() };
        let path = keep(folder.path(), "reg:5000", &login).unwrap();
        assert_eq!(path, Some(folder.path().join("config.json")));
        assert_eq!(of("reg:5000"), Some(json!({"serveraddress": "reg:5000", "username": "me", "password": "new"})));
        forget(folder.path(), "reg:5000").unwrap();
        assert_eq!(of("reg:5000"), None);
        assert!(of("docker.io").is_some(), "what others wrote stays");
        let refused = keep(folder.path(), "other", &login).unwrap_err().to_string();
        assert!(refused.starts_with("docker-credential-does-not-exist store: "), "{refused}");
    }
}
