#!/usr/bin/env python3
"""Bytes through a published port, from another host, by each publishing policy; beside them the same server without an engine.

usage: publish.py 'command prefix of dhow' [SECONDS]

Host and client are network namespaces with a link between them, made and removed here. The host has a firewall that drops what
it does not know and lets the port in. The policies take turns, three times each. Needs root, iproute2, nftables and an image
busybox:latest in the engine's roots; containers of these roots must not be running meanwhile.
"""
import json, shlex, statistics, subprocess, sys, time

FIREWALL = """
table inet filter {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname lo accept
    tcp dport 20480-20482 accept
  }
}
"""
CLIENT = """
import socket, sys, time
stream = socket.create_connection(("198.51.100.1", int(sys.argv[1])))
stream.sendall(b"GET /zeros HTTP/1.0\\r\\n\\r\\n")
buffer = bytearray(1 << 20)
seconds = float(sys.argv[2])
total, end = 0, time.perf_counter() + seconds
while time.perf_counter() < end:
    total += stream.recv_into(buffer)
print(total * 8 / seconds / 1e9)
"""
HOST, OUTSIDE = "dhow-bench-host", "dhow-bench-client"
SERVE = "truncate -s 100G /zeros && exec httpd -f -p {} -h /"


def run(*args, **more):
    return subprocess.run(args, check=True, stdout=subprocess.PIPE, **more).stdout.decode()


def inside(namespace, *args, **more):
    return run("nsenter", f"--net=/run/netns/{namespace}", *args, **more)


def main():
    engine, seconds = shlex.split(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "3"
    dhow = lambda *args: inside(HOST, *engine, *args)
    names = ["bench-obey", "bench-open", "bench-host"]
    try:
        for name in (HOST, OUTSIDE):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", HOST, "link", "add", "out", "type", "veth", "peer", "name", "in", "netns", OUTSIDE)
        for name, link, address in ((HOST, "out", "198.51.100.1/24"), (OUTSIDE, "in", "198.51.100.2/24")):
            run("ip", "-n", name, "addr", "add", address, "dev", link)
            run("ip", "-n", name, "link", "set", link, "up")
        inside(HOST, "nft", "-f", "-", input=FIREWALL.encode())
        ports = {"obey": 20480, "open": 20481, "no engine": 20482}
        for policy in ("obey", "open"):
            dhow("network", "create", "-o", f"dhow.publish={policy}", f"bench-{policy}")
            dhow("run", "-d", "--name", f"bench-{policy}", "--network", f"bench-{policy}", "-p", f"{ports[policy]}:9", "busybox", "sh", "-c", SERVE.format(9))
        dhow("run", "-d", "--name", "bench-host", "--network", "host", "busybox", "sh", "-c", SERVE.format(ports["no engine"]))
        time.sleep(0.5)
        figures = {name: [] for name in ports}
        for _ in range(3):
            for name, port in ports.items():
                figures[name].append(float(inside(OUTSIDE, sys.executable, "-c", CLIENT, str(port), seconds)))
        print(json.dumps({name: {"Gbit_s": round(statistics.median(all), 1)} for name, all in figures.items()}))
    finally:
        for name in names:
            subprocess.run(["nsenter", f"--net=/run/netns/{HOST}", *engine, "rm", "-f", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for policy in ("obey", "open"):
            subprocess.run(["nsenter", f"--net=/run/netns/{HOST}", *engine, "network", "rm", f"bench-{policy}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name in (HOST, OUTSIDE):
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
