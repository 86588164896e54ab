"""What is too large: events, filters, bodies, queries, headers."""
import json
import threading
import time

from server import (HOST, IS_SYNAPSE, PROMPT, V3, Account, BadInput, connect, memory, quote, raw, request, secrets,
                    status_of)

MIB = 1024 * 1024
# How much of a body without end a server may read before it has had enough. Synapse reads 200 MB, its limit for media,
# of any body; a JSON endpoint needs no more than a few.
BODY_LIMIT = (300 if IS_SYNAPSE else 16) * MIB


class Sizes(BadInput):
    @classmethod
    def setUpClass(cls):
        cls.alice = Account("alice")
        cls.room_id = cls.alice.create_room()
        cls.room = f"/rooms/{quote(cls.room_id)}"

    def test_events_over_65536_bytes(self):
        for length in [65_536, 70_000, 500_000]:
            with self.subTest(length):
                content = {"msgtype": "m.text", "body": "x" * length}
                answer = self.alice.ask("PUT", self.alice.send_path(self.room_id), content)
                self.refused(answer, [413], ["M_TOO_LARGE"])
                answer = self.alice.ask("PUT", f"{self.room}/state/org.example/{length}", content)
                self.refused(answer, [413], ["M_TOO_LARGE"])
                self.assertEqual(self.alice.ask("GET", f"{self.room}/state/org.example/{length}").status, 404)

    def test_bytes_count_and_not_characters(self):
        content = {"msgtype": "m.text", "body": "\U0001f370" * 17_000}
        body = json.dumps(content, ensure_ascii=False).encode()
        self.refused(self.alice.ask("PUT", self.alice.send_path(self.room_id), body), [413], ["M_TOO_LARGE"])

    def test_an_event_that_just_fits(self):
        content = {"msgtype": "m.text", "body": "x" * 60_000}
        event_id = self.alice.must("PUT", self.alice.send_path(self.room_id), content)["event_id"]
        got = self.alice.must("GET", f"{self.room}/event/{quote(event_id)}")
        self.assertEqual(got["content"], content)

    def test_a_name_and_a_topic_over_65536_bytes(self):
        for key in ["name", "topic"]:
            with self.subTest(key):
                self.refused(self.alice.ask("POST", "/createRoom", {key: "x" * 70_000}), [400, 413])

    def test_filters_with_thousands_of_entries(self):
        me = quote(self.alice.user_id)
        many = [f"!{n}:localhost" for n in range(5_000)]
        users = [f"@{n}:localhost" for n in range(5_000)]
        types = [f"org.example.*.{n}.*" for n in range(5_000)]
        for given in [
            {"room": {"rooms": many + [self.room_id]}},
            {"room": {"not_rooms": many}},
            {"room": {"timeline": {"types": types, "not_senders": users}}},
            {"room": {"timeline": {"not_types": types, "senders": users}, "state": {"types": types}}},
            {"event_fields": types},
            {"room": {"timeline": {"types": ["*" * 1_000 + "x"]}}},
            {"room": {"timeline": {"types": ["*a" * 2_000]}}},
        ]:
            with self.subTest(str(given)[:60]):
                answer = self.alice.ask("POST", f"/user/{me}/filter", given)
                self.bearable(answer)
                if answer.status == 200:
                    synced = self.alice.ask("GET", f"/sync?filter={quote(answer.json['filter_id'])}")
                    self.assertEqual(synced.status, 200, synced)
        given = quote(json.dumps({"types": types[:2_000]}))
        received, closed = raw(f"GET {V3}{self.room}/messages?dir=b&filter={given} HTTP/1.1\r\nHost: {HOST}\r\n"
                               f"Authorization: Bearer {self.alice.token}\r\n\r\n".encode())
        self.assertTrue(closed or status_of(received) in (200, 400, 414, 431), received[:100])
        self.assert_alive()

    def test_lists_with_thousands_of_entries(self):
        state = [{"type": "org.example", "state_key": "same", "content": {"n": n}} for n in range(200)]
        room_id = self.alice.create_room(initial_state=state)
        self.assertEqual(self.alice.must("GET", f"/rooms/{quote(room_id)}/state/org.example/same"), {"n": 199})
        keys = {f"key {n}": n for n in range(4_000)}
        self.assertEqual(self.alice.ask("PUT", self.alice.send_path(self.room_id, "org.example"), keys).status, 200)

    def test_long_queries(self):
        for length in [100_000, 5_000_000]:
            for path in [f"/sync?since={'s' * length}", f"/sync?{'a=b&' * (length // 4)}", f"/{'x' * length}"]:
                with self.subTest(f"{path[:12]} {length}"):
                    self.turned_away(f"GET {V3}{path} HTTP/1.1\r\nHost: {HOST}\r\n"
                                     f"Authorization: Bearer {self.alice.token}\r\n\r\n")

    def test_long_headers(self):
        start = f"GET {V3}/account/whoami HTTP/1.1\r\nHost: {HOST}\r\n"
        for name, headers in {
            "one of 5 MB": f"X-Long: {'x' * 5_000_000}\r\n",
            "a long name": f"{'x' * 1_000_000}: x\r\n",
            "50,000 of them": "".join(f"X-{n}: x\r\n" for n in range(50_000)),
            "a long token": f"Authorization: Bearer {'x' * 1_000_000}\r\n",
        }.items():
            with self.subTest(name):
                self.turned_away(f"{start}{headers}\r\n")

    def turned_away(self, text):
        """The server answers with an error or closes; it does neither hang nor fail nor let it pass."""
        received, closed = raw(text.encode())
        status = status_of(received)
        self.assertTrue(closed or status, f"no answer within {PROMPT} s")
        self.assertIn(status, [None, *range(400, 500)])
        self.assert_alive()

    def test_passwords_without_end(self):
        """Hashing takes long enough as it is."""
        identifier = {"type": "m.id.user", "user": self.alice.name}
        login = {"type": "m.login.password", "identifier": identifier, "password": "x" * 50_000}
        self.refused(request("POST", f"{V3}/login", login), [400, 403, 413])

    def test_names_without_end(self):
        me = quote(self.alice.user_id)
        for key in ["displayname", "avatar_url"]:
            with self.subTest(key):
                self.refused(self.alice.ask("PUT", f"/profile/{me}/{key}", {key: "x" * 100_000}), [400, 413])


