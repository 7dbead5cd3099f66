//! The files of the json-file driver, old and new, as one.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use dhow_monitor::log::rotated;
use dhow_sys::descriptor::open_at_once;

use super::output::Output;
use super::{LogSink, PIECE};

/// The log's files, from some line on, to the present end.
pub(super) struct Source {
    path: PathBuf,
    /// Files to be read after the current one, the next last.
    newer: Vec<File>,
    current: Option<File>,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that hold data.
    filled: usize,
    /// Bytes of the newest file that are still to be read; `None`: all there are.
    pub rest: Option<u64>,
    /// The current file was found to have been renamed: it is read once more.
    outdated: bool,
}

impl Source {
    pub fn open(path: &Path, tail: Option<usize>) -> io::Result<Source> {
        const ATTEMPTS: u32 = 20;
        let mut files = open_all(path)?;
        for _ in 0..ATTEMPTS {
            // Still the newest: what was rotated meanwhile was rotated by one at most.
            if !is_another(files.first(), path)? {
                break;
            }
            files = open_all(path)?;
        }
        if let Some(lines) = tail {
            let mut left = lines;
            let mut keep = 0;
            for file in &mut files {
                keep += 1;
                left = seek_to_tail(file, left)?;
                if left == 0 {
                    break;
                }
            }
            files.truncate(keep);
        }
        let current = files.pop();
        Ok(Source { path: path.to_owned(), newer: files, current, buffer: Vec::new(), filled: 0, rest: None, outdated: false })
    }

    /// Reads what there is now.
    pub fn pump(&mut self, out: &mut Output<'_>, sink: LogSink<'_>) -> io::Result<()> {
        loop {
            if self.current.is_none() {
                self.current = self.newer.pop().or_else(|| open_at_once(&self.path).ok());
            }
            let Some(file) = &mut self.current else { break };
            if self.buffer.len() - self.filled < PIECE {
                self.buffer.resize(self.filled + 2 * PIECE, 0);
            }
            let space = &mut self.buffer[self.filled..];
            let length = match &mut self.rest {
                Some(rest) if self.newer.is_empty() => {
                    let length = file.take(*rest).read(space)?;
                    *rest -= length as u64;
                    length
                }
                _ => file.read(space)?,
            };
            if length == 0 && self.rest.is_some() && self.newer.is_empty() {
                break;
            }
            if length == 0 {
                if let Some(next) = self.newer.pop() {
                    self.current = Some(next);
                    self.filled = 0;
                    continue;
                }
                if self.is_outdated()? {
                    if !std::mem::replace(&mut self.outdated, true) {
                        // What was written between the last look and the renaming.
                        continue;
                    }
                    self.outdated = false;
                    self.current = None;
                    self.filled = 0;
                    continue;
                }
                break;
            }
            self.filled += length;
            let mut start = 0;
            while let Some(length) = out.entry(&self.buffer[start..self.filled]) {
                start += length;
                if out.buffer.len() >= PIECE && !out.flush(sink) {
                    return Ok(());
                }
                if out.done {
                    break;
                }
            }
            self.buffer.copy_within(start..self.filled, 0);
            self.filled -= start;
            if out.done {
                break;
            }
        }
        out.flush(sink);
        Ok(())
    }

    /// Whether the file that is open is no longer the one of that name.
    pub fn is_outdated(&self) -> io::Result<bool> {
        // The newest file is the last to be read.
        is_another(self.newer.first().or(self.current.as_ref()), &self.path)
    }
}

/// Opens the files there are, the newest first. Some may be renamed meanwhile: one is then found under both names, or one name
/// is missing for a moment.
fn open_all(path: &Path) -> io::Result<Vec<File>> {
    let mut files: Vec<(File, (u64, u64))> = Vec::new();
    let (mut number, mut missing) = (0, 0);
    while missing < 2 {
        match open_at_once(&if number == 0 { path.to_owned() } else { rotated(path, number) }) {
            Ok(file) => {
                missing = 0;
                let identity = identity(&file)?;
                if !files.iter().any(|(_, known)| *known == identity) {
                    files.push((file, identity));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing += 1,
            Err(error) => return Err(error),
        }
        number += 1;
    }
    Ok(files.into_iter().map(|(file, _)| file).collect())
}

/// Whether the file is no longer the one of that name; it is not, either, in the moment in which there is none.
fn is_another(file: Option<&File>, path: &Path) -> io::Result<bool> {
    let Some(file) = file else { return Ok(false) };
    match open_at_once(path) {
        Ok(named) => Ok(identity(&named)? != identity(file)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// What tells one file from another, whatever they are called: device and inode.
fn identity(file: &File) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Moves to the start of the last `lines` lines; returns how many are missing.
fn seek_to_tail(file: &mut File, lines: usize) -> io::Result<usize> {
    let size = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(0);
    }
    let mut found = 0;
    let mut end = size;
    let mut buffer = vec![0u8; 64 * 1024];
    while end > 0 {
        let start = end.saturating_sub(buffer.len() as u64);
        let piece = &mut buffer[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(piece)?;
        for position in memchr::memrchr_iter(b'\n', piece) {
            let at = start + position as u64;
            if at + 1 == size {
                continue;
            }
            found += 1;
            if found == lines {
                file.seek(SeekFrom::Start(at + 1))?;
                return Ok(0);
            }
        }
        end = start;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(lines - (found + usize::from(size > 0)))
}
