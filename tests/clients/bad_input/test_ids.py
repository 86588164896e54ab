"""Ids that are none, too long, with NUL, unknown, of another room or of another server; and bad parameters."""
from server import V3, Account, BadInput, quote, request, synapse_deviates

LONG = "a" * 300
NOWHERE = "127.0.0.1:1"  # a server name at which nobody listens
HERE = Account("somebody").server_name
ROOM_IDS = ["!", "!a", "room", f"@a:{HERE}", f"#a:{HERE}", f"!a\0b:{HERE}", f"!{LONG}:{HERE}", f"!ä:{HERE}",
            "!a:" + LONG, "\0", " ", "..", f"!no-such-room:{HERE}", "!" + "A" * 43]
USER_IDS = ["bob", "@", "@:", "@bob", f"!bob:{HERE}", f"@{LONG}:{HERE}", f"@a\0b:{HERE}", "@a:", "\0", " "]
EVENT_IDS = ["$", "nope", "$a\0b", f"${LONG}", "\0", f"!a:{HERE}", "$no-such-event", "$" + "A" * 43]


class Ids(BadInput):
    @classmethod
    def setUpClass(cls):
        cls.alice, cls.bob = Account("alice"), Account("bob")
        cls.room_id = cls.alice.create_room(invite=[cls.bob.user_id])
        cls.bob.join(cls.room_id)
        cls.event_id = cls.alice.send(cls.room_id, "Here")
        cls.other_room = cls.alice.create_room()
        cls.other_event = cls.alice.send(cls.other_room, "There")
        cls.room = f"/rooms/{quote(cls.room_id)}"

    def test_room_ids(self):
        event, me = quote(self.event_id), quote(self.alice.user_id)
        for room_id in ROOM_IDS:
            room = f"/rooms/{quote(room_id)}"
            for method, path, body in [
                ("GET", f"{room}/state", None),
                ("GET", f"{room}/members", None),
                ("GET", f"{room}/joined_members", None),
                ("GET", f"{room}/messages?dir=b", None),
                ("GET", f"{room}/event/{event}", None),
                ("GET", f"{room}/context/{event}", None),
                ("GET", f"{room}/state/m.room.create/", None),
                ("PUT", f"{room}/send/m.room.message/1", {"msgtype": "m.text", "body": "x"}),
                ("PUT", f"{room}/state/m.room.topic/", {"topic": "x"}),
                ("PUT", f"{room}/redact/{event}/1", {}),
                ("POST", f"{room}/invite", {"user_id": self.bob.user_id}),
                ("POST", f"{room}/kick", {"user_id": self.bob.user_id}),
                ("POST", f"{room}/ban", {"user_id": self.bob.user_id}),
                ("POST", f"{room}/unban", {"user_id": self.bob.user_id}),
                ("POST", f"{room}/join", {}),
                ("POST", f"{room}/leave", {}),
                ("POST", f"/join/{quote(room_id)}", {}),
                ("PUT", f"{room}/typing/{me}", {"typing": True}),
            ]:
                with self.subTest(f"{method} {path}"):
                    self.refused(self.alice.ask(method, path, body), [400, 403, 404])

    def test_event_ids(self):
        for event_id in EVENT_IDS + [self.other_event]:
            event = quote(event_id)
            for method, path, body in [
                ("GET", f"{self.room}/event/{event}", None),
                ("GET", f"{self.room}/context/{event}", None),
            ]:
                with self.subTest(f"{method} {path}"):
                    self.refused(self.alice.ask(method, path, body), [400, 403, 404])

    def test_redacting_what_nobody_knows(self):
        """A server may let it pass: the event may reach it later."""
        for number, event_id in enumerate(EVENT_IDS):
            with self.subTest(event_id):
                self.bearable(self.alice.ask("PUT", f"{self.room}/redact/{quote(event_id)}/unknown-{number}", {}))

    def test_another_rooms_event_is_not_redacted(self):
        path = f"{self.room}/redact/{quote(self.other_event)}/{quote(self.other_event)}"
        self.refused(self.alice.ask("PUT", path, {}), [400, 403, 404])
        path = f"/rooms/{quote(self.other_room)}/event/{quote(self.other_event)}"
        self.assertEqual(self.alice.must("GET", path)["content"]["body"], "There")

    def test_receipts_for_what_is_not_in_the_room(self):
        """Refused or without effect; the specification does not say which."""
        for event_id in EVENT_IDS + [self.other_event]:
            for kind in ["m.read", "m.read.private", "m.fully_read"]:
                with self.subTest(f"{kind} {event_id!r}"):
                    path = f"{self.room}/receipt/{kind}/{quote(event_id)}"
                    self.bearable(self.bob.ask("POST", path, {}))
        synced = self.alice.must("GET", "/sync")
        ephemeral = synced["rooms"]["join"][self.room_id]["ephemeral"]["events"]
        self.assertNotIn(self.other_event, [id for event in ephemeral for id in event["content"]])

    def test_bad_receipts(self):
        event = quote(self.event_id)
        self.refused(self.bob.ask("POST", f"{self.room}/receipt/org.example/{event}", {}), [400])
        for thread_id in [5, "", "nope", LONG, None]:
            with self.subTest(thread_id):
                answer = self.bob.ask("POST", f"{self.room}/receipt/m.read/{event}", {"thread_id": thread_id})
                self.bearable(answer)
                if thread_id in (5, ""):
                    self.refused(answer, [400])

    def test_user_ids(self):
        me = quote(self.alice.user_id)
        for user_id in USER_IDS:
            user = quote(user_id)
            for method, path, body, statuses in [
                ("POST", f"{self.room}/kick", {"user_id": user_id}, [400, 403, 404]),
                ("GET", f"/profile/{user}", None, [400, 404]),
                ("PUT", f"/profile/{user}/displayname", {"displayname": "x"}, [400, 403, 404]),
                ("PUT", f"{self.room}/typing/{user}", {"typing": True}, [400, 403, 404]),
                ("GET", f"/user/{user}/account_data/org.example", None, [400, 403, 404]),
                ("PUT", f"/user/{user}/account_data/org.example", {}, [400, 403, 404]),
                ("POST", f"/user/{user}/filter", {}, [400, 403, 404]),
                ("GET", f"/presence/{user}/status", None, [400, 403, 404]),
                ("PUT", f"/presence/{user}/status", {"presence": "online"}, [400, 403, 404]),
            ]:
                with self.subTest(f"{method} {path} {user_id!r}"):
                    self.refused(self.alice.ask(method, path, body), statuses)
            with self.subTest(f"login {user_id!r}"):
                identifier = {"type": "m.id.user", "user": user_id}
                login = {"type": "m.login.password", "identifier": identifier, "password": "x"}
                self.refused(self.alice.ask("POST", "/login", login), [400, 403])
        for key in ["displayname", "avatar_url"]:
            self.refused(self.bob.ask("PUT", f"/profile/{me}/{key}", {key: "x"}), [400, 403])

    @synapse_deviates("500 where an id has no or an impossible server name, 200 for unban")
    def test_members_that_nobody_can_be(self):
        refusals = [400, 403, 404, 413]
        for user_id in USER_IDS:
            with self.subTest(f"unban {user_id!r}"):
                self.refused(self.alice.ask("POST", f"{self.room}/unban", {"user_id": user_id}), refusals)
            with self.subTest(f"invite {user_id!r}"):
                self.refused(self.alice.ask("POST", f"{self.room}/invite", {"user_id": user_id}), refusals)
            with self.subTest(f"ban {user_id!r}"):
                self.refused(self.alice.ask("POST", f"{self.room}/ban", {"user_id": user_id}), refusals)
            with self.subTest(f"create {user_id!r}"):
                self.refused(self.alice.ask("POST", "/createRoom", {"invite": [user_id]}), refusals)

    def test_aliases(self):
        for alias in ["#", "#a", "#:", f"#{LONG}:{HERE}", "a", f"#a\0b:{HERE}", f"#none:{NOWHERE}"]:
            with self.subTest(alias):
                answer = self.alice.ask("GET", f"/directory/room/{quote(alias)}")
                self.refused(answer, [400, 404, 502])
                self.refused(self.alice.ask("POST", f"/join/{quote(alias)}", {}), [400, 403, 404, 502])

    def test_ids_of_a_server_that_nobody_reaches(self):
        for method, path, body in [
            ("POST", f"{self.room}/invite", {"user_id": f"@bob:{NOWHERE}"}),
            ("POST", f"/join/{quote(f'!room:{NOWHERE}')}", {}),
            ("GET", f"/profile/{quote(f'@bob:{NOWHERE}')}", None),
        ]:
            with self.subTest(path):
                answer = self.alice.ask(method, path, body, timeout=60)
                self.refused(answer, [400, 403, 404, 500, 502, 504])

    def test_names_that_accounts_must_not_have(self):
        for name in ["", "a b", "Ä", "a\0b", "a:b", "@a", LONG, "a/b?c", "\n"]:
            body = {"username": name, "password": "x", "auth": {"type": "m.login.dummy"}}
            with self.subTest(name):
                if name:  # an empty one may count as none, for which the server makes one up
                    self.refused(request("POST", f"{V3}/register", body), [400], ["M_INVALID_USERNAME"])
            if name.isascii():  # Synapse refuses the others, but with M_UNKNOWN
                available = request("GET", f"{V3}/register/available?username={quote(name)}")
                with self.subTest(f"available {name!r}"):
                    self.refused(available, [400], ["M_INVALID_USERNAME"])

    def test_event_types_and_state_keys(self):
        content = {"body": "x", "msgtype": "m.text"}
        longest = "k" * 255
        send = lambda kind: self.alice.ask("PUT", self.alice.send_path(self.room_id, kind), content)
        put = lambda kind, key: self.alice.ask("PUT", f"{self.room}/state/{quote(kind)}/{quote(key)}", content)
        self.assertEqual(send(longest).status, 200)
        self.assertEqual(put(longest, longest).status, 200)
        too_long = [400, 413], ["M_BAD_JSON", "M_INVALID_PARAM", "M_TOO_LARGE"]
        for name in [longest + "k", "ä" * 128, "x" * 5_000]:
            with self.subTest(name[:10]):
                self.refused(send(name), *too_long)
                self.refused(put(name, ""), *too_long)
                self.refused(put("org.example", name), *too_long)

    def test_state_keys_with_nul_are_kept_apart(self):
        keys = ["a\0b", "a", "a\0", "\0", "a\xffb"]
        kept = {}
        for key in keys:
            path = f"{self.room}/state/org.example.nul/{quote(key)}"
            answer = self.alice.ask("PUT", path, {"key": ascii(key)})
            self.bearable(answer)
            if answer.status == 200:
                kept[key] = path
        self.assertIn("a", kept)
        for key, path in kept.items():
            self.assertEqual(self.alice.must("GET", path), {"key": ascii(key)})

    def test_account_data_types_with_nul_are_kept_apart(self):
        kept = []
        for key in ["x\0y", "x", "x\0"]:
            path = f"/user/{quote(self.alice.user_id)}/account_data/{quote(key)}"
            answer = self.alice.ask("PUT", path, {"key": ascii(key)})
            self.bearable(answer)
            if answer.status == 200:
                kept.append((key, path))
        for key, path in kept:
            self.assertEqual(self.alice.must("GET", path), {"key": ascii(key)})

    def test_transaction_and_device_ids(self):
        content = {"body": "x", "msgtype": "m.text"}
        for txn_id in ["t" * 5_000, "a\0b", "ä", " ", "%"]:
            with self.subTest(txn_id[:10]):
                self.bearable(self.alice.ask("PUT", f"{self.room}/send/m.room.message/{quote(txn_id)}", content))
        identifier = {"type": "m.id.user", "user": self.bob.name}
        login = {"type": "m.login.password", "identifier": identifier, "password": self.bob.password}
        for device_id in ["d" * 5_000, "a\0b", "ä", "/"]:
            with self.subTest(device_id[:10]):
                self.bearable(self.bob.ask("POST", "/login", {**login, "device_id": device_id}))
                for method in ["GET", "PUT"]:
                    body = {"display_name": "x"} if method == "PUT" else None
                    self.bearable(self.bob.ask(method, f"/devices/{quote(device_id)}", body))

    def test_parameters(self):
        # Bad values of what the specification gives a type.
        for path in [
            "/sync?timeout=soon",
            "/sync?since=nonsense",
            "/sync?since=%00",
            "/sync?filter=%7B",
            "/sync?full_state=perhaps",
            f"{self.room}/messages?dir=x",
            f"{self.room}/messages?dir=b&limit=many",
            f"{self.room}/messages?dir=b&from=nonsense",
            f"{self.room}/messages?dir=b&filter=%7B",
            f"{self.room}/context/{quote(self.event_id)}?limit=many",
            f"{self.room}/members?at=nonsense",
        ]:
            with self.subTest(path):
                self.refused(self.alice.ask("GET", path), [400])
        for path in [
            f"{self.room}/messages?dir=b&limit=-1",
            f"{self.room}/messages?dir=b&limit=0",
            f"{self.room}/messages?dir=b&limit=99999999999999999999999",
            f"{self.room}/context/{quote(self.event_id)}?limit=-5",
            "/sync?timeout=-1",
            "/sync?timeout=99999999999999999999999",
            "/sync?set_presence=asleep",
            "/sync?since=s99999999999999999999999",
            f"{self.room}/members?membership=asleep",
        ]:
            with self.subTest(path):
                self.bearable(self.alice.ask("GET", path))

    def test_a_limit_without_bounds(self):
        """Ten times what any server answers at once; the answer is cut, not refused."""
        answer = self.alice.must("GET", f"{self.room}/messages?dir=b&limit=1000000")
        self.assertTrue(answer["chunk"])

    def test_filters_of_nobody(self):
        me = quote(self.alice.user_id)
        for filter_id in ["99999999", "nope", "-1", "\0"]:
            with self.subTest(filter_id):
                self.refused(self.alice.ask("GET", f"/user/{me}/filter/{quote(filter_id)}"), [400, 404])
                self.refused(self.alice.ask("GET", f"/sync?filter={quote(filter_id)}"), [400, 404])

    @synapse_deviates("500")
    def test_a_filter_beyond_integers(self):
        path = f"/user/{quote(self.alice.user_id)}/filter/{'9' * 300}"
        self.refused(self.alice.ask("GET", path), [400, 404])