class Endless(BadInput):
    """Bodies of a gigabyte."""

    def test_a_gigabyte_without_a_length(self):
        alice = Account("alice")
        room_id = alice.create_room()
        for method, path in [
            ("PUT", V3 + alice.send_path(room_id)),
            ("POST", f"{V3}/createRoom"),
            ("POST", f"{V3}/login"),
            ("POST", f"{V3}/no/such/endpoint"),
        ]:
            with self.subTest(f"{method} {path}"):
                self.endless(f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
                             f"Authorization: Bearer {alice.token}\r\nTransfer-Encoding: chunked\r\n\r\n")

    def endless(self, head):
        """Sends a body in chunks, for as long as the server takes it in, while others go on being served."""
        before = memory("VmRSS")
        piece = b'{"body":"' + b"x" * 65_527
        chunk = b"%x\r\n" % len(piece) + piece + b"\r\n"
        sent, received, slowest = 0, b"", 0
        with connect() as connection:
            connection.sendall(head.encode())
            try:
                while sent < 1024 * MIB:
                    connection.sendall(chunk)
                    sent += len(piece)
                    if sent % (8 * MIB) < len(piece):
                        began = time.monotonic()
                        self.assertEqual(request("GET", "/_matrix/client/versions").status, 200)
                        slowest = max(slowest, time.monotonic() - began)
            except TimeoutError:
                pass  # The server has stopped reading.
            except OSError:
                pass  # The server has closed.
            try:
                received = connection.recv(65_536)
            except TimeoutError:
                self.fail(f"after {sent} bytes the server neither reads nor answers nor closes")
            except OSError:
                pass  # Closed with some of the body unread: the answer may be lost.
        self.assertLess(sent, BODY_LIMIT)
        self.assertIn(status_of(received), [None, 400, 404, 405, 413])
        self.assertLess(slowest, 1)
        if before:
            self.assertLess(memory("VmRSS") - before, 64, "MiB more than before")

    def test_a_gigabyte_announced(self):
        """With the length at the head the server need not read at all."""
        alice = Account("alice")
        for expect in ["", "Expect: 100-continue\r\n"]:
            with self.subTest(expect):
                received, closed = raw(
                    f"POST {V3}/createRoom HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
                    f"Authorization: Bearer {alice.token}\r\n{expect}Content-Length: {1024 * MIB}\r\n\r\n".encode()
                    + b"x" * 1000
                )
                if IS_SYNAPSE and not closed and status_of(received) in (None, 100):
                    continue  # It waits for the body, and cuts it at 200 MB.
                self.assertTrue(closed or status_of(received) in (400, 413), received[:100])

    def test_many_large_bodies_at_once(self):
        """Each within the limit, all together not to be kept in memory for long."""
        alice = Account("alice")
        room_id = alice.create_room()
        statuses = []
        body = {"msgtype": "m.text", "body": "x" * 400_000}

        def send():
            path = V3 + f"/rooms/{quote(room_id)}/send/m.room.message/{secrets.token_hex(8)}"
            statuses.append(request("PUT", path, body, token=alice.token, timeout=30).status)

        threads = [threading.Thread(target=send) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(statuses, [413] * 50)
