//! Signals as descriptors, and the clean slate an exec'ed program expects.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Blocks `signals` and returns a non-blocking descriptor that becomes readable when one arrives.
pub fn signal_descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = set_of(signals);
    // SAFETY: `set` is initialised; the old mask is not asked for.
    super::check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) }.into())?;
    // SAFETY: a new descriptor for an initialised set.
    let fd = super::check(unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) }.into())?;
    // SAFETY: the kernel just returned this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Takes one pending signal from a descriptor of [`signal_descriptor`]: its number; `None` when there is none.
pub fn next_signal(fd: &OwnedFd) -> io::Result<Option<i32>> {
    let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut buffer) {
        Ok(_) => Ok(Some(u32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as i32)),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Unblocks every signal and restores every default action, so that an exec'ed program starts as from a shell.
pub fn reset() -> io::Result<()> {
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP || signal == 32 || signal == 33 {
            continue;
        }
        // SAFETY: setting the default action runs no code of ours later; glibc's two internal signals are left out.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let set = set_of(&[]);
    // SAFETY: `set` is initialised and empty.
    super::check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) }.into())?;
    Ok(())
}

/// Ignores a signal in this process.
pub fn ignore(signal: i32) {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Restores a signal's default action and sends it to the calling process: ends it as the signal would have.
pub fn die_of(signal: i32) {
    // SAFETY: the default action runs no code of ours, and raise concerns the calling thread only.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// Sends a signal to a process by number. Prefer a pidfd where there is one.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: integers only.
    super::check(unsafe { libc::kill(pid, signal) }.into())?;
    Ok(())
}

/// Sends a signal to a process by its descriptor (`pidfd_send_signal`): never hits a reused number.
pub fn kill_descriptor(pidfd: std::os::fd::BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: no siginfo is passed, so the kernel fills it in itself.
    super::check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    })?;
    Ok(())
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set before it is read, and sigaddset only changes it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        set
    }
}
