#!/usr/bin/env python3
"""Makes the same company of many people, rooms and messages on this node, on a Synapse on SQLite and on one on PostgreSQL,
and measures beside each other, in one run and all durable, what needs all of that: searching messages, people and rooms,
looking deep into history, walking a big space.

    tests/bench/company.py SYNAPSE OUT [options]

SYNAPSE is the script that starts a Synapse, OUT a new directory for data, logs, results.json and results.md. The node is
$CARGO_TARGET_DIR/release/kontor (or KONTOR_BIN). Needs aiohttp (see tests/clients). What a server does not have is said to
be missing. One request at a time, each kind on all servers in turns; "asking" is the cheapest request there is."""
import argparse
import asyncio
import http.client
import json
import os
import pathlib
import random
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
import urllib.parse

from company_fill import Fill, quote
from company_plan import Company, terms

IDLE = 5  # seconds after which a server may have closed a connection
SEEN_LIMIT = 300  # seconds in which what was said or made must be found


class Server:
    def __init__(self, label, work):
        self.label, self.work = label, work
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.fill, self.connection, self.asked = None, None, 0.0

    def ask(self, method, path, body=None):
        """Asks as the head of the company, on a connection that is there; answers (seconds, status, answer)."""
        if not self.connection or time.monotonic() - self.asked > IDLE:
            if self.connection:
                self.connection.close()
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
            self.connection.connect()
            self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        headers = {"Authorization": f"Bearer {self.fill.tokens[0]}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        began = time.perf_counter()
        self.connection.request(method, f"/_matrix/client{path}", data, headers)
        answer = self.connection.getresponse()
        text = answer.read()
        seconds, self.asked = time.perf_counter() - began, time.monotonic()
        return seconds, answer.status, json.loads(text)


class Synapse(Server):
    def __init__(self, script, label, work, *database):
        super().__init__(label, work)
        self.script, self.database = script, database

    def start(self):
        # Cheap passwords, since people are only made here; and everybody finds everybody and may list rooms, as on the node.
        options = self.work.with_suffix(".yaml")
        options.write_text(
            "user_directory: {enabled: true, search_all_users: true}\nroom_list_publication_rules: [{action: allow}]\n"
        )
        environment = os.environ | {"BCRYPT_ROUNDS": "4", "EXTRA_YAML": str(options)}
        subprocess.run([self.script, str(self.port), self.work, *self.database], env=environment, check=True)

    def stop(self):
        subprocess.run([self.script, "stop", self.work], check=False)

    def index_bytes(self):
        if self.database:
            address = f"postgresql://synapse@127.0.0.1:{self.port + 10_000}/synapse"
            query = "select pg_total_relation_size('event_search')"
            psql = os.environ.get("PGBIN", "/usr/lib/postgresql/15/bin") + "/psql"
            return int(subprocess.run([psql, "-qAtc", query, address], check=True, capture_output=True).stdout)
        query = "select sum(pgsize) from dbstat where name like 'event_search%'"
        with sqlite3.connect(f"file:{self.work}/homeserver.db?mode=ro", uri=True) as database:
            return database.execute(query).fetchone()[0]


class Kontor(Server):
    process = None

    def __init__(self, work):
        super().__init__("kontor", work)
        target = os.environ.get("CARGO_TARGET_DIR", pathlib.Path.home() / ".cache/kontor/target")
        self.program = os.environ.get("KONTOR_BIN", f"{target}/release/kontor")
        self.config = work / "kontor.toml"

    def run(self, *arguments, **options):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KONTOR_")}
        return subprocess.Popen([self.program, *arguments, "--config", self.config], env=environment, **options)

    def start(self):
        self.work.mkdir(exist_ok=True)
        self.config.write_text(
            f'[server]\ndata_dir = "{self.work}/data"\n[listen]\nhttp = "127.0.0.1:{self.port}"\n'
            '[registration]\nmode = "open"\n[limits]\nenabled = false\n'
        )
        with open(self.work / "log", "ab") as log:
            self.process = self.run("serve", stdout=log, stderr=log)
        for _ in range(300):
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", self.port)):
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        sys.exit(f"kontor did not start; see {self.work}/log")

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def index_bytes(self):
        return sum(file.stat().st_blocks * 512 for file in (self.work / "data/search").rglob("*") if file.is_file())

    def rebuild(self):
        """Makes the index of the stopped node anew; answers the seconds that it took, or None if there is none to make."""
        if not (self.work / "data/search").exists():
            return None
        began = time.monotonic()
        with open(self.work / "rebuild.log", "wb") as log:
            if self.run("search", "rebuild", stdout=log, stderr=log).wait():
                sys.exit(f"kontor search rebuild failed; see {self.work}/rebuild.log")
        return time.monotonic() - began


def search(term, order="rank"):
    """As an app searches."""
    context = {"before_limit": 1, "after_limit": 1, "include_profile": True}
    events = {"search_term": term, "keys": ["content.body"], "order_by": order, "filter": {"limit": 10}}
    return {"search_categories": {"room_events": events | {"event_context": context}}}


def found(answer):
    return [hit["result"] for hit in answer["search_categories"]["room_events"].get("results", [])]


class Figures:
    """What is measured, by name; each for every server that has it."""

    def __init__(self, servers, company, asked, seed):
        self.servers, self.company, self.asked = servers, company, asked
        self.random = random.Random(seed)
        self.terms = terms(company, asked, seed)
        self.seconds = {}  # name: {label: [seconds]}
        self.missing = set()  # (name, label)
        self.right = {}  # label: {kind of term: [whether something right was found]}

    def measure(self, name, ask, count=None, check=lambda *_: None):
        """Does `ask(server, number)` for each number below `count` on each server in turns; it answers (seconds, status,
        answer). `check(server, number, answer)` looks at what was answered."""
        for number in range(count or self.asked):
            turn = number % len(self.servers)
            for server in self.servers[turn:] + self.servers[:turn]:
                if (name, server.label) in self.missing:
                    continue
                seconds, status, answer = ask(server, number)
                if status == 404 and answer.get("errcode") == "M_UNRECOGNIZED":
                    self.missing.add((name, server.label))
                    continue
                if status != 200:
                    sys.exit(f"{server.label}: {name}: {status} {answer}")
                self.seconds.setdefault(name, {}).setdefault(server.label, []).append(seconds)
                check(server, number, answer)
        print(self.line(name), flush=True)

    def all(self):
        self.measure("asking", lambda server, _: server.ask("GET", "/versions"))
        self._messages()
        self._names()
        self._history()
        pages = max(3, self.asked // 20)
        self.measure("space of all rooms, all pages", lambda server, _: self._hierarchy(server), pages)

    def _messages(self):
        by_rank = lambda server, number: server.ask("POST", "/v3/search", search(self.terms[number][1]))
        self.measure("search, by rank", by_rank, check=self._judge)
        by_time = lambda server, number: server.ask("POST", "/v3/search", search(self.terms[number][1], "recent"))
        self.measure("search, most recent", by_time)

    def _names(self):
        people = [self._part_of_a_name() for _ in range(self.asked)]
        self.measure(
            "people by part of a name",
            lambda server, at: server.ask("POST", "/v3/user_directory/search", {"search_term": people[at], "limit": 10}),
            check=lambda server, at, answer: expect(server, answer["results"], f"nobody like {people[at]}"),
        )
        rooms = [self.random.choice(self.company.rooms[::2]).name[:-1] for _ in range(self.asked)]
        listed = lambda name: {"limit": 20, "filter": {"generic_search_term": name}}
        self.measure(
            "public rooms by part of a name",
            lambda server, at: server.ask("POST", "/v3/publicRooms", listed(rooms[at])),
            check=lambda server, at, answer: expect(server, answer["chunk"], f"no room like {rooms[at]}"),
        )
        self.measure("public rooms, first page", lambda server, _: server.ask("POST", "/v3/publicRooms", {"limit": 20}))

    def _history(self):
        """In the older half of the room where most was said."""
        half = len(self.company.rooms[0].messages) // 2
        around, before = ([self.random.randrange(half) for _ in range(self.asked)] for _ in range(2))
        self.measure("context, deep", lambda server, number: self._context(server, around[number], 10))
        starts = {server: [self._context(server, at, 0)[2]["start"] for at in before] for server in self.servers}

        def page(server, number):
            start = urllib.parse.quote(starts[server][number])
            return server.ask("GET", f"/v3/rooms/{quote(server.fill.rooms[0])}/messages?dir=b&limit=50&from={start}")

        self.measure("messages, deep", page)

    @staticmethod
    def _context(server, at, limit):
        room, event = quote(server.fill.rooms[0]), quote(server.fill.events[0][at])
        return server.ask("GET", f"/v3/rooms/{room}/context/{event}?limit={limit}")

    @staticmethod
    def _hierarchy(server):
        """All pages are one request here."""
        total, seen, token = 0.0, set(), ""
        while True:
            path = f"/v1/rooms/{quote(server.fill.space)}/hierarchy?limit=50{token}"
            seconds, status, answer = server.ask("GET", path)
            total += seconds
            if status != 200:
                return total, status, answer
            seen.update(room["room_id"] for room in answer["rooms"])
            if "next_batch" not in answer:
                break
            token = f"&from={urllib.parse.quote(answer['next_batch'])}"
        expect(server, seen >= set(server.fill.rooms), "rooms are missing in the space")
        return total, status, answer

    def _part_of_a_name(self):
        first, last = self.random.choice(self.company.people).split()
        return self.random.choice((first, last, last[:3], f"{first} {last[:2]}"))

    def _judge(self, server, number, answer):
        """A number must be in what was found first; of words it counts that something was found at all."""
        kind, term = self.terms[number]
        hits = found(answer)
        right = bool(hits) and (kind != "number" or term in hits[0]["content"]["body"])
        self.right.setdefault(server.label, {}).setdefault(kind, []).append(right)

    def summary(self, name, label):
        """Answers (p50, p99) in milliseconds, or None."""
        if (name, label) in self.missing:
            return None
        values = sorted(1000 * seconds for seconds in self.seconds[name][label])
        return statistics.median(values), values[min(len(values) - 1, int(len(values) * 0.99))]

    def line(self, name):
        """The row of the table: each server's p50 and p99, and how often the better Synapse's are kontor's."""
        cells, pairs = [name], {}
        for server in self.servers:
            pair = pairs[server.label] = self.summary(name, server.label)
            cells.append(f"{pair[0]:.2f} / {pair[1]:.2f}" if pair else "not there")
        ours = pairs.pop("kontor", None)
        theirs = [pair for pair in pairs.values() if pair]
        if ours and theirs:
            cells += [f"{min(pair[which] for pair in theirs) / ours[which]:.1f}x" for which in (0, 1)]
        else:
            cells += ["", ""]
        return f"| {' | '.join(cells)} |"

    def results(self):
        labels = [server.label for server in self.servers]
        times = {name: {label: self.summary(name, label) for label in labels} for name in self.seconds}
        return {"milliseconds_p50_p99": times, "found": {label: rates(right) for label, right in self.right.items()}}


def expect(server, truth, otherwise):
    if not truth:
        sys.exit(f"{server.label}: {otherwise}")


def rates(right):
    return {kind: sum(values) / len(values) for kind, values in right.items()}


def until(what, check):
    """Answers the seconds until `check` answers something true."""
    began = time.monotonic()
    while not check():
        if time.monotonic() - began > SEEN_LIMIT:
            sys.exit(f"{what}: not within {SEEN_LIMIT} s")
        time.sleep(0.2)
    return time.monotonic() - began


def settle(server, company):
    """Waits until the server finds the last that was said in each of the biggest rooms, and the last person."""
    person = {"search_term": f"person{len(company.people) - 1}"}
    until(f"{server.label}: people", lambda: server.ask("POST", "/v3/user_directory/search", person)[2].get("results"))
    last = max(company.numbers, key=lambda number: company.numbers[number][1])
    if server.ask("POST", "/v3/search", search(last))[1] != 404:
        until(f"{server.label}: search", lambda: found(server.ask("POST", "/v3/search", search(last))[2]))


def report(figures, indexes, rebuild, said, options):
    labels = [server.label for server in figures.servers]
    head = ["ms, p50 / p99", *labels, "p50", "p99"]
    lines = [f"{said} messages, {options.rooms} rooms, {options.people} people; {options.requests} requests each", ""]
    lines += [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    lines += [figures.line(name) for name in figures.seconds]
    lines += ["", f"| found, of 100 searches | {' | '.join(labels)} |", "|" + " --- |" * (len(labels) + 1)]
    for kind in ("word", "form", "name", "two", "number"):
        cells = [figures.right.get(label, {}).get(kind) for label in labels]
        cells = ["not there" if cell is None else f"{100 * sum(cell) / len(cell):.0f}" for cell in cells]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    cells = [f"{indexes[label] / said:.0f}" if indexes[label] else "not there" for label in labels]
    lines.append(f"| bytes of index per message | {' | '.join(cells)} |")
    lines += ["", f"kontor search rebuild: {'not there' if rebuild is None else f'{rebuild:.1f} s'}"]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("synapse")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--rooms", type=int, default=200)
    parser.add_argument("--requests", type=int, default=300, help="of each kind, on each server")
    parser.add_argument("--servers", default="sqlite,postgres,kontor")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    options.out.mkdir()
    out = options.out.resolve()
    company = Company(options.seed, options.people, options.rooms, options.messages)
    said = sum(len(room.messages) for room in company.rooms)
    make = {
        "sqlite": lambda: Synapse(options.synapse, "sqlite", out / "sqlite"),
        "postgres": lambda: Synapse(options.synapse, "postgres", out / "postgres", "postgres"),
        "kontor": lambda: Kontor(out / "kontor"),
    }
    servers = [make[label]() for label in options.servers.split(",")]
    try:
        for server in servers:
            server.start()
            server.fill = Fill(server.label, server.url, company)
        asyncio.run(fill(servers))
        for server in servers:
            settle(server, company)
        figures = Figures(servers, company, options.requests, options.seed)
        figures.all()
        indexes = {server.label: server.index_bytes() for server in servers}
    finally:
        for server in servers:
            server.stop()
    rebuild = next((server.rebuild() for server in servers if isinstance(server, Kontor)), None)
    counts = {"messages": said, "rooms": options.rooms, "people": options.people, "seed": options.seed}
    results = counts | figures.results() | {"index_bytes": indexes, "rebuild_seconds": rebuild}
    (out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False))
    text = report(figures, indexes, rebuild, said, options)
    (out / "results.md").write_text(text)
    print(f"\n{text}")


async def fill(servers):
    async with asyncio.TaskGroup() as group:
        for server in servers:
            group.create_task(server.fill.run())


main()
