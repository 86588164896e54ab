// Departments as spaces: a tree of rooms, who sees which part of it, and rooms that are open to who is in the space.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { RoomHierarchy } from "matrix-js-sdk/lib/room-hierarchy.js";
import { inRoom, newStaff, receive, roomOf, stopAll, text, until } from "./staff.js";

describe("a space", () => {
    let alice, bob, carol, spaceId;
    const rooms = {};
    before(async () => {
        [alice, bob, carol] = await Promise.all(["alice", "bob", "carol"].map((name) => newStaff(name)));
        spaceId = await roomOf(alice, [bob], { name: "Company", creation_content: { type: "m.space" } });
        const make = async (name, options) => {
            rooms[name] = (await alice.createRoom({ name, ...options })).room_id;
        };
        await make("Lobby", { preset: "public_chat", topic: "Who comes and goes" });
        await make("Board", { preset: "private_chat" });
        const joinRule = { join_rule: "restricted", allow: [{ type: "m.room_membership", room_id: spaceId }] };
        await make("Workshop", { initial_state: [{ type: "m.room.join_rules", state_key: "", content: joinRule }] });
        await make("North", { preset: "public_chat", creation_content: { type: "m.space" } });
        await make("North canteen", { preset: "public_chat" });
        await put(spaceId, "Lobby", { order: "b" });
        await put(spaceId, "Board", { order: "c" });
        await put(spaceId, "Workshop", { order: "a", suggested: true });
        await put(spaceId, "North", { order: "d" });
        await put(rooms.North, "North canteen");
        // A tree may bite its own tail.
        await alice.sendStateEvent(rooms.North, "m.space.child", child(), spaceId);
    });
    after(stopAll);

    const child = (more) => ({ via: [alice.getDomain()], ...more });
    const put = (parent, name, more) => alice.sendStateEvent(parent, "m.space.child", child(more), rooms[name]);
    /** The hierarchy as the app pages through it: each page's names. */
    async function pages(client, size, depth, suggestedOnly) {
        const hierarchy = new RoomHierarchy(client.getRoom(spaceId), size, depth, suggestedOnly);
        const names = [];
        while (hierarchy.canLoadMore) {
            assert.ok(names.length < 10, "the hierarchy has no end");
            names.push((await hierarchy.load()).map((room) => room.name));
            assert.equal(hierarchy.noSupport, false);
        }
        return { hierarchy, names };
    }

    test("the room is a space for everybody in it, with its children", async () => {
        const space = bob.getRoom(spaceId);
        assert.ok(space.isSpaceRoom());
        const children = () => space.currentState.getStateEvents("m.space.child").map((event) => event.getStateKey());
        await until(bob, () => children().length === 4, "the children");
        assert.deepEqual(children().sort(), ["Board", "Lobby", "North", "Workshop"].map((name) => rooms[name]).sort());
    });

    test("everybody sees the tree in its order, without what is not for them", async () => {
        const seen = async (client) => (await pages(client, 50)).names.flat();
        const all = ["Company", "Workshop", "Lobby", "Board", "North", "North canteen"];
        assert.deepEqual(await seen(alice), all);
        assert.deepEqual(await seen(bob), all.filter((name) => name !== "Board"));
    });

    test("the tree tells what a room is, how many are in it, and whether it is suggested", async () => {
        const { hierarchy } = await pages(bob, 50);
        const lobby = hierarchy.roomMap.get(rooms.Lobby);
        assert.equal(lobby.topic, "Who comes and goes");
        assert.equal(lobby.num_joined_members, 1);
        assert.equal(lobby.join_rule ?? "public", "public");
        assert.equal(hierarchy.roomMap.get(rooms.Workshop).join_rule, "restricted");
        assert.equal(hierarchy.roomMap.get(rooms.North).room_type, "m.space");
        assert.equal(hierarchy.isSuggested(spaceId, rooms.Workshop), true);
        assert.ok(!hierarchy.isSuggested(spaceId, rooms.Lobby));
        assert.deepEqual([...hierarchy.backRefs.get(rooms["North canteen"])], [rooms.North]);
        assert.deepEqual([...hierarchy.viaMap.get(rooms.Lobby)], [alice.getDomain()]);
    });

    test("the tree comes page by page, to a depth, or as far as it is suggested", async () => {
        const all = ["Company", "Workshop", "Lobby", "North", "North canteen"];
        const two = (await pages(bob, 2)).names;
        assert.ok(two.every((page) => page.length <= 2), JSON.stringify(two));
        assert.deepEqual(two.flat(), all);
        assert.deepEqual((await pages(bob, 50, 1)).names.flat(), all.slice(0, 4));
        assert.deepEqual((await pages(bob, 50, undefined, true)).names.flat(), ["Company", "Workshop"]);
    });

    test("who is in the space may come in where that is enough, and nobody else", async () => {
        const via = { viaServers: [alice.getDomain()] };
        await assert.rejects(carol.joinRoom(rooms.Workshop, via), { errcode: "M_FORBIDDEN", httpStatus: 403 });
        await bob.joinRoom(rooms.Workshop, via);
        await inRoom(bob, rooms.Workshop);
        const { event_id: id } = await bob.sendMessage(rooms.Workshop, text("Where is the hammer?"));
        await receive(alice, id);
        await assert.rejects(bob.joinRoom(rooms.Board, via), { errcode: "M_FORBIDDEN", httpStatus: 403 });
    });

    test("who is not in the space does not see it", async () => {
        await assert.rejects(carol.getRoomHierarchy(spaceId), { errcode: "M_FORBIDDEN", httpStatus: 403 });
    });

    test("a room that is taken out of the space is no longer in the tree", async () => {
        await alice.sendStateEvent(spaceId, "m.space.child", {}, rooms.Lobby);
        assert.deepEqual((await pages(bob, 50, 1)).names.flat(), ["Company", "Workshop", "North"]);
    });
});
