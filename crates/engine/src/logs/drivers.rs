//! Log drivers: what each may be told, and what the monitor is told of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use dhow_api::config::LogConfig;
use dhow_monitor::forward::{Address, Compression, Fluentd, Format, Forward, Gelf, Journald, Syslog, SyslogForm};
use serde_json::{Map, Value};

use crate::container::Container;
use crate::create::host_name;
use crate::{Engine, Error, Result};

/// The journal's socket (systemd-journald.service(8)).
const JOURNAL: &str = "/run/systemd/journal/socket";
/// Where the local syslog daemon listens: the first that there is.
const LOCAL_SYSLOG: [&str; 3] = ["/dev/log", "/var/run/syslog", "/var/run/log"];

/// Options of every driver.
const COMMON: [&str; 2] = ["mode", "max-buffer-size"];
/// Options of the file that is kept beside a driver which hands lines on.
const CACHE: [&str; 4] = ["cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"];
const FILE: [&str; 3] = ["max-size", "max-file", "compress"];
const ATTRIBUTES: [&str; 5] = ["labels", "labels-regex", "env", "env-regex", "tag"];

/// The drivers, and the options of each.
const DRIVERS: [(&str, &[&str]); 7] = [
    ("none", &[]),
    ("json-file", &FILE),
    ("local", &FILE),
    ("journald", &[]),
    (
        "syslog",
        &[
            "syslog-address",
            "syslog-facility",
            "syslog-format",
            "syslog-tls-ca-cert",
            "syslog-tls-cert",
            "syslog-tls-key",
            "syslog-tls-skip-verify",
        ],
    ),
    (
        "gelf",
        &[
            "gelf-address",
            "gelf-compression-type",
            "gelf-compression-level",
            "gelf-tcp-max-reconnect",
            "gelf-tcp-reconnect-delay",
        ],
    ),
    (
        "fluentd",
        &[
            "fluentd-address",
            "fluentd-async",
            "fluentd-async-connect",
            "fluentd-async-reconnect-interval",
            "fluentd-buffer-limit",
            "fluentd-max-retries",
            "fluentd-request-ack",
            "fluentd-retry-wait",
            "fluentd-sub-second-precision",
            "fluentd-read-timeout",
            "fluentd-write-timeout",
        ],
    ),
];
const NO_TLS: &str = "TLS is not supported by this version: use a relay on this host";

/// Docker's drivers that need more than a socket.
const UNSUPPORTED: [&str; 5] = ["splunk", "awslogs", "gcplogs", "etwlogs", "logentries"];

/// RFC 5424, 6.2.1, by the names that syslog(3) gives them.
const FACILITIES: [(&str, u8); 20] = [
    ("kern", 0),
    ("user", 1),
    ("mail", 2),
    ("daemon", 3),
    ("auth", 4),
    ("syslog", 5),
    ("lpr", 6),
    ("news", 7),
    ("uucp", 8),
    ("cron", 9),
    ("authpriv", 10),
    ("ftp", 11),
    ("local0", 16),
    ("local1", 17),
    ("local2", 18),
    ("local3", 19),
    ("local4", 20),
    ("local5", 21),
    ("local6", 22),
    ("local7", 23),
];

pub(crate) fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = DRIVERS.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names
}

