"""Slow clients. All begin when this file is loaded and run beside the other tests, which must not suffer from them.

SLOW_LIMIT   the seconds after which the server must have got rid of each (default 90)
"""
import os
import time
from concurrent.futures import ThreadPoolExecutor

from server import HOST, IS_SYNAPSE, PID, V3, Account, BadInput, connect, memory, status_of, synapse_deviates

SLOW_LIMIT = float(os.environ.get("SLOW_LIMIT", 90))
MEMORY_LIMIT = float(os.environ.get("MEMORY_LIMIT_MB", 400))
COPIES = 20  # of each, at the same time


def slow(begin, trickle):
    """Sends `begin` at once and then `trickle`'s bytes one each second. Answers (seconds until the server closed,
    what it said), or (None, what it said) if it did not close within the limit."""
    received = b""
    began = time.monotonic()
    with connect(timeout=1) as connection:
        try:
            connection.sendall(begin)
            while time.monotonic() - began < SLOW_LIMIT:
                try:
                    piece = connection.recv(65_536)  # which waits for the second
                except TimeoutError:
                    connection.sendall(next(trickle, b""))
                    continue
                if not piece:
                    return time.monotonic() - began, received
                received += piece
        except OSError:
            return time.monotonic() - began, received
    return None, received


def endlessly(byte):
    while True:
        yield byte


def start():
    """What each slow client does, by name; the futures of what came of it."""
    token = Account("slow").token
    auth = f"Host: {HOST}\r\nAuthorization: Bearer {token}\r\n"
    post = f"POST {V3}/createRoom HTTP/1.1\r\n{auth}Content-Type: application/json\r\n"
    clients = {
        "silence": (b"", iter(())),
        "half a request line": (b"GET /_matrix/cl", iter(())),
        "half a head": (f"GET /_matrix/client/versions HTTP/1.1\r\nHost: {HOST}\r\n".encode(), iter(())),
        "half a body": (f"{post}Content-Length: 1000\r\n\r\n{{".encode(), iter(())),
        "half a chunk": (f"{post}Transfer-Encoding: chunked\r\n\r\n10\r\n{{".encode(), iter(())),
        "a head by the byte": (f"GET /_matrix/client/versions HTTP/1.1\r\nHost: {HOST}\r\nX: ".encode(), endlessly(b"x")),
        "a head by the line": (f"GET /_matrix/client/versions HTTP/1.1\r\nHost: {HOST}\r\n".encode(),
                               (b"X-%d: x\r\n" % n for n in range(10_000))),
        "empty lines": (b"", endlessly(b"\r\n")),
        "a body by the byte": (f"{post}Content-Length: 10000\r\n\r\n{{".encode(), endlessly(b" ")),
        "a body by the chunk": (f"{post}Transfer-Encoding: chunked\r\n\r\n".encode(), endlessly(b"1\r\n \r\n")),
        "a body by the byte without a token": (
            f"POST {V3}/login HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10000\r\n\r\n{{".encode(), endlessly(b" ")),
    }
    pool = ThreadPoolExecutor(COPIES * len(clients))
    return {name: [pool.submit(slow, *what) for _ in range(COPIES)] for name, what in clients.items()}


RUNNING = {} if IS_SYNAPSE else start()


class Slow(BadInput):
    def closed(self, *names):
        for name in names:
            with self.subTest(name):
                for future in RUNNING[name]:
                    seconds, received = future.result()
                    self.assertIsNotNone(seconds, f"still open after {SLOW_LIMIT} s: {received[:100]!r}")
                    self.assertIn(status_of(received), [None, 400, 408, 413], received[:100])

    @synapse_deviates("it never closes a connection")
    def test_who_stops(self):
        self.closed("silence", "half a request line", "half a head", "half a body", "half a chunk")

    @synapse_deviates("it never closes a connection")
    def test_who_trickles(self):
        self.closed("a head by the byte", "a head by the line", "empty lines", "a body by the byte",
                    "a body by the chunk", "a body by the byte without a token")

    def test_others_were_served_all_the_time(self):
        self.assert_alive()

    def test_zz_memory_at_the_end(self):
        """The last of all: what the server took at most while all this went on."""
        if not PID:
            self.skipTest("KONTOR_PID is not set")
        self.assertLess(memory("VmHWM"), MEMORY_LIMIT)
