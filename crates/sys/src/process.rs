//! State of the calling process that must be set before an untrusted program runs in it.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Ends the process at once: no destructors, no exit handlers. What a cloned child does instead of returning.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory of the process.
    unsafe { libc::_exit(code) }
}

/// `PR_SET_DUMPABLE`: with `false`, processes inside a joined namespace cannot ptrace the caller or open its `/proc`
/// files (CVE-2016-9962).
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    // SAFETY: prctl with an integer argument.
    super::check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(dumpable), 0, 0, 0) }.into())?;
    Ok(())
}

/// Joins a new, anonymous session keyring, so that the host's keys are out of reach. Kernels without keyrings are fine.
pub fn join_new_session_keyring(name: &CStr) -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: `name` is a C string that the kernel copies.
    match super::check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) }) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// Joins the namespaces `types` (`CLONE_NEW*`) of what `fd` refers to: a namespace file, or a pidfd for several at once
/// (Linux 5.8).
pub fn set_namespace(fd: BorrowedFd<'_>, types: i32) -> io::Result<()> {
    // SAFETY: integers only. The effect is limited to the calling thread.
    super::check(unsafe { libc::setns(fd.as_raw_fd(), types) }.into())?;
    Ok(())
}

/// The number of the process behind a pidfd, as `/proc` has it (proc_pid_fdinfo(5)).
///
/// # Errors
/// Without `/proc`; `NotFound` for a process that has been reaped.
pub fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let number = about.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.filter(|pid| *pid > 0).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Does something as another user than root as far as files go: those that are made are his (setfsuid(2)). The calling thread keeps
/// its rights (capabilities(7), `SECBIT_NO_SETUID_FIXUP`), and is root again afterwards.
///
/// # Errors
/// `PermissionDenied` for who is not root.
pub fn acting_as<T>(user: u32, group: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    let back = BackToRoot;
    set_file_ids(user, group)?;
    let done = work();
    drop(back);
    Ok(done)
}

/// Also after a panic: other work may be waiting for the thread.
struct BackToRoot;

impl Drop for BackToRoot {
    fn drop(&mut self) {
        if set_file_ids(0, 0).is_err() {
            // It must not go on as somebody else.
            std::process::abort();
        }
    }
}

/// The user and group that the calling thread is for file systems; with all its rights.
fn set_file_ids(user: u32, group: u32) -> io::Result<()> {
    const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    // SAFETY: prctl with integer arguments; securebits belong to the calling thread.
    let bits = super::check(unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) }.into())? as libc::c_ulong;
    let set = |bits: libc::c_ulong| -> io::Result<()> {
        // SAFETY: as above.
        super::check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits, 0, 0, 0) }.into())?;
        Ok(())
    };
    set(bits | NO_SETUID_FIXUP)?;
    for (call, id) in [(libc::SYS_setfsgid, group), (libc::SYS_setfsuid, user)] {
        // SAFETY: integers only. By the bare call, the effect is limited to the calling thread.
        unsafe { libc::syscall(call, id) };
        // The answer is the id as it was; asked with one that cannot be, as it is.
        // SAFETY: as above.
        if unsafe { libc::syscall(call, u32::MAX) } != i64::from(id) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
    }
    set(bits)
}

/// Whether this process is in a user namespace other than the host's (user_namespaces(7)): its root is root of some things only.
pub fn is_in_user_namespace() -> bool {
    static IS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *IS.get_or_init(|| {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        // A kernel without them has no such file.
        !map.is_empty() && map.split_whitespace().ne(["0", "0", "4294967295"])
    })
}

/// Gives the calling thread new namespaces, `CLONE_NEW*` flags.
pub fn unshare(types: i32) -> io::Result<()> {
    // SAFETY: integers only; callers pass namespace flags, which share no memory differently.
    super::check(unsafe { libc::unshare(types) }.into())?;
    Ok(())
}

/// Sets a resource limit by its number (`RLIMIT_*`).
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    set_rlimit_of(0, resource, soft, hard)
}

/// The same of another process; 0 is the calling one.
pub fn set_rlimit_of(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is valid for the duration of the call, and the old limit is not asked for.
    super::check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, &limit, std::ptr::null::<libc::rlimit64>()) })?;
    Ok(())
}

/// Reads a resource limit by its number: soft, hard.
pub fn rlimit(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit64 to `limit`.
    super::check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, std::ptr::null::<libc::rlimit64>(), &mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Sets the execution domain, `personality(2)`.
pub fn set_personality(domain: u64) -> io::Result<()> {
    // SAFETY: an integer argument.
    super::check(unsafe { libc::personality(domain as libc::c_ulong) }.into())?;
    Ok(())
}

/// The effective capabilities of the caller in the kernel's order, 64 bits per set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// `capset(2)` on the calling thread.
pub fn set_capabilities(sets: &CapabilitySets) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |shift: u32| Data {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 takes a header and two data structs, which both live across the call.
    super::check(unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) })?;
    Ok(())
}

/// Drops a capability from the bounding set. Unknown numbers give `EINVAL`.
pub fn drop_bounding(capability: u32) -> io::Result<()> {
    // SAFETY: prctl with integers.
    super::check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) }.into())?;
    Ok(())
}