/// # Errors
/// A driver that there is not, an option that it does not have, or a value that it cannot use.
pub fn check(log: &LogConfig) -> Result<()> {
    let kind = log.kind.as_str();
    if UNSUPPORTED.contains(&kind) {
        return Err(Error::invalid(format!(
            "the logging driver {kind} is not supported: journald, syslog, gelf and fluentd hand lines on to what feeds it"
        )));
    }
    let Some((_, own)) = DRIVERS.iter().find(|(name, _)| *name == kind) else {
        return Err(Error::invalid(format!("error looking up logging plugin {kind}: plugin \"{kind}\" not found")));
    };
    if kind == "none" {
        return Ok(());
    }
    let cache: &[&str] = if matches!(kind, "json-file" | "local") { &[] } else { &CACHE };
    for (key, value) in &log.config {
        let bad = |why: &str| Err(Error::invalid(format!("invalid value for log opt '{key}': {why}")));
        let known = [&COMMON[..], &ATTRIBUTES, own, cache].iter().any(|keys| keys.contains(&key.as_str()));
        match key.as_str() {
            _ if !known => return Err(Error::invalid(format!("unknown log opt '{key}' for {kind} log driver"))),
            "max-size" | "cache-max-size" if value != "-1" && crate::units::parse_bytes(value).is_none_or(|size| size <= 0) => {
                return bad(&format!("invalid size: '{value}'"));
            }
            "max-file" | "cache-max-file" if value.parse::<u32>().is_err() => return bad(&format!("'{value}' is not a number")),
            "max-file" if value == "0" => return Err(Error::invalid("max-file cannot be less than 1")),
            "compress" | "cache-compress" | "cache-disabled"
                if !matches!(
                    value.as_str(),
                    "1" | "t" | "T" | "true" | "TRUE" | "True" | "0" | "f" | "F" | "false" | "FALSE" | "False"
                ) =>
            {
                return bad(&format!("'{value}' is not a boolean"));
            }
            "labels-regex" | "env-regex" if regex_lite::Regex::new(value).is_err() => {
                return bad(&format!("'{value}' is no regular expression"));
            }
            "max-buffer-size" if crate::units::parse_bytes(value).is_none() => return bad(&format!("invalid size: '{value}'")),
            "max-buffer-size" if log.config.get("mode").map(String::as_str) != Some("non-blocking") => {
                return Err(Error::invalid(format!("{key} option is only supported with 'mode=non-blocking'")));
            }
            "fluentd-request-ack" if matches!(value.as_str(), "true" | "1") => {
                return Err(Error::invalid(format!("{key}: acknowledgements are not supported by this version")));
            }
            key if key.starts_with("syslog-tls-") => {
                return Err(Error::invalid(format!("{key}: {NO_TLS}")));
            }
            "mode" if !matches!(value.as_str(), "blocking" | "non-blocking") => {
                return Err(Error::invalid(format!("logging mode not supported: {value}")));
            }
            _ => {}
        }
    }
    let option = |key: &str| log.config.get(key).map(String::as_str);
    match kind {
        "syslog" => {
            syslog_address(option("syslog-address"))?;
            facility(option("syslog-facility"))?;
            syslog_form(option("syslog-format"), true)?;
        }
        "gelf" => {
            gelf_address(option("gelf-address"))?;
            compression(&log.config)?;
        }
        "fluentd" => {
            fluentd_address(option("fluentd-address"))?;
        }
        _ => {}
    }
    Ok(())
}

/// Of a log's file, where nothing is said: bytes before it is rotated, and how many files are kept. A container that nobody
/// looks at shall not fill the disk.
const MAX_SIZE: u64 = 20 << 20;
const MAX_FILES: u32 = 5;

/// Bytes of a container's log file before it is rotated, 0 for any number, and how many files are kept.
pub(crate) fn limits(log: &LogConfig) -> (u64, u32) {
    let prefix = if matches!(log.kind.as_str(), "json-file" | "local") { "" } else { "cache-" };
    let option = |key: &str| log.config.get(&format!("{prefix}{key}"));
    let size = match option("max-size").map(String::as_str) {
        None => MAX_SIZE,
        Some("-1") => 0,
        Some(text) => crate::units::parse_bytes(text).and_then(|size| u64::try_from(size).ok()).unwrap_or(MAX_SIZE),
    };
    let files = option("max-file").and_then(|files| files.parse().ok()).filter(|files| *files > 0);
    (size, files.unwrap_or(MAX_FILES))
}

/// Whether the container's lines are kept in a file, which can be read.
pub(crate) fn has_file(log: &LogConfig) -> bool {
    log.kind != "none" && !log.config.get("cache-disabled").is_some_and(|value| matches!(value.as_str(), "true" | "1"))
}

