//! `cp`, `export`: files of containers, to and from this machine.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use dhow_api::client::{Client, ClientError, query, segment};
use dhow_engine::units::human_size;
use dhow_engine::{CopyOptions, Packer, Root, copy_into};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use rustix::fs::{CWD, Mode, OFlags};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::failure::{Failure, Result};

#[derive(Args, Debug)]
pub struct Cp {
    /// Archive mode (copy all uid/gid information)
    #[arg(short, long)]
    archive: bool,
    /// Always follow symbol link in SRC_PATH
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Suppress progress output during copy. Progress output is automatically suppressed if no terminal is attached
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    quiet: Option<bool>,
    source: String,
    destination: String,
}

/// `CONTAINER:PATH`, or a path of this machine.
enum Side {
    Here(String),
    There { container: String, path: String },
}

impl Side {
    fn parse(text: &str) -> Side {
        match text.split_once(':') {
            Some((container, path)) if !text.starts_with(['/', '.']) && !container.is_empty() => {
                Side::There { container: container.to_owned(), path: path.to_owned() }
            }
            _ => Side::Here(text.to_owned()),
        }
    }
}

/// `X-Docker-Container-Path-Stat`
#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct PathStat {
    name: String,
    mode: u32,
    #[serde(rename = "linkTarget")]
    link_target: String,
}

impl PathStat {
    fn is_directory(&self) -> bool {
        self.mode & 1 << 31 != 0
    }

    fn is_link(&self) -> bool {
        self.mode & 1 << 27 != 0
    }
}

/// Ends with a slash or `/.`: the path is to be a directory.
fn wants_directory(path: &str) -> bool {
    path.ends_with('/') || path.ends_with("/.")
}

fn wants_contents(path: &str) -> bool {
    path.ends_with("/.") || path == "."
}

impl Cp {
    pub async fn run(self, client: &Client) -> Result {
        if self.source.is_empty() {
            return Err(Failure::new("source can not be empty"));
        }
        if self.destination.is_empty() {
            return Err(Failure::new("destination can not be empty"));
        }
        match (Side::parse(&self.source), Side::parse(&self.destination)) {
            (Side::There { container, path }, Side::Here(here)) => self.take(client, &container, &path, &here).await,
            (Side::Here(here), Side::There { container, path }) => self.give(client, &here, &container, &path).await,
            (Side::There { .. }, Side::There { .. }) => Err(Failure::new("copying between containers is not supported")),
            (Side::Here(_), Side::Here(_)) => Err(Failure::new("must specify at least one container source")),
        }
    }

    fn tell(&self, size: u64, to: &str) {
        let quiet = self.quiet.unwrap_or_else(|| !io::stdout().is_terminal());
        if !quiet {
            tell!("Successfully copied {} to {to}", human_size(size));
        }
    }

