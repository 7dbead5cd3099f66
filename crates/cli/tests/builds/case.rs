//! One case: its inputs, made into a context, and the builds of it.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::UNIX_EPOCH;

use dhow_testkit::text;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::base::PATH;
use crate::engine::Engine;
use crate::image::{RECENT, files};
use crate::record::{cached, errors, normal, output, record, standard_output, warnings};

/// The time of a context's files that have set none of their own.
const OLD: i64 = 1_000_000_000;
/// What a script ends with that lacks a tool.
const LACKS_A_TOOL: i32 = 77;

/// Why there is no record.
pub enum Stop {
    LacksATool,
    Failed(String),
}

/// Builds a case: its record.
pub fn run(engine: &Engine, name: &str, folder: &Path) -> Result<String, Stop> {
    let (pre, tag, pre_tag) = (folder.join("pre"), format!("case:{name}"), format!("casepre:{name}"));
    let before = match pre.is_dir() {
        true => build(engine, &pre, &format!("{name}-pre"), &pre_tag).map(Some),
        false => Ok(None),
    };
    let result = match before {
        Ok(Some(record)) if !record.starts_with("exit: 0\n") => {
            Err(Stop::Failed(format!("the build of `pre` failed:\n{record}")))
        }
        Ok(_) => build(engine, folder, name, &tag),
        Err(stop) => Err(stop),
    };
    engine.remove(&tag);
    if pre.is_dir() {
        engine.remove(&pre_tag);
    }
    result
}

fn build(engine: &Engine, folder: &Path, name: &str, tag: &str) -> Result<String, Stop> {
    let salt = salt();
    let context = engine.contexts.join(format!("{name}-{salt}"));
    std::fs::create_dir(&context).unwrap();
    let result = build_in(engine, folder, tag, &context, &salt);
    std::fs::remove_dir_all(&context).unwrap();
    result
}

fn build_in(engine: &Engine, folder: &Path, tag: &str, context: &Path, salt: &str) -> Result<String, Stop> {
    let salted = |file: &str| lines(&folder.join(file)).map(|lines| lines.replace("@UNIQ@", salt));
    make_context(folder, context)?;
    let all = salted("options").unwrap_or_default();
    let (mut options, mut place, mut input) = (Vec::new(), ".", None);
    for line in all.lines().filter(|line| !line.is_empty()) {
        match line.as_bytes()[0] {
            b'<' => (place, input) = ("-", Some(line[1..].trim())),
            b'.' => place = line,
            _ => options.push(line),
        }
    }
    let environment = lines(&folder.join("env")).unwrap_or_default();
    let environment: Vec<(String, String)> =
        environment.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect();
    engine.remove(tag);
    let first = salted("first");
    if let Some(first) = &first {
        let options = first.lines().filter(|line| !line.is_empty());
        let arguments: Vec<&str> = ["--provenance=false", "--no-cache"].into_iter().chain(options).chain(["."]).collect();
        engine.build(context, &owned(&arguments), &environment, Stdio::null());
        change_context(&folder.join("change.sh"), context)?;
    }
    let mut arguments = vec!["--progress=plain", "--provenance=false", "-t", tag];
    if !options.iter().any(|option| option.starts_with("--no-cache")) {
        arguments.insert(0, "--no-cache");
    }
    arguments.extend(&options);
    arguments.push(place);
    let input = input.map_or_else(Stdio::null, |file| std::fs::File::open(context.join(file)).unwrap().into());
    let done = engine.build(context, &owned(&arguments), &environment, input);
    let (stdout, stderr) = (normal(&text(&done.stdout), context), normal(&text(&done.stderr), context));
    let status = done.status.code().unwrap_or(-1);
    let mut printed = output(&stderr);
    if !stdout.is_empty() {
        printed.push("stdout:".to_owned());
        printed.extend(standard_output(&stdout));
    }
    let mut sections = vec![("error", if status == 0 { Vec::new() } else { errors(&stderr) })];
    sections.extend([("warnings", warnings(&stderr)), ("output", printed)]);
    if first.is_some() {
        sections.push(("cached", cached(&stderr)));
    }
    if options.iter().any(|option| makes_files(option)) {
        sections.push(("files", files(&context.join("out"))));
    } else if status == 0 {
        match engine.saved(tag) {
            Ok(image) => sections.extend(image.sections(&engine.base)),
            Err(error) => sections.push(("save", vec![error])),
        }
    }
    Ok(record(status, &sections))
}

/// Whether an option has the build make something else than an image.
fn makes_files(option: &str) -> bool {
    let named = |name: &str| option.strip_prefix(name).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()));
    option == "--check" || ["-o", "--output", "--call"].into_iter().any(named)
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn lines(file: &Path) -> Option<String> {
    file.exists().then(|| std::fs::read_to_string(file).unwrap())
}

/// Digits that no other build has.
fn salt() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let now = UNIX_EPOCH.elapsed().unwrap().as_nanos();
    format!("{now:016x}{:08x}{:04x}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn make_context(folder: &Path, context: &Path) -> Result<(), Stop> {
    let copy = |from: PathBuf, name: &std::ffi::OsStr| {
        let to = context.join(name);
        std::fs::write(&to, std::fs::read(from).unwrap()).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o644)).unwrap();
    };
    std::fs::set_permissions(context, std::fs::Permissions::from_mode(0o755)).unwrap();
    copy(folder.join("Dockerfile"), "Dockerfile".as_ref());
    for entry in std::fs::read_dir(folder.join("context")).into_iter().flatten().flatten() {
        copy(entry.path(), &entry.file_name());
    }
    change_context(&folder.join("context.sh"), context)
}

/// Runs a script in the context, then gives all that is new the same old time.
fn change_context(script: &Path, context: &Path) -> Result<(), Stop> {
    if script.exists() {
        let mut command = Command::new("sh");
        command.args(["-c", "umask 022; exec sh -eu \"$0\""]).arg(script).current_dir(context).stdin(Stdio::null());
        command.env_clear().env("PATH", PATH).env("HOME", "/root").env("TZ", "UTC").env("LANG", "C.UTF-8");
        let done = command.output().unwrap();
        match done.status.code() {
            Some(0) => {}
            Some(LACKS_A_TOOL) => return Err(Stop::LacksATool),
            _ => return Err(Stop::Failed(format!("{}: {}", script.display(), text(&done.stderr)))),
        }
    }
    age(context);
    Ok(())
}

/// Gives an old time to what is new, directories after what is in them.
fn age(path: &Path) {
    let metadata = path.symlink_metadata().unwrap();
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            age(&entry.unwrap().path());
        }
    }
    if metadata.mtime() > RECENT {
        let time = Timespec { tv_sec: OLD, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}
