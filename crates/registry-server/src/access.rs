//! Who may do what: users of an htpasswd file, rules about repositories, and tokens that say what somebody may do for some minutes.
//!
//! Every request is looked at by [`Access::identify`] and [`Access::check`], whatever it is about. A token gives no more than its
//! user may do at the moment when it is shown.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use ring::hmac;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::answer::{Code, Refusal, Result};
use crate::name::Name;
use crate::registry::now;
use crate::route::{Right, Route};

/// The name of those who have not said who they are, in rules.
pub const ANONYMOUS: &str = "anonymous";
/// How long a token is good for, in seconds.
const LIFETIME: i64 = 300;
/// Whom tokens are for: clients, and browsers.
const SERVICE: &str = "dhow-registry";
const PAGE: &str = "dhow-registry-page";
/// How long somebody is signed in to the page, in seconds.
const SESSION: i64 = 12 * 3600;
/// How long a password that was right is not looked at again: bcrypt takes long on purpose.
const REMEMBERED: Duration = Duration::from_secs(300);
/// How clients say who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// By tokens that are had for a password: what all clients know, and the one under which somebody may be nobody.
    #[default]
    Token,
    /// By a password in each request.
    Basic,
}

/// Some users may do something with some repositories.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Names; `*` is every user, `anonymous` everybody.
    pub users: Vec<String>,
    /// Patterns of names: `*` is anything but a slash, `**` anything, `${user}` the user's name.
    pub repositories: Vec<String>,
    /// `pull`, `push`, `delete`. Who may push may pull.
    pub rights: Vec<String>,
}

/// What is set about access.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Users and their passwords. Without it everybody may do everything.
    pub htpasswd: Option<PathBuf>,
    pub scheme: Scheme,
    /// `None`: all users may do everything, and nobody else anything.
    pub rules: Option<Vec<Rule>>,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Nobody is asked who he is.
    Anybody,
    Anonymous,
    User(String),
    /// By a token: of whom, if of a user, and what for.
    Bearer {
        user: Option<String>,
        grants: Vec<Grant>,
    },
}

impl Who {
    pub fn user(&self) -> Option<&str> {
        match self {
            Who::User(user) | Who::Bearer { user: Some(user), .. } => Some(user),
            _ => None,
        }
    }
}

/// What a token is for (Docker's token specification, "access").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    #[serde(rename = "type")]
    pub kind: String,
    pub name: String,
    pub actions: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    aud: String,
    exp: i64,
    iat: i64,
    access: Vec<Grant>,
}

pub struct Access {
    rules: Rules,
    users: Mutex<Users>,
    key: hmac::Key,
    /// What was found right, and until when.
    remembered: Mutex<HashMap<[u8; 32], Instant>>,
}

#[derive(Default)]
struct Users {
    modified: Option<SystemTime>,
    hashes: HashMap<String, String>,
}

