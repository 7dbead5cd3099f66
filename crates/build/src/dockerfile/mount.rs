//! `RUN --mount=…`.

use dhow_oci::units::parse_bytes;

use super::{DockerfileError, Result};
use crate::text::{quote, with_suggestion};

/// What is mounted while a command runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub kind: MountKind,
    /// A stage, an image or a context; empty for the build's context.
    pub from: String,
    pub source: String,
    /// As written: relative to the working directory.
    pub target: String,
    pub read_only: bool,
    /// Of a cache, a secret or an agent; empty for the default.
    pub id: String,
    pub sharing: Sharing,
    /// Of a tmpfs, in bytes; 0 for no limit.
    pub size: i64,
    /// Whether a secret or an agent must be there.
    pub required: bool,
    /// The variable that holds a secret; an empty name stands for its id.
    pub env: Option<String>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountKind {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

impl MountKind {
    const ALL: [(&str, MountKind); 5] = [
        ("bind", MountKind::Bind),
        ("cache", MountKind::Cache),
        ("tmpfs", MountKind::Tmpfs),
        ("secret", MountKind::Secret),
        ("ssh", MountKind::Ssh),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// Who may use a cache at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    #[default]
    Shared,
    Private,
    Locked,
}

const SHARING: [(&str, Sharing); 3] = [("shared", Sharing::Shared), ("private", Sharing::Private), ("locked", Sharing::Locked)];
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

/// What can be said before variables are known.
pub(super) fn check_early(text: &str) -> Result<()> {
    if text.is_empty() {
        // In the words of Go's reader.
        return Err(DockerfileError::new("failed to parse csv mounts: EOF"));
    }
    for field in fields(text)? {
        if let Some((key, value)) = field.split_once('=')
            && key.eq_ignore_ascii_case("from")
            && value.find('$').is_some_and(|at| at + 1 != value.len())
        {
            return Err(DockerfileError::new("'from' doesn't support variable expansion, define alias stage instead"));
        }
    }
    Ok(())
}

/// The fields of a line of comma-separated values (RFC 4180).
pub fn fields(text: &str) -> Result<Vec<String>> {
    let wrong = |what: &str| DockerfileError::new(format!("failed to parse csv mounts: {what}"));
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let field;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut value = String::new();
            let mut inner = quoted;
            loop {
                let Some(end) = inner.find('"') else { return Err(wrong("extraneous or missing \" in quoted-field")) };
                value.push_str(&inner[..end]);
                inner = &inner[end + 1..];
                match inner.strip_prefix('"') {
                    Some(more) => {
                        value.push('"');
                        inner = more;
                    }
                    None => break,
                }
            }
            if !inner.is_empty() && !inner.starts_with(',') {
                return Err(wrong("extraneous or missing \" in quoted-field"));
            }
            (field, rest) = (value, inner);
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            if rest[..end].contains('"') {
                return Err(wrong("bare \" in non-quoted-field"));
            }
            (field, rest) = (rest[..end].to_owned(), &rest[end..]);
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok(fields),
        }
    }
}

/// Reads the value of one `--mount`; `expand` puts variables in.
pub(super) fn parse(text: &str, expand: &mut dyn FnMut(&str) -> Result<String>) -> Result<Mount> {
    let mut mount = Mount {
        kind: MountKind::Bind,
        from: String::new(),
        source: String::new(),
        target: String::new(),
        read_only: false,
        id: String::new(),
        sharing: Sharing::Shared,
        size: 0,
        required: false,
        env: None,
        mode: None,
        uid: None,
        gid: None,
    };
    let mut read_only = None;
    let mut sharing = None;
    for field in fields(text)? {
        let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(key, value)| (key, Some(value)));
        let key = key.to_lowercase();
        let can_be_required = matches!(mount.kind, MountKind::Secret | MountKind::Ssh);
        let unexpected =
            |kind: MountKind| DockerfileError::new(format!("unexpected key '{key}' for mount type '{}'", kind.name()));
        let Some(value) = value else {
            match key.as_str() {
                "readonly" | "ro" => read_only = Some(true),
                "readwrite" | "rw" => read_only = Some(false),
                "required" if can_be_required => mount.required = true,
                "required" => return Err(unexpected(mount.kind)),
                _ => return Err(DockerfileError::new(format!("invalid field '{field}' must be a key=value pair"))),
            }
            continue;
        };
        let value = expand(value)?;
        let wrong = || DockerfileError::new(format!("invalid value for {key}: {value}"));
        let number = |radix: u32| {
            let wrong = || DockerfileError::new(format!("invalid value {value} for {key}"));
            u32::from_str_radix(&value, radix).map_err(|_| wrong())
        };
        match key.as_str() {
            "type" => {
                let lower = value.to_lowercase();
                let known = MountKind::ALL.iter().find(|(name, _)| *name == lower);
                mount.kind = known.map(|(_, kind)| *kind).ok_or_else(|| {
                    let message = format!("unsupported mount type {}", quote(&value));
                    DockerfileError::new(with_suggestion(message, &value, MountKind::ALL.map(|(name, _)| name)))
                })?;
            }
            "from" => mount.from = value,
            "source" | "src" => mount.source = value,
            "target" | "dst" | "destination" => mount.target = value,
            "readonly" | "ro" => read_only = Some(boolean(&value).ok_or_else(wrong)?),
            "readwrite" | "rw" => read_only = Some(!boolean(&value).ok_or_else(wrong)?),
            "required" if can_be_required => mount.required = boolean(&value).ok_or_else(wrong)?,
            "size" if mount.kind == MountKind::Tmpfs => mount.size = parse_bytes(&value).ok_or_else(wrong)?,
            "required" | "size" => return Err(unexpected(mount.kind)),
            "id" => mount.id = value,
            "sharing" => {
                let lower = value.to_lowercase();
                let known = SHARING.iter().find(|(name, _)| *name == lower);
                sharing = Some(known.map(|(_, sharing)| *sharing).ok_or_else(|| {
                    let message = format!("unsupported sharing value {}", quote(&value));
                    DockerfileError::new(with_suggestion(message, &value, SHARING.map(|(name, _)| name)))
                })?);
            }
            "mode" => mount.mode = Some(number(8)?),
            "uid" => mount.uid = Some(number(10)?),
            "gid" => mount.gid = Some(number(10)?),
            "env" => mount.env = Some(value),
            _ => {
                let message = format!("unexpected key '{key}' in '{field}'");
                return Err(DockerfileError::new(with_suggestion(message, &key, KEYS)));
            }
        }
    }
    finish(mount, read_only, sharing)
}

