"""Paths and methods that nobody serves, requests without a token or with one that nobody has, and broken HTTP."""
from server import HOST, V3, Account, BadInput, quote, raw, request, status_of, synapse_deviates

UNKNOWN = [
    "/_matrix/client/v3/no/such/endpoint",
    "/_matrix/client/v3",
    "/_matrix/client/v99/sync",
    "/_matrix/client/unstable/org.example/thing",
    "/_matrix/client",
    "/_matrix/no",
    "/_matrix/client/v3/rooms/%21a%3Ab/no",
    "/_matrix/client/v3/account/whoami/more",
    "/_matrix/client/versions/",
    "/_matrix/client/v3/%00",
    "/_matrix/client/v3/sync%2F",
]
WRONG_METHOD = [
    ("DELETE", "/_matrix/client/versions"),
    ("PUT", "/_matrix/client/v3/login"),
    ("PATCH", "/_matrix/client/v3/account/whoami"),
    ("POST", "/_matrix/client/v3/sync"),
    ("GET", "/_matrix/client/v3/createRoom"),
    ("DELETE", "/_matrix/client/v3/rooms/%21a%3Ab/messages"),
    ("GET", "/_matrix/client/v3/rooms/%21a%3Ab/send/m.room.message/1"),
    ("PATCH", "/_matrix/client/v3/rooms/%21a%3Ab/state/m.room.topic"),
]
ROOM, EVENT, USER = quote("!room:localhost"), quote("$event"), quote("@user:localhost")
WITH_A_TOKEN = [
    ("GET", "/account/whoami"),
    ("GET", "/capabilities"),
    ("POST", "/createRoom"),
    ("DELETE", "/devices/x"),
    ("GET", "/devices"),
    ("GET", "/devices/x"),
    ("PUT", "/devices/x"),
    ("POST", "/delete_devices"),
    ("POST", f"/join/{ROOM}"),
    ("GET", "/joined_rooms"),
    ("POST", f"/knock/{ROOM}"),
    ("POST", "/logout"),
    ("POST", "/logout/all"),
    ("GET", f"/presence/{USER}/status"),
    ("PUT", f"/presence/{USER}/status"),
    ("PUT", f"/profile/{USER}/displayname"),
    ("GET", "/pushrules/"),
    ("PUT", "/pushrules/global/override/x"),
    ("DELETE", "/pushrules/global/override/x"),
    ("POST", f"/rooms/{ROOM}/ban"),
    ("GET", f"/rooms/{ROOM}/context/{EVENT}"),
    ("GET", f"/rooms/{ROOM}/event/{EVENT}"),
    ("POST", f"/rooms/{ROOM}/forget"),
    ("POST", f"/rooms/{ROOM}/invite"),
    ("POST", f"/rooms/{ROOM}/join"),
    ("GET", f"/rooms/{ROOM}/joined_members"),
    ("POST", f"/rooms/{ROOM}/kick"),
    ("POST", f"/rooms/{ROOM}/leave"),
    ("GET", f"/rooms/{ROOM}/members"),
    ("GET", f"/rooms/{ROOM}/messages?dir=b"),
    ("POST", f"/rooms/{ROOM}/read_markers"),
    ("POST", f"/rooms/{ROOM}/receipt/m.read/{EVENT}"),
    ("PUT", f"/rooms/{ROOM}/redact/{EVENT}/1"),
    ("PUT", f"/rooms/{ROOM}/send/m.room.message/1"),
    ("GET", f"/rooms/{ROOM}/state"),
    ("GET", f"/rooms/{ROOM}/state/m.room.name/"),
    ("PUT", f"/rooms/{ROOM}/state/m.room.name/"),
    ("PUT", f"/rooms/{ROOM}/typing/{USER}"),
    ("POST", f"/rooms/{ROOM}/unban"),
    ("GET", "/sync"),
    ("GET", f"/user/{USER}/account_data/x"),
    ("PUT", f"/user/{USER}/account_data/x"),
    ("POST", f"/user/{USER}/filter"),
    ("GET", f"/user/{USER}/filter/1"),
    ("GET", f"/user/{USER}/rooms/{ROOM}/account_data/x"),
    ("PUT", f"/user/{USER}/rooms/{ROOM}/account_data/x"),
    ("GET", f"/user/{USER}/rooms/{ROOM}/tags"),
    ("PUT", f"/user/{USER}/rooms/{ROOM}/tags/x"),
    ("DELETE", f"/user/{USER}/rooms/{ROOM}/tags/x"),
]


