//! The program of the bundled `hello-world` image: prints a greeting with nothing but system calls, and exits.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

const GREETING: &str = "
Hello from Dhow!
This message shows that your installation appears to be working correctly.

To generate this message, Dhow took the following steps:
 1. The command line handed \"run hello-world\" to the engine, in its own process: no daemon was needed.
 2. No registry answered, so the engine took the \"hello-world\" image that is built into it.
 3. The engine created a container from that image: namespaces, an overlay, a cgroup, a system call filter.
 4. The container's monitor started this program and sent what it prints to your terminal.

To try something more ambitious, run a shell of another image:
 $ dhow run -it debian bash

";

global_asm!(".globl _start", "_start:", "and rsp, -16", "call {main}", "ud2", main = sym main);

fn system_call(number: usize, first: usize, second: usize, third: usize) -> isize {
    let result;
    // SAFETY: write(2) reads `third` bytes at `second`, which callers take from a str; exit(2) takes integers.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") first, in("rsi") second, in("rdx") third,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

extern "C" fn main() -> ! {
    const WRITE: usize = 1;
    const EXIT: usize = 60;
    let mut rest = GREETING.as_bytes();
    while !rest.is_empty() {
        let written = system_call(WRITE, 1, rest.as_ptr() as usize, rest.len());
        if written <= 0 {
            system_call(EXIT, 1, 0, 0);
        }
        rest = &rest[written as usize..];
    }
    system_call(EXIT, 0, 0, 0);
    loop {}
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    system_call(60, 101, 0, 0);
    loop {}
}

/// Named by core's unwind tables; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
