//! Files from one tree into another: what `COPY` and `ADD` do, and what tells whether it has been done already.
//!
//! Both trees are somebody else's: everything is reached by descriptors, links are resolved inside the trees by the kernel, and
//! nothing but regular files is opened. What is copied is hashed on its way, so that a record says what was really copied,
//! whoever changed the source meanwhile.

mod known;
mod owner;
mod take;
mod walk;

use std::io::{self, Read};

use dhow_oci::{Digest, Hasher};
use dhow_sys::root::Root;
use dhow_sys::tree;
use rustix::fs::{FileType, Stat};

pub use known::KnownFiles;
pub use owner::{Owner, owner};
pub use take::{Taker, is_archive, make_directory, write_document};
pub use walk::{Filter, matches};

use walk::{Visit, walk};

/// Why files could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A path of the source that is not there.
    #[error("{0:?}: not found")]
    NotFound(String),
    #[error("{0}")]
    Refused(String),
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
}

pub type Result<T, E = FilesError> = std::result::Result<T, E>;

trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| FilesError::Io { what: what(), source: error.into() })
    }
}

/// Bytes that are read at a time.
const BUFFER: usize = 256 * 1024;

/// Where files come from.
#[derive(Clone, Copy)]
pub struct Tree<'a> {
    pub root: &'a Root,
    pub is_context: bool,
    /// Files belong to whom they belong to here. Those of other contexts are root's, whatever they are on the client's machine.
    pub keeps_owners: bool,
    /// What is known of a context's files without reading them.
    pub known: Option<&'a KnownFiles>,
}

impl<'a> Tree<'a> {
    /// Files of a stage, or of what was fetched.
    pub fn of_files(root: &'a Root) -> Tree<'a> {
        Tree { root, is_context: false, keeps_owners: true, known: None }
    }

    pub fn of_context(root: &'a Root, known: Option<&'a KnownFiles>, keeps_owners: bool) -> Tree<'a> {
        Tree { root, is_context: true, keeps_owners, known }
    }

    /// Files are root's, without attributes, whatever they are here.
    fn is_plain(&self) -> bool {
        self.is_context && !self.keeps_owners
    }
}

/// What a context's own directory is like: a new one, whatever it is on the client's machine.
fn like_new(mut stat: Stat) -> Stat {
    let now = dhow_oci::time::now();
    stat.st_mode = (stat.st_mode & 0o170_000) | 0o755;
    stat.st_mtime = now.div_euclid(1_000_000_000);
    stat.st_mtime_nsec = now.rem_euclid(1_000_000_000) as _;
    stat
}

/// What has been seen of a selection of files: for each its place, kind, mode, owner, attributes and content. Not its time: a
/// file that was only touched is the same.
pub struct Seen {
    hasher: Hasher,
    /// What is to be hashed: fields are short, and hashing each by itself takes longer than hashing them.
    pending: Vec<u8>,
}

impl Default for Seen {
    fn default() -> Seen {
        Seen { hasher: Hasher::new(), pending: Vec::new() }
    }
}

/// Bytes that are hashed at a time.
const MANY: usize = 16 * 1024;

impl Seen {
    fn entry(&mut self, path: &[u8], stat: &Stat, is_plain: bool, xattrs: &[(Vec<u8>, Vec<u8>)], content: &[u8]) {
        let kind = FileType::from_raw_mode(stat.st_mode);
        // Of a link the mode says nothing.
        let mode = if kind == FileType::Symlink { 0 } else { stat.st_mode & 0o7777 };
        let (uid, gid) = if is_plain { (0, 0) } else { (stat.st_uid, stat.st_gid) };
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        let device = if is_device { stat.st_rdev } else { 0 };
        self.field(path);
        let mut facts = [0; 5 * 8];
        let numbers = [stat.st_mode & 0o170_000, mode, uid, gid].map(u64::from);
        for (place, number) in facts.chunks_exact_mut(8).zip(numbers.into_iter().chain([device])) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        self.field(&facts);
        self.field(content);
        for (name, value) in xattrs.iter().filter(|(name, _)| tree::is_content(name)) {
            self.field(name);
            self.field(value);
        }
        self.field(b"");
    }

