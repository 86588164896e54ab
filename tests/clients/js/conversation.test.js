// Two staff members meet in a room and talk: everything that a person does in a text conversation.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import {
    baseUrl,
    inRoom,
    login,
    newStaff,
    receive,
    register,
    roomOf,
    sdk,
    start,
    stopAll,
    text,
    until,
} from "./staff.js";

describe("accounts", () => {
    after(stopAll);

    test("a name is free, then taken", async () => {
        const client = sdk.createClient({ baseUrl });
        const account = await register("carol");
        assert.equal(await client.isUsernameAvailable(`${account.username}x`), true);
        assert.equal(await client.isUsernameAvailable(account.username), false);
    });

    test("a wrong password is refused, the right one gives another device", async () => {
        const account = await register("carol");
        await assert.rejects(login({ ...account, password: "wrong" }), { errcode: "M_FORBIDDEN", httpStatus: 403 });
        const second = await login(account);
        assert.equal(second.userId, account.userId);
        assert.notEqual(second.deviceId, account.deviceId);
        assert.notEqual(second.accessToken, account.accessToken);
    });

    test("a device that logged out is told so", async () => {
        const account = await register("carol");
        const client = await start(account);
        const loggedOut = new Promise((resolve) => client.once(sdk.HttpApiEvent.SessionLoggedOut, resolve));
        await client.logout();
        await assert.rejects(client.whoami(), { errcode: "M_UNKNOWN_TOKEN", httpStatus: 401 });
        assert.equal((await loggedOut).errcode, "M_UNKNOWN_TOKEN");
    });
});

