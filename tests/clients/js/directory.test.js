// Finding colleagues by half a name and rooms by a word, and the names that rooms have in the directory.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after, before, describe, test } from "node:test";
import { eventually, inRoom, newStaff, roomOf, stopAll } from "./staff.js";

describe("the directory of people", () => {
    let alice, bob;
    // The parts that nobody else's name has, so that a run can be repeated.
    const [first, last] = ["Wilhelmine", "Перевалова"].map((name) => `${name}${randomBytes(3).toString("hex")}`);
    before(async () => {
        [alice, bob] = await Promise.all([newStaff("alice"), newStaff("bob")]);
        await bob.setDisplayName(`${first} ${last}`);
        await roomOf(alice, [bob]);
    });
    after(stopAll);

    /** Waits until exactly these people are found. */
    async function finds(term, people) {
        const expected = JSON.stringify(people.map((client) => client.getUserId()));
        const ids = async () => (await alice.searchUserDirectory({ term })).results.map((user) => user.user_id);
        await eventually(async () => JSON.stringify(await ids()) === expected, `${term} to find ${expected}`);
    }

    test("somebody is found by the first name, the last name, both and half of each", async () => {
        await finds(first, [bob]);
        await finds(last, [bob]);
        await finds(`${first} ${last}`, [bob]);
        await finds(first.slice(0, -2), [bob]);
        await finds(last.slice(0, -2), [bob]);
    });

    test("case does not matter, in any alphabet", async () => {
        await finds(first.toUpperCase(), [bob]);
        await finds(last.toLowerCase(), [bob]);
        await finds(last.toUpperCase().slice(0, -1), [bob]);
    });

    test("somebody is found by the name of the account", async () => {
        await finds(bob.account.username, [bob]);
        const { results } = await alice.searchUserDirectory({ term: bob.account.username });
        assert.equal(results[0].display_name, `${first} ${last}`);
    });

    test("nobody is found by what is nobody's name", async () => {
        await finds(`${first}x`, []);
        assert.deepEqual(await alice.searchUserDirectory({ term: `${last}x` }), { limited: false, results: [] });
    });

    test("who changes the name is found by the new one only", async () => {
        const married = `Öztürk${randomBytes(3).toString("hex")}`;
        await bob.setDisplayName(`${first} ${married}`);
        await finds(married, [bob]);
        await finds(last, []);
        await finds(first, [bob]);
    });

    test("as many are found as are asked for", async () => {
        const surname = `Doppelgänger${randomBytes(3).toString("hex")}`;
        await Promise.all([alice.setDisplayName(`Anna ${surname}`), bob.setDisplayName(`Berta ${surname}`)]);
        // Not everybody wants to be shown oneself.
        await eventually(
            async () => (await alice.searchUserDirectory({ term: surname })).results.length >= 1,
            "somebody of that name",
        );
        const carol = await newStaff("carol");
        await roomOf(carol, [alice, bob]);
        const search = (limit) => carol.searchUserDirectory({ term: surname, limit });
        await eventually(async () => (await search(10)).results.length === 2, "both of that name");
        assert.equal((await search(10)).limited, false);
        const one = await search(1);
        assert.equal(one.results.length, 1);
        assert.equal(one.limited, true);
    });
});

