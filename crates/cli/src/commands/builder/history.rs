//! `builder history`: builds that have been, as `docker buildx history` tells of them.

mod filter;
mod inspect;
mod list;
mod pretty;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use dhow_engine::{Engine, HistoryRecord};

use self::inspect::Inspect;
use self::list::Ls;
use crate::commands::build::{Display, Kind};
use crate::connect::Target;
use crate::failure::{Failure, Result};

#[derive(Subcommand, Debug)]
pub enum History {
    /// List build records
    Ls(Ls),
    /// Inspect a build record
    Inspect(Inspect),
    /// Print the logs of a build record
    Logs(Logs),
    /// Remove build records
    Rm(Rm),
}

#[derive(Args, Debug)]
pub struct Logs {
    /// Set type of progress output ("plain", "rawjson", "tty")
    #[arg(long, default_value = "plain")]
    progress: String,
    #[arg(value_name = "REF")]
    reference: Option<String>,
}

#[derive(Args, Debug)]
pub struct Rm {
    /// Remove all build records
    #[arg(long)]
    all: bool,
    #[arg(value_name = "REF")]
    references: Vec<String>,
}

impl History {
    pub fn run(self, target: &Target) -> Result {
        let engine = target.own_engine("docker buildx history takes that address")?;
        match self {
            History::Ls(ls) => ls.run(&engine),
            History::Inspect(inspect) => inspect.run(&engine),
            History::Logs(logs) => logs.run(&engine),
            History::Rm(rm) => rm.run(&engine),
        }
    }
}

fn failed(message: impl std::fmt::Display) -> Failure {
    Failure::new(format!("ERROR: {message}"))
}

fn of_engine(error: dhow_engine::Error) -> Failure {
    failed(error.message)
}

/// A record by its id, or by how many are later: `^1`.
fn find(engine: &Engine, reference: Option<&str>) -> Result<HistoryRecord> {
    let reference = reference.unwrap_or_default();
    let offset = match reference.strip_prefix('^') {
        Some(number) => number.parse().map_err(|_| failed(format!("invalid offset \"{reference}\"")))?,
        None if reference.is_empty() => 0,
        None => return engine.build_record(reference).map_err(of_engine),
    };
    let found = engine.build_records().map_err(of_engine)?.into_iter().nth(offset);
    found.ok_or_else(|| match offset {
        0 => failed("no records found"),
        offset => failed(format!("no completed build found with offset {offset}")),
    })
}

/// What a build is called: by where its files are, and by its target (buildx, `BuildName`).
fn name(record: &HistoryRecord) -> String {
    let attribute = |key: &str| record.attributes.get(key).map(String::as_str).filter(|value| !value.is_empty());
    if let Some(name) = attribute("build-arg:BUILDKIT_BUILD_NAME") {
        return name.to_owned();
    }
    let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let context = text(&record.place.context);
    let mut file = text(&record.place.dockerfile);
    if file.is_empty() {
        file = attribute("filename").filter(|name| *name != "Dockerfile").unwrap_or_default().to_owned();
    }
    let is_default = file.is_empty() || file.ends_with("/Dockerfile");
    let file = file.strip_suffix("/Dockerfile").unwrap_or(&file);
    let behind = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
    let mut name = match file.strip_prefix(context.as_str()) {
        Some(rest) if !rest.is_empty() && !context.is_empty() => format!("{}{rest}", behind(&context)),
        _ => {
            let base = if file.is_empty() { &context } else { file };
            match base.rsplit_once('/') {
                Some((parent, own)) if !is_default => format!("{}/{own}", behind(parent)),
                _ => behind(base),
            }
        }
    };
    if let Some(context) = attribute("context") {
        context.clone_into(&mut name);
    }
    match attribute("target") {
        Some(target) if name.is_empty() => target.to_owned(),
        Some(target) => format!("{name} ({target})"),
        None => name,
    }
}

fn duration(nanoseconds: i64) -> String {
    let seconds = nanoseconds as f64 / 1e9;
    if seconds < 60.0 { format!("{seconds:.1}s") } else { format!("{}m {:2}s", seconds as i64 / 60, seconds as i64 % 60) }
}

/// As filters know it.
fn state(record: &HistoryRecord) -> &'static str {
    match (&record.completed, &record.failure) {
        (None, _) => "running",
        (Some(_), Some(failure)) if failure.is_cancelled => "canceled",
        (Some(_), Some(_)) => "error",
        (Some(_), None) => "completed",
    }
}

impl Logs {
    fn run(self, engine: &Engine) -> Result {
        let kind = match self.progress.as_str() {
            "plain" | "auto" | "" => Kind::Plain,
            "rawjson" => Kind::Raw,
            "tty" => Kind::Replay,
            "quiet" | "none" => Kind::Quiet,
            other => return Err(failed(format!("invalid progress mode {other}"))),
        };
        let record = find(engine, self.reference.as_deref())?;
        let mut log = engine.build_log(&record.id).map_err(of_engine)?;
        let display = Display::new(kind);
        let wrong = |error: std::io::Error| failed(format!("read the log of {}: {error}", record.id));
        while let Some((at, event)) = log.next(&|| true).map_err(wrong)? {
            display.tell_of(&event, at);
        }
        let warnings = display.finish();
        display.show_warnings(&warnings);
        Ok(())
    }
}

impl Rm {
    fn run(self, engine: &Engine) -> Result {
        match (self.all, self.references.is_empty()) {
            (false, true) => return Err(failed("rm requires at least one argument")),
            (true, false) => return Err(failed("rm requires either --all or at least one argument")),
            _ => {}
        }
        if self.all {
            return engine.remove_build_records().map_err(of_engine);
        }
        let remove = |id: &String| engine.remove_build_record(id).err().map(|error| error.message);
        let errors: Vec<String> = self.references.iter().filter_map(remove).collect();
        if errors.is_empty() { Ok(()) } else { Err(failed(errors.join("\n"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn record(context: &str, file: &str, attributes: &[(&str, &str)]) -> HistoryRecord {
        let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
        HistoryRecord {
            id: "abc".to_owned(),
            place: dhow_engine::BuildPlace { context: path(context), dockerfile: path(file) },
            attributes: attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..HistoryRecord::default()
        }
    }

    #[test]
    fn names_are_of_places() {
        assert_eq!(name(&record("/a/app", "", &[])), "app");
        assert_eq!(name(&record("/a/app", "/a/app/Dockerfile", &[])), "app");
        assert_eq!(name(&record("/a/app", "/a/app/bad", &[])), "app/bad");
        assert_eq!(name(&record("/a/app", "/b/x/other", &[("target", "t")])), "x/other (t)");
        assert_eq!(name(&record("", "", &[("context", "https://h/r.git")])), "https://h/r.git");
        assert_eq!(name(&record("", "", &[("target", "t")])), "t");
    }
}
