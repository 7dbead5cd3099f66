//! Installing a seccomp filter. What the filter says is compiled elsewhere.

use std::io;

pub use crate::filter::Instruction;
use crate::filter::Program;

/// Installs `program` on the calling thread. Needs `CAP_SYS_ADMIN` or no-new-privileges.
///
/// # Errors
/// `EINVAL` for an empty or malformed program or more than 4,096 instructions; `EACCES` without the right.
pub fn install(program: &[Instruction], flags: u32) -> io::Result<()> {
    const SET_MODE_FILTER: libc::c_ulong = 1;
    let program = Program::of(program)?;
    // SAFETY: `program` points to its instructions, which outlive the call; the kernel copies and verifies them.
    super::check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &program) })?;
    Ok(())
}
