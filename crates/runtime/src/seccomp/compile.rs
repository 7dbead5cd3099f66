//! From the spec's seccomp section to a classic BPF program for x86_64, x86 and x32.
//!
//! The program looks at the architecture, then finds the system call's number by binary search over ranges with equal
//! treatment; conditions on arguments are tested at the leaf. The facts it follows are those of libseccomp, which runc
//! uses: an architecture without rules is killed, conditions of one rule are AND-ed (but see [`alternatives`]), rules of one call are OR-ed in
//! order, and a call newer than every call the profile names fails with `ENOSYS` (runc, `patchbpf`), so that programs
//! fall back to what they used before.

use std::collections::BTreeMap;

use dhow_sys::seccomp::Instruction;

use super::syscalls::{self, Lookup, Table};
use crate::spec::{Seccomp, SeccompArgument};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SeccompError {
    #[error("seccomp: unknown action {0}")]
    UnknownAction(String),
    #[error("seccomp: unknown operator {0}")]
    UnknownOperator(String),
    #[error("seccomp: unknown architecture {0}")]
    UnknownArchitecture(String),
    #[error("seccomp: unknown flag {0}")]
    UnknownFlag(String),
    #[error("seccomp: argument index {0} is not 0 to 5")]
    ArgumentIndex(u32),
    #[error("seccomp: the filter needs {0} instructions, and the kernel takes {MAX_INSTRUCTIONS}")]
    TooLong(usize),
    #[error("seccomp: SCMP_ACT_NOTIFY needs a listener, which is not supported")]
    Notify,
}

/// `BPF_MAXINSNS` of `linux/bpf_common.h`.
pub(crate) const MAX_INSTRUCTIONS: usize = 4096;

/// A compiled filter and the flags of `seccomp(2)` to install it with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub program: Vec<Instruction>,
    pub flags: u32,
}

impl Filter {
    /// As a message from a container's parent to its init: the flags, then the instructions as the kernel lays them out.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.flags.to_ne_bytes().to_vec();
        for instruction in &self.program {
            bytes.extend_from_slice(&instruction.code.to_ne_bytes());
            bytes.extend_from_slice(&[instruction.jump_true, instruction.jump_false]);
            bytes.extend_from_slice(&instruction.operand.to_ne_bytes());
        }
        bytes
    }

    /// What [`Filter::to_bytes`] made; `None` if it is cut off.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Filter> {
        let (flags, instructions) = bytes.split_first_chunk::<4>()?;
        let (instructions, rest) = instructions.as_chunks::<8>();
        let program = instructions.iter().map(|&[code0, code1, jump_true, jump_false, a, b, c, d]| Instruction {
            code: u16::from_ne_bytes([code0, code1]),
            jump_true,
            jump_false,
            operand: u32::from_ne_bytes([a, b, c, d]),
        });
        rest.is_empty().then(|| Filter { program: program.collect(), flags: u32::from_ne_bytes(*flags) })
    }
}

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;

const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

// Instruction codes of linux/bpf_common.h.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQ: u16 = 0x15;
const JUMP_GT: u16 = 0x25;
const JUMP_GE: u16 = 0x35;
const RETURN: u16 = 0x06;

/// What happens to one system call: an action, or conditions that choose one.
#[derive(Clone, PartialEq, Debug)]
enum Treatment {
    Action(u32),
    Conditions(Vec<(Vec<SeccompArgument>, u32)>),
}