class State(BadInput):
    """Events that the room's rules forbid, whoever sends them."""

    @classmethod
    def setUpClass(cls):
        cls.alice, cls.bob = Account("alice"), Account("bob")
        cls.room_id = cls.alice.create_room(invite=[cls.bob.user_id])
        cls.bob.join(cls.room_id)

    def test_forbidden_state(self):
        bob, nobody = quote(self.bob.user_id), quote(f"@nobody:{HERE}")
        levels = self.alice.must("GET", f"/rooms/{quote(self.room_id)}/state/m.room.power_levels/")
        for kind, key, content in [
            ("m.room.create", "", {"room_version": "11"}),
            ("m.room.member", bob, {"membership": "join", "displayname": "Not Bob"}),
            ("m.room.member", nobody, {"membership": "join"}),
            ("m.room.member", nobody, {"membership": "knock"}),
            ("m.room.member", bob, {"membership": "asleep"}),
            ("m.room.member", bob, {"membership": 5}),
            ("m.room.member", bob, {}),
            ("m.room.member", "nobody", {"membership": "invite"}),
            ("m.room.member", "", {"membership": "join"}),
            ("m.room.power_levels", "", {**levels, "users_default": "much"}),
            ("m.room.power_levels", "", {**levels, "users": {"bob": 100}}),
            ("m.room.power_levels", "", {**levels, "events": []}),
            ("m.room.power_levels", "", {**levels, "ban": {}}),
            ("org.example", bob, {"key": "of another user"}),
        ]:
            with self.subTest(f"{kind} {key} {content}"):
                path = f"/rooms/{quote(self.room_id)}/state/{kind}/{key}"
                self.refused(self.alice.ask("PUT", path, content), [400, 403])
        self.assertEqual(self.alice.must("GET", f"/rooms/{quote(self.room_id)}/state/m.room.power_levels/"), levels)

    def test_nobody_writes_the_events_fields(self):
        """What a client puts beside the content is not taken over, and depth and references are the server's own."""
        content = {
            "msgtype": "m.text", "body": "x", "depth": 2**53 - 1, "prev_events": ["$x"], "auth_events": [], "hashes": {},
            "sender": self.bob.user_id, "room_id": "!x:nowhere", "event_id": "$x", "unsigned": {"age": 5},
        }
        path = self.alice.send_path(self.room_id) + "?ts=1&prev_event_id=%24x&user_id=" + quote(self.bob.user_id)
        event_id = self.alice.must("PUT", path, content)["event_id"]
        event = self.alice.must("GET", f"/rooms/{quote(self.room_id)}/event/{quote(event_id)}")
        self.assertEqual(event["content"], content)
        self.assertEqual((event["sender"], event["room_id"]), (self.alice.user_id, self.room_id))
        self.assertGreater(event["origin_server_ts"], 1_500_000_000_000)
        after = self.alice.send(self.room_id, "After it")
        chunk = self.alice.must("GET", f"/rooms/{quote(self.room_id)}/messages?dir=b&limit=2")["chunk"]
        self.assertEqual([event["event_id"] for event in chunk], [after, event_id])