/// What a container that is created has of its log, with what the daemon says of those that say nothing: the driver, and
/// options of the same driver (moby, `mergeAndVerifyLogConfig`).
pub(crate) fn with_defaults(log: &mut LogConfig, default: &LogConfig) {
    if log.kind.is_empty() {
        log.kind.clone_from(&default.kind);
    }
    if log.kind == default.kind {
        for (key, value) in &default.config {
            log.config.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
}

impl Engine {
    /// Who else gets a container's lines.
    ///
    /// # Errors
    /// In dockerd's words, an address that cannot be resolved, and a driver whose daemon is not there.
    pub(crate) fn forward(&self, container: &Container) -> Result<Option<Forward>> {
        let log = &container.record.host_config.log_config;
        // A tag that is wrong stops a start under these, too.
        if matches!(log.kind.as_str(), "json-file" | "local" | "none") && !log.config.contains_key("tag") {
            return Ok(None);
        }
        let failed = |error: Error| Error { message: format!("failed to initialize logging driver: {}", error.message), ..error };
        let option = |key: &str| log.config.get(key).map(String::as_str);
        let is_set = |key: &str| matches!(option(key), Some("true" | "1"));
        let tag = tag(container, option("tag").unwrap_or("{{.ID}}"))?;
        let extra = super::extra_attributes(container);
        let (id, name) = (container.id.0.clone(), container.name.clone());
        let forward = match log.kind.as_str() {
            "journald" => {
                if !Path::new(JOURNAL).exists() {
                    return Err(failed(Error::internal("journald is not enabled on this host")));
                }
                let mut fields: Vec<(String, String)> = [
                    ("CONTAINER_ID", container.id.short().to_owned()),
                    ("CONTAINER_ID_FULL", id),
                    ("CONTAINER_NAME", name),
                    ("CONTAINER_TAG", tag.clone()),
                    ("IMAGE_NAME", container.record.image.clone()),
                    ("SYSLOG_IDENTIFIER", tag),
                ]
                .map(|(name, value)| (name.to_owned(), value))
                .to_vec();
                fields.extend(extra.into_iter().map(|(name, value)| (journal_name(&name), value)));
                Forward { address: Address::Unix(JOURNAL.into()), format: Format::Journald(Journald { fields }), required: true }
            }
            "syslog" => {
                let address = syslog_address(option("syslog-address")).and_then(|address| match address {
                    Some(address) => address.resolve(),
                    None => local_syslog(),
                });
                let form = syslog_form(option("syslog-format"), option("syslog-address").is_none())?;
                let syslog = Syslog {
                    form,
                    facility: facility(option("syslog-facility"))?,
                    tag,
                    host: host_name(),
                    pid: std::process::id(),
                };
                Forward { address: address.map_err(failed)?, format: Format::Syslog(syslog), required: true }
            }
            "gelf" => {
                let address = gelf_address(option("gelf-address")).and_then(|address| address.resolve()).map_err(failed)?;
                let command = std::iter::once(&container.record.path).chain(&container.record.args);
                let command = command.map(String::as_str).collect::<Vec<_>>().join(" ");
                let mut fields: Map<String, Value> = [
                    ("host", host_name()),
                    ("_container_id", id),
                    ("_container_name", name),
                    ("_image_id", container.image_id.to_string()),
                    ("_image_name", container.record.image.clone()),
                    ("_command", command),
                    ("_tag", tag),
                    ("_created", dhow_oci::time::format(container.created)),
                ]
                .map(|(name, value)| (name.to_owned(), value.into()))
                .into_iter()
                .collect();
                fields.extend(extra.into_iter().map(|(name, value)| (format!("_{name}"), value.into())));
                let required = matches!(address, Address::Tcp(_));
                Forward {
                    address,
                    format: Format::Gelf(Gelf { fields, compression: compression(&log.config).map_err(failed)? }),
                    required,
                }
            }
            "fluentd" => {
                let address = fluentd_address(option("fluentd-address")).and_then(|address| address.resolve()).map_err(failed)?;
                let mut fields = vec![("container_id".to_owned(), id), ("container_name".to_owned(), format!("/{name}"))];
                fields.extend(extra);
                let required = !(is_set("fluentd-async") || is_set("fluentd-async-connect"));
                let sub_second = is_set("fluentd-sub-second-precision");
                Forward { address, format: Format::Fluentd(Fluentd { tag, fields, sub_second }), required }
            }
            _ => return Ok(None),
        };
        Ok(Some(forward))
    }
}

/// An address as it was given.
#[derive(Debug, PartialEq, Eq)]
enum Given {
    Unix(PathBuf),
    Udp(String),
    Tcp(String),
}

impl Given {
    fn resolve(self) -> Result<Address> {
        let lookup = |text: &str| -> Result<SocketAddr> {
            let failed = |why: String| Error::internal(format!("dial: lookup {text}: {why}"));
            let (host, port) = text.rsplit_once(':').ok_or_else(|| failed("no port".to_owned()))?;
            let host = host.trim_matches(['[', ']']);
            let port: u16 = port.parse().map_err(|_| failed("invalid port".to_owned()))?;
            if let Ok(address) = host.parse() {
                return Ok(SocketAddr::new(address, port));
            }
            let addresses = dhow_sys::names::addresses_of(host).map_err(|error| failed(error.to_string()))?;
            addresses.first().map(|address| SocketAddr::new(*address, port)).ok_or_else(|| failed("no such host".to_owned()))
        };
        Ok(match self {
            Given::Unix(path) => Address::Unix(path),
            Given::Udp(text) => Address::Udp(lookup(&text)?),
            Given::Tcp(text) => Address::Tcp(lookup(&text)?),
        })
    }
}

fn with_port(text: &str, port: u16) -> String {
    let has_port =
        text.rsplit_once(':').is_some_and(|(host, port)| !port.contains(']') && (!host.contains(':') || host.ends_with(']')));
    if has_port { text.to_owned() } else { format!("{text}:{port}") }
}

/// `None` for the local daemon.
fn syslog_address(text: Option<&str>) -> Result<Option<Given>> {
    const PORT: u16 = 514;
    let Some(text) = text else { return Ok(None) };
    match text.split_once("://") {
        Some(("unix" | "unixgram", path)) if path.starts_with('/') => Ok(Some(Given::Unix(path.into()))),
        Some(("udp", host)) if !host.is_empty() => Ok(Some(Given::Udp(with_port(host, PORT)))),
        Some(("tcp", host)) if !host.is_empty() => Ok(Some(Given::Tcp(with_port(host, PORT)))),
        Some(("tcp+tls", _)) => Err(Error::invalid(format!("syslog-address: {NO_TLS}"))),
        _ => Err(Error::invalid(format!("syslog-address should be in form proto://address, got {text}"))),
    }
}

fn local_syslog() -> Result<Address> {
    let found = LOCAL_SYSLOG.into_iter().find(|path| Path::new(path).exists());
    found.map(|path| Address::Unix(path.into())).ok_or_else(|| Error::internal("Unix syslog delivery error"))
}

fn facility(text: Option<&str>) -> Result<u8> {
    const DAEMON: u8 = 3;
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(DAEMON) };
    let named = FACILITIES.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
    named.or_else(|| text.parse().ok().filter(|number| *number <= 23)).ok_or_else(|| Error::invalid("invalid syslog facility"))
}

fn syslog_form(text: Option<&str>, is_local: bool) -> Result<SyslogForm> {
    match text {
        None | Some("") if is_local => Ok(SyslogForm::Unix),
        None | Some("") => Ok(SyslogForm::Default),
        Some("rfc3164") => Ok(SyslogForm::Rfc3164),
        Some("rfc5424") => Ok(SyslogForm::Rfc5424 { micro: false }),
        Some("rfc5424micro") => Ok(SyslogForm::Rfc5424 { micro: true }),
        Some(_) => Err(Error::invalid("Invalid syslog format")),
    }
}

/// How GELF messages are compressed: by gzip at its fastest where nothing is said, as Docker's driver does it. Streams are not.
fn compression(config: &BTreeMap<String, String>) -> Result<Compression> {
    let option = |key: &str| config.get(key).map(String::as_str);
    let unknown =
        |key: &str, value: &str| Error::invalid(format!("unknown value \"{value}\" for log opt \"{key}\" for gelf log driver"));
    let is_stream = option("gelf-address").is_some_and(|address| address.starts_with("tcp:"));
    for (key, wrong_for) in [
        ("gelf-compression-type", true),
        ("gelf-compression-level", true),
        ("gelf-tcp-max-reconnect", false),
        ("gelf-tcp-reconnect-delay", false),
    ] {
        if option(key).is_some() && is_stream == wrong_for {
            let what =
                if wrong_for { "compression is only supported on UDP" } else { "reconnect options are only supported on TCP" };
            return Err(Error::invalid(format!("gelf: {key}: {what}")));
        }
    }
    for key in ["gelf-tcp-max-reconnect", "gelf-tcp-reconnect-delay"] {
        if let Some(text) = option(key).filter(|text| text.parse::<u32>().is_err()) {
            return Err(unknown(key, text));
        }
    }
    const LEVEL: &str = "gelf-compression-level";
    // -1 is zlib's own choice.
    let level = match option(LEVEL) {
        None => 1,
        Some("-1") => 6,
        Some(text) => text.parse().ok().filter(|level| *level <= 9).ok_or_else(|| unknown(LEVEL, text))?,
    };
    match option("gelf-compression-type") {
        _ if is_stream => Ok(Compression::None),
        None | Some("gzip") => Ok(Compression::Gzip(level)),
        Some("zlib") => Ok(Compression::Zlib(level)),
        Some("none") => Ok(Compression::None),
        Some(other) => Err(unknown("gelf-compression-type", other)),
    }
}

fn gelf_address(text: Option<&str>) -> Result<Given> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Err(Error::invalid("gelf-address is a required parameter"));
    };
    match text.split_once("://") {
        Some(("udp", address)) if address.contains(':') => Ok(Given::Udp(address.to_owned())),
        Some(("tcp", address)) if address.contains(':') => Ok(Given::Tcp(address.to_owned())),
        Some(("udp" | "tcp", _)) => Err(Error::invalid("gelf: please provide gelf-address as proto://host:port")),
        _ => Err(Error::invalid("gelf: endpoint needs to be TCP or UDP")),
    }
}

