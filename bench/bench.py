#!/usr/bin/env python3
"""Times container engines side by side: the same work through their docker-style command lines, taking turns.

usage: bench.py [--cases CASE,…] [--runs N] [--json FILE] NAME='command prefix' [NAME='command prefix' …]
       NAME_MEM='pattern' in the environment names an engine's processes for pgrep -f, whose PSS is summed.

       NAME_DAEMON='command' starts its daemon in the foreground, for the case scale: it is started and ended there.

Cases: run_bridge run_none exec ps burst idle logs tcp scale pull (of the image that PULL names, by registry, which nobody
       else must need) push (of PUSH) build context stages archive (save and load of ARCHIVE, which nobody else must need).
Each engine must have an image busybox:latest. Engines take turns within a case, so that ratios hold when the machine drifts:
quote ratios of medians of one run. What an engine does after its command has returned is counted for nobody: see TURN.
"""
import argparse, json, os, shlex, socket, statistics, subprocess, sys, tempfile, threading, time

LINE = "0123456789" * 7


class Engine:
    def __init__(self, name, prefix):
        self.name, self.prefix = name, shlex.split(prefix)
        self.memory = os.environ.get(name + "_MEM", "")

    def run(self, *args, check=True):
        done = subprocess.run(self.prefix + list(args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        if check and done.returncode:
            raise RuntimeError(f"{self.name} {args}: status {done.returncode}: {done.stderr.decode()[-300:]}")
        return done.stdout.decode()

    def shell(self):
        return " ".join(map(shlex.quote, self.prefix))

    def pss(self):
        """KiB of the engine's processes, and their number."""
        if not self.memory:
            return 0, 0
        pids = subprocess.run(["pgrep", "-f", self.memory], stdout=subprocess.PIPE).stdout.split()
        total = count = 0
        for pid in map(int, pids):
            try:
                if pid != os.getpid():
                    total += int(next(l for l in open(f"/proc/{pid}/smaps_rollup") if l.startswith("Pss:")).split()[1])
                    count += 1
            except (OSError, StopIteration):
                pass
        return total, count


def timed(work):
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


# A turn is this many runs in a row, after runs of so many seconds that are not counted: they are beside what the engine
# before still does when its command has returned.
TURN = 4
UNCOUNTED = 0.2


def latency(engines, runs, *args):
    times = {engine.name: [] for engine in engines}
    for _ in range(max(1, runs // TURN)):
        for engine in engines:
            start = time.perf_counter()
            while time.perf_counter() - start < UNCOUNTED:
                engine.run(*args)
            times[engine.name] += [timed(lambda: engine.run(*args)) for _ in range(TURN)]
    return {name: {"median_ms": round(statistics.median(t), 2), "min_ms": round(min(t), 2)} for name, t in times.items()}


def case_run_bridge(engines, runs):
    return latency(engines, runs, "run", "--rm", "busybox", "true")


def case_run_none(engines, runs):
    return latency(engines, runs, "run", "--rm", "--network", "none", "busybox", "true")


def with_container(engines, work, *options):
    for engine in engines:
        engine.run("run", "-d", "--name", "bench-one", *options, "busybox", "sleep", "100000")
    try:
        return work()
    finally:
        for engine in engines:
            engine.run("rm", "-f", "bench-one", check=False)


def case_exec(engines, runs):
    return with_container(engines, lambda: latency(engines, runs, "exec", "bench-one", "true"))


def case_ps(engines, runs):
    return with_container(engines, lambda: latency(engines, runs, "ps"))


def case_pull(engines, runs, pause=75):
    image = os.environ["PULL"]
    times = {engine.name: [] for engine in engines}
    for _ in range(max(3, runs // 5)):
        for engine in engines:
            engine.run("rmi", "-f", image, check=False)
            # ext4 searches long for inodes where many were freed within a minute (recently_deleted): neither pays for that.
            os.sync()
            time.sleep(pause)
            times[engine.name].append(timed(lambda: engine.run("pull", "-q", image)))
    return {name: {"median_ms": round(statistics.median(t)), "min_ms": round(min(t))} for name, t in times.items()}


def case_push(engines, runs, port=5099):
    """The image that PUSH names, to a registry (Debian's docker-registry) that has nothing, a new one each time. PUSH_WITH: more
    options, such as NAME=--compression-format=zstd."""
    image = os.environ["PUSH"]
    name, _, options = os.environ.get("PUSH_WITH", "").partition("=")
    times = {engine.name: [] for engine in engines}
    for number in range(max(2, runs // 10)):
        for engine in engines:
            with tempfile.TemporaryDirectory() as directory:
                with open(f"{directory}/config.yml", "w") as config:
                    config.write(
                        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
                        f"http: {{addr: '127.0.0.1:{port}'}}\n"
                    )
                serve = ["docker-registry", "serve", f"{directory}/config.yml"]
                registry = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                # A repository of its own: an engine that knows where the registry had a layer asks for it there.
                target = f"127.0.0.1:{port}/bench-{os.getpid()}-{engine.name}-{number}:1"
                try:
                    time.sleep(1)
                    engine.run("tag", image, target)
                    more = shlex.split(options) if engine.name == name else []
                    times[engine.name].append(timed(lambda: engine.run("push", "-q", *more, target)))
                finally:
                    engine.run("rmi", target, check=False)
                    registry.terminate()
                    registry.wait()
    return {name: {"median_ms": round(statistics.median(t)), "min_ms": round(min(t))} for name, t in times.items()}


def case_archive(engines, runs):
    """The image that ARCHIVE names, saved to a file below SCRATCH and loaded again."""
    image, scratch = os.environ["ARCHIVE"], os.environ.get("SCRATCH", "/tmp")
    results = {engine.name: {"save_ms": [], "load_ms": []} for engine in engines}
    for _ in range(max(2, runs // 10)):
        for engine in engines:
            path = f"{scratch}/bench-{os.getpid()}.tar"
            try:
                results[engine.name]["save_ms"].append(timed(lambda: engine.run("save", "-o", path, image)))
                engine.run("rmi", "-f", image)
                os.sync()
                results[engine.name]["load_ms"].append(timed(lambda: engine.run("load", "-i", path)))
            finally:
                os.path.exists(path) and os.unlink(path)
    return {name: {key: round(statistics.median(t)) for key, t in both.items()} for name, both in results.items()}


def build_context(directory, files, dockerfile):
    """A context of so many small files, a hundred in a directory."""
    for number in range(files):
        path = f"{directory}/files/{number // 100}"
        os.makedirs(path, exist_ok=True)
        with open(f"{path}/{number}", "w") as file:
            file.write(f"file {number}\n" * 8)
    with open(f"{directory}/Dockerfile", "w") as file:
        file.write(dockerfile)


def case_build(engines, runs):
    """Ten commands and a copy of 200 files: nothing known (cold), everything (cached), all but the last step (last). The
    contexts are below SCRATCH."""
    steps = "FROM busybox\n" + "".join(f"RUN echo {number} > /{number}\n" for number in range(10)) + "COPY files /files\n"
    times = {engine.name: {"cold_ms": [], "cached_ms": [], "last_ms": []} for engine in engines}
    with tempfile.TemporaryDirectory(dir=os.environ.get("SCRATCH", "/tmp")) as directory:
        build_context(directory, 200, steps)
        for number in range(max(3, runs // 4)):
            for engine in engines:
                build = lambda *more: engine.run("build", "-q", "-t", "bench-build", *more, directory)
                own = times[engine.name]
                own["cold_ms"].append(timed(lambda: build("--no-cache")))
                build()
                own["cached_ms"] += [timed(build) for _ in range(TURN)]
                with open(f"{directory}/files/0/0", "w") as file:
                    file.write(f"{engine.name} {number} {time.time()}")
                own["last_ms"].append(timed(build))
    for engine in engines:
        engine.run("rmi", "-f", "bench-build", check=False)
    return {name: {key: round(statistics.median(t), 1) for key, t in all.items()} for name, all in times.items()}


def case_context(engines, runs):
    """A context of 50,000 files that has not changed for a minute: younger ones may still be changing (git waits, too)."""
    times = {engine.name: [] for engine in engines}
    with tempfile.TemporaryDirectory(dir=os.environ.get("SCRATCH", "/tmp")) as directory:
        build_context(directory, 50_000, "FROM busybox\nCOPY files /files\n")
        for pause in (65, 0):
            for engine in engines:
                engine.run("build", "-q", "-t", "bench-build", directory)
            time.sleep(pause)
        for _ in range(max(3, runs // 4)):
            for engine in engines:
                times[engine.name].append(timed(lambda: engine.run("build", "-q", "-t", "bench-build", directory)))
    for engine in engines:
        engine.run("rmi", "-f", "bench-build", check=False)
    return {name: {"median_ms": round(statistics.median(t), 1), "min_ms": round(min(t), 1)} for name, t in times.items()}


def case_stages(engines, runs):
    """Four stages of one second of work each that know nothing of one another."""
    # Equal steps would be done once for all.
    work = "RUN i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo %d $i > /x\n"
    steps = "".join(f"FROM busybox AS s{number}\n{work % number}" for number in range(4))
    steps += "FROM busybox\n" + "".join(f"COPY --from=s{number} /x /x{number}\n" for number in range(4))
    times = {engine.name: {"four_ms": [], "one_ms": []} for engine in engines}
    with tempfile.TemporaryDirectory(dir=os.environ.get("SCRATCH", "/tmp")) as directory:
        build_context(directory, 0, steps)
        for _ in range(3):
            for engine in engines:
                for key, more in (("four_ms", []), ("one_ms", ["--target", "s0"])):
                    args = ["build", "-q", "--no-cache", "-t", "bench-build", *more, directory]
                    times[engine.name][key].append(timed(lambda: engine.run(*args)))
    for engine in engines:
        engine.run("rmi", "-f", "bench-build", check=False)
    return {name: {key: round(statistics.median(t)) for key, t in all.items()} for name, all in times.items()}


def case_idle(engines, runs):
    return {engine.name: {"pss_kb": engine.pss()[0]} for engine in engines if engine.memory}


def case_burst(engines, runs, count=100, width=8):
    results = {}
    for engine in engines:
        before, _ = engine.pss()
        start = f"seq {count} | xargs -P {width} -I@ {engine.shell()} run -d --name bench-@ busybox sleep 100000 >/dev/null"
        up = timed(lambda: subprocess.run(start, shell=True, check=True))
        time.sleep(1)
        after, processes = engine.pss()
        listing = statistics.median(timed(lambda: engine.run("ps", "-a")) for _ in range(7))
        late = statistics.median(timed(lambda: engine.run("run", "--rm", "busybox", "true")) for _ in range(7))
        remove = f"seq {count} | xargs -P {width} -I@ {engine.shell()} rm -f bench-@ >/dev/null"
        down = timed(lambda: subprocess.run(remove, shell=True))
        results[engine.name] = {
            "start_per_s": round(count / up * 1e3, 1), "rm_per_s": round(count / down * 1e3, 1), "ps_of_100_ms": round(listing, 2),
            "run_beside_100_ms": round(late, 2), "pss_kb_per_container": round((after - before) / count, 1),
        }
    return results


def case_scale(engines, runs, count=1000, running=200, width=8):
    """A thousand containers, two hundred of which run; the daemon of such a host, where NAME_DAEMON says how it is started."""
    results = {}
    for engine in engines:
        start_one = lambda: statistics.median(timed(lambda: engine.run("run", "--rm", "busybox", "true")) for _ in range(15))
        alone = start_one()
        many = lambda first, last, words: subprocess.run(
            f"seq {first} {last} | xargs -P {width} -I@ {engine.shell()} {words} >/dev/null", shell=True, check=True)
        try:
            many(1, running, "run -d --name bench-@ busybox sleep 100000")
            many(running + 1, count, "create --name bench-@ busybox true")
            time.sleep(1)
            listing = [timed(lambda: engine.run("ps", "-a")) for _ in range(9)]
            stats = [timed(lambda: engine.run("stats", "--no-stream")) for _ in range(5)]
            results[engine.name] = {
                "ps_a_ms": round(statistics.median(listing), 1), "stats_ms": round(statistics.median(stats), 1),
                "run_alone_ms": round(alone, 2), "run_beside_ms": round(start_one(), 2),
            } | scale_of_daemon(engine)
        finally:
            subprocess.run(f"seq 1 {count} | xargs -P {width} -I@ {engine.shell()} rm -f bench-@ >/dev/null 2>&1", shell=True)
    return results


def scale_of_daemon(engine):
    """How long the daemon takes until it answers, what it holds then, and what after some listings."""
    command = os.environ.get(engine.name + "_DAEMON", "")
    if not command:
        return {}
    path = "/tmp/bench-daemon.sock"
    starts, memory = [], []
    for _ in range(5):
        start = time.perf_counter()
        daemon = subprocess.Popen(shlex.split(command) + ["-H", "unix://" + path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not ask(path, "/_ping"):
                time.sleep(0.0005)
            starts.append((time.perf_counter() - start) * 1e3)
            for _ in range(10):
                ask(path, "/containers/json?all=1")
            time.sleep(7)
            memory.append(int(next(l for l in open(f"/proc/{daemon.pid}/smaps_rollup") if l.startswith("Pss:")).split()[1]))
        finally:
            daemon.terminate()
            daemon.wait()
    return {"daemon_start_ms": round(statistics.median(starts), 1), "daemon_pss_kb": round(statistics.median(memory))}


def ask(path, target):
    """Whether a daemon answers a request; reads all of the answer."""
    try:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(path)
            stream.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = stream.recv(1 << 16)
            while stream.recv(1 << 16):
                pass
            return answer.startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def case_logs(engines, runs, megabytes=200):
    """Median of three turns: written once, read and attached to once in each."""
    turns = [logs_once(engines, megabytes) for _ in range(3)]
    results = {}
    for engine in turns[0]:
        results[engine] = {key: statistics.median(turn[engine][key] for turn in turns) for key in turns[0][engine]}
    return results


def logs_once(engines, megabytes):
    results = {}
    # Busybox's own yes and head are slower than what is measured: the output is made once and then copied.
    output = f"yes {LINE} | head -c 4000000 >/tmp/lines; cat{' /tmp/lines' * (megabytes // 4)}"
    for engine in engines:
        def write():
            engine.run("run", "-d", "--name", "bench-log", "--log-opt", "max-size=1g", "busybox", "sh", "-c", output)
            engine.run("wait", "bench-log")
        wrote = timed(write)
        # The kernel's writing of the log to the disk is not part of reading it.
        os.sync()
        try:
            count = [0]
            def read():
                count[0] = int(subprocess.run(f"{engine.shell()} logs bench-log | wc -c", shell=True, stdout=subprocess.PIPE).stdout)
            read_ms = timed(read)
            attached = timed(lambda: subprocess.run(f"{engine.shell()} run --rm busybox sh -c {shlex.quote(output)} | wc -c", shell=True, stdout=subprocess.PIPE))
        finally:
            engine.run("rm", "-f", "bench-log", check=False)
        rate = lambda ms: round(megabytes / ms * 1e3)
        results[engine.name] = {"write_MB_s": rate(wrote), "read_MB_s": rate(read_ms), "attach_MB_s": rate(attached), "complete": count[0] >= megabytes * 1_000_000}
    floor = timed(lambda: subprocess.run(f"({output}) | cat >/dev/null; rm /tmp/lines", shell=True))
    results["(pipe alone)"] = {"MB_s": round(megabytes / floor * 1e3)}
    return results


def case_tcp(engines, runs, seconds=3):
    """Bytes through a published port, by loopback: a web server in the container sends a sparse file."""
    results = {}
    for number, engine in enumerate(engines):
        port = 20480 + number
        engine.run("run", "-d", "--name", "bench-tcp", "-p", f"{port}:9", "busybox", "sh", "-c", "truncate -s 100G /zeros && httpd -f -p 9 -h /")
        try:
            time.sleep(0.5)
            with socket.create_connection(("127.0.0.1", port)) as stream:
                stream.sendall(b"GET /zeros HTTP/1.0\r\n\r\n")
                buffer = bytearray(1 << 20)
                total, end = 0, time.perf_counter() + seconds
                while time.perf_counter() < end:
                    total += stream.recv_into(buffer)
            results[engine.name] = {"Gbit_s": round(total * 8 / seconds / 1e9, 1)}
        finally:
            engine.run("rm", "-f", "bench-tcp", check=False)
    return results


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", default="run_bridge,run_none,exec,ps,idle,burst,logs,tcp")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json")
    parser.add_argument("engines", nargs="+")
    given = parser.parse_args()
    engines = [Engine(*text.split("=", 1)) for text in given.engines]
    results = {}
    for case in given.cases.split(","):
        results[case] = globals()["case_" + case](engines, given.runs)
        print(case, json.dumps(results[case]), flush=True)
    if given.json:
        json.dump(results, open(given.json, "w"), indent=1)


if __name__ == "__main__":
    main()
