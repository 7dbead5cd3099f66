#!/usr/bin/env bash
# Installs what the tests need (Debian or Ubuntu, root) and runs them all.
set -euo pipefail
cd "$(dirname "$0")"
missing=()
for package in busybox-static crun iproute2 iptables nftables docker.io openssl gcc runc e2fsprogs xfsprogs btrfs-progs fuse-overlayfs kmod bzip2 zstd libcap2-bin nasm autoconf automake libtool qemu-system-x86 chromium chromium-driver python3-venv git openssh-client uidmap passt strace; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
# Debian splits docker's client from its engine; where the client is there, the engine is not needed.
if command -v docker >/dev/null; then missing=("${missing[@]/docker.io/}"); fi
missing=($(printf '%s\n' "${missing[@]:-}" | sed '/^$/d'))
if [ "${#missing[@]}" -gt 0 ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
# An S3 server, for the registry that keeps its blobs in a bucket.
if ! command -v moto_server >/dev/null; then
  moto="${CARGO_TARGET_DIR:-target}/moto"
  if [ ! -x "$moto/bin/moto_server" ]; then
    python3 -m venv "$moto"
    "$moto/bin/pip" install --quiet 'moto[s3]==5.*' flask flask-cors
  fi
  PATH="$PATH:$(realpath "$moto/bin")"
fi
cargo fmt --all --check
cargo xtask layers
if cargo clippy --version >/dev/null 2>&1; then
  cargo clippy --quiet --workspace --all-targets -- --deny warnings
fi
cargo test --quiet --workspace --no-run

# What an engine could leave on the host, a line each.
traces() {
  {
    ls -d /sys/fs/cgroup/dhow /sys/fs/cgroup/*/dhow /tmp/dhow-test-*
    ip -o link | grep -o 'dhow[0-9a-f]*'
    ip netns list | grep dhow-test-
    nft list tables | grep dhow
    grep dhow-test- /proc/self/mountinfo
    pgrep -a dhow
  } 2>/dev/null | sort -u || true
}
before=$(traces)
cargo test --workspace
# The other compressor of layers.
cargo test --package dhow-store --features isal compress
# What needs cgroup v2 alone, an older kernel, AppArmor or project quotas, in a virtual machine; a reboot; power cuts.
cargo xtask vm
cargo xtask vm reboot
cargo xtask vm cut 3
# The last monitors may still be on their way out.
for _ in $(seq 50); do
  left=$(comm -13 <(echo "$before") <(traces))
  [ -z "$left" ] && break
  sleep 0.1
done
if [ -n "$left" ]; then
  printf 'the tests left on this host:\n%s\n' "$left" >&2
  exit 1
fi
