//! What a request is about: the paths of the distribution protocol, and what each needs.

use dhow_oci::Digest;
use hyper::Method;

use crate::answer::{Code, Refusal, Result};
use crate::name::{Name, Pointer, digest};

/// What somebody may do with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Right {
    Pull,
    Push,
    Delete,
}

impl Right {
    pub fn text(self) -> &'static str {
        match self {
            Right::Pull => "pull",
            Right::Push => "push",
            Right::Delete => "delete",
        }
    }

    pub fn parse(text: &str) -> Option<Right> {
        [Right::Pull, Right::Push, Right::Delete].into_iter().find(|right| right.text() == text)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// Whether this is a registry, and who one is.
    Base,
    Catalog,
    Tags(Name),
    Manifest(Name, Pointer),
    Blob(Name, Digest),
    /// Where uploads begin.
    Uploads(Name),
    Upload(Name, String),
    Referrers(Name, Digest),
}

impl Route {
    /// The route of a path below `/v2/`. Names have slashes, so that what is asked of them is looked for from the end.
    ///
    /// # Errors
    /// A name, tag or digest is none; there is no such route.
    pub fn parse(path: &str) -> Result<Route> {
        if path.is_empty() {
            return Ok(Route::Base);
        }
        if path == "_catalog" {
            return Ok(Route::Catalog);
        }
        let parts: Vec<&str> = path.split('/').collect();
        let name = |count: usize| parts[..parts.len() - count].join("/").parse::<Name>();
        match parts.as_slice() {
            [_, .., "tags", "list"] => Ok(Route::Tags(name(2)?)),
            [_, .., "blobs", "uploads"] => Ok(Route::Uploads(name(2)?)),
            [_, .., "blobs", "uploads", ""] => Ok(Route::Uploads(name(3)?)),
            [_, .., "blobs", "uploads", id] => Ok(Route::Upload(name(3)?, (*id).to_owned())),
            [_, .., "manifests", pointer] => Ok(Route::Manifest(name(2)?, pointer.parse()?)),
            [_, .., "blobs", text] => Ok(Route::Blob(name(2)?, digest(text)?)),
            [_, .., "referrers", text] => Ok(Route::Referrers(name(2)?, digest(text)?)),
            _ => Err(Refusal::new(Code::NotFound, format!("there is nothing at /v2/{path}"))),
        }
    }

    /// The repository, and what one must be allowed to do there. `None`: whoever may come in at all.
    pub fn needs(&self, method: &Method) -> Option<(&Name, Right)> {
        let reading = matches!(*method, Method::GET | Method::HEAD);
        match self {
            Route::Base | Route::Catalog => None,
            Route::Tags(name) | Route::Referrers(name, _) => Some((name, Right::Pull)),
            Route::Manifest(name, _) | Route::Blob(name, _) if reading => Some((name, Right::Pull)),
            Route::Manifest(name, _) | Route::Blob(name, _) if method == Method::DELETE => Some((name, Right::Delete)),
            Route::Manifest(name, _) | Route::Blob(name, _) | Route::Uploads(name) | Route::Upload(name, _) => {
                Some((name, Right::Push))
            }
        }
    }

    /// What it is called in figures.
    pub fn kind(&self) -> &'static str {
        match self {
            Route::Base => "base",
            Route::Catalog => "catalog",
            Route::Tags(_) => "tags",
            Route::Manifest(..) => "manifest",
            Route::Blob(..) => "blob",
            Route::Uploads(_) | Route::Upload(..) => "upload",
            Route::Referrers(..) => "referrers",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_look_like_routes() {
        let digest = Digest::of(b"");
        let name = |text: &str| text.parse::<Name>().unwrap();
        for (path, route) in [
            ("", Route::Base),
            ("_catalog", Route::Catalog),
            ("a/tags/list", Route::Tags(name("a"))),
            ("tags/list/tags/list", Route::Tags(name("tags/list"))),
            ("a/blobs/uploads/", Route::Uploads(name("a"))),
            ("a/blobs/uploads", Route::Uploads(name("a"))),
            ("blobs/uploads/blobs/uploads/0a", Route::Upload(name("blobs/uploads"), "0a".into())),
            ("a/b/manifests/manifests", Route::Manifest(name("a/b"), Pointer::Tag("manifests".into()))),
            (&format!("a/manifests/{digest}"), Route::Manifest(name("a"), Pointer::Digest(digest))),
            (&format!("a/blobs/{digest}"), Route::Blob(name("a"), digest)),
            (&format!("a/referrers/{digest}"), Route::Referrers(name("a"), digest)),
        ] {
            assert_eq!(Route::parse(path).unwrap(), route, "{path}");
        }
        for bad in [
            "tags/list",
            "A/tags/list",
            "a/../tags/list",
            "a//tags/list",
            "a/blobs/sha256:0",
            "a/b",
            "manifests/latest",
            "_catalog/",
        ] {
            assert!(Route::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_method_needs_a_right() {
        let digest = Digest::of(b"");
        let need = |path: &str, method: Method| {
            let route = Route::parse(path).unwrap();
            route.needs(&method).map(|(name, right)| (name.to_string(), right))
        };
        let blob = format!("a/blobs/{digest}");
        assert_eq!(need(&blob, Method::HEAD), Some(("a".into(), Right::Pull)));
        assert_eq!(need(&blob, Method::DELETE), Some(("a".into(), Right::Delete)));
        assert_eq!(need("a/manifests/x", Method::PUT), Some(("a".into(), Right::Push)));
        assert_eq!(need("a/manifests/x", Method::OPTIONS), Some(("a".into(), Right::Push)));
        assert_eq!(need("a/blobs/uploads/", Method::POST), Some(("a".into(), Right::Push)));
        // Where somebody else's upload stands is for those who may go on with it.
        assert_eq!(need("a/blobs/uploads/00", Method::GET), Some(("a".into(), Right::Push)));
        assert_eq!(need("_catalog", Method::GET), None);
    }
}
