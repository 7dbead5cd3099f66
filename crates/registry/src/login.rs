//! Finding out whether a registry knows somebody, and searching one.

use dhow_oci::Reference;
use hyper::header::WWW_AUTHENTICATE;
use hyper::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::auth::{Challenge, challenge};
use crate::error::{Error, Result};
use crate::request::{Ask, Inner, Session, accepted, whole};

const MAX_ANSWER: usize = 4 << 20;
/// Where the images of the default domain are searched.
const INDEX: &str = "https://index.docker.io";

/// A registry as a name without a repository.
fn registry(domain: &str) -> Reference {
    Reference { domain: domain.to_owned(), path: String::new(), tag: None, digest: None }
}

impl Session<'_> {
    /// Shows a registry who one is: an identity token, where it gives one for user name and password.
    ///
    /// # Errors
    /// It does not know him, in dockerd's words.
    pub fn login(&mut self, domain: &str) -> Result<Option<String>> {
        let Session { runtime, inner } = self;
        runtime.block_on(inner.login(&registry(domain)))
    }

    /// The registry's own answer to a search, JSON (Docker's `v1/search`).
    pub fn search(&mut self, domain: &str, term: &str, limit: u32) -> Result<Vec<u8>> {
        let name = registry(domain);
        let query = format!("v1/search?q={}&n={limit}", utf8_percent_encode(term, NON_ALPHANUMERIC));
        let path = match domain {
            dhow_oci::reference::DEFAULT_DOMAIN => format!("{INDEX}/{query}"),
            _ => format!("/{query}"),
        };
        let Session { runtime, inner } = self;
        runtime.block_on(async {
            let answer = inner.ask(&Ask::new(Method::GET, &name, &path, "")).await?;
            whole(answer, MAX_ANSWER).await
        })
    }
}

impl Inner<'_> {
    async fn login(&mut self, name: &Reference) -> Result<Option<String>> {
        let ask = Ask::new(Method::GET, name, "/v2/", "");
        let (endpoint, (answer, _)) = self.unauthorized(&ask).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            accepted(answer).await?;
            return Ok(None);
        }
        let url = ask.url(&endpoint);
        let refused = |status: StatusCode| Error::Login { url: url.clone(), status };
        let headers = answer.headers().get_all(WWW_AUTHENTICATE);
        let wanted = challenge(headers.iter().filter_map(|value| value.to_str().ok()), "");
        let _ = whole(answer, MAX_ANSWER).await;
        let (authorization, identity) = match wanted {
            Some(Challenge::Basic) => (self.credentials().basic(), None),
            Some(Challenge::Bearer(request)) => {
                let answer =
                    self.token(&endpoint, name, &request, true, self.credentials()).await.map_err(|error| match error {
                        Error::Refused { status, text, retry_after } => {
                            Error::Refused { status, text: format!("Get \"{url}\": {text}"), retry_after }
                        }
                        other => other,
                    })?;
                let identity = answer.refresh_token.clone();
                (Some(format!("Bearer {}", answer.into_token()?)), Some(identity).filter(|token| !token.is_empty()))
            }
            None => return Err(refused(StatusCode::UNAUTHORIZED)),
        };
        let (answer, _) = self.follow(&endpoint, &ask, authorization).await?;
        match answer.status() {
            status if status.is_success() => Ok(identity),
            status => Err(refused(status)),
        }
    }
}
