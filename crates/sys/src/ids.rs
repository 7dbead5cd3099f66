//! User and group ids of the calling process, by the raw calls: glibc's wrappers synchronise all threads, which a
//! cloned child must not do.

use std::io;

/// Replaces the supplementary groups of the calling thread.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the kernel reads `groups.len()` gids from the slice.
    super::check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    Ok(())
}

/// Sets the real, effective and saved group id of the calling thread.
pub fn set_gid(gid: u32) -> io::Result<()> {
    // SAFETY: plain integers; no memory is involved.
    super::check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    Ok(())
}

/// Sets the real, effective and saved user id of the calling thread.
pub fn set_uid(uid: u32) -> io::Result<()> {
    // SAFETY: plain integers; no memory is involved.
    super::check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    Ok(())
}
