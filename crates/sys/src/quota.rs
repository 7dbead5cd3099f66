//! Project quotas: a limit for all that is below a directory. A directory gets the number of a project
//! (ioctl_xfs_fsgetxattr(2), which ext4 has too), and what is made in it has the same; the limit is the project's
//! (quotactl_fd(2), Linux 5.14).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `PRJQUOTA`
const PROJECT: u32 = 2;
/// Limits are counted in these.
const BLOCK: u64 = 512;

/// `struct fsxattr` (linux/fs.h).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// `struct fs_disk_quota` (linux/dqblk_xfs.h).
#[repr(C)]
#[derive(Default)]
struct DiskQuota {
    version: i8,
    kind: i8,
    fields: u16,
    id: u32,
    block_hard_limit: u64,
    block_soft_limit: u64,
    inode_hard_limit: u64,
    inode_soft_limit: u64,
    blocks: u64,
    inodes: u64,
    timers: [i32; 2],
    warnings: [u16; 2],
    timers_high: [i8; 4],
    realtime: [u64; 3],
    realtime_timer: i32,
    realtime_warnings: u16,
    padding: [u8; 10],
}

// The sizes are part of the numbers of the requests, and of what the kernel writes.
const _: () = assert!(size_of::<Attributes>() == 28 && size_of::<DiskQuota>() == 112);

const GET_ATTRIBUTES: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
const SET_ATTRIBUTES: libc::Ioctl = 0x401c_5820;
/// `FS_XFLAG_PROJINHERIT`
const INHERITED: u32 = 0x200;

/// A project's use of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes; 0 for none.
    pub limit: u64,
    /// Bytes.
    pub used: u64,
    pub inodes: u64,
}

fn attributes(file: impl AsFd) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes one `struct fsxattr` to the pointer.
    super::check(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), GET_ATTRIBUTES, &raw mut attributes) }.into())?;
    Ok(attributes)
}

/// The project of a file; 0 is everybody's.
pub fn project(file: impl AsFd) -> io::Result<u32> {
    attributes(file).map(|attributes| attributes.project)
}

/// Makes a directory a project's, with all that is made in it from now on.
pub fn set_project(directory: impl AsFd, project: u32) -> io::Result<()> {
    let mut attributes = attributes(&directory)?;
    attributes.project = project;
    attributes.flags |= INHERITED;
    // SAFETY: the kernel reads one `struct fsxattr` from the pointer.
    super::check(unsafe { libc::ioctl(directory.as_fd().as_raw_fd(), SET_ATTRIBUTES, &raw const attributes) }.into())?;
    Ok(())
}

/// `quotactl_fd` with a request of XFS's kind, which all file systems with quotas understand.
fn control(file: impl AsFd, request: u32, project: u32, quota: &mut DiskQuota) -> io::Result<()> {
    let command = ((u32::from(b'X') << 8) + request) << 8 | PROJECT;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the kernel reads or writes one `struct fs_disk_quota` at the pointer.
    super::check(unsafe { libc::syscall(libc::SYS_quotactl_fd, fd, command, project, &raw mut *quota) })?;
    Ok(())
}

/// The limit and the use of a project on a file's file system.
///
/// # Errors
/// `ENOENT` for a project that has neither, on some file systems; others where project quotas are off.
pub fn usage(file: impl AsFd, project: u32) -> io::Result<Usage> {
    const GET: u32 = 3;
    let mut quota = DiskQuota::default();
    control(file, GET, project, &mut quota)?;
    Ok(Usage { limit: quota.block_hard_limit * BLOCK, used: quota.blocks * BLOCK, inodes: quota.inodes })
}

/// Limits the bytes of a project on a file's file system; 0 lifts the limit.
///
/// # Errors
/// `ENOSYS`, `ESRCH`, `EINVAL` and others where project quotas are off.
pub fn set_limit(file: impl AsFd, project: u32, bytes: u64) -> io::Result<()> {
    const SET: u32 = 4;
    const VERSION: i8 = 1;
    const SOFT_AND_HARD: u16 = 1 << 2 | 1 << 3;
    let blocks = bytes.div_ceil(BLOCK);
    let mut quota = DiskQuota {
        version: VERSION,
        kind: PROJECT as i8,
        fields: SOFT_AND_HARD,
        id: project,
        block_hard_limit: blocks,
        block_soft_limit: blocks,
        ..DiskQuota::default()
    };
    control(file, SET, project, &mut quota)
}
