"""Makes the company on a server, through the client-server API only: accounts, names, rooms, members, a space of all rooms,
and every message in its order."""
import asyncio
import time
import urllib.parse

import aiohttp

AT_ONCE = 16  # rooms that are filled, or people who register, at the same time


class Fill:
    """After `run`: `tokens` by person, `rooms` and `events[room][message]` by number, and `space`."""

    def __init__(self, label, url, company):
        self.label, self.url, self.company = label, url, company
        self.tokens, self.users = [None] * len(company.people), [None] * len(company.people)
        self.rooms, self.space = [None] * len(company.rooms), None
        self.events = [[] for _ in company.rooms]
        self.session, self.began, self.told = None, time.monotonic(), 0.0

    async def run(self):
        limits = {"connector": aiohttp.TCPConnector(limit=0), "timeout": aiohttp.ClientTimeout(total=300)}
        async with aiohttp.ClientSession(**limits) as self.session:
            await self._each(range(len(self.tokens)), self._hire)
            self._tell(f"{len(self.tokens)} people")
            await self._each(range(len(self.rooms)), self._furnish)
            self._tell(f"{len(self.rooms)} rooms")
            await self._arrange()
            # The most talkative rooms first: each is filled by one message after the other.
            await self._each(range(len(self.rooms)), self._talk)
            self._tell(f"{self._said()} messages")

    def _tell(self, what):
        print(f"{time.monotonic() - self.began:6.0f} s  {self.label:10} {what}", flush=True)
        self.told = time.monotonic()

    def _said(self):
        return sum(map(len, self.events))

    @staticmethod
    async def _each(numbers, work):
        """Does `work` for each number, in their order, so many AT_ONCE; the first failure ends it."""
        left = iter(numbers)

        async def worker():
            for number in left:
                await work(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(worker())

    async def call(self, person, method, path, body):
        headers = {"Authorization": f"Bearer {self.tokens[person]}"} if self.tokens[person] else {}
        async with self.session.request(method, f"{self.url}/_matrix/client{path}", json=body, headers=headers) as answer:
            if answer.status != 200:
                raise RuntimeError(f"{self.label}: {method} {path}: {answer.status} {await answer.text()}")
            return await answer.json()

    async def _hire(self, person):
        body = {"username": f"person{person}", "password": f"secret of {person}", "auth": {"type": "m.login.dummy"}}
        answer = await self.call(person, "POST", "/v3/register", body)
        self.tokens[person], self.users[person] = answer["access_token"], answer["user_id"]
        name = {"displayname": self.company.people[person]}
        await self.call(person, "PUT", f"/v3/profile/{quote(self.users[person])}/displayname", name)

    async def _furnish(self, index):
        room = self.company.rooms[index]
        others = room.members[1:]
        body = {"name": room.name, "topic": room.topic, "room_alias_name": room.alias}
        if room.public:
            body |= {"preset": "public_chat", "visibility": "public"}
        else:
            body |= {"preset": "private_chat", "invite": [self.users[person] for person in others]}
        id = self.rooms[index] = (await self.call(0, "POST", "/v3/createRoom", body))["room_id"]
        for person in others:
            await self.call(person, "POST", f"/v3/rooms/{quote(id)}/join", {})

    async def _arrange(self):
        """One space of departments, each a space of rooms."""
        self.space = await self._make_space("Company")
        for number, rooms in enumerate(self.company.departments()):
            department = await self._make_space(f"Department {number}")
            await self._put_into(self.space, department)
            for room in rooms:
                await self._put_into(department, self.rooms[room])

    async def _make_space(self, name):
        body = {"name": name, "preset": "public_chat", "creation_content": {"type": "m.space"}}
        return (await self.call(0, "POST", "/v3/createRoom", body))["room_id"]

    async def _put_into(self, space, child):
        # Room ids of version 12 name no server.
        via = {"via": [self.users[0].partition(":")[2]]}
        await self.call(0, "PUT", f"/v3/rooms/{quote(space)}/state/m.space.child/{quote(child)}", via)

    async def _talk(self, index):
        room, events = self.company.rooms[index], self.events[index]
        path = f"/v3/rooms/{quote(self.rooms[index])}/send/m.room.message/"
        for number, message in enumerate(room.messages):
            content = self._content(message, events)
            events.append((await self.call(message.sender, "PUT", f"{path}{index}-{number}", content))["event_id"])
            if time.monotonic() - self.told > 15:
                self._tell(f"{self._said()} messages so far")

    @staticmethod
    def _content(message, events):
        content = {"msgtype": "m.text", "body": message.body}
        to = events[message.to] if message.how else None
        if message.how == "thread":
            content["m.relates_to"] = {"rel_type": "m.thread", "event_id": to, "is_falling_back": True}
            content["m.relates_to"]["m.in_reply_to"] = {"event_id": to}
        elif message.how == "reply":
            content["m.relates_to"] = {"m.in_reply_to": {"event_id": to}}
        elif message.how == "edit":
            content = {**content, "body": f"* {message.body}", "m.new_content": content}
            content["m.relates_to"] = {"rel_type": "m.replace", "event_id": to}
        return content


def quote(id):
    return urllib.parse.quote(id, safe="")