impl Access {
    /// `secret`: what tokens are signed with.
    ///
    /// # Errors
    /// The file cannot be read or is not of its kind; rules that cannot hold.
    pub fn new(rules: Rules, secret: &[u8]) -> Result<Access, String> {
        let mut users = Users::default();
        if let Some(path) = &rules.htpasswd {
            users = read_users(path)?;
        } else if rules.rules.is_some() {
            return Err("there are rules about users, and no htpasswd file with users".to_owned());
        }
        for rule in rules.rules.iter().flatten() {
            if let Some(bad) = rule.rights.iter().find(|right| Right::parse(right).is_none()) {
                return Err(format!("there is no right {bad:?}: it is pull, push or delete"));
            }
            if rules.scheme == Scheme::Basic && rule.users.iter().any(|user| user == ANONYMOUS) {
                return Err("with basic authentication clients cannot ask as nobody: set authentication to token".to_owned());
            }
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Ok(Access { rules, users: Mutex::new(users), key, remembered: Mutex::default() })
    }

    /// Whether anybody is asked who he is.
    pub fn is_open(&self) -> bool {
        self.rules.htpasswd.is_none()
    }

    pub fn scheme(&self) -> Scheme {
        self.rules.scheme
    }

    /// Who sent the request. It may take a tenth of a second.
    ///
    /// # Errors
    /// The password is wrong; the token is none of ours or too old.
    pub fn identify(&self, headers: &HeaderMap) -> Result<Who> {
        if self.is_open() {
            return Ok(Who::Anybody);
        }
        let Some(value) = headers.get(AUTHORIZATION) else { return Ok(Who::Anonymous) };
        let wrong = || Refusal::new(Code::Unauthorized, "authentication required");
        let value = value.to_str().map_err(|_| wrong())?;
        let (scheme, value) = value.split_once(' ').ok_or_else(wrong)?;
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => {
                let decoded = STANDARD.decode(value.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
                let decoded = decoded.ok_or_else(wrong)?;
                let (user, password) = decoded.split_once(':').ok_or_else(wrong)?;
                self.login(user, password).map(Who::User)
            }
            "bearer" => self.read_token(value.trim()).ok_or_else(wrong),
            _ => Err(wrong()),
        }
    }

    /// # Errors
    /// There is no such user, or he has another password.
    pub fn login(&self, user: &str, password: &str) -> Result<String> {
        let wrong = || Refusal::new(Code::Unauthorized, "unauthorized: incorrect username or password");
        let text = format!("{}:{user}{password}", user.len());
        let mut mark = [0; 32];
        mark.copy_from_slice(hmac::sign(&self.key, text.as_bytes()).as_ref());
        let (hash, of_another) = {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            self.refresh(&mut users);
            (users.hashes.get(user).cloned(), users.hashes.values().next().cloned())
        };
        {
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            remembered.retain(|_, until| *until > Instant::now());
            if hash.is_some() && remembered.contains_key(&mark) {
                return Ok(user.to_owned());
            }
        }
        // Whether there is such a user is not to be told from the time of an answer.
        let compared = hash.as_deref().or(of_another.as_deref()).unwrap_or_default();
        let is_right = bcrypt::verify(password, compared).unwrap_or(false);
        if !is_right || hash.is_none() {
            return Err(wrong());
        }
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).insert(mark, Instant::now() + REMEMBERED);
        Ok(user.to_owned())
    }

    /// Reads the file again when it has changed. One that cannot be read changes nothing.
    fn refresh(&self, users: &mut Users) {
        let Some(path) = &self.rules.htpasswd else { return };
        if std::fs::metadata(path).and_then(|stat| stat.modified()).ok() == users.modified {
            return;
        }
        match read_users(path) {
            Ok(read) => {
                // Old passwords are not remembered.
                self.remembered.lock().unwrap_or_else(PoisonError::into_inner).clear();
                *users = read;
            }
            Err(why) => tracing::warn!("users are those of before: {why}"),
        }
    }

    /// Whether somebody may do something with a repository.
    pub fn may(&self, who: &Who, name: &Name, right: Right) -> bool {
        let of_user = |user: Option<&str>| match &self.rules.rules {
            None => user.is_some(),
            Some(rules) => rules.iter().any(|rule| rule.allows(user, name, right)),
        };
        match who {
            Who::Anybody => true,
            Who::Anonymous => of_user(None),
            Who::User(user) => of_user(Some(user)),
            Who::Bearer { user, grants } => {
                let granted = grants.iter().any(|grant| {
                    grant.kind == "repository"
                        && grant.name == name.as_str()
                        && grant.actions.iter().any(|action| action == right.text())
                });
                granted && of_user(user.as_deref())
            }
        }
    }

    /// As [`Access::may`], whatever a token is for.
    pub fn may_see(&self, who: &Who, name: &Name) -> bool {
        match who {
            Who::Bearer { user: Some(user), .. } => self.may(&Who::User(user.clone()), name, Right::Pull),
            Who::Bearer { user: None, .. } => self.may(&Who::Anonymous, name, Right::Pull),
            other => self.may(other, name, Right::Pull),
        }
    }

