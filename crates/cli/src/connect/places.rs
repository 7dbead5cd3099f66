//! Where an engine has its things unless it is told: root's is the host's, every other user has one of his own.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The defaults of the user who runs this program.
#[derive(Debug)]
pub struct Places {
    /// The daemon's.
    pub socket: PathBuf,
    pub data: PathBuf,
    pub exec: PathBuf,
    /// The configuration file.
    pub configuration: PathBuf,
    /// He is not root: his engine needs namespaces in which he is.
    pub is_ordinary: bool,
}

/// The socket of root's daemon, which also serves those users whom it lets.
pub const SYSTEM_SOCKET: &str = "/run/dhow/dhow.sock";

/// Decided once: in his namespaces an ordinary user is root.
pub fn places() -> &'static Places {
    static PLACES: OnceLock<Places> = OnceLock::new();
    PLACES.get_or_init(|| {
        let uid = own_uid();
        if uid == 0 {
            return Places {
                socket: SYSTEM_SOCKET.into(),
                data: "/var/lib/dhow".into(),
                exec: "/run/dhow".into(),
                configuration: "/etc/dhow/daemon.json".into(),
                is_ordinary: false,
            };
        }
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let exec = runtime_directory(uid, variable("XDG_RUNTIME_DIR"));
        let home = variable("HOME").or_else(|| home_of(uid)).unwrap_or_else(|| PathBuf::from("/"));
        let data = variable("XDG_DATA_HOME").unwrap_or_else(|| home.join(".local/share")).join("dhow");
        let configuration = variable("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")).join("dhow/daemon.json");
        Places { socket: exec.join("dhow.sock"), data, exec, configuration, is_ordinary: true }
    })
}

/// Where a user's things go that end with the host (XDG Base Directory Specification, `XDG_RUNTIME_DIR`). Where no session has made the
/// directory, one of `/tmp`, which is refused later should it be somebody else's.
fn runtime_directory(uid: u32, given: Option<PathBuf>) -> PathBuf {
    let is_his = |path: &PathBuf| owner_alone_writes(path, &[uid]);
    let session = PathBuf::from(format!("/run/user/{uid}"));
    match given.into_iter().chain([session]).find(is_his) {
        Some(directory) => directory.join("dhow"),
        None => PathBuf::from(format!("/tmp/dhow-{uid}")),
    }
}

fn home_of(uid: u32) -> Option<PathBuf> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = text.lines().find(|line| line.split(':').nth(2) == Some(uid.to_string().as_str()))?;
    line.split(':').nth(5).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Where an engine keeps its things. Another data root has containers of its own: they must not share the run directories of the
/// default one.
pub fn roots(data: Option<PathBuf>, exec: Option<PathBuf>) -> (PathBuf, PathBuf) {
    let places = places();
    let data = data.unwrap_or_else(|| places.data.clone());
    let exec = exec.unwrap_or_else(|| match data == places.data {
        true => places.exec.clone(),
        false => data.join("run"),
    });
    (data, exec)
}

/// The default socket on which somebody listens: the user's own, or root's if it lets him.
pub fn listening() -> Option<&'static Path> {
    let roots = places().is_ordinary.then_some(Path::new(SYSTEM_SOCKET));
    let sockets = std::iter::once(places().socket.as_path()).chain(roots);
    let is_safe = |path: &&Path| path.parent().is_some_and(|directory| owner_alone_writes(directory, &[0, own_uid()]));
    sockets.filter(is_safe).find(|path| std::os::unix::net::UnixStream::connect(path).is_ok())
}

/// The user's number, also once he has entered his namespaces.
fn own_uid() -> u32 {
    static UID: OnceLock<u32> = OnceLock::new();
    *UID.get_or_init(|| rustix::process::geteuid().as_raw())
}

/// Whether a directory is one of these users', and nobody else may put anything there. What is in `/tmp` others may have made.
fn owner_alone_writes(directory: &Path, owners: &[u32]) -> bool {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::symlink_metadata(directory);
    found.is_ok_and(|found| found.is_dir() && owners.contains(&found.uid()) && found.mode() & 0o022 == 0)
}
