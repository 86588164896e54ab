"""Rooms that the asker was never in, has left, or was banned from: nothing is told and nothing can be done."""
import secrets

from server import Account, BadInput, quote, synapse_deviates

SECRET = f"secret-{secrets.token_hex(8)}"


class OtherRooms(BadInput):
    @classmethod
    def setUpClass(cls):
        cls.alice, cls.bob, cls.carol, cls.dora = (Account(name) for name in ["alice", "bob", "carol", "dora"])
        cls.room_id = cls.alice.create_room(name="Open", invite=[cls.bob.user_id, cls.dora.user_id])
        cls.room = f"/rooms/{quote(cls.room_id)}"
        for staff in (cls.bob, cls.dora):
            staff.join(cls.room_id)
        cls.seen = cls.alice.send(cls.room_id, "All may know")
        cls.bob.leave(cls.room_id)
        cls.alice.must("POST", f"{cls.room}/ban", {"user_id": cls.dora.user_id})
        # From here on only alice is there.
        cls.alice.must("PUT", f"{cls.room}/state/m.room.name/", {"name": SECRET})
        cls.alice.must("PUT", f"{cls.room}/state/m.room.topic/", {"topic": SECRET})
        cls.alice.must("PUT", f"{cls.room}/state/org.example/{SECRET}", {"x": SECRET})
        cls.unseen = cls.alice.send(cls.room_id, SECRET)
        cls.late = cls.alice.send(cls.room_id, SECRET)

    def no_leak(self, answer):
        for secret in [SECRET, self.unseen, self.late]:
            self.assertNotIn(secret.encode(), answer.body)

    def reads(self, event_id):
        return [
            f"{self.room}/event/{quote(event_id)}",
            f"{self.room}/context/{quote(event_id)}",
        ]

    def test_reading_where_one_never_was(self):
        for path in [
            f"{self.room}/state",
            f"{self.room}/state/m.room.name/",
            f"{self.room}/state/m.room.create/",
            f"{self.room}/state/org.example/{SECRET}",
            f"{self.room}/state/m.room.member/{quote(self.alice.user_id)}",
            f"{self.room}/members",
            f"{self.room}/joined_members",
            f"{self.room}/messages?dir=b",
            f"{self.room}/messages?dir=f",
            f"{self.room}/aliases",
            *self.reads(self.seen),
            *self.reads(self.unseen),
        ]:
            with self.subTest(path):
                answer = self.carol.ask("GET", path)
                self.refused(answer, [403, 404])
                self.assertNotIn(b"All may know", answer.body)
                if SECRET not in path:
                    self.no_leak(answer)

    def state_ids(self):
        return sorted(event["event_id"] for event in self.alice.must("GET", f"{self.room}/state"))

    def test_writing_where_one_is_not(self):
        event = quote(self.seen)
        for who in (self.carol, self.bob, self.dora):
            before = self.state_ids()
            other = quote(who.user_id)
            for method, path, body in [
                ("PUT", who.send_path(self.room_id), {"msgtype": "m.text", "body": "x"}),
                ("PUT", f"{self.room}/state/m.room.name/", {"name": "Taken"}),
                ("PUT", f"{self.room}/state/m.room.member/{other}", {"membership": "join"}),
                ("PUT", f"{self.room}/redact/{event}/{secrets.token_hex(4)}", {}),
                ("PUT", f"{self.room}/typing/{other}", {"typing": True}),
                ("POST", f"{self.room}/invite", {"user_id": self.carol.user_id}),
                ("POST", f"{self.room}/kick", {"user_id": self.alice.user_id}),
                ("POST", f"{self.room}/ban", {"user_id": self.alice.user_id}),
                ("POST", f"{self.room}/unban", {"user_id": self.dora.user_id}),
                ("POST", f"{self.room}/join", {}),
                ("POST", f"/join/{quote(self.room_id)}", {}),
                ("POST", f"/knock/{quote(self.room_id)}", {}),
            ]:
                with self.subTest(f"{who.name} {method} {path}"):
                    answer = who.ask(method, path, body)
                    self.refused(answer, [403, 404])
                    self.no_leak(answer)
            self.assertEqual(self.state_ids(), before)

    def test_receipts_where_one_is_not(self):
        """Refused or without effect."""
        for who in (self.carol, self.bob, self.dora):
            for path, body in [
                (f"{self.room}/receipt/m.read/{quote(self.unseen)}", {}),
                (f"{self.room}/receipt/m.read.private/{quote(self.unseen)}", {}),
                (f"{self.room}/read_markers", {"m.fully_read": self.unseen, "m.read": self.unseen}),
            ]:
                with self.subTest(f"{who.name} {path}"):
                    answer = who.ask("POST", path, body)
                    self.bearable(answer)
        joined = self.alice.must("GET", "/sync")["rooms"]["join"][self.room_id]
        for who in (self.carol, self.bob, self.dora):
            self.assertNotIn(who.user_id, str(joined["ephemeral"]))

    def test_reading_what_came_after_one_left(self):
        for who in (self.bob, self.dora):
            for path in self.reads(self.unseen) + self.reads(self.late):
                with self.subTest(f"{who.name} {path}"):
                    answer = who.ask("GET", path)
                    self.refused(answer, [403, 404])
                    self.assertNotIn(SECRET.encode(), answer.body)
            for path in [
                f"{self.room}/messages?dir=b",
                f"{self.room}/state",
                f"{self.room}/state/m.room.name/",
                f"{self.room}/state/org.example/{SECRET}",
                f"{self.room}/members",
                f"{self.room}/context/{quote(self.seen)}",
                "/sync",
                "/sync?full_state=true",
            ]:
                with self.subTest(f"{who.name} {path}"):
                    answer = who.ask("GET", path)
                    self.bearable(answer)
                    if SECRET not in path:
                        self.no_leak(answer)

    @synapse_deviates("going forward it shows who left what came later")
    def test_reading_forward_past_ones_leaving(self):
        answer = self.bob.ask("GET", f"{self.room}/messages?dir=f&limit=100")
        self.bearable(answer)
        self.no_leak(answer)

    def test_what_one_saw_is_still_there(self):
        chunk = self.bob.must("GET", f"{self.room}/messages?dir=b&limit=100")["chunk"]
        self.assertIn(self.seen, [event["event_id"] for event in chunk])
        self.assertEqual(self.bob.must("GET", f"{self.room}/state/m.room.name/"), {"name": "Open"})
        event = self.bob.must("GET", f"{self.room}/event/{quote(self.seen)}")
        self.assertEqual(event["content"]["body"], "All may know")

    def test_other_peoples_own(self):
        """Nobody reads or writes another's account data, tags, filters, devices, or keeps them as his own."""
        alice = quote(self.alice.user_id)
        self.alice.must("PUT", f"/user/{alice}/account_data/org.example", {"x": SECRET})
        self.alice.must("PUT", f"/user/{alice}{self.room}/account_data/org.example", {"x": SECRET})
        self.alice.must("PUT", f"/user/{alice}{self.room}/tags/u.{SECRET}", {})
        filter_id = self.alice.must("POST", f"/user/{alice}/filter", {"event_fields": [SECRET]})["filter_id"]
        device = self.alice.must("GET", "/account/whoami")["device_id"]
        for method, path, body in [
            ("GET", f"/user/{alice}/account_data/org.example", None),
            ("PUT", f"/user/{alice}/account_data/org.example", {}),
            ("GET", f"/user/{alice}{self.room}/account_data/org.example", None),
            ("PUT", f"/user/{alice}{self.room}/account_data/org.example", {}),
            ("GET", f"/user/{alice}{self.room}/tags", None),
            ("PUT", f"/user/{alice}{self.room}/tags/u.mine", {}),
            ("DELETE", f"/user/{alice}{self.room}/tags/u.{SECRET}", None),
            ("GET", f"/user/{alice}/filter/{filter_id}", None),
            ("POST", f"/user/{alice}/filter", {}),
            ("GET", f"/devices/{quote(device)}", None),
            ("PUT", f"/devices/{quote(device)}", {"display_name": "x"}),
            ("PUT", f"/profile/{alice}/displayname", {"displayname": "x"}),
            ("PUT", f"/presence/{alice}/status", {"presence": "offline"}),
            ("PUT", f"{self.room}/typing/{alice}", {"typing": True}),
        ]:
            with self.subTest(f"{method} {path}"):
                answer = self.bob.ask(method, path, body)
                self.refused(answer, [400, 403, 404])
                if SECRET not in path:
                    self.assertNotIn(SECRET.encode(), answer.body)
        self.assertEqual(self.alice.must("GET", f"/user/{alice}/account_data/org.example"), {"x": SECRET})
        self.assertIn(f"u.{SECRET}", self.alice.must("GET", f"/user/{alice}{self.room}/tags")["tags"])
