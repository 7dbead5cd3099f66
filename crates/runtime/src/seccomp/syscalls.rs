//! System call numbers by name (Linux 6.18, `arch/x86`), sorted by name, a table for each of the kernel's three interfaces.

mod x32;
mod x86;
mod x86_64;

pub use x32::X32;
pub use x86::X86;
pub use x86_64::X86_64;