    /// From a container.
    async fn take(&self, client: &Client, container: &str, path: &str, here: &str) -> Result {
        let to_stdout = here == "-";
        let target = PathBuf::from(here);
        let absolute = std::path::absolute(&target).map_err(|error| Failure::new(error.to_string()))?;
        if !to_stdout
            && let Some(parent) = absolute.parent()
            && std::fs::metadata(parent).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        {
            return Err(Failure::new(format!("invalid output path: directory \"{}\" does not exist", parent.display())));
        }
        let mut path = path.to_owned();
        let mut name = None;
        if self.follow_link {
            let stat = stat(client, container, &path).await?;
            if let Some(stat) = stat.filter(PathStat::is_link) {
                // In a directory the copy has the link's name.
                name = Some(stat.name);
                path = stat.link_target;
            }
        }
        let response = client.get(&archive_path(container, &path, &[])).await?;
        let stat = described(&response);
        if to_stdout {
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame?.into_data() {
                    crate::output::print_bytes(&data)?;
                }
            }
            return Ok(());
        }
        let name = name.unwrap_or_else(|| stat.name.clone());
        let place = local_target(here, &absolute, &stat, &name, wants_contents(&path))?;
        let size = unpack(response.into_body(), place, &stat).await?;
        self.tell(size, &absolute.display().to_string());
        Ok(())
    }

    /// To a container.
    async fn give(&self, client: &Client, here: &str, container: &str, path: &str) -> Result {
        // A link is followed to where it leads, also to nothing.
        let mut target = path.to_owned();
        let mut found = stat(client, container, path).await?;
        if let Some(link) = found.clone().filter(PathStat::is_link) {
            target.clone_from(&link.link_target);
            found = stat(client, container, &target).await?;
        }
        let is_directory = found.as_ref().is_some_and(PathStat::is_directory);
        let options = [("copyUIDGID", if self.archive { "true" } else { "" })];
        if here == "-" {
            if !is_directory {
                return Err(Failure::new(format!("destination \"{container}:{path}\" must be a directory")));
            }
            client.send_stream(Method::PUT, &put_path(container, &target, &options), tokio::io::stdin()).await?;
            self.tell(0, &format!("{container}:{path}"));
            return Ok(());
        }
        let (source, stat) = local_source(here, self.follow_link)?;
        let (directory, name) = if is_directory {
            let name = if wants_contents(here) { ".".to_owned() } else { base_name(here, &source) };
            (target, name)
        } else {
            if found.is_some() && stat.is_dir() {
                return Err(Failure::new("cannot copy directory"));
            }
            if !stat.is_dir() && (wants_directory(path) || path.is_empty()) {
                return Err(Failure::new("no such directory"));
            }
            let trimmed = target.trim_end_matches("/.").trim_end_matches('/');
            let (parent, name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
            (if parent.is_empty() { "/".to_owned() } else { parent.to_owned() }, name.to_owned())
        };
        let (ours, theirs) = StdUnixStream::pair().map_err(io_failure)?;
        theirs.set_nonblocking(true).map_err(io_failure)?;
        let reader = UnixStream::from_std(theirs).map_err(io_failure)?;
        let packed = tokio::task::spawn_blocking(move || pack(&source, &name, ours));
        let sent = client.send_stream(Method::PUT, &put_path(container, &directory, &options), reader).await;
        let size = packed.await.map_err(|error| Failure::new(error.to_string()))?;
        // What went wrong at the other end is why the packing broke off.
        let size = match (sent, size) {
            (Err(error), size) => {
                self.tell(size.unwrap_or(0), &format!("{container}:{path}"));
                return Err(error.into());
            }
            (Ok(_), size) => size.map_err(io_failure)?,
        };
        self.tell(size, &format!("{container}:{path}"));
        Ok(())
    }
}

fn io_failure(error: io::Error) -> Failure {
    Failure::new(error.to_string())
}

fn archive_path(container: &str, path: &str, options: &[(&str, &str)]) -> String {
    let mut parameters = vec![("path", path)];
    parameters.extend_from_slice(options);
    format!("/containers/{}/archive{}", segment(container), query(&parameters))
}

fn put_path(container: &str, path: &str, options: &[(&str, &str)]) -> String {
    archive_path(container, path, &[&[("noOverwriteDirNonDir", "true")], options].concat())
}