/// Compiles a seccomp section.
pub fn compile(seccomp: &Seccomp) -> Result<Filter, SeccompError> {
    let default = action(&seccomp.default_action, seccomp.default_errno_ret)?;
    // The own architecture is always meant, as with libseccomp.
    let architectures: Vec<&str> = seccomp.architectures.iter().map(String::as_str).collect();
    let has = |name: &str| architectures.contains(&name);
    if let Some(unknown) = architectures.iter().find(|name| !name.starts_with("SCMP_ARCH_")) {
        return Err(SeccompError::UnknownArchitecture((*unknown).to_owned()));
    }
    let section = |table: &Table, present: bool| -> Result<Vec<Instruction>, SeccompError> {
        if present { dispatch(&treatments(seccomp, default, table)?, default) } else { Ok(vec![ret(KILL_PROCESS)]) }
    };
    let x86_64 = section(&syscalls::X86_64, true)?;
    let x32 = section(&syscalls::X32, has("SCMP_ARCH_X32"))?;
    let x86 = section(&syscalls::X86, has("SCMP_ARCH_X86"))?;

    const OFFSET_NUMBER: u32 = 0;
    const OFFSET_ARCHITECTURE: u32 = 4;
    let mut program = vec![load(OFFSET_ARCHITECTURE)];
    let x86_64_length = x86_64.len() + x32.len() + 4;
    program.extend([jump_if(JUMP_EQ, AUDIT_ARCH_X86_64, 1, 0), jump(x86_64_length)]);
    // x32 calls come under the same architecture, with a bit in the number; -1, which a tracer may leave, has it too.
    program.extend([load(OFFSET_NUMBER), jump_if(JUMP_GE, X32_BIT, 0, 1), jump(x86_64.len())]);
    program.extend(x86_64);
    if x32.len() > 1 {
        program.extend([Instruction { code: AND, jump_true: 0, jump_false: 0, operand: !X32_BIT }]);
    } else {
        program.push(ret(KILL_PROCESS));
    }
    program.extend(x32);
    program.extend([jump_if(JUMP_EQ, AUDIT_ARCH_I386, 1, 0), ret(KILL_PROCESS), load(OFFSET_NUMBER)]);
    program.extend(x86);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(Filter { program, flags: flags(&seccomp.flags)? })
}

fn flags(names: &[String]) -> Result<u32, SeccompError> {
    names.iter().try_fold(0, |flags, name| match name.as_str() {
        // A filter for one single-threaded process needs no TSYNC.
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(flags),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(flags | 2),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(flags | 4),
        other => Err(SeccompError::UnknownFlag(other.to_owned())),
    })
}

fn action(name: &str, errno: Option<u32>) -> Result<u32, SeccompError> {
    let data = errno.unwrap_or(EPERM) & 0xffff;
    match name {
        "SCMP_ACT_ALLOW" => Ok(ALLOW),
        "SCMP_ACT_ERRNO" => Ok(ERRNO | data),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(KILL_THREAD),
        "SCMP_ACT_KILL_PROCESS" => Ok(KILL_PROCESS),
        "SCMP_ACT_TRAP" => Ok(TRAP),
        "SCMP_ACT_TRACE" => Ok(TRACE | data),
        "SCMP_ACT_LOG" => Ok(LOG),
        "SCMP_ACT_NOTIFY" => Err(SeccompError::Notify),
        other => Err(SeccompError::UnknownAction(other.to_owned())),
    }
}

/// The treatment of each system call of one architecture that a rule names. Names of other architectures are skipped.
fn treatments(seccomp: &Seccomp, default: u32, table: &Table) -> Result<BTreeMap<u32, Treatment>, SeccompError> {
    let mut treatments: BTreeMap<u32, Treatment> = BTreeMap::new();
    let mut lookup = Lookup::of(table);
    for rule in &seccomp.syscalls {
        let action = action(&rule.action, rule.errno_ret)?;
        if let Some(bad) = rule.args.iter().find(|argument| argument.index > 5) {
            return Err(SeccompError::ArgumentIndex(bad.index));
        }
        for name in &rule.names {
            let Some(number) = lookup.number(name) else { continue };
            let entry = treatments.entry(number);
            if rule.args.is_empty() {
                // The unconditional rule wins, as in libseccomp, wherever it stands; the first of two counts.
                entry
                    .and_modify(|now| {
                        if matches!(now, Treatment::Conditions(_)) {
                            *now = Treatment::Action(action);
                        }
                    })
                    .or_insert(Treatment::Action(action));
            } else if action != default {
                match entry.or_insert_with(|| Treatment::Conditions(vec![])) {
                    Treatment::Conditions(conditions) => {
                        conditions.extend(alternatives(&rule.args).into_iter().map(|all| (all, action)));
                    }
                    Treatment::Action(_) => {}
                }
            }
        }
    }
    Ok(treatments)
}

/// The conditions of a rule: all together, but each by itself where two are about the same argument (runc,
/// `libcontainer/seccomp`: libseccomp takes an argument once in a rule).
fn alternatives(conditions: &[SeccompArgument]) -> Vec<Vec<SeccompArgument>> {
    let repeats =
        |(at, condition): (usize, &SeccompArgument)| conditions[..at].iter().any(|other| other.index == condition.index);
    match conditions.iter().enumerate().any(repeats) {
        true => conditions.iter().map(|condition| vec![condition.clone()]).collect(),
        false => vec![conditions.to_vec()],
    }
}

