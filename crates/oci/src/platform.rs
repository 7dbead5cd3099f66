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
    /// Whether what is made for this platform is what was asked for; no variant means any.
    pub fn serves(&self, wanted: &Platform) -> bool {
        let same = self.os == wanted.os && self.architecture == wanted.architecture;
        // Of 64-bit ARM there is but this variant, which most images leave out.
        let variant =
            |platform: &Platform| platform.variant.clone().filter(|variant| platform.architecture != "arm64" || variant != "v8");
        same && (variant(wanted).is_none() || variant(self) == variant(wanted))
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
        match parts[..] {
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
        }
    }
}
