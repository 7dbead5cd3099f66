//! How a registry is told who one is: what its challenge asks for (RFC 7235; distribution's token authentication).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::Error;

/// Who one is to a registry.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Credentials {
    #[serde(deserialize_with = "text")]
    pub username: String,
    #[serde(deserialize_with = "text")]
    pub password: String,
    /// What `docker login` got for user name and password, where the registry gives such.
    #[serde(rename = "identitytoken", deserialize_with = "text")]
    pub identity_token: String,
    /// A token that is sent as it is.
    #[serde(rename = "registrytoken", deserialize_with = "text")]
    pub registry_token: String,
}

/// A text; `null` is none, as to Go.
fn text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Not for logs.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Credentials {
    /// The value of `Authorization` for user name and password.
    pub(crate) fn basic(&self) -> Option<String> {
        let pair = format!("{}:{}", self.username, self.password);
        (!self.username.is_empty()).then(|| format!("Basic {}", STANDARD.encode(pair)))
    }
}

/// What a registry that says 401 wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer(TokenRequest),
}

/// Where a token is to be had, and for what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TokenRequest {
    pub realm: String,
    pub service: String,
    pub scope: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct TokenAnswer {
    #[serde(deserialize_with = "text")]
    token: String,
    #[serde(deserialize_with = "text")]
    access_token: String,
    /// An identity token.
    #[serde(deserialize_with = "text")]
    pub refresh_token: String,
}

impl TokenAnswer {
    pub fn into_token(self) -> Result<String, Error> {
        let token = if self.token.is_empty() { self.access_token } else { self.token };
        let none = "authorization server did not include a token in the response";
        match token.bytes().all(|byte| byte.is_ascii_graphic()) {
            true if token.is_empty() => Err(Error::Protocol(none.to_owned())),
            // It becomes a header.
            true => Ok(token),
            false => Err(Error::Protocol("the authorization server's token is none".to_owned())),
        }
    }
}

const QUERY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/').remove(b':').remove(b',');

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, QUERY).to_string()
}

impl TokenRequest {
    /// The address to ask, with the account if there is one; `offline` for an identity token, too.
    pub fn url(&self, account: &str, offline: bool) -> String {
        let mut url =
            format!("{}{}service={}", self.realm, if self.realm.contains('?') { '&' } else { '?' }, encoded(&self.service));
        for scope in self.scope.split(' ').filter(|scope| !scope.is_empty()) {
            url += &format!("&scope={}", encoded(scope));
        }
        if !account.is_empty() {
            url += &format!("&account={}", encoded(account));
        }
        if offline {
            url += "&client_id=dhow&offline_token=true";
        }
        url
    }

    /// The body of a request that shows an identity token (OAuth 2, "Refreshing an Access Token").
    pub fn form(&self, identity_token: &str) -> String {
        let service = encoded(&self.service);
        let (scope, token) = (encoded(&self.scope), encoded(identity_token));
        format!("grant_type=refresh_token&service={service}&client_id=dhow&scope={scope}&refresh_token={token}")
    }
}

/// The challenge of `WWW-Authenticate` headers; tokens are preferred. `scope` where the registry names none.
pub(crate) fn challenge<'a>(headers: impl Iterator<Item = &'a str>, scope: &str) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            let parameters = parameters(rest);
            let get =
                |key: &str| parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value.clone());
            let realm = get("realm")?;
            let scope = get("scope").filter(|scope| !scope.is_empty()).unwrap_or_else(|| scope.to_owned());
            return Some(Challenge::Bearer(TokenRequest { realm, service: get("service").unwrap_or_default(), scope }));
        }
    }
    basic
}

/// `key="value",key=value`
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_owned();
        let mut value = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut characters = quoted.char_indices();
            let mut end = quoted.len();
            while let Some((place, c)) = characters.next() {
                match c {
                    '"' => {
                        end = place + 1;
                        break;
                    }
                    '\\' => value.extend(characters.next().map(|(_, c)| c)),
                    c => value.push(c),
                }
            }
            rest = &quoted[end..];
        } else {
            let end = after.find(',').unwrap_or(after.len());
            value = after[..end].trim().to_owned();
            rest = &after[end..];
        }
        found.push((key, value));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let hub =
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull,push""#;
        let Some(Challenge::Bearer(request)) = challenge([hub, "Basic realm=x"].into_iter(), "") else { panic!() };
        assert_eq!((request.service.as_str(), request.scope.as_str()), ("registry.docker.io", "repository:library/x:pull,push"));
        assert_eq!(
            request.url("me & you", false),
            "https://auth.docker.io/token?service=registry.docker.io&scope=repository:library/x:pull,push&account=me%20%26%20you"
        );
        assert_eq!(challenge(["Basic realm=\"x\""].into_iter(), ""), Some(Challenge::Basic));
        let Some(Challenge::Bearer(request)) =
            challenge([r#"bearer realm="a\"b?x=1", service=s"#].into_iter(), "repository:y:pull")
        else {
            panic!()
        };
        assert_eq!(request.url("", false), "a\"b?x=1&service=s&scope=repository:y:pull");
        for none in ["", "Negotiate", "Bearer", "Bearer service=x", "Bearer realm"] {
            assert_eq!(challenge([none].into_iter(), ""), None, "{none}");
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let credentials = Credentials { username: "me".into(), password: "secret".into(), ..Credentials::default() };
        assert!(!format!("{credentials:?}").contains("secret"));
        assert_eq!(credentials.basic().as_deref(), Some("Basic bWU6c2VjcmV0"));
        assert_eq!(Credentials::default().basic(), None);
        let sent = r#"{"username":"me","password":"secret","auth":null,"identitytoken":null,"registrytoken":null}"#;
        assert!(serde_json::from_str::<Credentials>(sent).unwrap() == credentials);
    }
}
