//! `bpf(2)`: device filters on a cgroup v2 (`BPF_PROG_TYPE_CGROUP_DEVICE`, Linux 4.15).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction of eBPF, `struct bpf_insn`: the registers share a byte, destination in the low half.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u8,
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: other managers' filters on the same cgroup stay in force.
const ALLOW_MULTI: u32 = 2;

/// Verifies and loads a device filter.
pub fn load_device_filter(program: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }
    let attributes = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the attributes are a prefix of union bpf_attr for PROG_LOAD; program and licence outlive the call.
    let fd = super::check(unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &attributes, size_of::<Load>()) })?;
    // SAFETY: PROG_LOAD returned a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches a loaded filter to the cgroup whose directory is `cgroup`.
pub fn attach_device_filter(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let attributes = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: ATTACH_TYPE_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the attributes are a prefix of union bpf_attr for PROG_ATTACH, integers only.
    super::check(unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &attributes, size_of::<Attach>()) })?;
    Ok(())
}
