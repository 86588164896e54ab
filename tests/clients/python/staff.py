"""Staff members with matrix-nio as their app: entering, syncing, and waiting for what came."""
import asyncio
import logging
import os
import secrets
import unittest

import nio

HOMESERVER_URL = os.environ.get("HOMESERVER_URL", "http://127.0.0.1:8008")
REGISTRATION_TOKEN = os.environ.get("REGISTRATION_TOKEN")
LIMIT = 20  # seconds that anything awaited may take at most

logging.getLogger("nio").setLevel(logging.CRITICAL)  # it says so when an answer is an error, and some here must be


class Staff(nio.AsyncClient):
    """A client with its own account, which syncs in the background and remembers what came."""

    def __init__(self, name):
        super().__init__(HOMESERVER_URL, name, config=nio.AsyncClientConfig(max_timeouts=2, request_timeout=60))
        self.password = f"secret of {name}"
        self.heard = []  # (room id, event) of timelines and ephemeral sections, in order of arrival
        self.news = asyncio.Condition()
        remember = lambda room, event: self.heard.append((room.room_id, event))
        self.add_event_callback(remember, nio.Event)
        self.add_event_callback(remember, nio.InviteEvent)
        self.add_ephemeral_callback(remember, nio.EphemeralEvent)
        self.add_response_callback(self._tell, nio.SyncResponse)
        self.syncing = None

    async def _tell(self, _response):
        async with self.news:
            self.news.notify_all()

    async def enter(self):
        """Registers, throws that session away, and logs in with the password as anybody does."""
        name = self.user
        if REGISTRATION_TOKEN:
            answer = await self.register_with_token(name, self.password, REGISTRATION_TOKEN)
        else:
            answer = await self.register(name, self.password)
        assert isinstance(answer, nio.RegisterResponse), answer
        await done(self.logout(), nio.LogoutResponse)
        self.user = name
        await done(self.login(self.password), nio.LoginResponse)
        self.syncing = asyncio.create_task(self.sync_forever(timeout=30_000, full_state=True))

    async def leave_the_office(self):
        if self.syncing:
            self.stop_sync_forever()
            self.syncing.cancel()
            await asyncio.gather(self.syncing, return_exceptions=True)
        await self.close()

    async def until(self, check, what):
        """Waits for a sync after which `check` answers something true, and answers that."""

        async def wait():
            async with self.news:
                while not (answer := check()):
                    await self.news.wait()
                return answer

        try:
            return await asyncio.wait_for(wait(), LIMIT)
        except asyncio.TimeoutError:
            raise AssertionError(f"{self.user_id} waited {LIMIT} s for {what}") from None

    async def receive(self, event_id):
        found = lambda: next((e for _, e in self.heard if getattr(e, "event_id", None) == event_id), None)
        return await self.until(found, event_id)

    def ephemeral(self, room_id, kind):
        return [event for room, event in self.heard if room == room_id and isinstance(event, kind)]

    async def say(self, room_id, body, **more):
        content = {"msgtype": "m.text", "body": body, **more}
        return (await done(self.room_send(room_id, "m.room.message", content), nio.RoomSendResponse)).event_id


async def done(call, kind):
    """Awaits the call and insists on the kind of its answer."""
    answer = await call
    assert isinstance(answer, kind), f"{kind.__name__} wanted, not {answer}"
    return answer


class Office(unittest.IsolatedAsyncioTestCase):
    """A test with two staff members, alice and bob, who have entered."""

    async def asyncSetUp(self):
        self.run_id = secrets.token_hex(4)
        self.alice, self.bob = [await self.hire(name) for name in ("alice", "bob")]

    async def hire(self, name):
        staff = Staff(f"{name}-{self.run_id}")
        self.addAsyncCleanup(staff.leave_the_office)
        await staff.enter()
        return staff

    async def office(self, **options):
        """A room of alice's that bob has been invited to and has joined."""
        alice, bob = self.alice, self.bob
        created = await done(alice.room_create(invite=[bob.user_id], **{"name": "Office", **options}), nio.RoomCreateResponse)
        room_id = created.room_id
        await bob.until(lambda: room_id in bob.invited_rooms, "the invite")
        self.assertEqual(bob.invited_rooms[room_id].inviter, alice.user_id)
        await self.joins(bob, room_id)
        return room_id

    async def joins(self, staff, room_id):
        """Joins, and waits until both who joined and alice see it."""
        await done(staff.join(room_id), nio.JoinResponse)
        await staff.until(lambda: room_id in staff.rooms, "the room")
        await self.alice.until(lambda: staff.user_id in self.alice.rooms[room_id].users, f"the join of {staff.user_id}")
