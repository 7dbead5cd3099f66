#!/usr/bin/env python3
"""Runs one container after another, and tells whether anything grows with their number.

    many.py [--runs 10000] [--image busybox] [--root DIR]... COMMAND...

COMMAND is a client and its options, as `dhow` or `docker -H unix:///run/docker.sock`. DIR is a directory of the engine, whose
files and bytes are counted, too. Prints runs per second; the median and the 99th percentile of a run in milliseconds, of the
first thousand and of the last; and what is there before and after: processes, mounts, interfaces, cgroups, network namespaces,
lines of the firewall, descriptors that are open on this host, files and bytes of the directories.
"""

import argparse
import os
import subprocess
import sys
import time


def counted(roots):
    """What an engine could leave behind, by name."""
    lines = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.count("\n")
    files = [os.path.join(at, name) for root in roots for at, _, names in os.walk(root) for name in names]
    return {
        "processes": sum(name.isdigit() for name in os.listdir("/proc")),
        "mounts": open("/proc/self/mountinfo").read().count("\n"),
        "interfaces": len(os.listdir("/sys/class/net")),
        "cgroups": sum(len(names) for _, names, _ in os.walk("/sys/fs/cgroup")),
        "network namespaces": lines("lsns", "-t", "net", "-n"),
        "lines of the firewall": lines("nft", "list", "ruleset"),
        "open descriptors": int(open("/proc/sys/fs/file-nr").read().split()[0]),
        "files": len(files),
        "bytes": sum(os.lstat(file).st_size for file in files if os.path.lexists(file)),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10000)
    parser.add_argument("--image", default="busybox")
    parser.add_argument("--root", action="append", default=[])
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    run = [*options.command, "run", "--rm", options.image, "true"]
    times, failures = [], []
    subprocess.run(run, check=True, capture_output=True)
    before = counted(options.root)
    for _ in range(options.runs):
        begun = time.monotonic()
        done = subprocess.run(run, capture_output=True, text=True)
        times.append((time.monotonic() - begun) * 1000)
        if done.returncode != 0 or done.stdout or done.stderr:
            failures.append(f"{done.returncode} {done.stderr.strip()}")
    time.sleep(3)
    after = counted(options.root)
    print(f"{len(times) / sum(times) * 1000:.1f} runs/s; {len(failures)} failed", *failures[:5], sep="\n  ")
    for what, some in ("first", times[:1000]), ("last", times[-1000:]):
        some = sorted(some)
        print(f"{what} {len(some)}: median {some[len(some) // 2]:.1f} ms, 99th percentile {some[len(some) * 99 // 100]:.1f} ms")
    for what in before:
        print(f"{what}: {before[what]} before, {after[what]} after")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
