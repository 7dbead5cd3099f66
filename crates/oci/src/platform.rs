//! Platforms, `os/architecture[/variant]` (image-spec, image-index.md), with the names that `uname` and Go use.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum InvalidPlatform {
    #[error(
        "\"{0}\" is an invalid component of \"{1}\": platform specifier component must match \"^[A-Za-z0-9_.-]+$\": invalid argument"
    )]
    Component(String, String),
    #[error("\"{0}\": cannot parse platform specifier: invalid argument")]
    Form(String),
}

impl Platform {
    /// Whether what is made for this platform is what was asked for: no variant means any, and what a lesser variant of a processor
    /// runs, a better one runs, too (containerd, `platforms.Only`).
    pub fn serves(&self, wanted: &Platform) -> bool {
        let same = self.os == wanted.os && self.architecture == wanted.architecture;
        same && match (self.level(), wanted.level()) {
            _ if wanted.variant.is_none() => true,
            (Some(own), Some(most)) => own <= most,
            _ => self.variant == wanted.variant,
        }
    }

    /// How well what is made for this platform serves one that is wanted, more being better; `None` if it does not: best is the very
    /// one, then, if any will do, the one that all processors run, and else the one that makes most of the processor.
    pub fn rank(&self, wanted: &Platform) -> Option<u32> {
        let is_same = self.level() == wanted.level() && (self.level().is_some() || self.variant == wanted.variant);
        match wanted.variant {
            _ if !self.serves(wanted) => None,
            _ if is_same => Some(u32::MAX),
            None => Some(0),
            Some(_) => Some(self.level().unwrap_or_default()),
        }
    }

    /// How much of its architecture's processors a variant uses, where they build upon each other.
    pub fn level(&self) -> Option<u32> {
        let least = match self.architecture.as_str() {
            "arm" => "v7",
            "arm64" => "v8",
            "amd64" => "v1",
            _ => return None,
        };
        self.variant.as_deref().unwrap_or(least).strip_prefix('v')?.parse().ok()
    }

    /// With the names that everybody has for the same (containerd, `platforms.Normalize`).
    fn normalized(self) -> Platform {
        let (architecture, variant) = match (self.architecture.as_str(), self.variant.as_deref()) {
            ("armhf", _) | ("arm", None) => ("arm", Some("v7".to_owned())),
            ("armel", _) => ("arm", Some("v6".to_owned())),
            ("arm", Some(digit @ ("5" | "6" | "7" | "8"))) => ("arm", Some(format!("v{digit}"))),
            ("arm64", Some("8" | "v8")) | ("amd64", Some("v1")) => (self.architecture.as_str(), None),
            (architecture, _) => (architecture, self.variant.clone()),
        };
        Platform { architecture: architecture.to_owned(), variant, os: self.os }
    }

    /// The platform this program was built for.
    pub fn host() -> Platform {
        Platform { architecture: normal_architecture(std::env::consts::ARCH).to_owned(), os: "linux".to_owned(), variant: None }
    }
}

fn normal_architecture(name: &str) -> &str {
    match name {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "i386" | "i686" | "x86" => "386",
        other => other,
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Platform, InvalidPlatform> {
        let lower = text.to_ascii_lowercase();
        let parts: Vec<&str> = lower.split('/').collect();
        let valid =
            |part: &&&str| part.is_empty() || !part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if let Some(part) = parts.iter().find(valid) {
            return Err(InvalidPlatform::Component((*part).to_owned(), text.to_owned()));
        }
        let platform = match parts[..] {
            ["linux"] => Ok(Platform::host()),
            [architecture] => Ok(Platform { architecture: normal_architecture(architecture).into(), ..Platform::host() }),
            [os, architecture] => {
                Ok(Platform { architecture: normal_architecture(architecture).into(), os: os.into(), variant: None })
            }
            [os, architecture, variant] => Ok(Platform {
                architecture: normal_architecture(architecture).into(),
                os: os.into(),
                variant: Some(variant.into()),
            }),
            _ => Err(InvalidPlatform::Form(text.to_owned())),
        };
        platform.map(Platform::normalized)
    }
}
