"""A node and a real Synapse share rooms: everything that people do in them, both ways, through outages and forks."""
import asyncio
import os
import pathlib
import shutil
import tempfile
import time
import unittest

import synapse
from office import KONTOR, Kontor, Link, enter, free_port, quote, run

VERSIONS = os.environ.get("ROOM_VERSIONS", "10 11 12").split()


class Interop(unittest.IsolatedAsyncioTestCase):
    """Each test starts two servers of its own."""

    async def asyncSetUp(self):
        asyncio.get_running_loop().set_debug(False)  # unittest's default is ten times slower
        synapse.install()
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="kontor-interop-"))
        run(KONTOR, "ca", "init", "--directory", self.work / "ca")
        https = free_port()
        self.to_synapse = Link(https)
        self.to_kontor = Link(None)
        self.kontor = Kontor(self.work, f"localhost:{self.to_kontor.port}")
        self.to_kontor.target = self.kontor.https
        for link in (self.to_synapse, self.to_kontor):
            await link.open()
        name = f"localhost:{self.to_synapse.port}"
        self.kontor.configure({name: f"127.0.0.1:{self.to_synapse.port}"})
        self.synapse = synapse.Synapse(self.work, self.to_synapse.port, https, self.work / "ca/issued/localhost")
        self.synapse.configure()
        self.addAsyncCleanup(self.end)
        await asyncio.gather(self.kontor.start(), self.synapse.start())
        self.servers = [self.kontor, self.synapse]
        self.people = []

    async def end(self):
        for one in self.people:
            await one.go()
        for server in self.servers:
            server.kill()
        for link in (self.to_synapse, self.to_kontor):
            await link.close()
        if os.environ.get("KEEP"):
            print(f"      kept: {self.work}", flush=True)
        else:
            shutil.rmtree(self.work)

    async def pair(self, here=None):
        """Somebody new on each server; the first on `here` (the node by default)."""
        here = here or self.kontor
        user = f"person{len(self.people)}"
        there = next(server for server in self.servers if server is not here)
        both = await enter(here.staff(user), there.staff(user))
        self.people += both
        return both

    async def shared(self, one, other, version="11", **more):
        """A public room of `one` that `other` has joined."""
        room = await one.create(preset="public_chat", room_version=version, **more)
        await other.join(room, via=[one.server.name])
        await one.until(lambda: other.user_id in one.joined(room), "the join")
        await other.until(lambda: {one.user_id, other.user_id} <= other.joined(room), "the members")
        return room

    async def agree(self, room, *people):
        """Waits until all see the same state."""
        for _ in range(100):
            states = [await one.state(room) for one in people]
            if all(state == states[0] for state in states):
                return states[0]
            await asyncio.sleep(0.1)
        differing = set(states[0].items()) ^ set(states[1].items())
        self.fail(f"the state of {room} differs: {sorted(differing)}")

    def each_way(self):
        """Every room version, with the room made on either side."""
        for version in VERSIONS:
            for here in self.servers:
                yield version, here, self.subTest(version=version, made_on=type(here).__name__)

    async def test_conversation(self):
        for version, here, subtest in self.each_way():
            with subtest:
                one, other = await self.pair(here)
                room = await self.shared(one, other, version)
                for speaker, listener in ((one, other), (other, one)):
                    said = await speaker.say(room, "hello")
                    heard = await listener.receive(room, said)
                    self.assertEqual(heard["content"]["body"], "hello")
                    relates = {"rel_type": "m.replace", "event_id": said}
                    edit = {"m.new_content": {"msgtype": "m.text", "body": "good day"}, "m.relates_to": relates}
                    await listener.receive(room, await speaker.say(room, "* good day", **edit))
                    reaction = {"m.relates_to": {"rel_type": "m.annotation", "event_id": said, "key": "+1"}}
                    await speaker.receive(room, await listener.send(room, "m.reaction", reaction))
                    redaction = await speaker.call("PUT", f"/v3/rooms/{quote(room)}/redact/{said}/r", {"reason": "no"})
                    await listener.receive(room, redaction["event_id"])
                    gone = await listener.call("GET", f"/v3/rooms/{quote(room)}/event/{said}")
                    self.assertEqual(gone["content"], {})
                await self.agree(room, one, other)

    async def test_coming_and_going(self):
        for version, here, subtest in self.each_way():
            with subtest:
                one, other = await self.pair(here)
                room = await one.create(preset="private_chat", room_version=version, name="Private")
                await one.invite(room, other)
                await other.until(lambda: room in other.invites, "the invite")
                names = [event["content"].get("name") for event in other.invites[room] if event["type"] == "m.room.name"]
                self.assertEqual(names, ["Private"])
                await other.call("POST", f"/v3/rooms/{quote(room)}/leave")
                await one.until(lambda: one.members[room].get(other.user_id) == "leave", "the rejection")

                await one.invite(room, other)
                await other.until(lambda: room in other.invites, "the second invite")
                await one.call("POST", f"/v3/rooms/{quote(room)}/kick", {"user_id": other.user_id})
                await other.until(lambda: room not in other.invites, "the invite's end")

                await one.invite(room, other)
                await other.until(lambda: room in other.invites, "the third invite")
                await other.join(room)
                await one.until(lambda: other.user_id in one.joined(room), "the join")
                await other.until(lambda: other.user_id in other.joined(room), "the room")
                await one.call("POST", f"/v3/rooms/{quote(room)}/kick", {"user_id": other.user_id, "reason": "out"})
                await other.until(lambda: room in other.left, "the kick")
                await one.call("POST", f"/v3/rooms/{quote(room)}/ban", {"user_id": other.user_id})
                status, answer = await other.ask("POST", f"/v3/join/{quote(room)}?via={quote(one.server.name)}")
                self.assertEqual((status, answer.get("errcode")), (403, "M_FORBIDDEN"), answer)
                await one.call("POST", f"/v3/rooms/{quote(room)}/unban", {"user_id": other.user_id})
                await one.invite(room, other)
                await other.until(lambda: room in other.invites, "the invite after the ban")
                await other.join(room)
                await one.until(lambda: other.user_id in one.joined(room), "the join after the ban")
                await other.call("POST", f"/v3/rooms/{quote(room)}/leave")
                await one.until(lambda: other.user_id not in one.joined(room), "the leave")

    async def test_knocking(self):
        for version, here, subtest in self.each_way():
            with subtest:
                one, other = await self.pair(here)
                rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
                room = await one.create(preset="private_chat", room_version=version, initial_state=[rule])
                path = f"/v3/knock/{quote(room)}?via={quote(one.server.name)}"
                for answer in ("kick", "invite"):
                    await other.call("POST", path, {"reason": "let me in"})
                    await one.until(lambda: one.members[room].get(other.user_id) == "knock", "the knock")
                    await one.call("POST", f"/v3/rooms/{quote(room)}/{answer}", {"user_id": other.user_id})
                await other.until(lambda: room in other.invites, "the invite")
                await other.join(room)
                await one.until(lambda: other.user_id in one.joined(room), "the join")

    async def test_restricted_join(self):
        for version, here, subtest in self.each_way():
            with subtest:
                one, other = await self.pair(here)
                space = await self.shared(one, other, version, creation_content={"type": "m.space"})
                allow = [{"type": "m.room_membership", "room_id": space}]
                content = {"join_rule": "restricted", "allow": allow}
                rule = {"type": "m.room.join_rules", "state_key": "", "content": content}
                room = await one.create(preset="private_chat", room_version=version, initial_state=[rule])
                await other.join(room, via=[one.server.name])
                await one.until(lambda: other.user_id in one.joined(room), "the restricted join")
                stranger = (await enter(other.server.staff(f"stranger-{version}-{len(self.people)}")))[0]
                self.people.append(stranger)
                status, answer = await stranger.ask("POST", f"/v3/join/{quote(room)}?via={quote(one.server.name)}")
                self.assertEqual((status, answer.get("errcode")), (403, "M_FORBIDDEN"), answer)
                await self.agree(room, one, other)

    async def test_typing_receipts_presence_profiles(self):
        for here in self.servers:
            with self.subTest(made_on=type(here).__name__):
                one, other = await self.pair(here)
                room = await self.shared(one, other)
                for speaker, listener in ((one, other), (other, one)):
                    typing = f"/v3/rooms/{quote(room)}/typing/{quote(speaker.user_id)}"
                    await speaker.call("PUT", typing, {"typing": True, "timeout": 20000})

                    def typed(names):
                        seen = [event for at, event in listener.ephemeral if at == room and event["type"] == "m.typing"]
                        return seen and (speaker.user_id in seen[-1]["content"]["user_ids"]) == names

                    await listener.until(lambda: typed(True), "the typing")
                    await speaker.call("PUT", typing, {"typing": False})
                    await listener.until(lambda: typed(False), "the end of the typing")

                    said = await listener.say(room, "read me")
                    await speaker.receive(room, said)
                    for thread in ("main", None):
                        body = {"thread_id": thread} if thread else {}
                        await speaker.call("POST", f"/v3/rooms/{quote(room)}/receipt/m.read/{quote(said)}", body)
                        await listener.until(lambda: any(
                            (read := event["content"].get(said, {}).get("m.read", {}).get(speaker.user_id)) is not None
                            and read.get("thread_id") == thread
                            for at, event in listener.ephemeral if at == room and event["type"] == "m.receipt"
                        ), f"the receipt in {thread}")

                    status = {"presence": "online", "status_msg": f"at work, says {speaker.user_id}"}
                    await speaker.call("PUT", f"/v3/presence/{quote(speaker.user_id)}/status", status)
                    await listener.until(
                        lambda: listener.presence.get(speaker.user_id, {}).get("status_msg") == status["status_msg"],
                        "the presence",
                    )

                    profile = f"/v3/profile/{quote(speaker.user_id)}"
                    await speaker.call("PUT", f"{profile}/displayname", {"displayname": f"Name of {speaker.user_id}"})
                    await listener.until(lambda: any(
                        event["content"].get("displayname") == f"Name of {speaker.user_id}"
                        for event in listener.events[room].values() if event["type"] == "m.room.member"
                    ), "the new name")
                    seen = await listener.call("GET", f"{profile}/displayname")
                    self.assertEqual(seen, {"displayname": f"Name of {speaker.user_id}"})

    async def test_aliases_and_directory(self):
        for here in self.servers:
            with self.subTest(made_on=type(here).__name__):
                one, other = await self.pair(here)
                room = await one.create(preset="public_chat", name="In the list", room_alias_name="list", visibility="public")
                alias = f"#list:{one.server.name}"
                found = await other.call("GET", f"/v3/directory/room/{quote(alias)}")
                self.assertEqual(found["room_id"], room)
                listed = await other.call("GET", "/v3/publicRooms", server=one.server.name)
                self.assertIn((room, "In the list", alias), [
                    (chunk["room_id"], chunk.get("name"), chunk.get("canonical_alias")) for chunk in listed["chunk"]
                ])
                status, answer = await other.ask("GET", f"/v3/directory/room/{quote(f'#nothing:{one.server.name}')}")
                self.assertEqual((status, answer["errcode"]), (404, "M_NOT_FOUND"))
                self.assertEqual(await other.join(alias), room)
                await one.until(lambda: other.user_id in one.joined(room), "the join by alias")

    async def test_upgrade(self):
        for here in self.servers:
            with self.subTest(made_on=type(here).__name__):
                one, other = await self.pair(here)
                old = await self.shared(one, other, "10", name="Moves")
                new = (await one.call("POST", f"/v3/rooms/{quote(old)}/upgrade", {"new_version": "12"}))["replacement_room"]
                tombstone = await other.until(lambda: next(
                    (event for event in other.events[old].values() if event["type"] == "m.room.tombstone"), None
                ), "the tombstone")
                self.assertEqual(tombstone["content"]["replacement_room"], new)
                await other.join(new, via=[one.server.name])
                await one.until(lambda: other.user_id in one.joined(new), "the join of the new room")
                create = await other.call("GET", f"/v3/rooms/{quote(new)}/state/m.room.create")
                self.assertEqual((create["room_version"], create["predecessor"]["room_id"]), ("12", old))
                name = await other.call("GET", f"/v3/rooms/{quote(new)}/state/m.room.name")
                self.assertEqual(name, {"name": "Moves"})
                status, answer = await other.ask("PUT", f"/v3/rooms/{quote(old)}/send/m.room.message/1", {"msgtype": "m.text", "body": "late"})
                self.assertEqual((status, answer.get("errcode")), (403, "M_FORBIDDEN"), answer)

    async def test_backfill(self):
        for here in self.servers:
            with self.subTest(made_on=type(here).__name__):
                one, other = await self.pair(here)
                room = await one.create(preset="public_chat")
                for part in range(50):
                    await asyncio.gather(*(one.say(room, f"{part}, {number}") for number in range(20)))
                await other.join(room, via=[one.server.name])
                here = set(await one.history(room))
                for _ in range(10):
                    # Who scrolls while the newest events still come may have to look again.
                    there = await other.history(room)
                    if here <= set(there):
                        break
                    await asyncio.sleep(1)
                self.assertEqual(here - set(there), set())
                self.assertEqual(len(there), len(set(there)))

    async def test_outage(self):
        """Each side in turn is away, not even told so, while 500 messages are written on the other."""
        one, other = await self.pair()
        room = await self.shared(one, other)
        for speaker, listener in ((one, other), (other, one)):
            with self.subTest(away=type(listener.server).__name__):
                listener.server.kill()
                said = [await speaker.say(room, f"number {number}") for number in range(500)]
                await listener.server.start()
                began = time.monotonic()
                if listener.server is self.kontor:
                    await listener.until(lambda: set(said) <= set(listener.events[room]), "what was said meanwhile", 120)
                    self.assertFalse(listener.twice)
                # Synapse drops what it can not handle soon enough, and fetches it when somebody scrolls up.
                await listener.receive(room, await speaker.say(room, "there you are"), 120)
                print(f"      {type(listener.server).__name__} had all in {time.monotonic() - began:.1f} s", flush=True)
                for _ in range(20):
                    heard = [event_id for event_id in await listener.history(room) if event_id in set(said)]
                    if listener.server is self.kontor or len(heard) == len(said):
                        break
                    await asyncio.sleep(1)
                self.assertEqual(sorted(heard), sorted(said))

    async def test_a_fork_heals(self):
        """Both sides change the same things while neither hears of the other; both end with the same state."""
        for version, here, subtest in self.each_way():
            with subtest:
                one, other = await self.pair(here)
                room = await self.shared(one, other, version)
                power = await one.call("GET", f"/v3/rooms/{quote(room)}/state/m.room.power_levels")
                power.setdefault("users", {})[other.user_id] = 50
                await other.receive(room, await one.put_state(room, "m.room.power_levels", power))
                for link in (self.to_synapse, self.to_kontor):
                    link.cut()
                said = []
                for number in range(3):
                    for speaker in (one, other):
                        await speaker.put_state(room, "m.room.topic", {"topic": f"{number} says {speaker.user_id}"})
                        said.append(await speaker.say(room, f"{number} of {speaker.user_id}"))
                await one.put_state(room, "m.room.power_levels", power | {"events_default": 10})
                await other.put_state(room, "m.room.name", {"name": "theirs"})
                for link in (self.to_synapse, self.to_kontor):
                    link.mend()
                for listener in (one, other):
                    for event_id in said:
                        await listener.receive(room, event_id, 90)
                # What comes next binds both branches.
                await other.receive(room, await one.say(room, "together again"))
                await self.agree(room, one, other)
