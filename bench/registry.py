#!/usr/bin/env python3
"""What a registry holds of memory, and how fast images go in and out of it, beside Debian's `docker-registry`.

    bench/registry.py IMAGE CLIENT…       (`bench/registry.py big:1 dhow`, whose store has the image)

Each registry is started on a directory of its own below SCRATCH (/tmp); the client pushes the image to it, whose blobs it has, and
pulls it back. The registry's memory (PSS) is read before that, just after it and after 25 seconds of rest. Twice in turns."""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

RUNS = 2
REST = 25
# Inodes that were just freed are searched for long by ext4: see bench.py, pull.
PAUSE = 20


def pss(pid):
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1])


def timed(*command):
    begun = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begun


class Server:
    def __init__(self, name, port, directory):
        self.name, self.address = name, f"127.0.0.1:{port}"
        if name == "dhow":
            command = [os.environ.get("DHOW", "dhow"), "registry", "serve", "--addr", self.address, "--data", f"{directory}/dhow"]
        else:
            config = f"{directory}/config.yml"
            with open(config, "w") as file:
                file.write(
                    f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {directory}/docker}}}}\n"
                    f"http: {{addr: '{self.address}'}}\n"
                )
            command = ["docker-registry", "serve", config]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main():
    image, client = sys.argv[1], sys.argv[2:]
    figures = {}
    for run in range(RUNS + 1):
        for number, kind in enumerate(["dhow", "docker-registry"]):
            directory = tempfile.mkdtemp(prefix="registry-bench-", dir=os.environ.get("SCRATCH", "/tmp"))
            # An address of its own: the client is to know nothing of what is there.
            server = Server(kind, 5600 + 2 * run + number, directory)
            try:
                time.sleep(REST)
                fresh = pss(server.process.pid)
                name = f"{server.address}/image:1"
                subprocess.run([*client, "tag", image, name], check=True)
                push = timed(*client, "push", "-q", name)
                subprocess.run([*client, "rmi", "-f", name, image], check=True, stdout=subprocess.DEVNULL)
                os.sync()
                time.sleep(PAUSE)
                pull = timed(*client, "pull", "-q", name)
                subprocess.run([*client, "tag", name, image], check=True)
                subprocess.run([*client, "rmi", name], check=True, stdout=subprocess.DEVNULL)
                busy = pss(server.process.pid)
                time.sleep(REST)
                # The first push is the client's work, which compresses: from then on it has the blobs.
                if run > 0:
                    figures.setdefault(kind, []).append((push, pull, fresh, busy, pss(server.process.pid)))
            finally:
                server.process.send_signal(signal.SIGTERM)
                server.process.wait()
                shutil.rmtree(directory)
    for kind, runs in figures.items():
        columns = [[round(value, 1) for value in column] for column in zip(*runs)]
        labels = ["push, s", "pull, s", "fresh, KB", "just after, KB", "at rest, KB"]
        print(kind, "; ".join(f"{label}: {column}" for label, column in zip(labels, columns)))


main()
