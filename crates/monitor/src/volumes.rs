//! Volumes that are file systems of their own: mounted on the host for as long as a container with them runs.
//!
//! Several monitors share a mount. Each holds a shared lock on the file `users` beside it; the last one, which can have that lock
//! for itself, unmounts. Who mounts, looks or unmounts holds the lock of the volume's directory meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, StatxAttributes, StatxFlags, flock};
use rustix::mount::UnmountFlags;

use crate::protocol::MountedVolume;

const CONTENT: &str = "_data";
const USERS: &str = "users";
const PATIENCE: Duration = Duration::from_secs(10);

/// A volume that is mounted; until it is dropped, or its holder dies.
#[derive(Debug)]
pub(crate) struct InUse {
    directory: PathBuf,
    _users: OwnedFd,
}

impl InUse {
    /// Mounts a volume that is not mounted yet.
    pub fn begin(volume: &MountedVolume) -> Result<InUse, String> {
        let content = volume.directory.join(CONTENT);
        let failed = |why: &dyn std::fmt::Display| format!("error while mounting volume '{}': {why}", content.display());
        let _busy = lock_directory(&volume.directory).map_err(|error| failed(&error))?;
        let users = open_users(&volume.directory, true).map_err(|error| failed(&error))?;
        flock(&users, FlockOperation::LockShared).map_err(|error| failed(&error))?;
        if !is_mounted(&content).map_err(|error| failed(&error))? {
            dhow_runtime::host_mount::mount(&volume.kind, &volume.device, &volume.options, &content).map_err(|error| {
                failed(&format!("failed to mount local volume: mount {}:{}: {error}", volume.device, content.display()))
            })?;
        }
        Ok(InUse { directory: volume.directory.clone(), _users: users })
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        // The own lock becomes the one that must be had alone. What cannot be unmounted now is found by the volume's next user.
        let _ = release(&self.directory, &self._users);
    }
}

/// Unmounts a volume that nobody uses. Whether it is free: not in use by any container that runs.
pub fn unmount_unused(directory: &Path) -> io::Result<bool> {
    match open_users(directory, false) {
        Ok(users) => release(directory, &users),
        // It was never mounted.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

fn release(directory: &Path, users: &OwnedFd) -> io::Result<bool> {
    let _busy = lock_directory(directory)?;
    match flock(users, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
        other => other?,
    }
    let content = directory.join(CONTENT);
    // Mounts can lie on one another, where somebody else has mounted as well.
    while is_mounted(&content)? {
        rustix::mount::unmount(&content, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(true)
}

/// Waits a while for who is mounting or unmounting: a file system whose server is gone may keep him for ever.
fn lock_directory(directory: &Path) -> io::Result<File> {
    let handle = File::open(directory)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(handle),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another container has been mounting it for too long"));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn open_users(directory: &Path, create: bool) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | if create { OFlags::CREATE } else { OFlags::empty() };
    Ok(rustix::fs::open(directory.join(USERS), flags, Mode::from_raw_mode(0o600))?)
}

/// Whether something is mounted on a directory.
fn is_mounted(directory: &Path) -> io::Result<bool> {
    let stat = rustix::fs::statx(
        CWD,
        directory,
        AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC,
        StatxFlags::empty(),
    )?;
    Ok(StatxAttributes::from_bits_retain(stat.stx_attributes.bits()).contains(StatxAttributes::MOUNT_ROOT))
}
