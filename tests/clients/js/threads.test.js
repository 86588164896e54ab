// Threads: where replies are shown, how a device that comes later learns of them, the list of threads, and edits in them.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { login, newStaff, receive, replyInThread, roomOf, sdk, start, stopAll, text, until } from "./staff.js";

const { All, My } = sdk.ThreadFilterType;

describe("a thread", () => {
    let alice, bob, roomId, rootId, replyId, secondId, thirdId;
    before(async () => {
        [alice, bob] = await Promise.all([newStaff("alice"), newStaff("bob")]);
        roomId = await roomOf(alice, [bob]);
        ({ event_id: rootId } = await alice.sendMessage(roomId, text("Where shall we eat?")));
        await receive(bob, rootId);
        replyId = await replyInThread(bob, roomId, rootId, text("In the park"));
    });
    after(stopAll);

    const threadAt = (client, id = rootId) =>
        until(client, () => client.getRoom(roomId).getThread(id), "the thread");
    // Not `thread.length`: the SDK 43 counts a reply twice that it first learns of from the root, then from its sync.
    const bundled = async (client) =>
        (await client.fetchRoomEvent(roomId, rootId)).unsigned["m.relations"]["m.thread"];
    const news = (thread) => [thread, sdk.ThreadEvent.Update];
    const repliesIn = (thread) => thread.events.map((event) => event.getId()).filter((id) => id !== rootId);

    test("a reply in a thread arrives and belongs to the thread, not to the main timeline", async () => {
        const reply = await receive(alice, replyId);
        assert.equal(reply.threadRootId, rootId);
        assert.equal(reply.getContent()["m.relates_to"].rel_type, "m.thread");
        await threadAt(alice);
        const main = alice.getRoom(roomId).getLiveTimeline().getEvents().map((event) => event.getId());
        assert.ok(main.includes(rootId));
        assert.ok(!main.includes(replyId));
    });

    test("the thread lists its replies in order", async () => {
        const thread = await threadAt(alice);
        secondId = await replyInThread(alice, roomId, rootId, text("It rains"));
        thirdId = await replyInThread(bob, roomId, rootId, text("Then inside"));
        await until(alice, () => repliesIn(thread).includes(thirdId), "the replies", news(thread));
        assert.deepEqual(repliesIn(thread), [replyId, secondId, thirdId]);
    });

    test("an edit in a thread changes the text there", async () => {
        const atAlice = await receive(alice, thirdId);
        const { event_id: editId } = await bob.sendMessage(
            roomId,
            text("* Then in the canteen", {
                "m.new_content": text("Then in the canteen"),
                "m.relates_to": { rel_type: "m.replace", event_id: thirdId },
            }),
        );
        await until(alice, () => atAlice.replacingEventId() === editId, "the edit");
        assert.equal(atAlice.getContent().body, "Then in the canteen");
        const thread = await threadAt(alice);
        assert.deepEqual(repliesIn(thread).filter((id) => id !== editId), [replyId, secondId, thirdId]);
    });

    test("the root tells what its thread is, and an edit is no reply", async () => {
        const bundle = await bundled(bob);
        assert.equal(bundle.count, 3);
        assert.equal(bundle.latest_event.event_id, thirdId);
        assert.equal(bundle.current_user_participated, true);
    });

    test("a device that comes later shows the whole thread", async () => {
        const fresh = await start(await login(bob.account));
        const thread = await threadAt(fresh);
        await until(fresh, () => thread.initialEventsFetched, "the thread's events", news(thread));
        const shown = () => thread.events.filter((event) => [replyId, secondId, thirdId].includes(event.getId()));
        await until(fresh, () => shown().length === 3, "the replies", news(thread));
        assert.deepEqual(shown().map((event) => event.getContent().body), [
            "In the park",
            "It rains",
            "Then in the canteen",
        ]);
        fresh.stopClient();
    });

    test("the threads of a room are listed by their last reply, all or one's own", async () => {
        const { event_id: other } = await bob.sendMessage(roomId, text("Who has the key?"));
        await receive(bob, other);
        const found = await replyInThread(bob, roomId, other, text("I have it"));
        await receive(alice, found);
        const list = async (client, which) => {
            const answer = await client.createThreadListMessagesRequest(roomId, null, 10, "b", which);
            return answer.chunk.map((event) => event.event_id); // The SDK turns the order round: the newest is the last.
        };
        assert.deepEqual(await list(alice, All), [rootId, other]);
        assert.deepEqual(await list(alice, My), [rootId]);
        assert.deepEqual(await list(bob, My), [rootId, other]);
        const again = await replyInThread(alice, roomId, rootId, text("Is there soup?"));
        await receive(bob, again);
        assert.deepEqual(await list(bob, All), [other, rootId]);
    });

    test("an app's own list of threads has them too", async () => {
        const fresh = await start(await login(alice.account), { initialSyncLimit: 1 });
        const room = fresh.getRoom(roomId);
        const [all, mine] = await room.createThreadsTimelineSets();
        await room.fetchRoomThreads();
        const ids = (set) => set.getLiveTimeline().getEvents().map((event) => event.getId());
        assert.equal(ids(all).at(-1), rootId);
        assert.equal(ids(all).length, 2);
        assert.deepEqual(ids(mine), [rootId]);
        fresh.stopClient();
    });

    test("a redacted reply is no longer counted", async () => {
        assert.equal((await bundled(alice)).count, 4);
        await bob.redactEvent(roomId, thirdId);
        assert.equal((await bundled(alice)).count, 3);
    });
});