/// Code that returns the action for the number in the accumulator.
fn dispatch(treatments: &BTreeMap<u32, Treatment>, default: u32) -> Result<Vec<Instruction>, SeccompError> {
    // Ranges of equal treatment, each from its number up to the next one's.
    let mut ranges: Vec<(u32, Treatment)> = vec![(0, Treatment::Action(default))];
    let mut add = |start: u32, treatment: Treatment| {
        if ranges.last().is_some_and(|(from, _)| *from == start) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|(_, last)| *last != treatment) {
            ranges.push((start, treatment));
        }
    };
    for (number, treatment) in treatments {
        add(*number, treatment.clone());
        add(number + 1, Treatment::Action(default));
    }
    if let Some(newest) = treatments.keys().last()
        && default & 0xffff_0000 != ALLOW
        && default & 0xffff_0000 != LOG
    {
        add(newest + 1, Treatment::Action(ERRNO | ENOSYS));
    }
    let mut backwards = Vec::new();
    search(&ranges, default, &mut backwards)?;
    backwards.reverse();
    Ok(backwards)
}

/// Writes code that finds the number's range, from the last instruction to the first: a jump knows what it jumps over.
fn search(ranges: &[(u32, Treatment)], default: u32, backwards: &mut Vec<Instruction>) -> Result<(), SeccompError> {
    match ranges {
        [(_, Treatment::Action(action))] => backwards.push(ret(*action)),
        [(_, Treatment::Conditions(conditions))] => backwards.extend(conditional(conditions, default)?.into_iter().rev()),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            search(high, default, backwards)?;
            let end = backwards.len();
            search(low, default, backwards)?;
            let length = backwards.len() - end;
            match u8::try_from(length) {
                Ok(distance) => backwards.push(jump_if(JUMP_GE, high[0].0, distance, 0)),
                Err(_) => backwards.extend([jump(length), jump_if(JUMP_GE, high[0].0, 0, 1)]),
            }
        }
    }
    Ok(())
}

/// Code that tests rules on arguments in order and returns the action of the first that matches.
fn conditional(rules: &[(Vec<SeccompArgument>, u32)], default: u32) -> Result<Vec<Instruction>, SeccompError> {
    let mut code = Vec::new();
    for (arguments, action) in rules {
        let mut rule = vec![ret(*action)];
        for argument in arguments.iter().rev() {
            rule = condition(argument, rule)?;
        }
        code.extend(rule);
    }
    code.push(ret(default));
    Ok(code)
}

/// Code that runs `matched` if the condition holds and falls through behind it otherwise.
///
/// Arguments are 64 bits and BPF's words 32: the high halves are compared first.
fn condition(argument: &SeccompArgument, matched: Vec<Instruction>) -> Result<Vec<Instruction>, SeccompError> {
    let low_offset = 16 + 8 * argument.index;
    let high_offset = low_offset + 4;
    let (high, low) = ((argument.value >> 32) as u32, argument.value as u32);
    let over = u8::try_from(matched.len()).map_err(|_| SeccompError::TooLong(matched.len()))?;
    let mut code = match argument.op.as_str() {
        // high == H && low == L
        "SCMP_CMP_EQ" => {
            vec![load(high_offset), jump_if(JUMP_EQ, high, 0, 2 + over), load(low_offset), jump_if(JUMP_EQ, low, 0, over)]
        }
        "SCMP_CMP_MASKED_EQ" => {
            let (two_high, two_low) = ((argument.value_two >> 32) as u32, argument.value_two as u32);
            vec![
                load(high_offset),
                and(high),
                jump_if(JUMP_EQ, two_high, 0, 3 + over),
                load(low_offset),
                and(low),
                jump_if(JUMP_EQ, two_low, 0, over),
            ]
        }
        // high != H || low != L
        "SCMP_CMP_NE" => vec![load(high_offset), jump_if(JUMP_EQ, high, 0, 2), load(low_offset), jump_if(JUMP_EQ, low, over, 0)],
        // high > H || (high == H && low > L); GE likewise
        "SCMP_CMP_GT" | "SCMP_CMP_GE" => {
            let last = if argument.op == "SCMP_CMP_GT" { JUMP_GT } else { JUMP_GE };
            vec![
                load(high_offset),
                jump_if(JUMP_GT, high, 3, 0),
                jump_if(JUMP_EQ, high, 0, 2 + over),
                load(low_offset),
                jump_if(last, low, 0, over),
            ]
        }
        // high < H || (high == H && low < L); LE likewise
        "SCMP_CMP_LT" | "SCMP_CMP_LE" => {
            let last = if argument.op == "SCMP_CMP_LT" { JUMP_GE } else { JUMP_GT };
            vec![
                load(high_offset),
                jump_if(JUMP_GT, high, 3 + over, 0),
                jump_if(JUMP_EQ, high, 0, 2),
                load(low_offset),
                jump_if(last, low, over, 0),
            ]
        }
        other => return Err(SeccompError::UnknownOperator(other.to_owned())),
    };
    code.extend(matched);
    Ok(code)
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jump_true: 0, jump_false: 0, operand: offset }
}