fn described(response: &hyper::Response<Incoming>) -> PathStat {
    let header = response.headers().get("X-Docker-Container-Path-Stat");
    let text = header.and_then(|value| STANDARD.decode(value.as_bytes()).ok());
    text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// What a path of a container is; `None` for nothing. The answer to HEAD has no text: other errors come up later, with one.
async fn stat(client: &Client, container: &str, path: &str) -> Result<Option<PathStat>> {
    match client.call(Method::HEAD, &archive_path(container, path, &[]), None::<&()>).await {
        Ok(response) => Ok(Some(described(&response))),
        Err(ClientError::Api { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What is to be copied, and what it is.
fn local_source(text: &str, follow: bool) -> Result<(PathBuf, std::fs::Metadata)> {
    let path = std::path::absolute(text).map_err(io_failure)?;
    let follow = follow || wants_directory(text) || text == ".";
    let looked = if follow { std::fs::metadata(&path) } else { std::fs::symlink_metadata(&path) };
    let stat = looked.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::new(format!("lstat {}: no such file or directory", path.display())),
        io::ErrorKind::NotADirectory => Failure::new("not a directory"),
        _ => Failure::new(format!("lstat {}: {error}", path.display())),
    })?;
    if wants_directory(text) && !stat.is_dir() {
        return Err(Failure::new("not a directory"));
    }
    let path = if follow { std::fs::canonicalize(&path).map_err(io_failure)? } else { path };
    Ok((path, stat))
}

/// The last part of a path as it was given, a link's own name.
fn base_name(text: &str, path: &Path) -> String {
    let given = Path::new(text).file_name().or(path.file_name());
    given.map_or_else(|| ".".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Writes a tar of a file or directory under another name. Returns its size.
fn pack(source: &Path, name: &str, to: StdUnixStream) -> io::Result<u64> {
    let mut out = Counting { inner: io::BufWriter::with_capacity(256 * 1024, to), size: 0 };
    let mut packer = Packer::new(&mut out);
    if std::fs::symlink_metadata(source)?.is_dir() {
        let directory = rustix::fs::open(source, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        packer.directory(&directory, name.as_bytes())?;
    } else {
        let parent = source.parent().unwrap_or(Path::new("/"));
        let last = source.file_name().map(PathBuf::from).unwrap_or_default();
        let parent = rustix::fs::openat(CWD, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        packer.tree(parent.as_fd(), &last, name.as_bytes())?;
    }
    packer.finish()?;
    Ok(out.size)
}

struct Counting<T> {
    inner: T,
    size: u64,
}

impl<T: Write> Write for Counting<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.size += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Counting<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.size += length as u64;
        Ok(length)
    }
}

/// Where a copy goes.
enum Place {
    /// Unpacked into a directory as it is.
    Into(PathBuf),
    /// One thing, that gets this path.
    As(PathBuf),
}

fn local_target(given: &str, absolute: &Path, stat: &PathStat, name: &str, contents: bool) -> Result<Place> {
    // A link is followed, also one that leads to nothing yet.
    let mut target = absolute.to_owned();
    for _ in 0..32 {
        match std::fs::read_link(&target) {
            Ok(link) => target = target.parent().unwrap_or(Path::new("/")).join(link),
            Err(_) => break,
        }
    }
    match std::fs::metadata(&target) {
        Ok(found) if found.is_dir() => Ok(match (contents, name == stat.name) {
            (true, _) | (false, true) => Place::Into(target),
            // A link that was followed.
            (false, false) => Place::As(target.join(name)),
        }),
        Ok(_) if wants_directory(given) => Err(Failure::new(format!("stat {}: not a directory", absolute.display()))),
        Ok(_) if stat.is_directory() => Err(Failure::new("cannot copy directory")),
        Ok(_) => Ok(Place::As(target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if wants_directory(given) && !stat.is_directory() {
                return Err(Failure::new("no such directory"));
            }
            if let Some(parent) = target.parent()
                && !parent.is_dir()
            {
                return Err(Failure::new(format!("stat {}: no such file or directory", parent.display())));
            }
            if contents {
                std::fs::create_dir(&target).map_err(io_failure)?;
                return Ok(Place::Into(target));
            }
            Ok(Place::As(target))
        }
        Err(error) => Err(Failure::new(format!("stat {}: {}", absolute.display(), text_of(&error)))),
    }
}

fn text_of(error: &io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Unpacks an answer's tar. Everything becomes the caller's. Returns the tar's size.
async fn unpack(mut body: Incoming, place: Place, stat: &PathStat) -> Result<u64> {
    let (ours, theirs) = StdUnixStream::pair().map_err(io_failure)?;
    ours.set_nonblocking(true).map_err(io_failure)?;
    let mut writer = UnixStream::from_std(ours).map_err(io_failure)?;
    let name = stat.name.clone();
    let unpacked = tokio::task::spawn_blocking(move || -> std::result::Result<u64, String> {
        let mut tar = Counting { inner: theirs, size: 0 };
        place_files(&mut tar, place, &name)?;
        // What follows the archive's end.
        io::copy(&mut tar, &mut io::sink()).map_err(|error| error.to_string())?;
        Ok(tar.size)
    });
    let mut broken = None;
    while let Some(frame) = body.frame().await {
        match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(data)) if writer.write_all(&data).await.is_err() => break,
            Ok(_) => {}
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    drop(writer);
    let unpacked = unpacked.await.map_err(|error| Failure::new(error.to_string()))?;
    match broken {
        Some(error) => Err(Failure::new(format!("the copy broke off: {error}"))),
        None => unpacked.map_err(Failure::new),
    }
}

fn place_files(tar: &mut impl Read, place: Place, name: &str) -> std::result::Result<(), String> {
    let owner = Some((rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
    let options = CopyOptions { keep_kinds: true, owner, ids: None };
    let text = |error: io::Error| error.to_string();
    let into = |tar: &mut dyn Read, directory: &Path| -> std::result::Result<(), String> {
        let root = Root::open_path(directory).map_err(text)?;
        copy_into(tar, &root, options).map_err(|error| error.to_string())
    };
    match place {
        Place::Into(directory) => into(tar, &directory),
        Place::As(path) => {
            // Beside its place first: it has another name there.
            let parent = path.parent().unwrap_or(Path::new("/"));
            let random = dhow_engine::random_id().map_err(|error| error.to_string())?;
            let temporary = parent.join(format!(".dhow-cp-{}", &random[..12]));
            std::fs::create_dir(&temporary).map_err(text)?;
            let name = if matches!(name, "/" | ".") { "" } else { name };
            let placed = into(tar, &temporary).and_then(|()| {
                let from = if name.is_empty() { temporary.clone() } else { temporary.join(name) };
                std::fs::rename(from, &path).map_err(text)
            });
            match std::fs::remove_dir_all(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => placed.and(Err(text(error))),
                _ => placed,
            }
        }
    }
}

#[derive(Args, Debug)]
pub struct Export {
    /// Write to a file, instead of STDOUT
    #[arg(short, long, default_value = "", hide_default_value = true)]
    output: String,
    container: String,
}

impl Export {
    pub async fn run(self, client: &Client) -> Result {
        let path = format!("/containers/{}/export", segment(&self.container));
        write_archive(client, &path, &self.output, "failed to export container").await
    }
}

/// Writes what a path of the API answers to a file, or to standard output if there is none. `what` begins the errors about the file.
pub async fn write_archive(client: &Client, path: &str, output: &str, what: &str) -> Result {
    let failed = |why: String| Failure::new(format!("{what}: {why}"));
    if output.is_empty() {
        if io::stdout().is_terminal() {
            return Err(Failure::new("cowardly refusing to save to a terminal. Use the -o flag or redirect"));
        }
        let mut body = client.get(path).await?.into_body();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                crate::output::print_bytes(&data)?;
            }
        }
        return Ok(());
    }
    let target = Path::new(output);
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Err(error) = std::fs::metadata(parent) {
        return Err(failed(format!("invalid output path: stat {}: {}", parent.display(), text_of(&error))));
    }
    match std::fs::metadata(target).map(|stat| stat.file_type()) {
        Ok(kind) if kind.is_dir() => return Err(failed("cannot write to a directory".to_owned())),
        Ok(kind) if std::os::unix::fs::FileTypeExt::is_char_device(&kind) => {
            return Err(failed("cannot write to a character device file".to_owned()));
        }
        _ => {}
    }
    let mut body = client.get(path).await?.into_body();
    // Under another name until it is whole.
    let random = dhow_engine::random_id().map_err(|error| Failure::new(error.to_string()))?;
    let temporary = parent.join(format!(".dhow-export-{}", &random[..12]));
    let written = async {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file: OwnedFd =
            rustix::fs::open(&temporary, flags, Mode::from_raw_mode(0o600)).map_err(|error| io_failure(error.into()))?;
        let mut file = std::fs::File::from(file);
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                file.write_all(&data).map_err(io_failure)?;
            }
        }
        std::fs::rename(&temporary, target).map_err(io_failure)
    };
    let written: Result = written.await;
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}
