// A room goes on in another one of a newer version: everybody is led there, and finds it as the old one was.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after, before, describe, test } from "node:test";
import { inRoom, newStaff, receive, roomOf, stopAll, text, until } from "./staff.js";

describe("an upgraded room", () => {
    let alice, bob, carol, eve, alias, oldId, newId;
    const stateAt = (client, roomId, type) => client.getRoom(roomId).currentState.getStateEvents(type, "")?.getContent();

    before(async () => {
        [alice, bob, carol, eve] = await Promise.all(["alice", "bob", "carol", "eve"].map((name) => newStaff(name)));
        const local = `canteen-${randomBytes(4).toString("hex")}`;
        alias = `#${local}:${alice.getDomain()}`;
        oldId = await roomOf(alice, [bob, carol], {
            preset: "public_chat",
            room_version: "10",
            name: "Canteen",
            topic: "What there is today",
            room_alias_name: local,
            power_level_content_override: { users: { [alice.getUserId()]: 100, [bob.getUserId()]: 50 } },
        });
        await alice.ban(oldId, eve.getUserId(), "not from here");
        await carol.setRoomTag(oldId, "m.favourite", { order: 0.5 });
        await carol.setRoomMutePushRule("global", oldId, true);
        await until(carol, () => carol.getRoomPushRule("global", oldId), "the rule");
        await until(carol, () => carol.getRoom(oldId).tags["m.favourite"], "the tag");
    });
    after(stopAll);

    test("only who may replaces it, and only by a version that there is", async () => {
        await assert.rejects(carol.upgradeRoom(oldId, "11"), { errcode: "M_FORBIDDEN", httpStatus: 403 });
        await assert.rejects(alice.upgradeRoom(oldId, "org.example.none"), {
            errcode: "M_UNSUPPORTED_ROOM_VERSION",
            httpStatus: 400,
        });
        assert.equal(stateAt(alice, oldId, "m.room.tombstone"), undefined);
    });

    test("its members are told where it goes on, and follow", async () => {
        ({ replacement_room: newId } = await alice.upgradeRoom(oldId, "11"));
        await inRoom(alice, newId);
        for (const client of [bob, carol]) {
            await until(client, () => stateAt(client, oldId, "m.room.tombstone"), "the tombstone");
            assert.equal(stateAt(client, oldId, "m.room.tombstone").replacement_room, newId);
            await client.joinRoom(newId, { viaServers: [alice.getDomain()] });
            const room = await inRoom(client, newId);
            assert.equal(room.findPredecessor().roomId, oldId);
            assert.deepEqual(client.getRoomUpgradeHistory(newId, true).map((room) => room.roomId), [oldId, newId]);
            assert.ok(!client.getVisibleRooms().some((room) => room.roomId === oldId));
        }
        const { event_id: id } = await carol.sendMessage(newId, text("It is bigger here"));
        await receive(bob, id);
    });

    test("it has the name, the topic, the powers and the bans of the old one", async () => {
        const room = bob.getRoom(newId);
        assert.equal(room.getVersion(), "11");
        assert.equal(room.name, "Canteen");
        assert.equal(stateAt(bob, newId, "m.room.topic").topic, "What there is today");
        assert.equal(room.getJoinRule(), "public");
        assert.equal(room.getCreator(), alice.getUserId());
        await room.loadMembersIfNeeded();
        const power = (client) => room.getMember(client.getUserId()).powerLevel;
        assert.deepEqual([power(alice), power(bob), power(carol)], [100, 50, 0]);
        assert.equal(room.getMember(eve.getUserId()).membership, "ban");
        await assert.rejects(eve.joinRoom(newId, { viaServers: [alice.getDomain()] }), { httpStatus: 403 });
    });

    test("its alias leads to the new room", async () => {
        assert.equal((await bob.getRoomIdForAlias(alias)).room_id, newId);
        await until(bob, () => bob.getRoom(newId).getCanonicalAlias() === alias, "the alias in the new room");
        await until(bob, () => bob.getRoom(oldId).getCanonicalAlias() === null, "the alias's end in the old room");
        assert.deepEqual((await bob.getLocalAliases(newId)).aliases, [alias]);
    });

    test("nobody without power talks in the old one any more", async () => {
        await assert.rejects(carol.sendMessage(oldId, text("Anybody here?")), {
            errcode: "M_FORBIDDEN",
            httpStatus: 403,
        });
    });

    test("what somebody has set for the old one is set for the new one", async () => {
        await until(carol, () => carol.getRoom(newId).tags["m.favourite"]?.order === 0.5, "the tag");
        await until(carol, () => carol.getRoomPushRule("global", newId), "the rule");
        assert.equal(bob.getRoomPushRule("global", newId), undefined);
    });
});
