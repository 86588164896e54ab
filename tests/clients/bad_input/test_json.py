"""Bodies that are no JSON, the wrong JSON, or JSON that no event may have."""
import json
import math

from server import V3, Account, BadInput, quote, request, synapse_deviates

NOT_JSON = {
    "cut off": b'{"a": ',
    "a missing value": b'{"a":}',
    "single quotes": b"{'a': 1}",
    "a comma too many": b'{"a": 1,}',
    "something after it": b'{"a": 1} x',
    "not a number": b'{"a": NaN}',
    "infinity": b'{"a": Infinity}',
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "a raw NUL": b'{"a": "\x00"}',
    "a form": b"a=1&b=2",
}
NOT_AN_OBJECT = [b"[]", b'"text"', b"17", b"true"]
FLOATS = ["1.5", "1.0", "-0.5", "1e2", "1E-2"]
OUT_OF_RANGE = [str(2**53), str(-(2**53)), str(2**63), str(2**64), "1" + "0" * 60]


class Bodies(BadInput):
    @classmethod
    def setUpClass(cls):
        cls.alice = Account("alice")
        cls.room_id = cls.alice.create_room()
        room = f"/rooms/{quote(cls.room_id)}"
        me = quote(cls.alice.user_id)
        # Endpoints that need a body, each with some key of it and values of a wrong type for that.
        cls.endpoints = [
            ("POST", "/createRoom"),
            ("POST", "/login"),
            ("PUT", cls.alice.send_path(cls.room_id)),
            ("PUT", f"{room}/state/m.room.topic"),
            ("POST", f"{room}/invite"),
            ("POST", f"{room}/kick"),
            ("POST", f"{room}/read_markers"),
            ("PUT", f"{room}/typing/{me}"),
            ("PUT", f"/user/{me}/account_data/org.example"),
            ("PUT", f"/user/{me}{room}/account_data/org.example"),
            ("PUT", f"/user/{me}{room}/tags/m.favourite"),
            ("POST", f"/user/{me}/filter"),
            ("PUT", f"/profile/{me}/displayname"),
            ("PUT", f"/presence/{me}/status"),
        ]

    def test_no_json(self):
        for method, path in self.endpoints:
            for name, body in NOT_JSON.items():
                with self.subTest(f"{method} {path}: {name}"):
                    self.refused(self.alice.ask(method, path, body), [400], ["M_NOT_JSON"])

    def test_no_body(self):
        """The specification leaves open whether that is an empty object."""
        for method, path in self.endpoints:
            with self.subTest(f"{method} {path}"):
                self.bearable(self.alice.ask(method, path, b""))

    def test_no_object(self):
        for method, path in self.endpoints:
            for body in NOT_AN_OBJECT:
                with self.subTest(f"{method} {path}: {body}"):
                    self.refused(self.alice.ask(method, path, body), [400], ["M_BAD_JSON"])
            with self.subTest(f"{method} {path}: null"):
                self.refused(self.alice.ask(method, path, b"null"), [400], ["M_BAD_JSON", "M_MISSING_PARAM"])

    @synapse_deviates("400 M_UNKNOWN or M_INVALID_PARAM, 500, or 200 for many of these")
    def test_wrong_types(self):
        room = f"/rooms/{quote(self.room_id)}"
        me = quote(self.alice.user_id)
        for method, path, body in [
            ("POST", "/createRoom", {"invite": "alice"}),
            ("POST", "/createRoom", {"invite": [5]}),
            ("POST", "/createRoom", {"initial_state": {"type": "m.room.topic"}}),
            ("POST", "/createRoom", {"initial_state": ["m.room.topic"]}),
            ("POST", "/createRoom", {"creation_content": "x"}),
            ("POST", "/createRoom", {"power_level_content_override": []}),
            ("POST", "/createRoom", {"room_version": 11}),
            ("POST", "/createRoom", {"name": {"en": "Office"}}),
            ("POST", "/createRoom", {"topic": 5}),
            ("POST", "/createRoom", {"preset": 7}),
            ("POST", "/createRoom", {"visibility": []}),
            ("POST", "/createRoom", {"room_alias_name": {}}),
            ("POST", f"{room}/invite", {"user_id": 5}),
            ("POST", f"{room}/kick", {"user_id": ["x"]}),
            ("POST", f"{room}/ban", {"user_id": {}}),
            ("PUT", f"{room}/typing/{me}", {"typing": "yes"}),
            ("PUT", f"{room}/typing/{me}", {"typing": True, "timeout": "soon"}),
            ("POST", f"{room}/read_markers", {"m.fully_read": 5}),
            ("POST", "/login", {"type": 5}),
            ("POST", "/login", {"type": "m.login.password", "identifier": [], "password": "x"}),
            ("POST", "/login", {"type": "m.login.password", "password": 5, "identifier": {
                "type": "m.id.user", "user": self.alice.name}}),
            ("POST", f"/user/{me}/filter", {"room": []}),
            ("POST", f"/user/{me}/filter", {"room": {"timeline": {"limit": "many"}}}),
            ("POST", f"/user/{me}/filter", {"room": {"rooms": "all"}}),
            ("POST", f"/user/{me}/filter", {"event_fields": "all"}),
            ("POST", f"/user/{me}/filter", {"presence": {"types": [5]}}),
            ("PUT", f"/profile/{me}/displayname", {"displayname": 5}),
            ("PUT", f"/profile/{me}/avatar_url", {"avatar_url": []}),
            ("PUT", f"/presence/{me}/status", {"presence": 5}),
            ("PUT", "/pushrules/global/override/org.example", {"actions": "notify", "conditions": []}),
            ("PUT", "/pushrules/global/override/org.example", {"actions": ["notify"], "conditions": "x"}),
            ("PUT", f"/user/{me}{room}/tags/m.favourite", {"order": "first"}),
        ]:
            with self.subTest(f"{method} {path}: {body}"):
                self.refused(self.alice.ask(method, path, body), [400], ["M_BAD_JSON"])

    @synapse_deviates("400 M_UNKNOWN for some of these, and 500 for typing")
    def test_what_is_missing(self):
        room = f"/rooms/{quote(self.room_id)}"
        me = quote(self.alice.user_id)
        for method, path in [
            ("POST", f"{room}/invite"),
            ("POST", f"{room}/kick"),
            ("POST", f"{room}/ban"),
            ("POST", f"{room}/unban"),
            ("PUT", f"{room}/typing/{me}"),
            ("POST", "/login"),
            ("PUT", f"/presence/{me}/status"),
            ("PUT", "/pushrules/global/override/org.example"),
        ]:
            with self.subTest(f"{method} {path}"):
                self.refused(self.alice.ask(method, path, {}), [400], ["M_BAD_JSON", "M_MISSING_PARAM"])

    def test_registration_is_no_json(self):
        for name, body in NOT_JSON.items():
            with self.subTest(name):
                self.refused(request("POST", f"{V3}/register", body), [400], ["M_NOT_JSON"])

    @synapse_deviates("400 M_UNKNOWN, and 500 for the device id")
    def test_wrong_types_at_registration(self):
        for part in [{"username": 5}, {"password": []}, {"auth": "dummy"}, {"device_id": {}}]:
            with self.subTest(part):
                body = {"auth": {"type": "m.login.dummy"}, "password": "x", **part}
                self.refused(request("POST", f"{V3}/register", body), [400], ["M_BAD_JSON"])


