"""Offices as they are: real servers on free ports of this machine, links between them that can be cut, and their staff."""
import asyncio
import contextlib
import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
import urllib.parse

import aiohttp

from namespaces import Cable, Space

LIMIT = float(os.environ.get("WAIT_LIMIT", 60))  # seconds that anything awaited may take at most
KONTOR = os.environ.get("KONTOR_BIN", "kontor")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Link:
    """One direction of a link: what connects to `port` is carried to the target, unless the link is cut. A cut link is
    silent, as a lost VPN is: nothing is refused, and what was on its way stays on its way."""

    def __init__(self, target):
        self.target = target
        self.port = free_port()
        self.up = asyncio.Event()
        self.up.set()
        self.carried = 0  # bytes of TLS, both ways
        self.connections = 0
        self.carriers = set()

    async def open(self):
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def cut(self):
        self.up.clear()

    def mend(self):
        self.up.set()

    async def close(self):
        self.server.close()
        for task in self.carriers:
            task.cancel()
        await asyncio.gather(*self.carriers, return_exceptions=True)

    def _accept(self, reader, writer):
        task = asyncio.create_task(self._carry(reader, writer))
        self.carriers.add(task)
        task.add_done_callback(self.carriers.discard)

    async def _carry(self, reader, writer):
        await self.up.wait()
        self.connections += 1
        try:
            there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))

    async def _pump(self, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self.up.wait()
                self.carried += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()


class Server:
    """What a Kontor and another server have in common."""

    name: str
    url: str

    def staff(self, user):
        return Staff(self, user)


class Kontor(Server):
    """A node in a directory of its own, with a certificate of the organisation's authority."""

    def __init__(self, work, name, space=None):
        self.work = pathlib.Path(work).resolve() / name.replace(":", "-")
        self.work.mkdir()
        self.name, self.space = name, space
        self.http, self.https = free_port(), free_port()
        self.host = space.address if space else "127.0.0.1"
        self.url = f"http://{self.host}:{self.http}"
        self.authority = self.work.parent / "ca"
        self.process = None

    def configure(self, peers, options=""):
        """`peers`: the address and port by which each is reached, by name."""
        https = "0.0.0.0" if self.space else "127.0.0.1"
        host = self.name.split(":")[0]
        run(KONTOR, "ca", "issue", "--directory", self.authority, host)
        issued = self.authority / "issued" / host
        lines = [
            "[server]", f'name = "{self.name}"', f'data_dir = "{self.work}/data"',
            "[listen]", f'http = "{self.host}:{self.http}"', f'https = "{https}:{self.https}"',
            f'tls_certificate = "{issued}.pem"', f'tls_key = "{issued}.key"',
            "[registration]", 'mode = "open"',
            "[limits]", "enabled = false",
            "[federation]", f'ca_files = ["{self.authority}/ca.pem"]',
        ]
        for name, address in peers.items():
            lines += [f'[federation.peers."{name}"]', f'address = "{address}"']
        (self.work / "config.toml").write_text("\n".join(lines) + "\n" + options)

    async def start(self):
        log = open(self.work / "log", "ab")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("KONTOR_")}
        command = [KONTOR, "serve", "--config", self.work / "config.toml"]
        if self.space:
            command = self.space.command(command)
        self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        await answers(self.url, lambda: self.process.poll() is None)

    def kill(self, how=signal.SIGKILL):
        if self.process:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None

    def check(self):
        """Looks through the store of the stopped node."""
        run(KONTOR, "check", "--config", self.work / "config.toml")

    def log(self):
        return (self.work / "log").read_text(errors="replace")


