//! System call numbers by name (Linux 6.18, `arch/x86`), for each of the kernel's three interfaces.

mod common;
mod x32;
mod x86;
mod x86_64;

/// Names and numbers, sorted by name.
type Numbers = [(&'static str, u32)];

/// The system calls of one interface.
pub struct Table {
    parts: [&'static Numbers; 2],
}

pub static X86_64: Table = Table { parts: [common::COMMON, x86_64::ONLY_X86_64] };
pub static X32: Table = Table { parts: [common::COMMON, x32::ONLY_X32] };
pub static X86: Table = Table { parts: [x86::X86_32, &[]] };

impl Table {
    pub fn number(&self, name: &str) -> Option<u32> {
        self.parts.iter().find_map(|part| Some(part[part.binary_search_by_key(&name, |(known, _)| known).ok()?].1))
    }

    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = &(&'static str, u32)> {
        self.parts.iter().copied().flatten()
    }
}