class Events(BadInput):
    @classmethod
    def setUpClass(cls):
        cls.alice = Account("alice")
        cls.room_id = cls.alice.create_room()

    def send(self, content, room_id=None):
        """Sends an event of which the content is this text of JSON."""
        path = self.alice.send_path(room_id or self.room_id, "org.example")
        return self.alice.ask("PUT", path, content.encode())

    def test_numbers_that_events_must_not_have(self):
        for number in FLOATS + OUT_OF_RANGE:
            for content in [f'{{"n": {number}}}', f'{{"a": [{{"b": [1, {number}]}}]}}']:
                with self.subTest(content):
                    self.refused(self.send(content), [400], ["M_BAD_JSON"])

    def test_numbers_that_state_must_not_have(self):
        for number in FLOATS + OUT_OF_RANGE:
            with self.subTest(number):
                body = f'{{"topic": "x", "n": {number}}}'.encode()
                path = f"/rooms/{quote(self.room_id)}/state/m.room.topic"
                self.refused(self.alice.ask("PUT", path, body), [400], ["M_BAD_JSON"])
                body = f'{{"creation_content": {{"n": {number}}}}}'.encode()
                self.refused(self.alice.ask("POST", "/createRoom", body), [400], ["M_BAD_JSON"])
                body = f'{{"initial_state": [{{"type": "x", "state_key": "", "content": {{"n": {number}}}}}]}}'
                self.refused(self.alice.ask("POST", "/createRoom", body.encode()), [400], ["M_BAD_JSON"])

    @synapse_deviates("500")
    def test_a_number_beyond_doubles(self):
        self.refused(self.send('{"n": 1e400}'), [400], ["M_BAD_JSON", "M_NOT_JSON"])

    def test_the_largest_numbers_that_events_may_have(self):
        for number in [2**53 - 1, -(2**53) + 1, 0]:
            answer = self.send(f'{{"n": {number}}}')
            self.assertEqual(answer.status, 200, answer)
            self.assertEqual(self.content(answer), {"n": number})

    def test_old_room_versions_may_have_floats(self):
        room_id = self.alice.create_room(room_version="5")
        for number in FLOATS:
            answer = self.send(f'{{"n": {number}}}', room_id)
            self.bearable(answer)
            if answer.status == 200:
                self.assertTrue(math.isclose(self.content(answer, room_id)["n"], float(number)))

    def test_account_data_may_have_floats(self):
        path = f"/user/{quote(self.alice.user_id)}/account_data/org.example"
        self.alice.must("PUT", path, {"n": 1.5})
        self.assertEqual(self.alice.must("GET", path), {"n": 1.5})

    def test_a_key_that_comes_twice(self):
        """JSON does not say what it means, so an event must not have it: refused, or one of them kept."""
        answer = self.send('{"body": "one", "body": "two", "msgtype": "m.text"}')
        self.bearable(answer)
        if answer.status == 200:
            path = f"/rooms/{quote(self.room_id)}/event/{quote(answer.json['event_id'])}"
            self.assertEqual(self.alice.ask("GET", path).body.count(b'"body"'), 1)

    def test_text_keeps_its_oddities(self):
        for text in ["a\0b", "\u2028", "\U0001f370", "\ufffe", "\\", '"', "e\u0301", "\u202etxt"]:
            with self.subTest(ascii(text)):
                answer = self.send(json.dumps({"body": text, "msgtype": "m.text", text: 1}))
                self.assertEqual(answer.status, 200, answer)
                self.assertEqual(self.content(answer), {"body": text, "msgtype": "m.text", text: 1})

    @synapse_deviates("500")
    def test_half_a_surrogate_pair(self):
        self.refused(self.send(r'{"body": "\ud83c", "msgtype": "m.text"}'), [400], ["M_BAD_JSON", "M_NOT_JSON"])

    def test_nesting(self):
        for depth in [50, 10_000]:
            content = '{"a":' * depth + "1" + "}" * depth
            with self.subTest(depth):
                answer = self.send(content)
                if depth == 50:
                    self.assertEqual(answer.status, 200, answer)
                    self.assertEqual(self.content(answer), json.loads(content))
                else:
                    self.deep(answer)
        for method, path in [("POST", "/login"), ("POST", "/createRoom"), ("POST", "/register")]:
            for opening, closing in [("[", "]"), ('{"a":', "}")]:
                with self.subTest(f"{path} {opening}"):
                    body = '{"x":' + opening * 100_000 + "1" + closing * 100_000 + "}"
                    self.refused(self.alice.ask(method, path, body.encode()), [400, 401, 403, 413])
        self.assert_alive()

    def deep(self, answer):
        self.refused(answer, [400, 413], ["M_BAD_JSON", "M_NOT_JSON", "M_TOO_LARGE"])

    def content(self, answer, room_id=None):
        path = f"/rooms/{quote(room_id or self.room_id)}/event/{quote(answer.json['event_id'])}"
        return self.alice.must("GET", path)["content"]
