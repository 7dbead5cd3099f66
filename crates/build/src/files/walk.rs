//! Walking what a path of a tree holds, in the order of names.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use dhow_sys::root::{Root, descriptor_path, reopen};
use dhow_sys::tree as files;
use rustix::fs::{AtFlags, FileType, OFlags, Stat};

use super::{Context, FilesError, Result, Tree};
use crate::pattern::{Ignore, Pattern, has_wildcards};

/// Which files are taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter<'a> {
    /// Of the whole tree: what is left out of it.
    pub ignore: Option<&'a Ignore>,
    /// Below the path: what is left out, and what alone is taken.
    pub exclude: Option<&'a Ignore>,
    pub include: Option<&'a Ignore>,
}

/// What is done with what is found. Paths are relative to the one that is walked; that itself has the empty one.
pub(super) trait Visit {
    fn directory(&mut self, path: &[u8], directory: &OwnedFd, stat: &Stat) -> Result<()>;
    /// Nothing more is in the directory.
    fn leave(&mut self, path: &[u8]) -> Result<()>;
    /// What is no directory: `name` of `parent`.
    fn leaf(&mut self, path: &[u8], parent: &OwnedFd, name: &CStr, stat: &Stat) -> Result<()>;
}

/// Visits what a path leads to: links on the way and at its end are followed inside the tree.
///
/// # Errors
/// [`FilesError::NotFound`], also for what is left out.
pub(super) fn walk(tree: &Tree<'_>, path: &str, filter: &Filter<'_>, visit: &mut dyn Visit) -> Result<()> {
    let missing = || FilesError::NotFound(path.to_owned());
    let handle = match tree.root.handle(Path::new(path)) {
        Err(error) if is_missing(&error) => return Err(missing()),
        other => other.context(|| format!("look at {path}"))?,
    };
    let stat = rustix::fs::fstat(&handle).context(|| format!("look at {path}"))?;
    let place = place(tree.root, &handle)?;
    let mut walker = Walker { filter, place: place.clone(), pending: Vec::new() };
    let is_left_out = |place: &str| !place.is_empty() && filter.ignore.is_some_and(|ignore| ignore.matches(place));
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        if is_left_out(&place) && !filter.ignore.is_some_and(|ignore| ignore.may_except_below(&place)) {
            return Err(missing());
        }
        let directory = reopen(handle.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY).context(|| format!("open {path}"))?;
        let stat = if tree.is_context && place.is_empty() { super::like_new(stat) } else { stat };
        visit.directory(b"", &directory, &stat)?;
        walker.below(&directory, b"", 0, visit)?;
        return visit.leave(b"");
    }
    if is_left_out(&place) {
        return Err(missing());
    }
    // By its real place, where it is no link.
    let (parent, name) = match Path::new(&place).file_name() {
        Some(name) => {
            let parent = Path::new(&place).parent().unwrap_or(Path::new(""));
            let parent = tree.root.open(parent, OFlags::RDONLY | OFlags::DIRECTORY, 0).context(|| format!("open {path}"))?;
            (parent, CString::new(name.as_bytes()).map_err(|_| missing())?)
        }
        None => return Err(missing()),
    };
    visit.leaf(b"", &parent, &name, &stat)
}

