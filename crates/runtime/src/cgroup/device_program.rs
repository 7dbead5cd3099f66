//! Device rules as an eBPF program for cgroup v2 (`BPF_PROG_TYPE_CGROUP_DEVICE`).
//!
//! The program sees `struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }`, with the device's type in the
//! low half of `access_type` and the access in the high half, and returns 1 to allow. Later rules override earlier ones,
//! so they are tested from the last to the first.

use dhow_sys::bpf::Instruction;

use crate::spec::DeviceRule;
use crate::{Result, RuntimeError};

const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbc;
const MOVE: u8 = 0xb4;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
/// 64-bit comparison; the registers' high halves are zero after 32-bit loads and moves.
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

pub(super) fn compile(rules: &[DeviceRule]) -> Result<Vec<Instruction>> {
    let mut program = vec![
        // r2 = type, r3 = access, r4 = major, r5 = minor
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 3, 1, 0, 0),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let catch_all = append_rule(&mut program, rule)?;
        if catch_all {
            return Ok(program);
        }
    }
    // A cgroup without rules denies nothing more than its parent does.
    program.extend([instruction(MOVE, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    Ok(program)
}

/// Appends the test of one rule; whether it decides every case.
fn append_rule(program: &mut Vec<Instruction>, rule: &DeviceRule) -> Result<bool> {
    let mut tests = Vec::new();
    let kind = match rule.kind.as_deref().unwrap_or("a") {
        "a" | "" => None,
        "b" => Some(BLOCK),
        "c" | "u" => Some(CHARACTER),
        other => return Err(RuntimeError::Spec(format!("unknown device type {other}"))),
    };
    if let Some(kind) = kind {
        tests.push(instruction(JUMP_NOT_EQUAL, 2, 0, 0, kind));
    }
    let access = rule.access.as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm");
    let bits = access.chars().try_fold(0, |bits, letter| {
        Ok(bits
            | match letter {
                'm' => 1,
                'r' => 2,
                'w' => 4,
                other => return Err(RuntimeError::Spec(format!("unknown device access {other}"))),
            })
    })?;
    if bits != 7 {
        // Every access asked for must be among the rule's: (r3 & bits) == r3.
        tests.push(instruction(MOVE_REGISTER, 1, 3, 0, 0));
        tests.push(instruction(AND, 1, 0, 0, bits));
        tests.push(instruction(JUMP_NOT_EQUAL_REGISTER, 1, 3, 0, 0));
    }
    if let Some(major) = rule.major.filter(|major| *major >= 0) {
        tests.push(instruction(JUMP_NOT_EQUAL, 4, 0, 0, major as i32));
    }
    if let Some(minor) = rule.minor.filter(|minor| *minor >= 0) {
        tests.push(instruction(JUMP_NOT_EQUAL, 5, 0, 0, minor as i32));
    }
    let catch_all = tests.is_empty();
    let length = tests.len() as i16 + 2;
    for (position, mut test) in tests.into_iter().enumerate() {
        if matches!(test.code, JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER) {
            test.offset = length - position as i16 - 1;
        }
        program.push(test);
    }
    program.extend([instruction(MOVE, 0, 0, 0, i32::from(rule.allow)), instruction(EXIT, 0, 0, 0, 0)]);
    Ok(catch_all)
}

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    fn allowed(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [kind | access << 16, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0usize;
        loop {
            let i = program[at];
            at += 1;
            let (destination, source) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            match i.code {
                LOAD_WORD => registers[destination] = u64::from(context[i.offset as usize / 4]),
                AND => registers[destination] &= i.immediate as u32 as u64,
                SHIFT_RIGHT => registers[destination] >>= i.immediate,
                MOVE => registers[destination] = i.immediate as u32 as u64,
                MOVE_REGISTER => registers[destination] = registers[source] & 0xffff_ffff,
                JUMP_NOT_EQUAL if registers[destination] != i.immediate as u64 => at += i.offset as usize,
                JUMP_NOT_EQUAL_REGISTER if registers[destination] != registers[source] => at += i.offset as usize,
                JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER => {}
                EXIT => return registers[0] == 1,
                other => panic!("code {other:#x}"),
            }
        }
    }

    fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> DeviceRule {
        let number = |n: i64| (n >= 0).then_some(n);
        DeviceRule { allow, kind: Some(kind.into()), major: number(major), minor: number(minor), access: Some(access.into()) }
    }

    #[test]
    fn later_rules_override_earlier_ones() {
        let program = compile(&[
            rule(false, "a", -1, -1, "rwm"),
            rule(true, "c", -1, -1, "m"),
            rule(true, "c", 1, 3, "rwm"),
            rule(true, "b", 8, -1, "r"),
        ])
        .unwrap();
        let (c, b, m, r, w) = (2, 1, 1, 2, 4);
        assert!(allowed(&program, c, r | w, 1, 3));
        assert!(allowed(&program, c, m, 10, 200));
        assert!(!allowed(&program, c, r, 10, 200));
        assert!(allowed(&program, b, r, 8, 1));
        assert!(!allowed(&program, b, r | w, 8, 1));
        assert!(!allowed(&program, b, m, 7, 0));
    }
}