    /// # Errors
    /// Who asks may not do that: `UNAUTHORIZED` where he may say who he is, `DENIED` where that would not help.
    pub fn check(&self, who: &Who, route: &Route, method: &hyper::Method, realm: &str) -> Result<()> {
        let allowed = match route.needs(method) {
            Some((name, right)) => self.may(who, name, right),
            // Whoever may come in: by a token even nobody.
            None => *who != Who::Anonymous,
        };
        if allowed {
            return Ok(());
        }
        match who {
            Who::User(user) => Err(Refusal::new(Code::Denied, format!("requested access to the resource is denied to {user}"))),
            _ => {
                let refusal = Refusal::new(Code::Unauthorized, "authentication required");
                Err(self.challenge(refusal, Some((route, method)), Some(who), realm))
            }
        }
    }

    /// Says how one is to say who one is. `realm`: scheme and host that the client used; `who`: as whom that was not enough.
    pub fn challenge(
        &self,
        refusal: Refusal,
        about: Option<(&Route, &hyper::Method)>,
        who: Option<&Who>,
        realm: &str,
    ) -> Refusal {
        match self.rules.scheme {
            Scheme::Basic => refusal.with(WWW_AUTHENTICATE, "Basic realm=\"dhow registry\""),
            Scheme::Token => {
                let scope = about.and_then(|(route, method)| match route.needs(method) {
                    // Who pushes asks what is there, too.
                    Some((name, Right::Push)) => Some(format!("repository:{name}:pull,push")),
                    Some((name, right)) => Some(format!("repository:{name}:{}", right.text())),
                    None if matches!(route, Route::Catalog) => Some("registry:catalog:*".to_owned()),
                    None => None,
                });
                let scope = scope.map(|scope| format!(",scope=\"{scope}\"")).unwrap_or_default();
                // A token that was good for something else (RFC 6750, 3.1).
                let why = if matches!(who, Some(Who::Bearer { .. })) { ",error=\"insufficient_scope\"" } else { "" };
                refusal.with(WWW_AUTHENTICATE, format!("Bearer realm=\"{realm}/token\",service=\"{SERVICE}\"{scope}{why}"))
            }
        }
    }

    /// A token for what somebody asks for, as far as he may have it, as the document that clients expect.
    pub fn token<'a>(&self, who: &Who, scopes: impl Iterator<Item = &'a str>) -> serde_json::Value {
        let mut access = Vec::new();
        for scope in scopes {
            // A name may have a port in it: `repository:host:5000/name:pull`.
            let Some((rest, actions)) = scope.rsplit_once(':') else { continue };
            let Some((kind, name)) = rest.split_once(':') else { continue };
            let Ok(parsed) = name.parse::<Name>() else { continue };
            if kind != "repository" {
                continue;
            }
            let all = actions.split(',').any(|action| action == "*");
            let rights = [Right::Pull, Right::Push, Right::Delete].into_iter();
            let rights = rights.filter(|right| all || actions.split(',').any(|action| action == right.text()));
            let actions: Vec<String> =
                rights.filter(|right| self.may(who, &parsed, *right)).map(|right| right.text().to_owned()).collect();
            access.push(Grant { kind: kind.to_owned(), name: name.to_owned(), actions });
        }
        let now = now();
        let token = self.sign(&Claims {
            sub: who.user().unwrap_or_default().to_owned(),
            aud: SERVICE.to_owned(),
            exp: now + LIFETIME,
            iat: now,
            access,
        });
        let issued = dhow_oci::time::format(now * 1_000_000_000);
        json!({ "token": token, "access_token": token, "expires_in": LIFETIME, "issued_at": issued })
    }

    /// A JSON Web Token (RFC 7519).
    fn sign(&self, claims: &Claims) -> String {
        let body = serde_json::to_vec(claims).unwrap_or_default();
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#), URL_SAFE_NO_PAD.encode(body));
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&self.key, signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    /// What a browser keeps of somebody who signed in, and for how many seconds.
    pub fn session(&self, user: &str) -> (String, i64) {
        let now = now();
        let claims = Claims { sub: user.to_owned(), aud: PAGE.to_owned(), exp: now + SESSION, iat: now, access: Vec::new() };
        (self.sign(&claims), SESSION)
    }

    /// Who has signed in; `None` if that was too long ago.
    pub fn signed_in(&self, session: &str) -> Option<Who> {
        self.claims(session, PAGE).map(|claims| Who::User(claims.sub))
    }

    fn read_token(&self, token: &str) -> Option<Who> {
        let claims = self.claims(token, SERVICE)?;
        Some(Who::Bearer { user: Some(claims.sub).filter(|user| !user.is_empty()), grants: claims.access })
    }

    /// What a token says. What it says of its own kind is not asked: it was signed here, by one algorithm, or it is nothing.
    fn claims(&self, token: &str, audience: &str) -> Option<Claims> {
        let (signed, signature) = token.rsplit_once('.')?;
        hmac::verify(&self.key, signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(signed.split_once('.')?.1).ok()?).ok()?;
        if claims.exp <= now() || claims.aud != audience {
            return None;
        }
        if !claims.sub.is_empty() {
            // Whoever was removed meanwhile has no rights any more.
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            self.refresh(&mut users);
            users.hashes.get(&claims.sub)?;
        }
        Some(claims)
    }
}

