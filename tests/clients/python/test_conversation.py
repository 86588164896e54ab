"""The conversation of two staff members once more, through matrix-nio."""
import nio

from staff import HOMESERVER_URL, Office, done


class Conversation(Office):
    async def test_login(self):
        who = await done(self.alice.whoami(), nio.WhoamiResponse)
        self.assertEqual(who.user_id, self.alice.user_id)
        self.assertEqual(who.device_id, self.alice.device_id)
        stranger = nio.AsyncClient(HOMESERVER_URL, self.alice.user)
        self.addAsyncCleanup(stranger.close)
        self.assertEqual((await done(stranger.login("wrong"), nio.LoginError)).status_code, "M_FORBIDDEN")

    async def test_create_invite_join(self):
        room_id = await self.office()
        members = await done(self.bob.joined_members(room_id), nio.JoinedMembersResponse)
        self.assertEqual({member.user_id for member in members.members}, {self.alice.user_id, self.bob.user_id})
        self.assertEqual(self.bob.rooms[room_id].name, "Office")
        self.assertEqual((await self.bob.joined_rooms()).rooms, [room_id])

    async def test_messages_both_ways(self):
        room_id = await self.office()
        question = await self.bob.receive(await self.alice.say(room_id, "Coffee?"))
        self.assertEqual((question.sender, question.body), (self.alice.user_id, "Coffee?"))
        answer = await self.alice.receive(await self.bob.say(room_id, "Please"))
        self.assertEqual((answer.sender, answer.body), (self.bob.user_id, "Please"))

    async def test_edit_and_reaction(self):
        room_id = await self.office()
        original = await self.alice.say(room_id, "Tee")
        edit_id = await self.alice.say(
            room_id,
            "* Tea",
            **{
                "m.new_content": {"msgtype": "m.text", "body": "Tea"},
                "m.relates_to": {"rel_type": "m.replace", "event_id": original},
            },
        )
        edit = await self.bob.receive(edit_id)
        self.assertEqual(edit.source["content"]["m.relates_to"]["event_id"], original)
        relation = {"m.relates_to": {"rel_type": "m.annotation", "event_id": original, "key": "🫖"}}
        sent = await done(self.bob.room_send(room_id, "m.reaction", relation), nio.RoomSendResponse)
        reaction = await self.alice.receive(sent.event_id)
        self.assertIsInstance(reaction, nio.ReactionEvent)
        self.assertEqual((reaction.key, reaction.reacts_to), ("🫖", original))

    async def test_redaction(self):
        room_id = await self.office()
        event_id = await self.alice.say(room_id, "Forget this")
        await self.bob.receive(event_id)
        forbidden = await done(self.bob.room_redact(room_id, event_id), nio.RoomRedactError)
        self.assertEqual(forbidden.status_code, "M_FORBIDDEN")
        redaction = await done(self.alice.room_redact(room_id, event_id, reason="secret"), nio.RoomRedactResponse)
        heard = await self.bob.receive(redaction.event_id)
        self.assertIsInstance(heard, nio.RedactionEvent)
        self.assertEqual((heard.redacts, heard.reason), (event_id, "secret"))
        fetched = await done(self.bob.room_get_event(room_id, event_id), nio.RoomGetEventResponse)
        self.assertIsInstance(fetched.event, nio.RedactedEvent)

    async def test_receipts_and_unread_counts(self):
        room_id = await self.office()
        event_id = await self.alice.say(room_id, "Read this")
        await self.bob.receive(event_id)
        room = self.bob.rooms[room_id]
        await self.bob.until(lambda: room.unread_notifications == 1, "an unread message")
        await done(self.bob.update_receipt_marker(room_id, event_id), nio.UpdateReceiptMarkerResponse)
        read = lambda: any(
            receipt.user_id == self.bob.user_id and receipt.event_id == event_id and receipt.receipt_type == "m.read"
            for event in self.alice.ephemeral(room_id, nio.ReceiptEvent)
            for receipt in event.receipts
        )
        await self.alice.until(read, "bob's receipt")
        await self.bob.until(lambda: room.unread_notifications == 0, "nothing unread")
        markers = self.bob.room_read_markers(room_id, fully_read_event=event_id, read_event=event_id)
        await done(markers, nio.RoomReadMarkersResponse)
        await self.bob.until(lambda: room.fully_read_marker == event_id, "the fully-read marker")

    async def test_typing(self):
        room_id = await self.office()
        typing = lambda: self.bob.rooms[room_id].typing_users
        await done(self.alice.room_typing(room_id, True, timeout=30_000), nio.RoomTypingResponse)
        await self.bob.until(lambda: typing() == [self.alice.user_id], "typing")
        await done(self.alice.room_typing(room_id, False), nio.RoomTypingResponse)
        await self.bob.until(lambda: typing() == [], "the end of typing")

    async def test_profile(self):
        room_id = await self.office()
        await done(self.alice.set_displayname("Alice of Accounting"), nio.ProfileSetDisplayNameResponse)
        name = lambda: self.bob.rooms[room_id].user_name(self.alice.user_id)
        await self.bob.until(lambda: name() == "Alice of Accounting", "the new name")
        profile = await done(self.bob.get_profile(self.alice.user_id), nio.ProfileGetResponse)
        self.assertEqual(profile.displayname, "Alice of Accounting")

    async def test_paging(self):
        room_id = await self.office()
        sent = [await self.alice.say(room_id, f"Line {n}") for n in range(25)]
        await self.bob.receive(sent[-1])
        back, token = [], self.bob.next_batch
        for _page in range(20):
            page = await done(
                self.bob.room_messages(room_id, start=token, direction=nio.MessageDirection.back, limit=6),
                nio.RoomMessagesResponse,
            )
            self.assertLessEqual(len(page.chunk), 6)
            back += [event.event_id for event in page.chunk]
            token = page.end
            if token is None:
                break
        self.assertIsNone(token, "the beginning of the room is never reached")
        self.assertEqual([event_id for event_id in back if event_id in sent], sent[::-1])
        self.assertEqual(len(set(back)), len(back))

        context = await done(self.bob.room_context(room_id, sent[10], limit=4), nio.RoomContextResponse)
        self.assertEqual([event.event_id for event in context.events_before], [sent[9], sent[8]])
        self.assertEqual([event.event_id for event in context.events_after], [sent[11], sent[12]])
        forward = await done(
            self.bob.room_messages(room_id, start=context.end, direction=nio.MessageDirection.front, limit=5),
            nio.RoomMessagesResponse,
        )
        self.assertEqual([event.event_id for event in forward.chunk], sent[13:18])

    async def test_leave_and_rejoin(self):
        room_id = await self.office()
        await done(self.bob.room_leave(room_id), nio.RoomLeaveResponse)
        await self.alice.until(lambda: self.bob.user_id not in self.alice.rooms[room_id].users, "bob's leaving")
        refused = await done(self.bob.room_send(room_id, "m.room.message", {"body": "?"}), nio.RoomSendError)
        self.assertEqual(refused.status_code, "M_FORBIDDEN")
        await done(self.alice.room_invite(room_id, self.bob.user_id), nio.RoomInviteResponse)
        await self.bob.until(lambda: room_id in self.bob.invited_rooms, "the second invite")
        await done(self.bob.join(room_id), nio.JoinResponse)
        await self.alice.until(lambda: self.bob.user_id in self.alice.rooms[room_id].users, "bob's return")
        welcome = await self.bob.receive(await self.alice.say(room_id, "Welcome back"))
        self.assertEqual(welcome.body, "Welcome back")

    async def test_logout(self):
        token = self.alice.access_token
        await done(self.alice.logout(), nio.LogoutResponse)
        self.alice.access_token = token
        self.assertEqual((await done(self.alice.whoami(), nio.WhoamiError)).status_code, "M_UNKNOWN_TOKEN")
