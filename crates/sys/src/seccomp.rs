//! Installing a seccomp filter. What the filter says is compiled elsewhere.

use std::io;

/// One instruction of classic BPF, `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub operand: u32,
}

/// Installs `program` on the calling thread. Needs `CAP_SYS_ADMIN` or no-new-privileges.
///
/// # Errors
/// `EINVAL` for an empty or malformed program or more than 4,096 instructions; `EACCES` without the right.
pub fn install(program: &[Instruction], flags: u32) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const Instruction,
    }
    const SET_MODE_FILTER: libc::c_ulong = 1;
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: `program` points to `length` instructions that outlive the call; the kernel copies and verifies them.
    super::check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &program) })?;
    Ok(())
}