impl Rule {
    fn allows(&self, user: Option<&str>, name: &Name, right: Right) -> bool {
        let rights = self.rights.iter().filter_map(|right| Right::parse(right));
        let has_right = rights.into_iter().any(|given| given == right || given == Right::Push && right == Right::Pull);
        let is_meant = self.users.iter().any(|meant| match user {
            _ if meant == ANONYMOUS => true,
            None => false,
            Some(user) => meant == "*" || meant == user,
        });
        let is_about = |pattern: &String| match (pattern.contains("${user}"), user) {
            (false, _) => matches(pattern, name.as_str()),
            (true, None) => false,
            // A user's name is a name, and no pattern.
            (true, Some(user)) => !user.contains('*') && matches(&pattern.replace("${user}", user), name.as_str()),
        };
        has_right && is_meant && self.repositories.iter().any(is_about)
    }
}

/// Whether a name is of a pattern: `*` is anything but a slash, `**` anything.
pub fn matches(pattern: &str, name: &str) -> bool {
    // Where each star may have ended: tried from the last one on, so that the time is no more than the product of both lengths.
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        let mut next = vec![false; name.len() + 1];
        if pattern[at] == b'*' {
            let is_deep = pattern.get(at + 1) == Some(&b'*');
            at += if is_deep { 2 } else { 1 };
            let mut open = false;
            for end in 0..=name.len() {
                if end > 0 && name[end - 1] == b'/' && !is_deep {
                    open = false;
                }
                open |= reached[end];
                next[end] = open;
            }
        } else {
            for end in 0..name.len() {
                next[end + 1] = reached[end] && name[end] == pattern[at];
            }
            at += 1;
        }
        reached = next;
    }
    reached[name.len()]
}

/// A password as a file of users has it.
pub fn hash(password: &str) -> Result<String, String> {
    // More is not looked at.
    if password.is_empty() || password.len() > 72 {
        return Err("a password has 1 to 72 bytes".to_owned());
    }
    bcrypt::hash_with_result(password, 10)
        .map(|parts| parts.format_for_version(bcrypt::Version::TwoY))
        .map_err(|error| error.to_string())
}

