"""The server under test as the bad-input tests see it: a socket, HTTP, accounts and rooms. Standard library only.

HOMESERVER_URL      where it is (plain HTTP)
REGISTRATION_TOKEN  needed to register, if it is
KONTOR_PID          its process, to look at its memory
"""
import http.client
import json
import os
import secrets
import socket
import time
import unittest
import urllib.parse

URL = urllib.parse.urlsplit(os.environ.get("HOMESERVER_URL", "http://127.0.0.1:8008"))
HOST, PORT = URL.hostname, URL.port or 80
PID = os.environ.get("KONTOR_PID")
PROMPT = 5  # seconds within which any single answer must be there
V3 = "/_matrix/client/v3"


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def errcode(self):
        try:
            return self.json.get("errcode")
        except (ValueError, AttributeError):
            return None

    def __repr__(self):
        return f"{self.status} {self.body[:300]!r}"


def quote(part):
    return urllib.parse.quote(part, safe="")


def request(method, path, body=None, token=None, headers=None, timeout=PROMPT):
    """One request on a connection of its own. `body` is sent as it is if bytes, as JSON otherwise."""
    headers = {"Content-Type": "application/json", **(headers or {})}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    connection = http.client.HTTPConnection(HOST, PORT, timeout=timeout)
    try:
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    except socket.timeout:
        raise AssertionError(f"{method} {path[:100]} had no answer within {timeout} s") from None
    finally:
        connection.close()


def connect(timeout=PROMPT):
    connection = socket.create_connection((HOST, PORT), timeout=timeout)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def raw(data, timeout=PROMPT):
    """Sends bytes and answers (what came back, whether the server closed) once it closed or a head has come."""
    with connect(timeout) as connection:
        received = b""
        try:
            connection.sendall(data)
            while b"\r\n\r\n" not in received:
                piece = connection.recv(65536)
                if not piece:
                    return received, True
                received += piece
        except socket.timeout:
            return received, False
        except OSError:  # reset: closed with something of ours unread
            return received, True
        return received, False


def status_of(received):
    """The status code of a raw response, or None."""
    parts = received.split(b" ", 2)
    return int(parts[1]) if received.startswith(b"HTTP/") and parts[1:] and parts[1].isdigit() else None


def memory(field):
    """VmRSS or VmHWM of the server in MiB, or None if its process is not known."""
    if not PID:
        return None
    with open(f"/proc/{PID}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


class Account:
    def __init__(self, name):
        self.name = f"{name}-{secrets.token_hex(4)}"
        self.password = f"secret of {self.name}"
        wanted = {"username": self.name, "password": self.password}
        asked = request("POST", f"{V3}/register", wanted)
        auth = {"type": "m.login.dummy", "session": asked.json.get("session")}
        if token := os.environ.get("REGISTRATION_TOKEN"):
            auth |= {"type": "m.login.registration_token", "token": token}
        answer = request("POST", f"{V3}/register", {**wanted, "auth": auth})
        assert answer.status == 200, answer
        self.token, self.user_id = answer.json["access_token"], answer.json["user_id"]
        self.server_name = self.user_id.split(":", 1)[1]

    def ask(self, method, path, body=None, **more):
        return request(method, path if path.startswith("/_") else V3 + path, body, token=self.token, **more)

    def must(self, method, path, body=None):
        answer = self.ask(method, path, body)
        assert answer.status == 200, f"{method} {path}: {answer}"
        return answer.json

    def create_room(self, **options):
        return self.must("POST", "/createRoom", {"preset": "private_chat", **options})["room_id"]

    def send(self, room_id, body):
        content = {"msgtype": "m.text", "body": body}
        return self.must("PUT", self.send_path(room_id), content)["event_id"]

    @staticmethod
    def send_path(room_id, kind="m.room.message"):
        return f"/rooms/{quote(room_id)}/send/{quote(kind)}/{secrets.token_hex(8)}"

    def join(self, room_id):
        self.must("POST", f"/join/{quote(room_id)}", {})

    def leave(self, room_id):
        self.must("POST", f"/rooms/{quote(room_id)}/leave", {})


class BadInput(unittest.TestCase):
    """Assertions on refusals."""

    def refused(self, answer, statuses, errcodes=None):
        """The answer is an error as Matrix has it, with one of these statuses (and errcodes)."""
        self.assertIn(answer.status, statuses, answer)
        if errcodes:
            self.assertIn(answer.errcode, errcodes, answer)
        else:
            self.assertRegex(answer.errcode or "", r"^[A-Z]+_[A-Z_]+$", answer)

    def bearable(self, answer):
        """Accepted or refused, but understood: never a server error."""
        if answer.status != 200:
            self.refused(answer, range(400, 500))

    def assert_alive(self):
        began = time.monotonic()
        self.assertEqual(request("GET", "/_matrix/client/versions").status, 200)
        self.assertLess(time.monotonic() - began, 1)


IS_SYNAPSE = "Synapse" in (request("GET", "/_matrix/client/versions").headers.get("Server") or "")


def synapse_deviates(how):
    """Marks a test that holds of the specification (or of issue 2) and not of the Synapse that proves the tests."""
    return unittest.skipIf(IS_SYNAPSE, f"Synapse deviates: {how}")
