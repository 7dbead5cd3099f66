//! System call numbers by name (Linux 6.18, `arch/x86`), for each of the kernel's three interfaces.

use std::cmp::Ordering;

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
        Lookup::of(self).number(name)
    }

    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = &(&'static str, u32)> {
        self.parts.iter().copied().flatten()
    }
}

/// Looks up many names. In the order of the alphabet, as profiles have them, each is found behind the one before.
pub struct Lookup<'a> {
    table: &'a Table,
    next: [usize; 2],
}

impl Lookup<'_> {
    pub fn of(table: &Table) -> Lookup<'_> {
        Lookup { table, next: [0; 2] }
    }

    pub fn number(&mut self, name: &str) -> Option<u32> {
        self.table.parts.iter().zip(&mut self.next).find_map(|(part, next)| {
            let found = match part.get(*next).map(|(known, _)| (*known).cmp(name)) {
                Some(Ordering::Equal) => Ok(*next),
                Some(Ordering::Greater) if next.checked_sub(1).is_none_or(|before| part[before].0 < name) => Err(*next),
                _ => part.binary_search_by_key(&name, |(known, _)| known),
            };
            *next = found.map_or_else(|place| place, |index| index + 1);
            found.ok().map(|index| part[index].1)
        })
    }
}