class Organisation:
    """Some offices whose nodes know each other, each way between two of them by a link of its own, or `direct`ly, or by
    cables between `namespaces`."""

    def __init__(self, work, names, options="", direct=False, namespaces=False):
        self.options, self.direct, self.namespaces = options, direct, namespaces
        run(KONTOR, "ca", "init", "--directory", pathlib.Path(work) / "ca")
        self.nodes = {name: Kontor(work, name, Space() if namespaces else None) for name in names}
        self.links = {}

    async def __aenter__(self):
        for here in self.nodes.values():
            peers = {}
            for there in self.nodes.values():
                if there is here:
                    continue
                peers[there.name] = await self._way(here, there)
            here.configure(peers, self.options)
        await asyncio.gather(*(node.start() for node in self.nodes.values()))
        return self

    async def _way(self, here, there):
        """Where the one node reaches the other."""
        if self.direct:
            return f"127.0.0.1:{there.https}"
        if self.namespaces:
            known = self.links.get((there.name, here.name))
            cable = known or self.links.setdefault((here.name, there.name), Cable(here.space, there.space))
            return f"{cable.addresses[there.space]}:{there.https}"
        link = self.links[here.name, there.name] = Link(there.https)
        await link.open()
        return f"127.0.0.1:{link.port}"

    async def __aexit__(self, *_):
        for node in self.nodes.values():
            node.kill()
        for link in self.links.values():
            await link.close()
        for node in self.nodes.values():
            if node.space:
                node.space.close()

    def between(self, one, other):
        return [link for ends, link in self.links.items() if set(ends) == {one, other}]

    def around(self, name):
        return [link for ends, link in self.links.items() if name in ends]


