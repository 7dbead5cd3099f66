//! Where tokens are had (Docker's "Token Authentication Specification"; the POST is its OAuth2 form).

use std::sync::Arc;

use http_body_util::{BodyExt, Limited};
use hyper::Method;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, WWW_AUTHENTICATE};
use hyper::http::request::Parts;

use crate::access::Who;
use crate::answer::{Answer, Code, Refusal, Result, blocking, json, parameter, parameters, set};
use crate::registry::Registry;

/// More than any form that asks for a token.
const MAX_FORM: usize = 64 << 10;

pub async fn answer(registry: Arc<Registry>, parts: Parts, body: Incoming) -> Result<Answer> {
    let invalid = |why: &str| Refusal::new(Code::Unsupported, why);
    let (form, login) = match parts.method {
        Method::GET => (parts.uri.query().unwrap_or_default().to_owned(), None),
        Method::POST => {
            let body = Limited::new(body, MAX_FORM).collect().await.map_err(|_| invalid("the form is too large"))?;
            let form = String::from_utf8(body.to_bytes().to_vec()).map_err(|_| invalid("the form is no text"))?;
            if parameter(&form, "grant_type").as_deref() != Some("password") {
                return Err(invalid("the one grant type is password"));
            }
            let user = parameter(&form, "username").unwrap_or_default();
            let password = parameter(&form, "password").unwrap_or_default();
            (form, Some((user, password)))
        }
        _ => return Err(invalid("the operation is unsupported").with(ALLOW, "GET, POST")),
    };
    let document = blocking(move || {
        let who = match login {
            Some((user, password)) => Who::User(registry.access.login(&user, &password)?),
            None => match registry.access.identify(&parts.headers)? {
                // A token is had for a password alone, or for nothing by nobody.
                Who::Bearer { .. } => return Err(Refusal::new(Code::Unauthorized, "authentication required")),
                who => who,
            },
        };
        let scopes: Vec<String> = parameters(&form, "scope").collect();
        Ok(registry.access.token(&who, scopes.iter().flat_map(|scope| scope.split_whitespace())))
    })
    .await
    .map_err(|refusal| match refusal.code {
        Code::Unauthorized => refusal.with(WWW_AUTHENTICATE, "Basic realm=\"dhow registry\""),
        _ => refusal,
    })?;
    let mut answer = json(&document);
    set(&mut answer, CACHE_CONTROL, "no-store");
    Ok(answer)
}