class Routes(BadInput):
    def test_unknown_endpoints(self):
        for path in UNKNOWN:
            for method in ["GET", "POST", "PUT", "DELETE"]:
                with self.subTest(f"{method} {path}"):
                    body = {} if method in ("POST", "PUT") else None
                    self.refused(request(method, path, body), [404], ["M_UNRECOGNIZED"])

    def test_wrong_methods(self):
        for method, path in WRONG_METHOD:
            with self.subTest(f"{method} {path}"):
                self.refused(request(method, path), [405], ["M_UNRECOGNIZED"])

    def test_paths_outside(self):
        for path in ["/..", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/_matrix/../etc/passwd", "/%", "/%zz",
                     "/_matrix/client/v3/rooms/%ff%fe/state", "/_matrix/client/v3/rooms/%/state"]:
            with self.subTest(path):
                answer = request("GET", path)
                self.assertIn(answer.status, [400, 401, 403, 404], answer)
                self.assertNotIn(b"root:", answer.body)

    def test_no_token(self):
        for method, path in WITH_A_TOKEN:
            with self.subTest(f"{method} {path}"):
                body = {} if method in ("POST", "PUT") else None
                self.refused(request(method, V3 + path, body), [401], ["M_MISSING_TOKEN"])

    def test_unknown_token(self):
        account = Account("alice")
        account.must("POST", "/logout", {})
        for method, path in WITH_A_TOKEN:
            for token in ["nope", account.token]:
                with self.subTest(f"{method} {path} {token[:4]}"):
                    body = {} if method in ("POST", "PUT") else None
                    answer = request(method, V3 + path, body, token=token)
                    self.refused(answer, [401], ["M_UNKNOWN_TOKEN"])
                    self.assertFalse(answer.json.get("soft_logout", False))

    def test_broken_tokens(self):
        for header in ["", "Bearer", "Bearer ", "Basic YTpi", "bearer", "Bearer a b", "Bearer " + "x" * 4_000]:
            with self.subTest(header):
                answer = request("GET", f"{V3}/account/whoami", headers={"Authorization": header})
                self.refused(answer, [401], ["M_MISSING_TOKEN", "M_UNKNOWN_TOKEN"])
        for query in ["access_token=", "access_token=nope", "access_token=a&access_token=b"]:
            with self.subTest(query):
                answer = request("GET", f"{V3}/account/whoami?{query}")
                self.refused(answer, [400, 401])

    @synapse_deviates("500")
    def test_tokens_that_are_no_text(self):
        answer = request("GET", f"{V3}/account/whoami", headers={"Authorization": "Bearer \xff"})
        self.refused(answer, [400, 401])
        self.refused(request("GET", f"{V3}/account/whoami?access_token=%00"), [400, 401])

    def test_errors_may_be_read_by_web_clients(self):
        for method, path, status in [
            ("GET", "/_matrix/client/v3/no/such/endpoint", 404),
            ("DELETE", "/_matrix/client/versions", 405),
            ("GET", f"{V3}/account/whoami", 401),
            ("POST", f"{V3}/login", 400),
        ]:
            with self.subTest(path):
                answer = request(method, path, b"{" if method == "POST" else None)
                self.assertEqual(answer.status, status)
                self.assertEqual(answer.headers["Access-Control-Allow-Origin"], "*")
                self.assertEqual(answer.headers.get_content_type(), "application/json")

    def test_preflight(self):
        for path in [f"{V3}/sync", f"{V3}/login", f"{V3}/rooms/x/send/y/z"]:
            with self.subTest(path):
                answer = request("OPTIONS", path, headers={
                    "Origin": "http://127.0.0.1", "Access-Control-Request-Method": "PUT"})
                self.assertIn(answer.status, [200, 204])
                self.assertEqual(answer.headers["Access-Control-Allow-Origin"], "*")
                self.assertIn("PUT", answer.headers["Access-Control-Allow-Methods"])
                self.assertIn("authorization", answer.headers["Access-Control-Allow-Headers"].lower())


class BrokenHttp(BadInput):
    """Each is answered with an error or the connection is closed, promptly."""

    def turned_away(self, data):
        received, closed = raw(data)
        status = status_of(received)
        self.assertTrue(closed or status, "neither answered nor closed")
        self.assertIn(status, [None, *range(400, 600)], received[:100])
        self.assert_alive()

    def test_garbage(self):
        host = f"Host: {HOST}\r\n".encode()
        for data in [
            b"\0\0\0\0\r\n\r\n",
            b"hello\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n" + host + b"\r\n",
            b"GET / SMTP/1.1\r\n" + host + b"\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100 + b"\r\n\r\n",  # TLS on the plain port
            b"GET / HTTP/1.1\r\n" + host + b"no colon\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + host + b"X: a\0b\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + host + b": x\r\n\r\n",
            b"G" * 100_000 + b" / HTTP/1.1\r\n" + host + b"\r\n",
        ]:
            with self.subTest(data[:40]):
                self.turned_away(data)

    def lengths(self, *headers):
        start = f"POST {V3}/login HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n".encode()
        for header in headers:
            with self.subTest(header):
                self.turned_away(start + header)

    def test_lengths_that_are_none(self):
        self.lengths(
            b"Content-Length: -1\r\n\r\n{}",
            b"Content-Length: x\r\n\r\n{}",
            b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
            b"Transfer-Encoding: nonsense\r\n\r\n{}",
        )

    @synapse_deviates("it waits for that many bytes")
    def test_lengths_beyond_integers(self):
        self.lengths(
            b"Content-Length: 99999999999999999999999\r\n\r\n{}",
            b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n{}\r\n",
        )
