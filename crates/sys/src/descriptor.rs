//! Descriptors that outlive `exec`, by number: standard streams, inherited sockets. And files of our own: opened without waiting, told
//! from others, written out.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Makes `number` refer to what `fd` refers to, kept open across `exec`.
pub fn duplicate_to(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        return Ok(());
    }
    // SAFETY: dup2 closes what `number` referred to; callers own the numbers they replace (their standard streams and
    // the ones an exec'ed program expects), and no OwnedFd of this process stands for them.
    super::check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into())?;
    Ok(())
}

/// Takes over a descriptor that the parent process passed by number; close-on-exec from here on.
///
/// # Errors
/// `EBADF` when nothing is open under that number.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on any number is harmless; it fails with EBADF when nothing is open there.
    super::check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: the number is open (checked above), and by the caller's protocol with its parent it is ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Marks every descriptor from `first` on close-on-exec (`CLOSE_RANGE_CLOEXEC`, Linux 5.11).
pub fn cloexec_from(first: RawFd) -> io::Result<()> {
    const CLOEXEC: u32 = 4;
    // SAFETY: only flags of descriptors change; none is closed before an exec.
    super::check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOEXEC) })?;
    Ok(())
}

/// Closes every descriptor from `first` on but those in `kept`. For a process that has just been cloned and drops nothing: values that stand
/// for what is closed must not be used any more.
pub fn close_all_but(first: RawFd, kept: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<RawFd> = kept.iter().copied().filter(|number| *number >= first).collect();
    kept.sort_unstable();
    let mut from = first;
    for end in kept.into_iter().chain([RawFd::MAX]) {
        if end > from {
            // SAFETY: the caller sees to it that nobody uses what is closed.
            super::check(unsafe { libc::syscall(libc::SYS_close_range, from, end - 1, 0) })?;
        }
        from = end.saturating_add(1);
    }
    Ok(())
}

/// Closes what the parent has open under a number. For a process that has just been cloned and drops nothing.
pub fn close_parents(number: RawFd) {
    // SAFETY: the value that stands for it is the parent's, and is neither used nor dropped here.
    unsafe { libc::close(number) };
}

/// Waits until directories are on stable storage, with what was made in them. Whoever then syncs a record of them into a file cannot rely on
/// that for it: a file that is written over in place takes nothing else along.
pub fn sync_directories<'a>(paths: impl IntoIterator<Item = &'a std::path::Path>) -> io::Result<()> {
    paths.into_iter().try_for_each(|path| std::fs::File::open(path)?.sync_all())
}

/// Has the kernel begin to write to the disk what of a file is not there yet, and does not wait for it (sync_file_range(2)):
/// whoever syncs afterwards waits less.
pub fn begin_writing(file: impl AsFd) {
    // SAFETY: no memory is involved. That it cannot be begun, is what the sync will tell.
    unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Opens a file of our own to be read, which may have been exchanged for anything: a FIFO is not waited for, and is empty.
///
/// # Errors
/// As open(2).
pub fn open_at_once(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// The content of such a file.
///
/// # Errors
/// As open(2) and read(2).
pub fn read_at_once(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    io::Read::read_to_end(&mut open_at_once(path)?, &mut content)?;
    Ok(content)
}

/// Whether a path still leads to a file that was opened by it.
pub fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let own = file.metadata().map(|stat| (stat.dev(), stat.ino()));
    own.is_ok_and(|own| path.metadata().is_ok_and(|stat| (stat.dev(), stat.ino()) == own))
}
