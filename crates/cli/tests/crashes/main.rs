//! Faults at any moment of any operation: a process is killed before a system call, a system call fails, the disk is full.
//! Whatever it was, what was acknowledged is there, each container is in one state, the same can be asked for again, and when all is
//! removed and pruned nothing is left.
//!
//! There are some two thousand moments at which a process can be killed, and more calls that can fail. Without more words a few of
//! each operation are tried, always the same; `TEST_MOMENTS=all` tries all of them, `TEST_MOMENTS=20 TEST_SEED=7` twenty of each,
//! others than with another seed; `TEST_OPERATION=commit` those of one.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]
#![expect(clippy::print_stdout, reason = "it tells what it tries, where it is asked to")]

mod bench;
mod disk;
mod operations;

use bench::{Bench, Trial, thinned};
use dhow_testkit::faults::Fault;
use dhow_testkit::sandboxed;
use disk::Disk;

#[test]
fn a_command_may_be_killed_before_each_of_its_system_calls() {
    let bench = Bench::new(sandboxed!());
    bench.try_all(3, |operation| thinned(bench.moments(operation, Fault::Killed), Fault::Killed));
    bench.sandbox.finish();
}

#[test]
fn each_of_its_system_calls_may_fail() {
    let bench = Bench::new(sandboxed!());
    bench.try_all(3, |operation| thinned(bench.moments(operation, Fault::Failed), Fault::Failed));
    bench.sandbox.finish();
}

#[test]
fn the_disk_may_be_full() {
    let mut bench = Bench::new(sandboxed!());
    bench.disk = Some(Disk::below(&bench.sandbox));
    bench.try_all(3, |operation| {
        let needed = bench.room_needed(operation);
        (0..SIZES).map(|part| Trial::Room(needed * part / SIZES)).collect()
    });
    drop(bench.disk.take());
    bench.sandbox.finish();
}

/// How many sizes of what is left on the disk are tried.
const SIZES: u64 = 40;