fn fluentd_address(text: Option<&str>) -> Result<Given> {
    const PORT: u16 = 24224;
    match text.unwrap_or_default() {
        "" => Ok(Given::Tcp(format!("127.0.0.1:{PORT}"))),
        text => match text.split_once("://") {
            None => Ok(Given::Tcp(with_port(text, PORT))),
            Some(("tcp", host)) => Ok(Given::Tcp(with_port(host, PORT))),
            Some(("unix", path)) if path.starts_with('/') => Ok(Given::Unix(path.into())),
            Some((scheme, _)) => Err(Error::invalid(format!("invalid fluentd-address: unsupported scheme: '{scheme}'"))),
        },
    }
}

/// A tag: `{{.ID}}` and the like in a text, as Docker's drivers know them.
fn tag(container: &Container, text: &str) -> Result<String> {
    let known: BTreeMap<&str, String> = BTreeMap::from([
        (".ID", container.id.short().to_owned()),
        (".FullID", container.id.0.clone()),
        (".Name", container.name.clone()),
        (".ImageID", container.image_id.hex()[..12].to_owned()),
        (".ImageFullID", container.image_id.to_string()),
        (".ImageName", container.record.image.clone()),
        (".DaemonName", "docker".to_owned()),
        (".Hostname", host_name()),
    ]);
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("{{") {
        let (name, after) =
            behind.split_once("}}").ok_or_else(|| Error::invalid(format!("log tag: unclosed action in {text}")))?;
        let value = known.get(name.trim());
        let value = value.ok_or_else(|| Error::invalid(format!("log tag: {} is not known in {text}", name.trim())))?;
        out += before;
        out += value;
        rest = after;
    }
    Ok(out + rest)
}

