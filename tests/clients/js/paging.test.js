// Rooms larger than one sync: scrollback, windows around old events, and members loaded when they are needed.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { login, newStaff, receive, roomOf, sdk, start, stopAll, text, timelineIds, until } from "./staff.js";

const { Backward, Forward } = sdk.Direction;
const MESSAGES = 75;

describe("a room with a past", () => {
    let alice, bob, quiet, late, roomId;
    const sent = [];
    before(async () => {
        [alice, bob, quiet, late] = await Promise.all(["alice", "bob", "quiet", "late"].map((name) => newStaff(name)));
        roomId = await roomOf(alice, [bob, quiet]);
        for (let n = 0; n < MESSAGES; n++) {
            const { event_id: id } = await alice.sendMessage(roomId, text(`Message ${n}`));
            sent.push(id);
        }
        await receive(bob, sent.at(-1));
    });
    after(stopAll);

    /** A new device of bob's that has only the last few events. */
    const fresh = async () => start(await login(bob.account), { initialSyncLimit: 10 });
    const messages = (ids) => ids.filter((id) => sent.includes(id));

    test("who was there all the time has everything, in order", () => {
        assert.deepEqual(messages(timelineIds(bob.getRoom(roomId))), sent);
    });

    test("a first sync has the end of the timeline only", async () => {
        const client = await fresh();
        assert.deepEqual(timelineIds(client.getRoom(roomId)), sent.slice(-10));
        client.stopClient();
    });

    test("scrollback brings the rest once and in order, down to the room's creation", async () => {
        const client = await fresh();
        const room = client.getRoom(roomId);
        for (let pages = 0; room.oldState.paginationToken !== null; pages++) {
            assert.ok(pages < 30, "the beginning of the room is never reached");
            await client.scrollback(room, 7);
        }
        const ids = timelineIds(room);
        assert.deepEqual(messages(ids), sent);
        assert.equal(new Set(ids).size, ids.length);
        assert.equal(room.getLiveTimeline().getEvents()[0].getType(), "m.room.create");
        client.stopClient();
    });

    test("a window slides back over the whole timeline", async () => {
        const client = await fresh();
        const window = new sdk.TimelineWindow(client, client.getRoom(roomId).getUnfilteredTimelineSet(), {
            windowLimit: 1_000,
        });
        await window.load(undefined, 5);
        assert.deepEqual(window.getEvents().map((event) => event.getId()), sent.slice(-5));
        for (let pages = 0; window.canPaginate(Backward); pages++) {
            assert.ok(pages < 60, "the beginning of the room is never reached");
            await window.paginate(Backward, 9);
        }
        assert.deepEqual(messages(window.getEvents().map((event) => event.getId())), sent);
        assert.equal(window.getEvents()[0].getType(), "m.room.create");
        client.stopClient();
    });

    test("a window opens around an old event and slides both ways to the ends", async () => {
        const client = await fresh();
        const window = new sdk.TimelineWindow(client, client.getRoom(roomId).getUnfilteredTimelineSet(), {
            windowLimit: 1_000,
        });
        const old = sent[20];
        await window.load(old, 10);
        const ids = () => window.getEvents().map((event) => event.getId());
        assert.ok(ids().includes(old));
        assert.deepEqual(messages(ids()), sent.slice(sent.indexOf(messages(ids())[0])).slice(0, ids().length));
        for (const direction of [Forward, Backward]) {
            for (let pages = 0; window.canPaginate(direction); pages++) {
                assert.ok(pages < 60, `no end of the timeline going ${direction}`);
                await window.paginate(direction, 8);
                if (direction === Forward && ids().includes(sent.at(-1))) break;
            }
        }
        assert.deepEqual(messages(ids()), sent);
        client.stopClient();
    });

    test("members who say nothing are loaded when asked for", async () => {
        const client = await fresh();
        const room = client.getRoom(roomId);
        assert.equal(room.getJoinedMemberCount(), 3, "the summary counts them");
        assert.ok(room.getMember(alice.getUserId()), "who speaks in the timeline is known");
        assert.equal(room.getMember(quiet.getUserId()), null);
        await room.loadMembersIfNeeded();
        assert.equal(room.getMember(quiet.getUserId()).membership, "join");
        assert.deepEqual(
            room.getJoinedMembers().map((member) => member.userId).sort(),
            [alice, bob, quiet].map((member) => member.getUserId()).sort(),
        );
        client.stopClient();
    });

    test("a lazily loaded member comes along with the first thing he says", async () => {
        const client = await fresh();
        const room = client.getRoom(roomId);
        assert.equal(room.getMember(quiet.getUserId()), null);
        const { event_id: id } = await quiet.sendMessage(roomId, text("I speak at last"));
        const event = await receive(client, id);
        assert.equal(event.sender?.membership, "join");
        const atAlice = alice.getRoom(roomId).getMember(quiet.getUserId());
        assert.equal(event.sender.rawDisplayName, atAlice.rawDisplayName);
        client.stopClient();
    });

    test("who joins later reads what was before, as the room allows", async () => {
        await alice.invite(roomId, late.getUserId());
        await until(late, () => late.getRoom(roomId)?.getMyMembership() === "invite", "the invite");
        await late.joinRoom(roomId);
        await until(late, () => late.getRoom(roomId).getMyMembership() === "join", "the join");
        const room = late.getRoom(roomId);
        for (let pages = 0; room.oldState.paginationToken !== null; pages++) {
            assert.ok(pages < 30, "the beginning of the room is never reached");
            await late.scrollback(room, 30);
        }
        assert.deepEqual(messages(timelineIds(room)), sent);
    });

    test("who joins later does not read what was before, where the room forbids it", async () => {
        const { room_id: closed } = await alice.createRoom({
            preset: "private_chat",
            name: "Board",
            initial_state: [
                { type: "m.room.history_visibility", state_key: "", content: { history_visibility: "joined" } },
            ],
        });
        const { event_id: secret } = await alice.sendMessage(closed, text("Before you came"));
        await alice.invite(closed, late.getUserId());
        await until(late, () => late.getRoom(closed)?.getMyMembership() === "invite", "the invite");
        await late.joinRoom(closed);
        await until(late, () => late.getRoom(closed).getMyMembership() === "join", "the join");
        const { event_id: open } = await alice.sendMessage(closed, text("Now you are here"));
        await receive(late, open);
        const room = late.getRoom(closed);
        for (let pages = 0; room.oldState.paginationToken !== null && pages < 30; pages++) {
            await late.scrollback(room, 30);
        }
        assert.equal(room.findEventById(secret), undefined);
        assert.ok(room.findEventById(open));
        await assert.rejects(late.fetchRoomEvent(closed, secret), { httpStatus: 404 });
        await assert.rejects(late.getEventTimeline(room.getUnfilteredTimelineSet(), secret), (error) =>
            [403, 404].includes(error.httpStatus),
        );
    });
});