/// `USER:HASH` in each line, by bcrypt.
fn read_users(path: &Path) -> Result<Users, String> {
    let failed = |error: std::io::Error| format!("read the users of {}: {error}", path.display());
    let modified = std::fs::metadata(path).and_then(|stat| stat.modified()).map_err(failed)?;
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let mut hashes = HashMap::new();
    for (number, line) in text.lines().enumerate().map(|(number, line)| (number + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (user, hash) = line.split_once(':').ok_or_else(|| format!("{}:{number}: not USER:HASH", path.display()))?;
        if !["$2a$", "$2b$", "$2y$"].iter().any(|prefix| hash.starts_with(prefix)) {
            return Err(format!("{}:{number}: the password of {user} is not hashed by bcrypt (htpasswd -B)", path.display()));
        }
        if user == ANONYMOUS || user == "*" {
            return Err(format!("{}:{number}: {user} is nobody's name", path.display()));
        }
        hashes.insert(user.to_owned(), hash.to_owned());
    }
    Ok(Users { modified: Some(modified), hashes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_end_at_slashes() {
        for (pattern, name, expected) in [
            ("*", "a", true),
            ("*", "a/b", false),
            ("**", "a/b", true),
            ("team/*", "team/app", true),
            ("team/*", "team/app/x", false),
            ("team/**", "team/app/x", true),
            ("team/**", "teams/app", false),
            ("*/app", "team/app", true),
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    fn access(rules: serde_json::Value) -> (tempfile::TempDir, Access) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        let hash = |password: &str| bcrypt::hash(password, 4).unwrap();
        std::fs::write(&path, format!("# users\nada:{}\nbob:{}\n", hash("secret"), hash("word"))).unwrap();
        let rules = Rules { htpasswd: Some(path), scheme: Scheme::Token, rules: serde_json::from_value(rules).unwrap() };
        let access = Access::new(rules, b"key").unwrap();
        (directory, access)
    }

    fn header(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn rules_say_who_may_do_what() {
        let (_directory, access) = access(json!([
            { "users": ["anonymous"], "repositories": ["public/**"], "rights": ["pull"] },
            { "users": ["*"], "repositories": ["people/${user}/**"], "rights": ["push", "delete"] },
            { "users": ["ada"], "repositories": ["**"], "rights": ["push"] },
        ]));
        let may = |who: &Who, name: &str, right| access.may(who, &name.parse().unwrap(), right);
        let (ada, bob) = (Who::User("ada".into()), Who::User("bob".into()));
        assert!(may(&Who::Anonymous, "public/a/b", Right::Pull) && may(&bob, "public/a", Right::Pull));
        assert!(!may(&Who::Anonymous, "public/a", Right::Push) && !may(&bob, "public/a", Right::Push));
        assert!(may(&bob, "people/bob/x", Right::Delete) && !may(&bob, "people/ada/x", Right::Pull));
        assert!(may(&ada, "other", Right::Pull) && may(&ada, "other", Right::Push) && !may(&ada, "other", Right::Delete));
        assert!(!may(&Who::Anonymous, "people/anonymous/x", Right::Pull));
    }

    #[test]
    fn a_token_is_for_what_was_asked_and_allowed() {
        let (_directory, access) = access(json!([{ "users": ["ada"], "repositories": ["app"], "rights": ["push"] }]));
        assert!(access.login("ada", "wrong").is_err() && access.login("eve", "secret").is_err());
        let ada = Who::User(access.login("ada", "secret").unwrap());
        let document =
            access.token(&ada, ["repository:app:pull,push,delete", "repository:other:pull", "registry:catalog:*"].into_iter());
        let token = document["token"].as_str().unwrap();
        let Who::Bearer { user, grants } = access.identify(&header(&format!("Bearer {token}"))).unwrap() else { panic!() };
        assert_eq!(user.as_deref(), Some("ada"));
        assert_eq!(grants.iter().map(|grant| grant.actions.join("+")).collect::<Vec<_>>(), ["pull+push", ""]);
        // Nothing about it can be changed, the algorithm least of all.
        let (head, signature) = token.rsplit_once('.').unwrap();
        let none = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), head.split_once('.').unwrap().1);
        for bad in [format!("{head}x.{signature}"), format!("{head}."), none, String::new(), "a.b.c".into()] {
            assert!(access.identify(&header(&format!("Bearer {bad}"))).is_err(), "{bad}");
        }
    }

    #[test]
    fn who_is_removed_has_no_token() {
        let (directory, access) = access(serde_json::Value::Null);
        let ada = Who::User(access.login("ada", "secret").unwrap());
        let document = access.token(&ada, ["repository:app:*"].into_iter());
        let bearer = header(&format!("Bearer {}", document["token"].as_str().unwrap()));
        assert!(access.identify(&bearer).is_ok());
        let path = directory.path().join("users");
        std::fs::write(&path, "").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert!(access.identify(&bearer).is_err());
        assert!(access.login("ada", "secret").is_err());
    }

    #[test]
    fn what_cannot_hold_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        std::fs::write(&path, "ada:{SHA}x\n").unwrap();
        let error = Access::new(Rules { htpasswd: Some(path), ..Rules::default() }, b"").err().unwrap();
        assert!(error.contains("users:1: the password of ada is not hashed by bcrypt"), "{error}");
        assert!(Access::new(Rules { rules: Some(Vec::new()), ..Rules::default() }, b"").is_err());
    }
}
