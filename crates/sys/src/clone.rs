//! `clone3(2)`: a child process in namespaces and a cgroup of its own, with a descriptor to hold it by.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// What the child gets of its own, and where it is put.
#[derive(Default)]
pub struct CloneArgs<'a> {
    /// `CLONE_NEW*` flags; `CLONE_PARENT` may be added. `CLONE_PIDFD` is always set.
    pub flags: u64,
    /// Directory of a cgroup v2 to start the child in (`CLONE_INTO_CGROUP`, Linux 5.7).
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A child process, for its parent.
#[derive(Debug)]
pub struct Child {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// `struct clone_args` of `linux/sched.h`, version 2 (88 bytes).
#[repr(C)]
#[derive(Default)]
struct RawArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// `CLONE_NEW*` of `linux/sched.h`.
pub const NEW_MOUNT: u64 = 0x0002_0000;
pub const NEW_CGROUP: u64 = 0x0200_0000;
pub const NEW_UTS: u64 = 0x0400_0000;
pub const NEW_IPC: u64 = 0x0800_0000;
pub const NEW_USER: u64 = 0x1000_0000;
pub const NEW_PID: u64 = 0x2000_0000;
pub const NEW_NETWORK: u64 = 0x4000_0000;

/// `CLONE_INTO_CGROUP` of `linux/sched.h`.
const INTO_CGROUP: u64 = 0x2_0000_0000;
/// `CLONE_NEWTIME` of `linux/sched.h`; only `clone3` and `unshare` take it.
pub const NEW_TIME: u64 = 0x80;

/// `CLONE_PARENT` of `linux/sched.h`: the child is the caller's sibling.
pub const PARENT: u64 = 0x8000;

/// Clones the calling process, which must have a single thread. The child runs `child` on a copy of its memory and ends
/// with the status that it returns: none of the parent's code that follows can run twice.
///
/// # Errors
/// When the caller has more than one thread: the child of such a process could find any lock held forever.
/// Otherwise what `clone3(2)` says.
pub fn clone3(args: &CloneArgs<'_>, child: impl FnOnce() -> i32) -> io::Result<Child> {
    for attempt in 0.. {
        match if IS_CLONED.load(Ordering::Relaxed) { 1 } else { thread_count()? } {
            1 => break,
            // One that has been joined is listed until the kernel has taken it apart, which it does when it gets to it.
            _ if attempt < 2000 => std::thread::sleep(std::time::Duration::from_micros(if attempt < 40 { 50 } else { 1000 })),
            _ => return Err(io::Error::other("the process has other threads")),
        }
    }
    let mut pidfd: RawFd = -1;
    let mut raw = RawArgs {
        flags: args.flags | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..RawArgs::default()
    };
    if args.flags & libc::CLONE_PARENT as u64 != 0 {
        // The kernel insists: with CLONE_PARENT the child inherits the caller's own exit signal.
        raw.exit_signal = 0;
    }
    if let Some(cgroup) = args.cgroup {
        raw.flags |= INTO_CGROUP;
        raw.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `raw` is a valid clone_args of the size given and `pidfd` outlives the call. There is no CLONE_VM, so the
    // child has memory of its own, and the caller has one thread (checked above), so no lock is held by anybody else.
    let pid = super::check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut raw, size_of::<RawArgs>()) })?;
    if pid == 0 {
        // Destructors that a panic ran would be the parent's: they would give back what it still has.
        let guard = AbortOnUnwind;
        IS_CLONED.store(true, Ordering::Relaxed);
        let code = child();
        std::mem::forget(guard);
        crate::process::exit_now(code);
    }
    // SAFETY: CLONE_PIDFD made the kernel store a new descriptor in `pidfd`, which nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pid: pid as i32, pidfd })
}

/// Whether this process has been cloned here: then it has one thread, and its procfs may be another one's by now.
static IS_CLONED: AtomicBool = AtomicBool::new(false);

struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// The threads of the calling process: `/proc/self/task` has a link for each of its directories.
fn thread_count() -> io::Result<u64> {
    let stat = rustix::fs::stat("/proc/self/task")?;
    Ok(stat.st_nlink as u64 - 2)
}
