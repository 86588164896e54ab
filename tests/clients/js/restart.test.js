// The node is killed in the middle of a conversation and comes back: nothing acknowledged is lost, nothing is twice.
// RESTART_CMD is a command that kills the server, starts it again and returns when it answers.
import assert from "node:assert/strict";
import { exec } from "node:child_process";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import {
    login,
    newStaff,
    receive,
    replyInThread,
    roomOf,
    sdk,
    start,
    stateLines,
    stopAll,
    text,
    timelineIds,
    until,
} from "./staff.js";

const restart = process.env.RESTART_CMD && (() => promisify(exec)(process.env.RESTART_CMD));

describe("full re-sync", () => {
    let alice, bob, roomId;
    before(async () => {
        [alice, bob] = await Promise.all([newStaff("alice"), newStaff("bob")]);
        roomId = await roomOf(alice, [bob]);
        const { event_id: root } = await alice.sendMessage(roomId, text("Where were we?"));
        await receive(bob, root);
        await replyInThread(bob, roomId, root, text("In the thread"));
        const { event_id: plan } = await alice.sendMessage(roomId, text("At nine again"));
        await receive(bob, plan);
        await bob.sendEvent(roomId, "m.reaction", {
            "m.relates_to": { rel_type: "m.annotation", event_id: plan, key: "👍" },
        });
        const { event_id: mistake } = await bob.sendMessage(roomId, text("A mistake"));
        const { event_id: redaction } = await bob.redactEvent(roomId, mistake);
        await receive(alice, redaction);
        const { event_id: topic } = await alice.setRoomTopic(roomId, "Before the power cut");
        await receive(alice, topic); // What is sent now is shown below it.
        await alice.setRoomTag(roomId, "m.favourite", { order: 0.5 });
    });
    after(stopAll);

    /** Everything about the room that a client can compare with another of the same user. */
    async function picture(client) {
        const room = client.getRoom(roomId);
        await room.loadMembersIfNeeded();
        return {
            name: room.name,
            state: stateLines(room),
            timeline: timelineIds(room),
            bodies: room.getLiveTimeline().getEvents().map((event) => event.getContent().body ?? null),
            received: [...client.received.values()]
                .filter((event) => event.getRoomId() === roomId && event.getType() === "m.room.message")
                .map((event) => event.getId()),
            tags: room.tags,
        };
    }
    async function sameOnANewDevice(client) {
        const { event_id: last } = await alice.sendMessage(roomId, text("All in?"));
        await receive(client, last);
        const fresh = await start(await login(client.account), { initialSyncLimit: 200 });
        const [expected, seen] = [await picture(client), await picture(fresh)];
        // A client that was there from the invite on has no more of the past than its first sync brought.
        assert.deepEqual(seen.timeline.slice(-expected.timeline.length), expected.timeline);
        assert.deepEqual(seen.bodies.slice(-expected.bodies.length), expected.bodies);
        assert.deepEqual(seen.state, expected.state);
        assert.deepEqual(seen.received, expected.received);
        assert.deepEqual(seen.tags, expected.tags);
        assert.equal(seen.name, "Office");
        fresh.stopClient();
    }

    test("a new device sees the same state and timeline", async () => {
        await sameOnANewDevice(alice);
        await sameOnANewDevice(bob);
    });

    test("after a kill in mid-conversation both go on, with every message exactly once", async (t) => {
        if (!restart) return t.skip("RESTART_CMD is not set");
        const bodies = Array.from({ length: 60 }, (_, n) => `Through the night ${n}`);
        const acknowledged = new Map();
        const sending = Promise.allSettled(
            bodies.map(async (body) => {
                const { event_id: id } = await alice.sendMessage(roomId, text(body));
                acknowledged.set(body, id);
            }),
        );
        await until(alice, () => acknowledged.size >= 5, "the first acknowledgements");
        await restart();
        await sending;
        t.diagnostic(`${acknowledged.size} of ${bodies.length} acknowledged before the kill`);
        for (const client of [alice, bob]) client.retryImmediately();

        // What the SDK could not send stays in the timeline as not sent; a person presses "send again", and the SDK
        // uses the same transaction id: what the server had stored without saying so must not come twice.
        const room = alice.getRoom(roomId);
        for (const event of [...room.getLiveTimeline().getEvents()]) {
            if (event.status !== sdk.EventStatus.NOT_SENT) continue;
            const { event_id: id } = await alice.resendEvent(event, room);
            acknowledged.set(event.getContent().body, id);
        }
        for (const body of bodies) {
            const copies = () => [...bob.received.values()].filter((event) => event.getContent().body === body);
            await until(bob, () => copies().length > 0, body);
            assert.equal(copies().length, 1, body);
            if (acknowledged.has(body)) assert.equal(copies()[0].getId(), acknowledged.get(body), body);
        }
        const atBob = timelineIds(bob.getRoom(roomId));
        assert.equal(new Set(atBob).size, atBob.length);
    });

    test("after the restart the conversation goes on in both directions", async () => {
        const { event_id: one } = await bob.sendMessage(roomId, text("I am back"));
        await receive(alice, one);
        const { event_id: two } = await alice.sendMessage(roomId, text("So am I"));
        await receive(bob, two);
        await alice.sendTyping(roomId, true, 20_000);
        await until(bob, () => bob.getRoom(roomId).getMember(alice.getUserId()).typing, "typing");
    });

    test("after the restart a new device sees the same state and timeline", async () => {
        await sameOnANewDevice(alice);
        await sameOnANewDevice(bob);
    });
});
