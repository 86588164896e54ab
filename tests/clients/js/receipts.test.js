// Who has read what, and how much is unread: receipts, the fully-read marker and counts, also per thread.
import assert from "node:assert/strict";
import { after, before, beforeEach, describe, test } from "node:test";
import { login, newStaff, receive, replyInThread, roomOf, sdk, start, stopAll, text, until } from "./staff.js";

const { Total, Highlight } = sdk.NotificationCountType;
const { Read, ReadPrivate, FullyRead } = sdk.ReceiptType;

describe("receipts and unread counts", () => {
    let alice, bob, bobsTablet, roomId;
    const clients = () => [alice, bob, bobsTablet];

    before(async () => {
        [alice, bob] = await Promise.all([newStaff("alice"), newStaff("bob")]);
        bobsTablet = await start(await login(bob.account));
        for (const client of clients()) {
            client.receipts = [];
            client.on(sdk.RoomEvent.Receipt, (event) => client.receipts.push(event.getContent()));
        }
    });
    beforeEach(async () => {
        roomId = await roomOf(alice, [bob]);
        await until(bobsTablet, () => bobsTablet.getRoom(roomId)?.getMyMembership() === "join", "the join");
    });
    after(stopAll);

    /** The receipt that the client's sync brought, or undefined. */
    const receiptAt = (client, eventId, type) =>
        client.receipts.map((content) => content[eventId]?.[type]?.[bob.getUserId()]).find(Boolean);
    const hear = (client, eventId, type) =>
        until(client, () => receiptAt(client, eventId, type), `${type} of ${eventId}`);

    /** Alice says something; answers the event as bob received it. */
    async function say(body, more, threadId = null) {
        const content = text(body, more);
        const id = threadId
            ? await replyInThread(alice, roomId, threadId, content)
            : (await alice.sendMessage(roomId, content)).event_id;
        await receive(bobsTablet, id);
        return receive(bob, id);
    }
    const counts = (client) => {
        const room = client.getRoom(roomId);
        return [room.getRoomUnreadNotificationCount(Total), room.getRoomUnreadNotificationCount(Highlight)];
    };
    const threadCounts = (client, threadId) => {
        const room = client.getRoom(roomId);
        return [
            room.getThreadUnreadNotificationCount(threadId, Total),
            room.getThreadUnreadNotificationCount(threadId, Highlight),
        ];
    };
    const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
    const counted = (client, expected) =>
        until(
            client,
            () => same(counts(client), expected),
            () => `the counts ${expected}, now ${counts(client)}`,
            [client.getRoom(roomId), sdk.RoomEvent.UnreadNotifications],
        );
    const threadCounted = (client, threadId, expected) =>
        until(
            client,
            () => same(threadCounts(client, threadId), expected),
            () => `the thread's counts ${expected}, now ${threadCounts(client, threadId)}`,
            [client.getRoom(roomId), sdk.RoomEvent.UnreadNotifications],
        );

    test("a public receipt is seen by everybody", async () => {
        const event = await say("Read me");
        await bob.sendReadReceipt(event, Read, true);
        const receipt = await hear(alice, event.getId(), Read);
        assert.equal(receipt.thread_id, undefined);
        assert.ok(Math.abs(Date.now() - receipt.ts) < 60_000);
        const room = alice.getRoom(roomId);
        assert.equal(room.getEventReadUpTo(bob.getUserId(), true), event.getId());
        assert.ok(room.hasUserReadEvent(bob.getUserId(), event.getId()));
        await hear(bobsTablet, event.getId(), Read);
    });

    test("a private receipt is seen by the reader's own devices only", async () => {
        const first = await say("For your eyes");
        await bob.sendReadReceipt(first, ReadPrivate, true);
        await hear(bobsTablet, first.getId(), ReadPrivate);
        const second = await say("And now");
        await bob.sendReadReceipt(second, Read, true);
        await hear(alice, second.getId(), Read); // What came after it is there: the private one will not come.
        assert.equal(receiptAt(alice, first.getId(), ReadPrivate), undefined);
        assert.equal(receiptAt(alice, first.getId(), Read), undefined);
    });

    test("receipts of the main timeline and of a thread are apart", async () => {
        const root = await say("Root");
        const reply = await say("In the thread", {}, root.getId());
        assert.equal(reply.threadRootId, root.getId());
        await bob.sendReadReceipt(root);
        assert.equal((await hear(alice, root.getId(), Read)).thread_id, "main");
        await bob.sendReadReceipt(reply);
        assert.equal((await hear(alice, reply.getId(), Read)).thread_id, root.getId());
    });

    test("the fully-read marker moves and brings receipts along", async () => {
        const [first, second, third] = [await say("One"), await say("Two"), await say("Three")];
        await bob.setRoomReadMarkers(roomId, first.getId(), second, third);
        const marker = () => bobsTablet.getRoom(roomId).getAccountData(FullyRead)?.getContent().event_id;
        await until(bobsTablet, () => marker() === first.getId(), "the fully-read marker");
        await hear(alice, second.getId(), Read);
        await hear(bobsTablet, third.getId(), ReadPrivate);
        assert.equal(receiptAt(alice, third.getId(), ReadPrivate), undefined);
    });

    test("messages count until they are read, on every device of the reader and on nobody else's", async () => {
        await counted(bob, [0, 0]);
        await say("One");
        const second = await say("Two");
        const third = await say("Three");
        await counted(bob, [3, 0]);
        await counted(bobsTablet, [3, 0]);
        await bob.sendReadReceipt(second, Read, true);
        await counted(bobsTablet, [1, 0]);
        await counted(bob, [1, 0]);
        await bob.sendReadReceipt(third, Read, true);
        await counted(bobsTablet, [0, 0]);
        assert.deepEqual(counts(alice), [0, 0]);
    });

    test("a private receipt takes the count down as well", async () => {
        const event = await say("Quietly");
        await counted(bobsTablet, [1, 0]);
        await bob.sendReadReceipt(event, ReadPrivate, true);
        await counted(bobsTablet, [0, 0]);
    });

    test("what the reader says himself does not count", async () => {
        await bob.sendMessage(roomId, text("A question"));
        await bob.sendMessage(roomId, text("Another question"));
        await say("An answer");
        await counted(bobsTablet, [1, 0]);
    });

    test("a mention is a highlight", async () => {
        await say("Hello all");
        const event = await say("Bob, please come", { "m.mentions": { user_ids: [bob.getUserId()] } });
        await counted(bob, [2, 1]);
        await bob.sendReadReceipt(event, Read, true);
        await counted(bobsTablet, [0, 0]);
    });

    test("a mention of the whole room is a highlight when the sender may", async () => {
        await say("@room: lunch", { "m.mentions": { room: true } });
        await counted(bob, [1, 1]);
        const { event_id: id } = await bob.sendMessage(roomId, text("@room: no", { "m.mentions": { room: true } }));
        await receive(alice, id);
        await counted(alice, [1, 0]);
    });

    test("a muted room counts mentions only", async () => {
        const muted = () => bobsTablet.getRoomPushRule("global", roomId) !== undefined;
        await bob.setRoomMutePushRule("global", roomId, true);
        await until(bobsTablet, muted, "the rule");
        await say("Nobody listens");
        await say("Bob, really", { "m.mentions": { user_ids: [bob.getUserId()] } });
        await counted(bobsTablet, [1, 1]);
        await bob.setRoomMutePushRule("global", roomId, false);
        await until(bobsTablet, () => !muted(), "the rule's end");
        await say("Again");
        await counted(bobsTablet, [2, 1]);
    });

    test("threads count apart, with their own highlights", async () => {
        const root = await say("Topic of the day");
        await say("In the thread", {}, root.getId());
        const last = await say("Bob?", { "m.mentions": { user_ids: [bob.getUserId()] } }, root.getId());
        await say("Elsewhere");
        await threadCounted(bob, root.getId(), [2, 1]);
        await counted(bob, [2, 0]);
        await bob.sendReadReceipt(last);
        await threadCounted(bobsTablet, root.getId(), [0, 0]);
        await counted(bobsTablet, [2, 0]);
    });

    test("an unthreaded receipt reads the threads too", async () => {
        const root = await say("Root");
        await say("In the thread", {}, root.getId());
        const last = await say("At the end");
        await threadCounted(bobsTablet, root.getId(), [1, 0]);
        await counted(bobsTablet, [2, 0]);
        await bob.sendReadReceipt(last, Read, true);
        await threadCounted(bobsTablet, root.getId(), [0, 0]);
        await counted(bobsTablet, [0, 0]);
    });

    test("a client that starts now is told the same counts", async () => {
        const root = await say("Root");
        await say("In the thread", { "m.mentions": { user_ids: [bob.getUserId()] } }, root.getId());
        await counted(bob, [1, 0]);
        const fresh = await start(await login(bob.account));
        await counted(fresh, [1, 0]);
        await threadCounted(fresh, root.getId(), [1, 1]);
        fresh.stopClient();
    });
});
