"""An office is cut off, work goes on everywhere, a node dies twice; then the link returns and nothing is missing."""
import asyncio
import os
import shutil
import tempfile
import time
import unittest

import namespaces
from office import Organisation, enter

ROOMS = 20
MESSAGES = int(os.environ.get("MESSAGES", 10_000))
CUT = float(os.environ.get("CUT_SECONDS", 5))  # how long the link stays down after all is said
NAMESPACES = bool(os.environ.get("NAMESPACES"))  # real cables in the place of a program that stalls
NAMES = ["north.example", "south.example", "west.example"]


class Outage(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        asyncio.get_running_loop().set_debug(False)  # unittest's default is ten times slower
        if NAMESPACES and (why := namespaces.missing()):
            self.skipTest(why)
        self.work = tempfile.mkdtemp(prefix="kontor-outage-")
        self.offices = Organisation(self.work, NAMES, namespaces=NAMESPACES)
        await self.offices.__aenter__()
        self.addAsyncCleanup(self.close)
        self.nodes = [self.offices.nodes[name] for name in NAMES]
        self.staff = await enter(*(node.staff("anna") for node in self.nodes))
        for one in self.staff:
            self.addAsyncCleanup(one.go)

    async def close(self):
        await self.offices.__aexit__()
        if not os.environ.get("KEEP"):
            shutil.rmtree(self.work)

    async def rooms(self, count):
        """Rooms made in turn on each node, with everybody in them."""

        async def room(number):
            creator = self.staff[number % 3]
            room_id = await creator.create(preset="public_chat", name=f"Room {number}")
            for other in self.staff:
                if other is not creator:
                    await other.join(room_id, via=[creator.server.name])
            return room_id

        return [await room(number) for number in range(count)]

    async def test_everything_arrives_once(self):
        anna, bert, carl = self.staff
        rooms = await self.rooms(ROOMS)
        for one in self.staff:
            await one.until(lambda: all(len(one.joined(room)) == 3 for room in rooms), "three members in each room")

        quiet = sum(link.carried for link in self.offices.links.values())
        steady = [await one.say(rooms[0], "steady") for one in self.staff for _ in range(100)]
        for one in self.staff:
            for event_id in steady:
                await one.receive(rooms[0], event_id)
        await asyncio.sleep(1)
        steady_bytes = (sum(link.carried for link in self.offices.links.values()) - quiet) / len(steady) / 2

        for link in self.offices.around("west.example"):
            link.cut()
        sent = {room: [] for room in rooms}

        async def talk(speaker, count):
            async def some(part):
                for number in range(count // 10):
                    room = rooms[(part + number) % len(rooms)]
                    sent[room].append(await speaker.say_at_last(room, f"{speaker.user_id} {part} {number}"))

            await asyncio.gather(*(some(part) for part in range(10)))

        async def die_twice():
            node = self.nodes[1]
            for _ in range(2):
                await asyncio.sleep(1)
                node.kill()
                await node.start()

        began = time.monotonic()
        await asyncio.gather(talk(anna, MESSAGES // 4), talk(bert, MESSAGES // 4), talk(carl, MESSAGES // 2), die_twice())
        told = time.monotonic() - began
        here = [event_id for room in rooms for event_id in sent[room]]
        self.assertEqual(len(set(here)), MESSAGES // 4 * 2 + MESSAGES // 2)
        await asyncio.sleep(CUT)
        for room in rooms:
            strange = [event for event in carl.events[room].values() if event["sender"] == anna.user_id and room in sent]
            self.assertFalse([event for event in strange if event["event_id"] in sent[room]], "nothing passes a cut link")
        # The two that are joined keep talking.
        await bert.receive(rooms[1], await anna.say(rooms[1], "still here"), limit=10)

        before = sum(link.carried for link in self.offices.links.values())
        mended = time.monotonic()
        for link in self.offices.around("west.example"):
            link.mend()
        from_carl = {event_id for room in rooms for event_id in sent[room] if event_id in carl.events[room]}
        await anna.until(lambda: any(event_id in anna.events[room] for room in rooms for event_id in sent[room] if event_id in from_carl), "the first message", 10)
        first = time.monotonic() - mended
        for one in self.staff:
            await one.until(lambda: all(event_id in one.events[room] for room in rooms for event_id in sent[room]), "all", 60 - (time.monotonic() - mended))
        healed = time.monotonic() - mended
        catch_up = (sum(link.carried for link in self.offices.links.values()) - before) / MESSAGES / 1.5
        print(
            f"      {MESSAGES} messages in {len(rooms)} rooms, written in {told:.1f} s; after the return the first was seen "
            f"in {first:.2f} s, all in {healed:.1f} s; bytes of {'Ethernet' if NAMESPACES else 'TLS'} per message and peer: {steady_bytes:.0f} one by one, "
            f"{catch_up:.0f} in catch-up; gaps filled by the apps: {[one.gaps for one in self.staff]}",
            flush=True,
        )

        self.assertFalse([one.twice for one in self.staff if one.twice], "an app got an event twice")
        for room in rooms:
            histories = await asyncio.gather(*(one.history(room) for one in self.staff))
            for one, history in zip(self.staff, histories):
                self.assertEqual(len(history), len(set(history)), f"{one.user_id} has an event of {room} twice")
                self.assertLessEqual(set(sent[room]), set(history), f"{one.user_id} lacks messages of {room}")
            self.assertEqual(*(set(history) & set(sent[room]) for history in histories[:2]))
            states = await asyncio.gather(*(one.state(room) for one in self.staff))
            self.assertEqual(states[0], states[1])
            self.assertEqual(states[0], states[2])
        for one in self.staff:
            await one.go()
        for node in self.nodes:
            node.kill()
            node.check()