describe("the directory of rooms", () => {
    let alice, bob;
    const word = `Kegelbahn${randomBytes(3).toString("hex")}`;
    const rooms = {};
    before(async () => {
        [alice, bob] = await Promise.all([newStaff("alice"), newStaff("bob")]);
        const make = async (name, options) => {
            const { room_id: id } = await alice.createRoom({ visibility: "public", preset: "public_chat", ...options });
            rooms[name] = id;
        };
        await make("named", { name: `Unsere ${word}` });
        await make("topical", { name: "Sport", topic: `Jeden Freitag: ${word}` });
        await make("space", { name: `Alles über ${word}`, creation_content: { type: "m.space" } });
        await make("hidden", { name: `Geheime ${word}`, visibility: "private" });
        await bob.joinRoom(rooms.topical);
        await inRoom(bob, rooms.topical);
    });
    after(stopAll);

    const search = async (options = {}, filter = {}) =>
        bob.publicRooms({ ...options, filter: { generic_search_term: word, ...filter } });
    const ids = (answer) => answer.chunk.map((room) => room.room_id);

    test("rooms are found by a word of their name or topic, with what they are about", async () => {
        const found = await eventually(async () => {
            const answer = await search();
            return answer.chunk.length === 3 && answer;
        }, "all three rooms");
        // Where most people are comes first.
        assert.equal(ids(found)[0], rooms.topical);
        assert.deepEqual(ids(found).sort(), [rooms.named, rooms.topical, rooms.space].sort());
        const topical = found.chunk[0];
        assert.equal(topical.name, "Sport");
        assert.equal(topical.topic, `Jeden Freitag: ${word}`);
        assert.equal(topical.num_joined_members, 2);
        assert.equal(topical.world_readable, false);
        assert.deepEqual(ids(await search({}, { generic_search_term: word.toUpperCase() })).length, 3);
        assert.deepEqual(ids(await search({}, { generic_search_term: `${word}x` })), []);
    });

    test("rooms are found by their type", async () => {
        assert.deepEqual(ids(await search({}, { room_types: ["m.space"] })), [rooms.space]);
        assert.equal(ids(await search({}, { room_types: [null] })).length, 2);
    });

    test("they come page by page", async () => {
        const seen = [];
        let since;
        do {
            const page = await search({ limit: 1, since });
            assert.ok(page.chunk.length <= 1);
            seen.push(...ids(page));
            since = page.next_batch;
            assert.ok(seen.length <= 3, "there is no end");
        } while (since);
        assert.deepEqual(seen, ids(await search()));
    });

    test("a room is listed as long as its owner wants it", async () => {
        assert.equal((await bob.getRoomDirectoryVisibility(rooms.named)).visibility, "public");
        await assert.rejects(bob.setRoomDirectoryVisibility(rooms.named, "private"), { errcode: "M_FORBIDDEN" });
        await alice.setRoomDirectoryVisibility(rooms.named, "private");
        assert.equal((await bob.getRoomDirectoryVisibility(rooms.named)).visibility, "private");
        assert.ok(!ids(await search()).includes(rooms.named));
        await alice.setRoomDirectoryVisibility(rooms.named, "public");
        assert.ok(ids(await search()).includes(rooms.named));
    });

    test("an alias leads to its room, once it is there and no longer than that", async () => {
        const alias = `#${word.toLowerCase()}-ünïcode:${alice.getDomain()}`;
        await assert.rejects(bob.getRoomIdForAlias(alias), { errcode: "M_NOT_FOUND", httpStatus: 404 });
        await alice.createAlias(alias, rooms.named);
        await assert.rejects(bob.createAlias(alias, rooms.topical), { httpStatus: 409 });
        assert.deepEqual(await bob.getRoomIdForAlias(alias), {
            room_id: rooms.named,
            servers: [alice.getDomain()],
        });
        const room = await bob.joinRoom(alias);
        assert.equal(room.roomId, rooms.named);
        await inRoom(bob, rooms.named);
        assert.ok((await bob.getLocalAliases(rooms.named)).aliases.includes(alias));
        await assert.rejects(bob.deleteAlias(alias), { errcode: "M_FORBIDDEN", httpStatus: 403 });
        await alice.deleteAlias(alias);
        await assert.rejects(bob.getRoomIdForAlias(alias), { errcode: "M_NOT_FOUND", httpStatus: 404 });
    });

    test("a room is named by an alias only if that is its own", async () => {
        const alias = `#${word.toLowerCase()}-own:${alice.getDomain()}`;
        const name = (content) => alice.sendStateEvent(rooms.named, "m.room.canonical_alias", content, "");
        await assert.rejects(name({ alias }), { errcode: "M_BAD_ALIAS", httpStatus: 400 });
        await alice.createAlias(alias, rooms.named);
        await name({ alias });
        const listed = async () => (await search()).chunk.find((room) => room.room_id === rooms.named);
        await eventually(async () => (await listed())?.canonical_alias === alias, "the alias in the directory");
    });
});