/// A name as fields of the journal have it: capitals, digits and `_`, none of the latter first.
fn journal_name(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    name.chars().map(allowed).collect::<String>().trim_start_matches('_').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_promise_what_is_not_done_are_refused() {
        let told = |kind: &str, key: &str, value: &str| {
            check(&LogConfig { kind: kind.into(), config: [(key.to_owned(), value.to_owned())].into() })
                .map_err(|error| error.message)
        };
        assert_eq!(told("fluentd", "fluentd-request-ack", "false"), Ok(()));
        for (kind, key) in [("fluentd", "fluentd-request-ack"), ("syslog", "syslog-tls-skip-verify")] {
            let why = told(kind, key, "true").unwrap_err();
            assert!(why.starts_with(key) && why.contains("not supported"), "{why}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(syslog_address(Some("udp://log.example")).unwrap(), Some(Given::Udp("log.example:514".into())));
        assert_eq!(syslog_address(Some("tcp://[::1]:6514")).unwrap(), Some(Given::Tcp("[::1]:6514".into())));
        assert_eq!(syslog_address(Some("unixgram:///x/log")).unwrap(), Some(Given::Unix("/x/log".into())));
        assert_eq!(with_port("[::1]", 514), "[::1]:514");
        for bad in ["log.example", "http://x", "unix://relative", "tcp+tls://x"] {
            assert!(syslog_address(Some(bad)).is_err(), "{bad}");
        }
        assert!(gelf_address(None).is_err() && gelf_address(Some("udp://x")).is_err());
        assert_eq!(fluentd_address(None).unwrap(), Given::Tcp("127.0.0.1:24224".into()));
        assert_eq!(fluentd_address(Some("box")).unwrap(), Given::Tcp("box:24224".into()));
    }

    #[test]
    fn options_belong_to_their_driver() {
        let log = |kind: &str, options: &[(&str, &str)]| LogConfig {
            kind: kind.to_owned(),
            config: options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        let message = |log: LogConfig| check(&log).err().map(|error| error.message).unwrap_or_default();
        assert_eq!(message(log("local", &[("max-size", "5m"), ("compress", "true")])), "");
        assert_eq!(message(log("journald", &[("tag", "x"), ("cache-max-size", "1m")])), "");
        assert_eq!(message(log("journald", &[("max-size", "5m")])), "unknown log opt 'max-size' for journald log driver");
        assert_eq!(message(log("syslog", &[("syslog-facility", "nosuch")])), "invalid syslog facility");
        assert_eq!(message(log("nosuch", &[])), "error looking up logging plugin nosuch: plugin \"nosuch\" not found");
        let udp = ("gelf-address", "udp://x:1");
        assert_eq!(message(log("gelf", &[udp, ("gelf-compression-type", "zlib"), ("gelf-compression-level", "-1")])), "");
        assert!(message(log("gelf", &[udp, ("gelf-compression-level", "10")])).contains("unknown value \"10\""));
        assert!(
            message(log("gelf", &[("gelf-address", "tcp://x:1"), ("gelf-compression-type", "gzip")]))
                .contains("only supported on UDP")
        );
        assert!(message(log("gelf", &[udp, ("gelf-tcp-max-reconnect", "3")])).contains("only supported on TCP"));
        assert!(message(log("splunk", &[])).contains("not supported"));
        assert_eq!(limits(&log("local", &[("max-size", "1m")])), (1 << 20, 5));
        assert_eq!(limits(&log("json-file", &[("max-size", "-1")])), (0, 5));
        assert_eq!(limits(&log("syslog", &[("cache-max-file", "2")])), (20 << 20, 2));
        let mut own = log("", &[("max-size", "1m")]);
        with_defaults(&mut own, &log("local", &[("max-size", "9m"), ("max-file", "2")]));
        assert_eq!((own.kind.as_str(), limits(&own)), ("local", (1 << 20, 2)));
        let mut other = log("json-file", &[]);
        with_defaults(&mut other, &log("local", &[("max-file", "2")]));
        assert!(other.config.is_empty());
        assert_eq!(journal_name("_com.example-x"), "COM_EXAMPLE_X");
    }
}
