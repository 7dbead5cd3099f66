//! Descriptors that outlive `exec`, by number: standard streams, inherited sockets. And when files are written out.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

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

/// Has the kernel begin to write to the disk what of a file is not there yet, and does not wait for it (sync_file_range(2)):
/// whoever syncs afterwards waits less.
pub fn begin_writing(file: impl AsFd) {
    // SAFETY: no memory is involved. That it cannot be begun, is what the sync will tell.
    unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}