    /// A regular file, by what it holds.
    fn file(&mut self, path: &[u8], stat: &Stat, is_plain: bool, xattrs: &[(Vec<u8>, Vec<u8>)], digest: &Digest) {
        self.entry(path, stat, is_plain, xattrs, digest.bytes());
    }

    /// With its length before it: two fields are never taken for one.
    fn field(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= MANY {
            self.hasher.update(&self.pending);
            self.pending.clear();
        }
    }

    /// One more source, by the name that it has; what follows is of it.
    pub fn source(&mut self, name: &str) {
        self.field(b"source");
        self.field(name.as_bytes());
    }

    pub fn finish(mut self) -> Digest {
        self.hasher.update(&self.pending);
        self.hasher.finish()
    }
}

/// Looks at files without copying them.
struct Look<'a> {
    seen: &'a mut Seen,
    tree: Tree<'a>,
    buffer: Vec<u8>,
}

impl Visit for Look<'_> {
    fn directory(&mut self, path: &[u8], directory: &std::os::fd::OwnedFd, stat: &Stat) -> Result<()> {
        let xattrs = xattrs(directory, path, self.tree.is_plain())?;
        self.seen.entry(path, stat, self.tree.is_plain(), &xattrs, b"");
        Ok(())
    }

    fn leave(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn leaf(&mut self, path: &[u8], parent: &std::os::fd::OwnedFd, name: &std::ffi::CStr, stat: &Stat) -> Result<()> {
        let about = || format!("read {}", String::from_utf8_lossy(path));
        let is_plain = self.tree.is_plain();
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                if let Some(digest) = self.tree.known.and_then(|known| known.digest(stat)) {
                    self.seen.file(path, stat, is_plain, &[], &digest);
                    return Ok(());
                }
                let file = take::open(parent, name).context(about)?;
                let xattrs = xattrs(&file, path, is_plain)?;
                let file = std::fs::File::from(file);
                let digest = digest_of(&file, &mut self.buffer).context(about)?;
                if let Some(known) = self.tree.known {
                    known.note(stat, &file, &digest);
                }
                self.seen.file(path, stat, is_plain, &xattrs, &digest);
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(parent, name, Vec::new()).context(about)?;
                self.seen.entry(path, stat, is_plain, &[], link.as_bytes());
            }
            _ => self.seen.entry(path, stat, is_plain, &[], b""),
        }
        Ok(())
    }
}

/// The digest of a file, by a buffer that many share.
fn digest_of(mut file: &std::fs::File, buffer: &mut [u8]) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    loop {
        match file.read(buffer)? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&buffer[..length]),
        }
    }
}

/// Extended attributes; of a context there are none, as BuildKit's clients send none.
fn xattrs(file: &std::os::fd::OwnedFd, path: &[u8], is_plain: bool) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    if is_plain {
        return Ok(Vec::new());
    }
    use std::os::fd::AsFd;
    tree::xattrs(file.as_fd()).context(|| format!("read the attributes of {}", String::from_utf8_lossy(path)))
}

