"""Offices in network namespaces of their own, with cables between them that can be pulled: for root, on Linux."""
import itertools
import json
import os
import subprocess

NUMBERS = itertools.count(1)


def ip(*words):
    done = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


def missing():
    """What keeps this machine from it, in words; nothing if all is well."""
    if os.geteuid() != 0:
        return "NAMESPACES=1 needs root, to make network namespaces: run it as root, or without that variable"
    try:
        Space().close()
    except OSError as error:
        return f"this machine makes no network namespaces ({error}): run it without NAMESPACES=1, or in a container with CAP_NET_ADMIN and CAP_SYS_ADMIN"
    return None


class Space:
    """A namespace in which a node runs. This process, and so the apps, reach it by a cable that is never pulled."""

    def __init__(self):
        number = next(NUMBERS)
        self.name = f"kontor-{os.getpid()}-{number}"
        self.address = f"10.213.{number % 250}.2"
        ours, theirs = f"kt{os.getpid() % 100_000}o{number}", f"kt{os.getpid() % 100_000}t{number}"
        ip("netns", "add", self.name)
        try:
            ip("-n", self.name, "link", "set", "lo", "up")
            ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", self.name)
            ip("address", "add", f"10.213.{number % 250}.1/30", "dev", ours)
            ip("-n", self.name, "address", "add", f"{self.address}/30", "dev", theirs)
            ip("link", "set", ours, "up")
            ip("-n", self.name, "link", "set", theirs, "up")
        except OSError:
            self.close()
            raise

    def command(self, words):
        return ["ip", "netns", "exec", self.name, *words]

    def close(self):
        # The cables go with it.
        ip("netns", "delete", self.name)


class Cable:
    """A link between two namespaces: when it is cut its ends are down, as after a pulled plug."""

    def __init__(self, one, other):
        number = next(NUMBERS)
        self.space, self.device = one.name, f"kc{number}a"
        self.addresses = {one: f"10.214.{number % 250}.1", other: f"10.214.{number % 250}.2"}
        far = f"kc{number}b"
        ip("-n", one.name, "link", "add", self.device, "type", "veth", "peer", "name", far, "netns", other.name)
        for space, device in ((one, self.device), (other, far)):
            ip("-n", space.name, "address", "add", f"{self.addresses[space]}/30", "dev", device)
            ip("-n", space.name, "link", "set", device, "up")

    def cut(self):
        ip("-n", self.space, "link", "set", self.device, "down")

    def mend(self):
        ip("-n", self.space, "link", "set", self.device, "up")

    @property
    def carried(self):
        """Bytes of Ethernet, both ways."""
        told = json.loads(ip("-n", self.space, "-s", "-j", "link", "show", "dev", self.device))[0]["stats64"]
        return told["rx"]["bytes"] + told["tx"]["bytes"]

    async def close(self):
        """It goes with the namespaces."""
