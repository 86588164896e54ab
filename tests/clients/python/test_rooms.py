"""Spaces, an upgraded room, threads and the directories, through matrix-nio."""
import json

import nio
from nio.api import RelationshipType, ThreadInclusion
from nio.responses import PublicRoomsResponse, RoomUpgradeResponse

from staff import Office, done


class Rooms(Office):
    async def make(self, **options):
        return (await done(self.alice.room_create(**options), nio.RoomCreateResponse)).room_id

    async def ask(self, staff, method, path, body):
        """What nio has no method for; answers (status, answer)."""
        headers = {"Authorization": f"Bearer {staff.access_token}", "Content-Type": "application/json"}
        answer = await staff.send(method, f"/_matrix/client/v3{path}", json.dumps(body), headers)
        return answer.status, await answer.json()

    async def is_told(self, staff, old, new):
        """Waits until the app has been told where the old room goes on."""
        ends = lambda: [event for room, event in staff.heard if room == old and isinstance(event, nio.RoomUpgradeEvent)]
        self.assertEqual((await staff.until(ends, "the tombstone"))[0].replacement_room, new)

    async def test_space(self):
        space = await self.office(name="Company", space=True)
        self.assertEqual(self.bob.rooms[space].room_type, "m.space")
        via = {"via": [self.alice.user_id.partition(":")[2]]}
        names = ["Canteen", "Gate", "Board"]
        for name in names:
            public = name != "Board"
            preset = nio.RoomPreset.public_chat if public else nio.RoomPreset.private_chat
            child = await self.make(name=name, preset=preset)
            await done(self.alice.room_put_state(space, "m.space.child", via, child), nio.RoomPutStateResponse)
        await self.bob.until(lambda: len(self.bob.rooms[space].children) == 3, "the children")

        async def tree(staff):
            seen, start = [], None
            while True:
                page = await done(
                    staff.space_get_hierarchy(space, from_page=start, limit=2), nio.SpaceGetHierarchyResponse
                )
                self.assertLessEqual(len(page.rooms), 2)
                seen += [room["name"] for room in page.rooms]
                if not (start := page.next_batch):
                    return seen

        self.assertCountEqual(await tree(self.alice), ["Company", *names])
        self.assertCountEqual(await tree(self.bob), ["Company", "Canteen", "Gate"])
        carol = await self.hire("carol")
        refused = await done(carol.space_get_hierarchy(space), nio.SpaceGetHierarchyError)
        self.assertEqual(refused.status_code, "M_FORBIDDEN")

    async def test_upgrade_by_the_server(self):
        alias = f"canteen-{self.run_id}"
        old = await self.office(name="Canteen", room_version="10", preset=nio.RoomPreset.public_chat, alias=alias)
        alias = f"#{alias}:{self.alice.user_id.partition(':')[2]}"
        levels = {"users": {self.alice.user_id: 100, self.bob.user_id: 50}}
        await done(self.alice.room_put_state(old, "m.room.power_levels", levels), nio.RoomPutStateResponse)
        status, refused = await self.ask(self.alice, "POST", f"/rooms/{old}/upgrade", {"new_version": "org.example.none"})
        self.assertEqual((status, refused["errcode"]), (400, "M_UNSUPPORTED_ROOM_VERSION"))
        status, answer = await self.ask(self.alice, "POST", f"/rooms/{old}/upgrade", {"new_version": "11"})
        self.assertEqual(status, 200, answer)
        new = answer["replacement_room"]
        await self.is_told(self.bob, old, new)
        await self.joins(self.bob, new)
        room = self.bob.rooms[new]
        self.assertEqual((room.name, room.room_version), ("Canteen", "11"))
        self.assertEqual(room.power_levels.users, levels["users"])
        self.assertEqual((await done(self.bob.room_resolve_alias(alias), nio.RoomResolveAliasResponse)).room_id, new)
        await self.alice.receive(await self.bob.say(new, "All here"))

    async def test_upgrade_by_the_app(self):
        """nio makes the new room itself."""
        old = await self.office(name="Gate", room_version="10", topic="Who comes and goes")
        new = (await done(self.alice.room_upgrade(old, "11"), RoomUpgradeResponse)).room_id
        await self.is_told(self.bob, old, new)
        await self.alice.until(lambda: new in self.alice.rooms, "the new room")
        self.assertEqual(self.alice.rooms[new].topic, "Who comes and goes")
        created = await done(self.alice.room_get_state_event(new, "m.room.create"), nio.RoomGetStateEventResponse)
        self.assertEqual(created.content["predecessor"]["room_id"], old)

    async def test_directory_of_rooms(self):
        word = f"Kegelbahn{self.run_id}"
        public = {"visibility": nio.RoomVisibility.public, "preset": nio.RoomPreset.public_chat}
        named = await self.make(name=f"Unsere {word}", **public)
        topical = await self.make(name="Sport", topic=f"Jeden Freitag: {word}", **public)
        await self.make(name=f"Geheime {word}")

        async def found(**options):
            answer = self.bob.list_public_rooms(filter_generic_search_term=word, **options)
            return await done(answer, PublicRoomsResponse)

        self.assertCountEqual([room.room_id for room in (await found()).public_rooms], [named, topical])
        first = await found(limit=1)
        second = await found(limit=1, since=first.next_batch)
        both = [room.room_id for page in (first, second) for room in page.public_rooms]
        self.assertCountEqual(both, [named, topical])
        self.assertIsNone(second.next_batch)

    async def test_aliases(self):
        room = await self.make(name="Canteen", preset=nio.RoomPreset.public_chat)
        domain = self.alice.user_id.partition(":")[2]
        alias = f"#столовая-{self.run_id}:{domain}"
        unknown = await done(self.bob.room_resolve_alias(alias), nio.RoomResolveAliasError)
        self.assertEqual(unknown.status_code, "M_NOT_FOUND")
        await done(self.alice.room_put_alias(alias, room), nio.RoomPutAliasResponse)
        resolved = await done(self.bob.room_resolve_alias(alias), nio.RoomResolveAliasResponse)
        self.assertEqual((resolved.room_id, resolved.servers), (room, [domain]))
        self.assertEqual((await done(self.bob.join(alias), nio.JoinResponse)).room_id, room)
        # nio takes a refusal for success.
        for staff, status in ((self.bob, 403), (self.alice, 200)):
            self.assertEqual((await staff.room_delete_alias(alias)).transport_response.status, status)
        await done(self.bob.room_resolve_alias(alias), nio.RoomResolveAliasError)

    async def test_directory_of_people(self):
        await self.office()
        name = f"Шевченко{self.run_id}"
        await done(self.bob.set_displayname(f"Тарас {name}"), nio.ProfileSetDisplayNameResponse)
        user_name = lambda: any(room.user_name(self.bob.user_id) == f"Тарас {name}" for room in self.alice.rooms.values())
        await self.alice.until(user_name, "the name")
        for term in (name, name[:-2], name.upper(), self.bob.user):
            status, found = await self.ask(self.alice, "POST", "/user_directory/search", {"search_term": term})
            self.assertEqual(status, 200)
            people = [(person["user_id"], person["display_name"]) for person in found["results"]]
            self.assertEqual(people, [(self.bob.user_id, f"Тарас {name}")], term)

    async def test_threads(self):
        room_id = await self.office()
        root, other = await self.alice.say(room_id, "Where shall we eat?"), await self.bob.say(room_id, "Who has the key?")
        reply = lambda to: {"m.relates_to": {"rel_type": "m.thread", "event_id": to}}
        replies = [await self.bob.say(room_id, "In the park", **reply(root))]
        replies.append(await self.alice.say(room_id, "It rains", **reply(root)))
        await self.bob.say(room_id, "Found it", **reply(other))
        threads = lambda staff, which: staff.room_get_threads(room_id, which, limit=1)
        everything, mine = ThreadInclusion.all, ThreadInclusion.participated
        self.assertEqual([event.event_id async for event in threads(self.alice, everything)], [other, root])
        self.assertEqual([event.event_id async for event in threads(self.alice, mine)], [root])
        related = self.bob.room_get_event_relations(room_id, root, RelationshipType.thread, limit=1)
        self.assertEqual([event.event_id async for event in related], replies[::-1])