/// Takes down what a path of a tree holds.
pub fn look(tree: &Tree<'_>, path: &str, filter: &Filter<'_>, seen: &mut Seen) -> Result<()> {
    walk(tree, path, filter, &mut Look { seen, tree: *tree, buffer: vec![0; BUFFER] })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::Path;

    use super::*;
    use crate::pattern::Ignore;

    fn write(root: &Path, name: &str, content: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }

    fn seen(root: &Path, path: &str, filter: &Filter<'_>) -> Digest {
        let root = Root::open_path(root).unwrap();
        let mut seen = Seen::default();
        look(&Tree::of_context(&root, None, false), path, filter, &mut seen).unwrap();
        seen.finish()
    }

    #[test]
    fn what_differs_is_seen_and_times_are_not() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "d/a", "one");
        let all = Filter::default();
        let first = seen(dir.path(), "/", &all);
        fs::File::options().write(true).open(dir.path().join("d/a")).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
        assert_eq!(seen(dir.path(), "/", &all), first);
        fs::write(dir.path().join("d/a"), "onf").unwrap();
        let second = seen(dir.path(), "/", &all);
        assert_ne!(second, first);
        fs::set_permissions(dir.path().join("d/a"), fs::Permissions::from_mode(0o600)).unwrap();
        let third = seen(dir.path(), "/", &all);
        assert_ne!(third, second);
        fs::rename(dir.path().join("d/a"), dir.path().join("d/b")).unwrap();
        assert_ne!(seen(dir.path(), "/", &all), third);
        let ignore = Ignore::parse(b"d/b\n").unwrap();
        let without = seen(dir.path(), "/", &Filter { ignore: Some(&ignore), ..Filter::default() });
        fs::write(dir.path().join("d/b"), "whatever").unwrap();
        assert_eq!(seen(dir.path(), "/", &Filter { ignore: Some(&ignore), ..Filter::default() }), without);
    }

    #[test]
    fn copies_say_what_was_copied() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(from.path(), "d/a", "one");
        write(from.path(), "d/sub/b", "two");
        fs::hard_link(from.path().join("d/a"), from.path().join("d/hard")).unwrap();
        std::os::unix::fs::symlink("/nowhere", from.path().join("d/link")).unwrap();
        let (source, target) = (Root::open_path(from.path()).unwrap(), Root::open_path(to.path()).unwrap());
        let tree = Tree::of_context(&source, None, false);
        let mut copied = Seen::default();
        let mut taker = Taker { target: &target, owner: None, mode: None, unpack: false };
        taker.take(&tree, "/d", true, "/x/y/", &Filter::default(), &mut copied).unwrap();
        let mut looked = Seen::default();
        look(&tree, "/d", &Filter::default(), &mut looked).unwrap();
        assert_eq!(copied.finish(), looked.finish());
        let at = |name: &str| fs::symlink_metadata(to.path().join("x/y").join(name)).unwrap();
        assert_eq!((at("a").nlink(), at("a").mtime(), at("hard").ino()), (2, 0, at("a").ino()));
        assert_eq!(fs::read(to.path().join("x/y/sub/b")).unwrap(), b"two");
        assert_eq!(fs::read_link(to.path().join("x/y/link")).unwrap(), Path::new("/nowhere"));
        // A single file into a directory, and to a name.
        taker.take(&tree, "/d/a", true, "/x/", &Filter::default(), &mut Seen::default()).unwrap();
        taker.take(&tree, "/d/a", true, "/x/named", &Filter::default(), &mut Seen::default()).unwrap();
        assert!(to.path().join("x/a").is_file() && to.path().join("x/named").is_file());
        let missing = taker.take(&tree, "/nope", true, "/x/", &Filter::default(), &mut Seen::default());
        assert!(matches!(missing, Err(FilesError::NotFound(path)) if path == "/nope"));
    }

    #[test]
    fn links_of_the_target_stay_inside() {
        let (from, to, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(from.path(), "a", "one");
        std::os::unix::fs::symlink(outside.path(), to.path().join("lib")).unwrap();
        fs::create_dir_all(to.path().join(outside.path().strip_prefix("/").unwrap())).unwrap();
        let (source, target) = (Root::open_path(from.path()).unwrap(), Root::open_path(to.path()).unwrap());
        let tree = Tree::of_context(&source, None, false);
        let mut taker = Taker { target: &target, owner: None, mode: None, unpack: false };
        taker.take(&tree, "/a", true, "/lib/", &Filter::default(), &mut Seen::default()).unwrap();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(to.path().join(outside.path().strip_prefix("/").unwrap()).join("a").is_file());
    }
}
