#!/usr/bin/env python3
"""Starts many containers by many clients at once, and then stops and removes them; several rounds, and each must succeed.

    storm.py [--containers 500] [--clients 16] [--rounds 3] [--image busybox] COMMAND...

COMMAND is a client and its options, as `dhow` or `docker -H unix:///run/docker.sock`. Prints of each round how many
containers were started and removed per second, the median and the 99th percentile of a start and of a removal in
milliseconds, how much memory of the host a running container takes (of its program, the engine's processes and the kernel),
what failed, and afterwards what is left: processes, mounts, cgroups, network interfaces.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor


def left():
    """Names of cgroups and interfaces, and the number of processes on this host."""
    cgroups = {os.path.join(at, name) for at, names, _ in os.walk("/sys/fs/cgroup") for name in names}
    interfaces = set(os.listdir("/sys/class/net"))
    mounts = open("/proc/self/mountinfo").read().count("\n")
    processes = sum(name.isdigit() for name in os.listdir("/proc"))
    return cgroups, interfaces, mounts, processes


def available():
    """KiB of memory that are available on this host."""
    line = next(line for line in open("/proc/meminfo") if line.startswith("MemAvailable:"))
    return int(line.split()[1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--containers", type=int, default=500)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image", default="busybox")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    failures = []

    def timed(*args):
        begun = time.monotonic()
        done = subprocess.run([*options.command, *args], capture_output=True, text=True)
        if done.returncode != 0:
            failures.append(f"{' '.join(args)}: {done.stderr.strip()}")
        return (time.monotonic() - begun) * 1000

    def all_of(pool, what, job):
        begun = time.monotonic()
        times = sorted(pool.map(job, range(options.containers)))
        took = time.monotonic() - begun
        middle, last = times[len(times) // 2], times[len(times) * 99 // 100]
        print(f"  {what}: {len(times) / took:.1f}/s, median {middle:.0f} ms, 99th percentile {last:.0f} ms", flush=True)

    before = left()
    with ThreadPoolExecutor(options.clients) as pool:
        for number in range(options.rounds):
            print(f"round {number + 1}")
            name = lambda each: f"storm-{number}-{each}"
            free = available()
            all_of(pool, "run", lambda each: timed("run", "-d", "--name", name(each), options.image, "sleep", "1000"))
            print(f"  memory: {(free - available()) / options.containers:.0f} KiB a container", flush=True)
            all_of(pool, "stop and rm", lambda each: timed("stop", "-t", "0", name(each)) + timed("rm", name(each)))
    time.sleep(3)
    after = left()
    print(f"failures: {len(failures)}", *failures[:5], sep="\n  ")
    for what, old, new in zip(["cgroups", "interfaces"], before, after):
        print(f"{what} left: {len(new - old)} {sorted(new - old)[:3]}")
    print(f"mounts: {before[2]} before, {after[2]} after; processes: {before[3]}, {after[3]}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