fn is_missing(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// Where something is in its tree, without a slash before it.
fn place(root: &Root, handle: &OwnedFd) -> Result<String> {
    let path = |fd: std::os::fd::BorrowedFd<'_>| std::fs::read_link(descriptor_path(fd)).context(|| "find a path".to_owned());
    let (base, full) = (path(root.as_fd())?, path(handle.as_fd())?);
    let inside = full.strip_prefix(&base).unwrap_or(&full);
    Ok(inside.to_string_lossy().trim_start_matches('/').to_owned())
}

/// A directory that is visited once something in it is taken.
struct Pending {
    path: Vec<u8>,
    directory: OwnedFd,
    stat: Stat,
    is_visited: bool,
}

struct Walker<'a> {
    filter: &'a Filter<'a>,
    /// Of what is walked, in the tree.
    place: String,
    pending: Vec<Pending>,
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

impl Walker<'_> {
    /// Whether something is taken, and whether what is in it may be although it is not.
    fn is_taken(&self, path: &[u8]) -> (bool, bool) {
        let path = String::from_utf8_lossy(path);
        let in_tree = || if self.place.is_empty() { path.to_string() } else { format!("{}/{path}", self.place) };
        let (mut taken, mut below) = (true, true);
        if let Some(ignore) = self.filter.ignore.filter(|ignore| !ignore.is_empty()) {
            let full = in_tree();
            if ignore.matches(&full) {
                taken = false;
                below &= ignore.may_except_below(&full);
            }
        }
        if let Some(exclude) = self.filter.exclude.filter(|exclude| exclude.matches(&path)) {
            taken = false;
            below &= exclude.may_except_below(&path);
        }
        if taken && self.filter.include.is_some_and(|include| !include.matches(&path)) {
            taken = false;
        }
        (taken, below)
    }

    fn below(&mut self, directory: &OwnedFd, path: &[u8], depth: usize, visit: &mut dyn Visit) -> Result<()> {
        let about = |path: &[u8]| format!("read {}", String::from_utf8_lossy(path));
        if depth > files::DEEPEST {
            return Err(FilesError::Refused(format!("directories are nested more than {} deep", files::DEEPEST)));
        }
        for name in files::names_in(directory).context(|| about(path))? {
            let here = joined(path, name.to_bytes());
            let (taken, may_below) = self.is_taken(&here);
            if !taken && !may_below {
                continue;
            }
            let stat = match rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                // Gone since the names were read.
                Err(rustix::io::Errno::NOENT) => continue,
                other => other.context(|| about(&here))?,
            };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                if taken {
                    self.visit_pending(visit)?;
                    visit.leaf(&here, directory, &name, &stat)?;
                }
                continue;
            }
            let child = files::open_directory(directory, &name).context(|| about(&here))?;
            if taken {
                self.visit_pending(visit)?;
                visit.directory(&here, &child, &stat)?;
                self.below(&child, &here, depth + 1, visit)?;
                visit.leave(&here)?;
                continue;
            }
            let own = child.try_clone().context(|| about(&here))?;
            self.pending.push(Pending { path: here.clone(), directory: own, stat, is_visited: false });
            self.below(&child, &here, depth + 1, visit)?;
            if self.pending.pop().is_some_and(|pending| pending.is_visited) {
                visit.leave(&here)?;
            }
        }
        Ok(())
    }

    fn visit_pending(&mut self, visit: &mut dyn Visit) -> Result<()> {
        for pending in self.pending.iter_mut().filter(|pending| !pending.is_visited) {
            visit.directory(&pending.path, &pending.directory, &pending.stat)?;
            pending.is_visited = true;
        }
        Ok(())
    }
}

/// The paths of a tree that a path with wildcards stands for, in their order; a path without any is itself.
pub fn matches(tree: &Tree<'_>, path: &str, filter: &Filter<'_>) -> Result<Vec<String>> {
    if !has_wildcards(path) {
        return Ok(vec![path.to_owned()]);
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let plain = parts.iter().take_while(|part| !has_wildcards(part)).count();
    let base = format!("/{}", parts[..plain].join("/"));
    let handle = match tree.root.open(Path::new(&base), OFlags::RDONLY | OFlags::DIRECTORY, 0) {
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        other => other.context(|| format!("open {base}"))?,
    };
    let patterns: Result<Vec<Pattern>> = parts[plain..]
        .iter()
        .map(|part| Pattern::glob(part).map_err(|error| FilesError::Refused(format!("{path}: {error}"))))
        .collect();
    let mut found = Vec::new();
    let place = place(tree.root, &handle)?;
    descend(&handle, base.trim_end_matches('/'), &place, &patterns?, filter, &mut found)?;
    Ok(found)
}

fn descend(
    directory: &OwnedFd,
    path: &str,
    place: &str,
    patterns: &[Pattern],
    filter: &Filter<'_>,
    found: &mut Vec<String>,
) -> Result<()> {
    let [pattern, rest @ ..] = patterns else { return Ok(()) };
    for name in files::names_in(directory).context(|| format!("read {path}"))? {
        // A name that is no text is nothing that a Dockerfile could ask for.
        let Ok(text) = name.to_str() else { continue };
        if !pattern.matches(text) {
            continue;
        }
        let (here, place) =
            (format!("{path}/{text}"), if place.is_empty() { text.to_owned() } else { format!("{place}/{text}") });
        let is_ignored = filter.ignore.is_some_and(|ignore| ignore.matches(&place) && !ignore.may_except_below(&place));
        if is_ignored {
            continue;
        }
        if rest.is_empty() {
            found.push(here);
            continue;
        }
        let Ok(child) = files::open_directory(directory, &name) else { continue };
        descend(&child, &here, &place, rest, filter, found)?;
    }
    Ok(())
}
