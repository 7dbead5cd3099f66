#!/usr/bin/env python3
"""Images by several clients through several registries, in all orders: which digests they have.

    bench/digests.py IMAGE REGISTRY... -- dhow=dhow docker=docker podman='podman' skopeo=skopeo

Each client pushes IMAGE, which each of them has (skopeo: in the directory `/var/tmp/digests-IMAGE`, as `skopeo copy … dir:`
makes it), to each registry (`host:port`, plain HTTP); then each one pulls what each other has pushed, by its tag and by its digest,
and pushes it on to the other registries under another name. A line each tells the digest of the manifest and whether it is the same
everywhere. Ends with 1 when two registries or a puller say something else than the pusher."""
import json
import subprocess
import sys
import urllib.request

ACCEPT = ", ".join(
    "application/vnd." + kind
    for kind in (
        "oci.image.manifest.v1+json",
        "oci.image.index.v1+json",
        "docker.distribution.manifest.v2+json",
        "docker.distribution.manifest.list.v2+json",
    )
)


def digest(registry, name, tag):
    """The digest of a tag's manifest, as the registry says it."""
    request = urllib.request.Request(f"http://{registry}/v2/{name}/manifests/{tag}", headers={"Accept": ACCEPT}, method="HEAD")
    with urllib.request.urlopen(request) as answer:
        return answer.headers["Docker-Content-Digest"]


class Client:
    """A client's name, and the command that it is."""

    def __init__(self, text):
        self.name, command = text.split("=", 1)
        self.command = command.split()
        self.is_skopeo = self.name.startswith("skopeo")

    def run(self, *args):
        command = [*self.command, *args]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: {done.stderr.strip()[-600:]}")
        return done.stdout

    def directory(self, name):
        return "dir:/var/tmp/digests-" + name.replace("/", "-").replace(":", "-")

    def pull(self, reference, name):
        """Has an image under a name, without anything of before."""
        if self.is_skopeo:
            self.run("copy", "--src-tls-verify=false", "--all", f"docker://{reference}", self.directory(name))
            return
        if self.name == "podman":
            self.run("pull", "-q", "--tls-verify=false", reference)
        else:
            self.run("pull", "-q", reference)
        self.run("tag", reference, name)

    def push(self, name, reference):
        if self.is_skopeo:
            self.run("copy", "--dest-tls-verify=false", "--all", self.directory(name), f"docker://{reference}")
            return
        self.run("tag", name, reference)
        if self.name == "podman":
            self.run("push", "-q", "--tls-verify=false", reference)
        else:
            self.run("push", "-q", reference)

    def known(self, reference):
        """The digests that the client knows an image by."""
        if self.is_skopeo:
            return None
        return json.loads(self.run("image", "inspect", reference))[0]["RepoDigests"]

    def forget(self, *names):
        if not self.is_skopeo:
            subprocess.run([*self.command, "rmi", "-f", *names], capture_output=True)


def main():
    split = sys.argv.index("--")
    image, registries = sys.argv[1], sys.argv[2:split]
    clients = [Client(text) for text in sys.argv[split + 1 :]]
    wrong = 0
    pushed = {}
    for client in clients:
        found = {}
        for registry in registries:
            client.push(image, f"{registry}/by-{client.name}:1")
            found[registry] = digest(registry, f"by-{client.name}", "1")
            client.forget(f"{registry}/by-{client.name}:1")
        same = len(set(found.values())) == 1
        wrong += not same
        pushed[client.name] = found[registries[0]]
        print(f"{client.name} pushes: {found[registries[0]][:19]} {'to all' if same else found}")
    for pusher in clients:
        for puller in clients:
            for registry in registries:
                name, expected = f"by-{pusher.name}", pushed[pusher.name]
                by_tag, by_digest = f"{registry}/{name}:1", f"{registry}/{name}@{expected}"
                puller.pull(by_digest, "digests-one")
                puller.pull(by_tag, "digests-two")
                known = puller.known(by_tag)
                tells = known is None or f"{registry}/{name}@{expected}" in known
                onward = {}
                for target in registries:
                    puller.push("digests-two", f"{target}/on-{puller.name}-{pusher.name}:1")
                    onward[target] = digest(target, f"on-{puller.name}-{pusher.name}", "1")
                    puller.forget(f"{target}/on-{puller.name}-{pusher.name}:1")
                puller.forget(by_tag, by_digest, "digests-one", "digests-two")
                kept = all(found == expected for found in onward.values())
                same = len(set(onward.values())) == 1
                wrong += not tells or not same
                on = "the same" if kept else f"{next(iter(onward.values()))[:19]}" if same else str(onward)
                print(
                    f"{pusher.name} -> {registry} -> {puller.name}: "
                    f"{'same digest' if tells else f'another digest, {known}'}; pushed on: {on}",
                    flush=True,
                )
    sys.exit(1 if wrong else 0)


main()