describe("a conversation", () => {
    let alice, bob, roomId;
    before(async () => {
        [alice, bob] = await Promise.all([newStaff("alice"), newStaff("bob")]);
        roomId = await roomOf(alice, [bob]);
    });
    after(stopAll);

    test("an invite shows who invites and where to, and may be declined", async () => {
        const { room_id: other } = await alice.createRoom({ preset: "private_chat", name: "Canteen" });
        await alice.invite(other, bob.getUserId());
        const room = await inRoom(bob, other, "invite");
        assert.equal(room.name, "Canteen");
        assert.equal(room.getMember(bob.getUserId()).events.member.getSender(), alice.getUserId());
        await bob.leave(other);
        await inRoom(bob, other, "leave");
        await until(
            alice,
            () => alice.getRoom(other).getMember(bob.getUserId())?.membership === "leave",
            "the declined invite",
        );
    });

    test("both see the same members and who created the room", async () => {
        for (const client of [alice, bob]) {
            const room = client.getRoom(roomId);
            await room.loadMembersIfNeeded();
            assert.deepEqual(
                room.getJoinedMembers().map((member) => member.userId).sort(),
                [alice.getUserId(), bob.getUserId()].sort(),
            );
            assert.equal(room.getCreator(), alice.getUserId());
            assert.equal(room.name, "Office");
        }
    });

    test("a message arrives once, at the sender as the echo of what was sent", async () => {
        const { event_id: id } = await alice.sendMessage(roomId, text("Good morning"));
        const atBob = await receive(bob, id);
        assert.equal(atBob.getSender(), alice.getUserId());
        assert.equal(atBob.getContent().body, "Good morning");
        assert.ok(Math.abs(Date.now() - atBob.getTs()) < 60_000);
        const echo = await receive(alice, id);
        assert.ok(echo.getUnsigned().transaction_id, "the sender's device is told its transaction id");
        assert.equal(atBob.getUnsigned().transaction_id, undefined, "nobody else is");
        const copies = alice.getRoom(roomId).getLiveTimeline().getEvents()
            .filter((event) => event.getContent().body === "Good morning");
        assert.deepEqual(copies.map((event) => [event.getId(), event.status]), [[id, null]]);
    });

    test("the same transaction id sends once", async () => {
        const first = await alice.sendMessage(roomId, text("Only once"), "once-1");
        await receive(alice, first.event_id);
        const again = await alice.sendEvent(roomId, "m.room.message", text("Only once"), "once-1");
        assert.equal(again.event_id, first.event_id);
    });

    test("an edit replaces the text", async () => {
        const { event_id: id } = await alice.sendMessage(roomId, text("Metting at ten"));
        const original = await receive(bob, id);
        const { event_id: editId } = await alice.sendMessage(
            roomId,
            text("* Meeting at ten", {
                "m.new_content": text("Meeting at ten"),
                "m.relates_to": { rel_type: "m.replace", event_id: id },
            }),
        );
        await until(bob, () => original.replacingEventId() === editId, "the edit");
        assert.equal(original.getContent().body, "Meeting at ten");
        assert.equal(original.getOriginalContent().body, "Metting at ten");
    });

    test("a reaction is counted, and no longer when it is taken back", async () => {
        const { event_id: id } = await alice.sendMessage(roomId, text("Cake in the kitchen"));
        await receive(bob, id);
        const { event_id: reactionId } = await bob.sendEvent(roomId, "m.reaction", {
            "m.relates_to": { rel_type: "m.annotation", event_id: id, key: "🍰" },
        });
        await receive(alice, reactionId);
        const reactions = () =>
            alice.getRoom(roomId).relations.getChildEventsForEvent(id, "m.annotation", "m.reaction")
                ?.getSortedAnnotationsByKey()?.map(([key, events]) => [key, events.size]);
        await until(alice, () => reactions()?.length === 1, "the reaction");
        assert.deepEqual(reactions(), [["🍰", 1]]);
        await bob.redactEvent(roomId, reactionId);
        await until(alice, () => !reactions()?.some(([, count]) => count > 0), "the reaction's end");
    });

    test("a reply names what it answers", async () => {
        const { event_id: id } = await alice.sendMessage(roomId, text("Who is in today?"));
        await receive(bob, id);
        const { event_id: replyId } = await bob.sendMessage(
            roomId,
            text("I am", { "m.relates_to": { "m.in_reply_to": { event_id: id } } }),
        );
        const reply = await receive(alice, replyId);
        assert.equal(reply.replyEventId, id);
        assert.equal(alice.getRoom(roomId).findEventById(reply.replyEventId).getContent().body, "Who is in today?");
    });

    test("a redacted message is empty for everybody, with its reason", async () => {
        const { event_id: id } = await alice.sendMessage(roomId, text("The password is kontor"));
        const event = await receive(bob, id);
        assert.equal(event.isRedacted(), false);
        const { event_id: redactionId } = await alice.redactEvent(roomId, id, undefined, { reason: "secret" });
        const redaction = await receive(bob, redactionId);
        assert.equal(redaction.getAssociatedId(), id);
        await until(bob, () => event.isRedacted(), "the redaction");
        assert.deepEqual(event.getContent(), {});
        assert.equal(event.getUnsigned().redacted_because.content.reason, "secret");
        const fetched = await bob.fetchRoomEvent(roomId, id);
        assert.deepEqual(fetched.content, {});
        assert.equal(fetched.unsigned.redacted_because.event_id, redactionId);
    });

    test("bob may not redact what alice said", async () => {
        const { event_id: id } = await alice.sendMessage(roomId, text("Mine"));
        await receive(bob, id);
        await assert.rejects(bob.redactEvent(roomId, id), { errcode: "M_FORBIDDEN", httpStatus: 403 });
    });

    test("typing begins and ends", async () => {
        const typing = () => bob.getRoom(roomId).getMember(alice.getUserId()).typing;
        await alice.sendTyping(roomId, true, 30_000);
        await until(bob, typing, "typing");
        await alice.sendTyping(roomId, false, 0);
        await until(bob, () => !typing(), "the end of typing");
        await alice.sendTyping(roomId, true, 1_000);
        await until(bob, typing, "typing again");
        await until(bob, () => !typing(), "the end of typing by its timeout");
    });

    test("a changed name and picture are seen by the other", async () => {
        const picture = "mxc://localhost/portrait";
        await alice.setDisplayName("Alice of Accounting");
        await alice.setAvatarUrl(picture);
        const member = () => bob.getRoom(roomId).getMember(alice.getUserId());
        await until(
            bob,
            () => member().rawDisplayName === "Alice of Accounting" && member().getMxcAvatarUrl() === picture,
            "the new profile",
        );
        assert.equal(member().membership, "join");
        assert.deepEqual(await bob.getProfileInfo(alice.getUserId()), {
            displayname: "Alice of Accounting",
            avatar_url: picture,
        });
    });

    test("room name and topic change for everybody, and only who may changes them", async () => {
        await alice.setRoomName(roomId, "Head office");
        await alice.setRoomTopic(roomId, "Work");
        await until(bob, () => bob.getRoom(roomId).name === "Head office", "the new name");
        const topic = () => bob.getRoom(roomId).currentState.getStateEvents("m.room.topic", "")?.getContent().topic;
        await until(bob, () => topic() === "Work", "the new topic");
        await assert.rejects(bob.setRoomName(roomId, "Bob's"), { errcode: "M_FORBIDDEN", httpStatus: 403 });
    });

    test("account data and tags reach the other devices of their owner", async () => {
        const tablet = await start(await login(alice.account));
        await alice.setRoomAccountData(roomId, "org.example.colour", { colour: "green" });
        await alice.setRoomTag(roomId, "m.favourite", { order: 0.25 });
        await alice.setAccountData("org.example.desk", { number: 7 });
        const room = tablet.getRoom(roomId);
        await until(tablet, () => room.tags["m.favourite"]?.order === 0.25, "the tag");
        await until(
            tablet,
            () => room.getAccountData("org.example.colour")?.getContent().colour === "green",
            "the room's account data",
        );
        await until(tablet, () => tablet.getAccountData("org.example.desk")?.getContent().number === 7, "account data");
        await alice.deleteRoomTag(roomId, "m.favourite");
        await until(tablet, () => !("m.favourite" in room.tags), "the tag's end");
        assert.equal(bob.getRoom(roomId).getAccountData("org.example.colour"), undefined);
        tablet.stopClient();
    });

    test("who leaves is gone, and who comes back sees what was said meanwhile", async () => {
        await bob.leave(roomId);
        await inRoom(bob, roomId, "leave");
        const member = () => alice.getRoom(roomId).getMember(bob.getUserId());
        await until(alice, () => member().membership === "leave", "bob's leaving");
        await assert.rejects(bob.sendMessage(roomId, text("Still here?")), { errcode: "M_FORBIDDEN", httpStatus: 403 });
        const { event_id: missed } = await alice.sendMessage(roomId, text("Bob has left"));
        await receive(alice, missed);
        await assert.rejects(bob.joinRoom(roomId), { errcode: "M_FORBIDDEN", httpStatus: 403 });

        await alice.invite(roomId, bob.getUserId());
        await inRoom(bob, roomId, "invite");
        await bob.joinRoom(roomId);
        const room = await inRoom(bob, roomId);
        await until(alice, () => member().membership === "join", "bob's return");
        const { event_id: id } = await alice.sendMessage(roomId, text("Welcome back"));
        assert.equal((await receive(bob, id)).getContent().body, "Welcome back");
        for (let pages = 0; !room.findEventById(missed) && pages < 10; pages++) await bob.scrollback(room, 20);
        assert.equal(room.findEventById(missed)?.getContent().body, "Bob has left");
    });
});