/// Raises a capability in the ambient set.
pub fn raise_ambient(capability: u32) -> io::Result<()> {
    let raise = libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong;
    // SAFETY: prctl with integers.
    super::check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, libc::c_ulong::from(capability), 0, 0) }.into())?;
    Ok(())
}

/// Empties the ambient set.
pub fn clear_ambient() -> io::Result<()> {
    // SAFETY: prctl with integers.
    super::check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0, 0, 0) }.into())?;
    Ok(())
}

/// `PR_SET_KEEPCAPS`: permitted capabilities survive the change to a non-root user; cleared by `exec`.
pub fn keep_capabilities(keep: bool) -> io::Result<()> {
    // SAFETY: prctl with integers.
    super::check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0, 0, 0) }.into())?;
    Ok(())
}

/// `PR_SET_NO_NEW_PRIVS`: no later `exec` grants anything.
pub fn set_no_new_privileges() -> io::Result<()> {
    // SAFETY: prctl with integers.
    super::check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    Ok(())
}

/// `PR_SET_NAME`: what `ps` calls the process, 15 bytes at most.
pub fn set_name(name: &CStr) {
    // SAFETY: the kernel reads at most 16 bytes of a C string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Signal the caller gets when its parent dies.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    // SAFETY: prctl with integers.
    super::check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong, 0, 0, 0) }.into())?;
    Ok(())
}

/// `execve(2)`; returns only on failure.
pub fn exec(path: &CStr, args: &[CString], environment: &[CString]) -> io::Result<Infallible> {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|item| item.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, environment) = (pointers(args), pointers(environment));
    // SAFETY: both arrays end with a null pointer and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), environment.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// Makes the terminal on `fd` the controlling one of the calling session leader.
pub fn set_controlling_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer argument.
    super::check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }.into())?;
    Ok(())
}

/// When the host came up, in nanoseconds since the epoch by its clock of now.
pub fn booted() -> i64 {
    let nanoseconds = |clock| {
        let time = rustix::time::clock_gettime(clock);
        time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
    };
    nanoseconds(rustix::time::ClockId::Realtime) - nanoseconds(rustix::time::ClockId::Boottime)
}

/// Hands freed memory back to the system, so that a long-lived process shows what it really needs.
pub fn trim_heap() {
    // SAFETY: malloc_trim walks the allocator's own structures under its own lock.
    unsafe { libc::malloc_trim(0) };
}

/// Has a command's process start with every signal unblocked and at its default, whatever the caller has blocked: the standard
/// library hands the mask on.
pub fn with_default_signals(command: &mut std::process::Command) -> &mut std::process::Command {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe { command.pre_exec(super::signal::reset) }
}

/// As [`trim_heap`], and unmaps the program's code: what runs again is mapped again, out of the kernel's cache, page by page.
/// For a process that has just come up or has nothing to do; most of its code has run for the last time.
///
/// # Errors
/// `/proc` cannot be read.
pub fn release_memory() -> io::Result<()> {
    trim_heap();
    let program = std::fs::read_link("/proc/self/exe")?;
    let program = program.to_string_lossy();
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    // proc_pid_maps(5): start-end, permissions, offset, device, inode, path.
    for line in maps.lines().filter(|line| line.ends_with(&*program) && line.contains(" r-xp ")) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let number = |text: &str| usize::from_str_radix(text, 16).ok();
        if let Some((start, end)) = range.and_then(|(start, end)| Some((number(start)?, number(end)?))) {
            // SAFETY: the range is this program's code, which nobody has written to: the kernel maps the file's pages again,
            // with the same content, when they are next used.
            super::check(unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) }.into())?;
        }
    }
    Ok(())
}

/// Limits the allocator to one arena and gives large blocks back at once: fewer private pages in small processes. The rest
/// grows in large steps and is given back by [`trim_heap`].
pub fn small_heap() {
    // SAFETY: mallopt sets allocator parameters; the process has one thread at this point.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_TOP_PAD, 64 * 1024);
    }
}

/// Where programs of the system are looked for, whatever the environment says.
pub const PROGRAMS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The path of a program of the system.
///
/// # Errors
/// It is nowhere in [`PROGRAMS`].
pub fn find_program(name: &str) -> std::io::Result<std::path::PathBuf> {
    let found = PROGRAMS.split(':').map(|directory| std::path::Path::new(directory).join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        std::io::Error::new(std::io::ErrorKind::NotFound, format!("the program {name} is not in {PROGRAMS}: install it"))
    })
}

/// The soft limit of descriptors that this process had before it was raised.
static DESCRIPTORS: OnceLock<u64> = OnceLock::new();

/// Raises the soft limit of descriptors to the hard one; returns both as they were (getrlimit(2), `RLIMIT_NOFILE`).
pub fn raise_descriptors() -> (u64, u64) {
    let before = getrlimit(Resource::Nofile);
    // As it was, should the kernel refuse.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum });
    let soft = *DESCRIPTORS.get_or_init(|| before.current.unwrap_or(u64::MAX));
    (soft, before.maximum.unwrap_or(u64::MAX))
}

/// The soft limit of descriptors of before, if this process has raised it: its children inherit the new one.
pub fn descriptors_before() -> Option<u64> {
    DESCRIPTORS.get().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_on_after_its_memory_was_released() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = resident();
        release_memory().unwrap();
        assert!(resident() < before, "{before} KiB before");
    }
}