/// What does not go together.
fn finish(mut mount: Mount, read_only: Option<bool>, sharing: Option<Sharing>) -> Result<Mount> {
    let refuse = |message: String| Err(DockerfileError::new(message));
    if matches!(mount.kind, MountKind::Bind | MountKind::Tmpfs) {
        for (name, value) in [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)] {
            if value.is_some() {
                return refuse(format!("{name} not allowed for {} type mounts", quote(mount.kind.name())));
            }
        }
    }
    mount.read_only = read_only.unwrap_or(!matches!(mount.kind, MountKind::Cache | MountKind::Tmpfs));
    if mount.kind == MountKind::Secret {
        if !mount.from.is_empty() {
            return refuse("secret mount should not have a from".to_owned());
        }
        if sharing.is_some() {
            return refuse("secret mount should not define sharing".to_owned());
        }
        if mount.source.is_empty() && mount.target.is_empty() && mount.id.is_empty() {
            return refuse("invalid secret mount. one of source, target required".to_owned());
        }
        if !mount.source.is_empty() && !mount.id.is_empty() {
            return refuse("both source and id can't be set".to_owned());
        }
    }
    if sharing.is_some() && mount.kind != MountKind::Cache {
        return refuse(format!("invalid cache sharing set for {} mount", mount.kind.name()));
    }
    mount.sharing = sharing.unwrap_or_default();
    Ok(mount)
}

/// As Go's `strconv.ParseBool`.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Mount> {
        parse(text, &mut |word| Ok(word.replace("$x", "X")))
    }

    #[test]
    fn forms() {
        let mount = of("type=cache,target=/a$x,sharing=locked,id=$x,uid=1,mode=0700").unwrap();
        assert_eq!((mount.kind, mount.sharing, mount.read_only), (MountKind::Cache, Sharing::Locked, false));
        assert_eq!((mount.target.as_str(), mount.id.as_str(), mount.uid, mount.mode), ("/aX", "X", Some(1), Some(0o700)));
        let mount = of("target=/a,rw").unwrap();
        assert_eq!((mount.kind, mount.read_only), (MountKind::Bind, false));
        assert!(of("target=/a").unwrap().read_only);
        assert_eq!(of("type=tmpfs,target=/t,size=1m").unwrap().size, 1 << 20);
        assert_eq!(of("\"target=/a,b\",ro=false").unwrap().target, "/a,b");
    }

    #[test]
    fn errors() {
        for (text, expected) in [
            ("type=bond", "unsupported mount type \"bond\" (did you mean bind?)"),
            ("type=tmpfs,targat=/x", "unexpected key 'targat' in 'targat=/x' (did you mean target?)"),
            ("type=bind,uid=1", "uid not allowed for \"bind\" type mounts"),
            ("type=cache,required", "unexpected key 'required' for mount type 'cache'"),
            ("type=secret", "invalid secret mount. one of source, target required"),
            ("type=secret,id=a,src=b", "both source and id can't be set"),
            ("type=ssh,sharing=private", "invalid cache sharing set for ssh mount"),
            ("type=cache,sharing=all", "unsupported sharing value \"all\""),
            ("type", "invalid field 'type' must be a key=value pair"),
            ("type=bind,ro=maybe", "invalid value for ro: maybe"),
            ("type=cache,mode=9", "invalid value 9 for mode"),
            ("a\"b", "failed to parse csv mounts: bare \" in non-quoted-field"),
        ] {
            assert_eq!(of(text).unwrap_err().message, expected, "{text}");
        }
        assert!(check_early("type=bind,from=$x").is_err());
    }
}