class Staff:
    """Somebody with an account and an app that syncs all the time, fills the gaps, and notes what came how often."""

    def __init__(self, server, user):
        self.server = server
        self.user_id = f"@{user}:{server.name}"
        self.token = None
        self.session = None
        self.since = None
        self.filter = json.dumps({"room": {"timeline": {"limit": 200}}})
        self.events = {}  # room id: {event id: event}
        self.members = {}  # room id: {user id: membership}
        self.twice = []
        self.gaps = 0
        self.invites, self.ephemeral, self.presence, self.left = {}, [], {}, set()
        self.news = asyncio.Condition()
        self.syncing = None

    async def enter(self):
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body = {"username": self.user_id[1:].split(":")[0], "password": secrets.token_hex(8), "auth": {"type": "m.login.dummy"}}
        self.token = (await self.call("POST", "/v3/register", body))["access_token"]
        self.syncing = asyncio.create_task(self._sync())
        return self

    async def go(self):
        if self.syncing:
            self.syncing.cancel()
            await asyncio.gather(self.syncing, return_exceptions=True)
        await self.session.close()

    async def call(self, method, path, body=None, expect=200, timeout=90, **query):
        status, answer = await self.ask(method, path, body, timeout, **query)
        assert status == expect, f"{self.user_id}: {method} {path}: {status} {answer}"
        return answer

    async def ask(self, method, path, body=None, timeout=90, **query):
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if method in ("POST", "PUT") and body is None:
            body = {}
        async with self.session.request(
            method, f"{self.server.url}/_matrix/client{path}", json=body, headers=headers,
            params={key: value if isinstance(value, str) else json.dumps(value) for key, value in query.items()},
            timeout=aiohttp.ClientTimeout(total=timeout),
        ) as response:
            return response.status, await response.json(content_type=None)

    async def _sync(self):
        while True:
            try:
                query = {"timeout": 30000, "filter": self.filter} | ({"since": self.since} if self.since else {})
                answer = await self.call("GET", "/v3/sync", **query)
                await self._take(answer)
                self.since = answer["next_batch"]
            except (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError):
                await asyncio.sleep(0.1)  # the server is not there, as an app finds it now and then
            except AssertionError as error:
                print(f"      {error}", file=sys.stderr, flush=True)
                await asyncio.sleep(0.5)

    async def _take(self, answer):
        rooms = answer.get("rooms", {})
        for room_id, room in (rooms.get("join", {}) | rooms.get("leave", {})).items():
            timeline = room.get("timeline", {})
            known = self.events.setdefault(room_id, {})
            events = timeline.get("events", [])
            if timeline.get("limited") and self.since and known:
                self.gaps += 1
                events = await self._gap(room_id, timeline["prev_batch"], known) + events
            for event in events:
                if event["event_id"] in known:
                    self.twice.append((room_id, event["event_id"]))
                known[event["event_id"]] = event
            for event in room.get("state", {}).get("events", []) + events:
                if event["type"] == "m.room.member":
                    self.members.setdefault(room_id, {})[event["state_key"]] = event["content"].get("membership")
            self.ephemeral += [(room_id, event) for event in room.get("ephemeral", {}).get("events", [])]
        for room_id, room in rooms.get("invite", {}).items():
            self.invites[room_id] = room["invite_state"]["events"]
        for room_id in rooms.get("join", {}):
            self.invites.pop(room_id, None)
            self.left.discard(room_id)
        for room_id in rooms.get("leave", {}):
            self.invites.pop(room_id, None)
            self.left.add(room_id)
        for event in answer.get("presence", {}).get("events", []):
            self.presence[event["sender"]] = event["content"]
        async with self.news:
            self.news.notify_all()

    async def _gap(self, room_id, position, known):
        """What lies between what is known and `position`, oldest first."""
        found = []
        while position:
            page = await self.call("GET", f"/v3/rooms/{quote(room_id)}/messages", dir="b", limit=200, **{"from": position})
            for event in page["chunk"]:
                if event["event_id"] in known:
                    return found[::-1]
                found.append(event)
            position = page.get("end")
        return found[::-1]

    async def until(self, check, what, limit=LIMIT):
        """Waits for a sync after which `check` answers something true, and answers that."""

        async def wait():
            async with self.news:
                while not (answer := check()):
                    await self.news.wait()
                return answer

        try:
            return await asyncio.wait_for(wait(), limit)
        except asyncio.TimeoutError:
            raise AssertionError(f"{self.user_id} waited {limit} s for {what}") from None

    def joined(self, room_id):
        return {user_id for user_id, membership in self.members.get(room_id, {}).items() if membership == "join"}

    async def receive(self, room_id, event_id, limit=LIMIT):
        return await self.until(lambda: self.events.get(room_id, {}).get(event_id), f"{event_id} in {room_id}", limit)

    async def create(self, **body):
        return (await self.call("POST", "/v3/createRoom", body))["room_id"]

    async def invite(self, room_id, other):
        await self.call("POST", f"/v3/rooms/{quote(room_id)}/invite", {"user_id": other.user_id})

    async def join(self, room, via=()):
        path = f"/v3/join/{quote(room)}" + ("?" + "&".join(f"via={quote(name)}" for name in via) if via else "")
        return (await self.call("POST", path))["room_id"]

    async def say(self, room_id, body, txn=None, **content):
        content = {"msgtype": "m.text", "body": body} | content
        return await self.send(room_id, "m.room.message", content, txn)

    async def send(self, room_id, kind, content, txn=None):
        txn = txn or secrets.token_hex(8)
        return (await self.call("PUT", f"/v3/rooms/{quote(room_id)}/send/{kind}/{txn}", content))["event_id"]

    async def say_at_last(self, room_id, body):
        """As an app does: the same transaction again and again until the server has taken it."""
        txn = secrets.token_hex(8)
        while True:
            try:
                return await self.say(room_id, body, txn)
            except (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError):
                await asyncio.sleep(0.05)

    async def put_state(self, room_id, kind, content, key=""):
        return (await self.call("PUT", f"/v3/rooms/{quote(room_id)}/state/{kind}/{quote(key)}", content))["event_id"]

    async def state(self, room_id):
        """(type, state key): event id"""
        events = await self.call("GET", f"/v3/rooms/{quote(room_id)}/state")
        return {(event["type"], event["state_key"]): event["event_id"] for event in events}

    async def history(self, room_id):
        """All event ids that the server has for the asker, newest first."""
        ids, position = [], None
        while True:
            query = {"from": position} if position else {}
            page = await self.call("GET", f"/v3/rooms/{quote(room_id)}/messages", dir="b", limit=1000, **query)
            ids += [event["event_id"] for event in page["chunk"]]
            position = page.get("end")
            if not position:
                return ids


async def enter(*staff):
    await asyncio.gather(*(one.enter() for one in staff))
    return staff


async def answers(url, alive, limit=LIMIT):
    """Waits until the server at `url` does."""
    async with aiohttp.ClientSession() as session:
        for _ in range(int(limit * 20)):
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with session.get(f"{url}/_matrix/client/versions") as response:
                    if response.status == 200:
                        return
            assert alive(), f"the server for {url} has ended"
            await asyncio.sleep(0.05)
    raise AssertionError(f"no answer from {url} in {limit} s")


def quote(text):
    return urllib.parse.quote(text, safe="")


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