fn and(mask: u32) -> Instruction {
    Instruction { code: AND, jump_true: 0, jump_false: 0, operand: mask }
}

fn ret(action: u32) -> Instruction {
    Instruction { code: RETURN, jump_true: 0, jump_false: 0, operand: action }
}

fn jump(distance: usize) -> Instruction {
    Instruction { code: JUMP, jump_true: 0, jump_false: 0, operand: distance as u32 }
}

fn jump_if(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, operand }
}

#[cfg(test)]
mod tests {
    use super::super::default_profile;
    use super::*;
    use crate::spec::SeccompRule;

    #[test]
    fn a_filter_survives_the_way_to_the_process() {
        let filter = compile(&default_profile(&[], (6, 1))).unwrap();
        let bytes = filter.to_bytes();
        assert_eq!(Filter::from_bytes(&bytes), Some(filter));
        assert_eq!(Filter::from_bytes(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Filter::from_bytes(&bytes[..3]), None);
    }

    /// Runs a filter as the kernel would: an independent reading of the instruction set.
    fn run(filter: &Filter, architecture: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = vec![];
        data.extend(number.to_le_bytes());
        data.extend(architecture.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        args.iter().for_each(|argument| data.extend(argument.to_le_bytes()));
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let i = filter.program[at];
            at += 1;
            let mut branch = |taken: bool| at += usize::from(if taken { i.jump_true } else { i.jump_false });
            match i.code {
                LOAD => accumulator = u32::from_le_bytes(data[i.operand as usize..][..4].try_into().unwrap()),
                AND => accumulator &= i.operand,
                JUMP => at += i.operand as usize,
                JUMP_EQ => branch(accumulator == i.operand),
                JUMP_GT => branch(accumulator > i.operand),
                JUMP_GE => branch(accumulator >= i.operand),
                RETURN => return i.operand,
                other => panic!("code {other:#x}"),
            }
        }
    }

    fn number(table: &Table, name: &str) -> u32 {
        table.number(name).unwrap()
    }

    fn default_filter(capabilities: &[&str]) -> Filter {
        let capabilities: Vec<String> = capabilities.iter().map(|name| (*name).to_owned()).collect();
        compile(&default_profile(&capabilities, (6, 1))).unwrap()
    }

    #[test]
    fn every_call_of_every_abi_gets_the_profiles_answer() {
        let profile = default_profile(&[], (6, 1));
        let filter = default_filter(&[]);
        let unconditional: Vec<&str> = profile.syscalls[0].names.iter().map(String::as_str).collect();
        let conditional = ["personality", "socket", "clone", "clone3"];
        let newest = |table: &Table| {
            table.iter().filter(|(name, _)| unconditional.contains(name)).map(|(_, number)| *number).max().unwrap()
        };
        for (architecture, bit, table) in [
            (AUDIT_ARCH_X86_64, 0, &syscalls::X86_64),
            (AUDIT_ARCH_X86_64, X32_BIT, &syscalls::X32),
            (AUDIT_ARCH_I386, 0, &syscalls::X86),
        ] {
            for (name, number) in table.iter().filter(|(name, _)| !conditional.contains(name)) {
                let expected = if unconditional.contains(name) {
                    ALLOW
                } else if *number > newest(table) {
                    ERRNO | ENOSYS
                } else {
                    ERRNO | EPERM
                };
                assert_eq!(run(&filter, architecture, number | bit, [0; 6]), expected, "{name} {architecture:#x}");
            }
            assert_eq!(run(&filter, architecture, number(table, "clone3") | bit, [0; 6]), ERRNO | ENOSYS);
            let clone = number(table, "clone") | bit;
            assert_eq!(run(&filter, architecture, clone, [0x11, 0, 0, 0, 0, 0]), ALLOW);
            assert_eq!(run(&filter, architecture, clone, [0x1000_0011, 0, 0, 0, 0, 0]), ERRNO | EPERM);
        }
        assert_eq!(run(&filter, 0xc000_00b7, 0, [0; 6]), KILL_PROCESS, "aarch64 is not ours");
    }

    #[test]
    fn address_families_38_and_40_are_closed() {
        let filter = default_filter(&[]);
        let socket = number(&syscalls::X86_64, "socket");
        for family in 0..60u64 {
            let expected = if matches!(family, 38 | 40) { ERRNO | EPERM } else { ALLOW };
            assert_eq!(run(&filter, AUDIT_ARCH_X86_64, socket, [family, 0, 0, 0, 0, 0]), expected, "{family}");
            // What the kernel takes for the same family.
            let wide = family | 1 << 32;
            assert_eq!(run(&filter, AUDIT_ARCH_X86_64, socket, [wide, 0, 0, 0, 0, 0]), ERRNO | EPERM, "{wide}");
        }
    }

    #[test]
    fn capabilities_open_their_calls() {
        let mount = number(&syscalls::X86_64, "mount");
        assert_eq!(run(&default_filter(&[]), AUDIT_ARCH_X86_64, mount, [0; 6]), ERRNO | EPERM);
        assert_eq!(run(&default_filter(&["CAP_SYS_ADMIN"]), AUDIT_ARCH_X86_64, mount, [0; 6]), ALLOW);
        let clone3 = number(&syscalls::X86_64, "clone3");
        assert_eq!(run(&default_filter(&["CAP_SYS_ADMIN"]), AUDIT_ARCH_X86_64, clone3, [0; 6]), ALLOW);
    }

    #[test]
    fn comparisons_are_64_bits_wide() {
        let values = [0u64, 1, 5, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0005, u64::MAX];
        type Holds = fn(u64, u64) -> bool;
        let operators: [(&str, Holds); 6] = [
            ("SCMP_CMP_EQ", |a, b| a == b),
            ("SCMP_CMP_NE", |a, b| a != b),
            ("SCMP_CMP_LT", |a, b| a < b),
            ("SCMP_CMP_LE", |a, b| a <= b),
            ("SCMP_CMP_GT", |a, b| a > b),
            ("SCMP_CMP_GE", |a, b| a >= b),
        ];
        for (op, holds) in operators {
            for value in values {
                let argument = SeccompArgument { index: 2, value, value_two: 0, op: op.to_owned() };
                let filter = compile(&Seccomp {
                    default_action: "SCMP_ACT_ALLOW".into(),
                    architectures: vec!["SCMP_ARCH_X86_64".into()],
                    syscalls: vec![SeccompRule {
                        names: vec!["read".into()],
                        action: "SCMP_ACT_ERRNO".into(),
                        errno_ret: Some(7),
                        args: vec![argument],
                    }],
                    ..Seccomp::default()
                })
                .unwrap();
                for given in values {
                    let expected = if holds(given, value) { ERRNO | 7 } else { ALLOW };
                    assert_eq!(run(&filter, AUDIT_ARCH_X86_64, 0, [9, 9, given, 9, 9, 9]), expected, "{given} {op} {value}");
                }
            }
        }
    }
    #[test]
    fn an_argument_that_is_named_twice_is_enough_once() {
        let of = |index: u32, value: u64, op: &str| SeccompArgument { index, value, value_two: 0, op: format!("SCMP_CMP_{op}") };
        let rule = |args: Vec<SeccompArgument>| SeccompRule {
            names: vec!["read".into()],
            action: "SCMP_ACT_ALLOW".into(),
            errno_ret: None,
            args,
        };
        let filter = |args| {
            let seccomp = Seccomp {
                default_action: "SCMP_ACT_ERRNO".into(),
                // The own architecture need not be named.
                architectures: vec!["SCMP_ARCH_X86".into()],
                syscalls: vec![rule(args)],
                ..Seccomp::default()
            };
            compile(&seccomp).unwrap()
        };
        let read = |filter: &Filter, first: u64, second: u64| run(filter, AUDIT_ARCH_X86_64, 0, [first, second, 0, 0, 0, 0]);
        let twice = filter(vec![of(0, 3, "EQ"), of(0, 5, "EQ")]);
        assert_eq!((read(&twice, 3, 0), read(&twice, 5, 0), read(&twice, 4, 0)), (ALLOW, ALLOW, ERRNO | EPERM));
        let both = filter(vec![of(0, 3, "EQ"), of(1, 5, "EQ")]);
        assert_eq!((read(&both, 3, 5), read(&both, 3, 0), read(&both, 0, 5)), (ALLOW, ERRNO | EPERM, ERRNO | EPERM));
    }
}
