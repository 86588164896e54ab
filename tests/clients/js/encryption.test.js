// Two people whose messages nobody else can read, in one office, or each in their own: with OTHER_HOMESERVER_URL, bob
// lives there. RESTART_CMD kills the nodes and starts them again; CUT_CMD and MEND_CMD are for the link between them.
import assert from "node:assert/strict";
import { exec } from "node:child_process";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import {
    anotherDevice,
    compareEmoji,
    devicesKnown,
    eventually,
    knowsAsSigned,
    newConfidant,
    read,
    unlock,
} from "./encrypted.js";
import { baseUrl, inRoom, roomOf, sdk, stopAll, text, until } from "./staff.js";

/** A function that runs the command in this variable, or undefined. */
const command = (name) => process.env[name] && (() => promisify(exec)(process.env[name]));
const restart = command("RESTART_CMD");
const cut = command("CUT_CMD");
const mend = command("MEND_CMD");

/** No proof of who asks: the server says whether it wants one. */
const withoutPassword = { authUploadDeviceSigningKeys: async (upload) => void (await upload(null)) };

describe("an encrypted conversation", () => {
    let alice, bob, bobsTablet, roomId;
    const people = () => [alice, bob];
    before(async () => {
        alice = await newConfidant("alice", baseUrl);
        bob = await newConfidant("bob", process.env.OTHER_HOMESERVER_URL ?? baseUrl);
    });
    after(stopAll);

    /** Sends a message; answers its id and what is in it, as `arrives` takes them. */
    async function say(client, body, { newKey } = {}) {
        if (newKey) await client.getCrypto().forceDiscardSession(roomId);
        return [(await client.sendMessage(roomId, text(body))).event_id, body];
    }
    const arrives = async ([id, body], ...clients) => {
        for (const client of clients) assert.equal(await read(client, id), body);
    };

    test("the first cross-signing keys need no password, and sign the device", async () => {
        for (const client of people()) {
            await client.getCrypto().bootstrapCrossSigning(withoutPassword);
            assert.ok(await client.getCrypto().isCrossSigningReady());
            await knowsAsSigned(client, client);
        }
    });

    test("other cross-signing keys need the password", async () => {
        const before = await alice.getCrypto().getCrossSigningKeyId();
        const refused = { setupNewCrossSigning: true, ...withoutPassword };
        const mallory = await anotherDevice({ ...alice, account: alice.account, safe: {} });
        await assert.rejects(mallory.getCrypto().bootstrapCrossSigning(refused), { httpStatus: 401 });
        await mallory.logout(true);
        assert.equal(await alice.getCrypto().getCrossSigningKeyId(), before);
    });

    test("secret storage and a key backup are set up", async () => {
        for (const client of people()) {
            const crypto = client.getCrypto();
            await crypto.bootstrapSecretStorage({
                createSecretStorageKey: () => crypto.createRecoveryKeyFromPassphrase(),
                setupNewKeyBackup: true,
            });
            assert.ok(await crypto.isSecretStorageReady());
            const info = await crypto.getKeyBackupInfo();
            assert.equal(await crypto.getActiveSessionBackupVersion(), info.version);
            assert.ok((await crypto.isKeyBackupTrusted(info)).trusted);
        }
    });

    test("both read what the other writes", async () => {
        roomId = await roomOf(alice, [bob], {
            initial_state: [
                { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } },
            ],
        });
        assert.ok(await bob.getCrypto().isEncryptionEnabledInRoom(roomId));
        await arrives(await say(alice, "Only for you"), alice, bob);
        await arrives(await say(bob, "Nobody else knows"), alice, bob);
    });

    test("the server has nothing that it could read", async () => {
        const message = await say(alice, "The vault's code is 7");
        await arrives(message, bob);
        const { type, content } = await bob.fetchRoomEvent(roomId, message[0]);
        assert.equal(type, "m.room.encrypted");
        assert.ok(!JSON.stringify(content).includes("vault"));
    });

    test("they verify each other by emoji", async () => {
        const trusts = async (client, userId) => (await client.getCrypto().getUserVerificationStatus(userId)).isVerified();
        assert.equal(await trusts(alice, bob.getUserId()), false);
        await compareEmoji(alice, bob, roomId);
        await eventually(() => trusts(alice, bob.getUserId()), "alice's trust");
        await eventually(() => trusts(bob, alice.getUserId()), "bob's trust");
    });

    test("a hundred messages, each with a key of its own", async () => {
        const sent = [];
        for (let number = 0; number < 50; number++) {
            sent.push(await say(alice, `From alice ${number}`, { newKey: true }));
            sent.push(await say(bob, `From bob ${number}`, { newKey: true }));
        }
        for (const message of sent) await arrives(message, alice, bob);
    });

    test("another device is signed with what secret storage holds, and everybody sees that", async () => {
        bobsTablet = await anotherDevice(bob);
        await inRoom(bobsTablet, roomId);
        await unlock(bobsTablet);
        await knowsAsSigned(bob, bobsTablet);
        await knowsAsSigned(alice, bobsTablet);
        const status = await alice.getCrypto()
            .getDeviceVerificationStatus(bob.getUserId(), bobsTablet.getDeviceId());
        assert.ok(status.crossSigningVerified, "whoever trusts bob trusts his new device");
        await arrives(await say(alice, "To both your devices"), bob, bobsTablet);
        await arrives(await say(bobsTablet, "From my tablet"), alice, bob);
    });

    test("it restores all keys from the backup, and reads what was before it", async () => {
        const crypto = bobsTablet.getCrypto();
        let counts;
        await eventually(
            async () => {
                const keys = await bob.getCrypto().exportRoomKeys();
                const { count } = await bob.http.authedRequest(sdk.Method.Get, "/room_keys/version");
                counts = `${keys.length} keys of bob's in the backup, now ${count}`;
                return count >= keys.length;
            },
            () => counts,
        );
        await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
        const { imported, total } = await crypto.restoreKeyBackup();
        assert.ok(total >= 100);
        assert.equal(imported, total);
        const room = bobsTablet.getRoom(roomId);
        while (room.oldState.paginationToken !== null) await bobsTablet.scrollback(room, 100);
        const messages = room.getLiveTimeline().getEvents().filter((event) => event.isEncrypted());
        assert.ok(messages.length > 100);
        // What is still to be decrypted is no failure yet, and says nothing either.
        const isClear = (event) => !event.isDecryptionFailure() && event.getClearContent() !== null;
        await eventually(() => messages.every(isClear), "every message in clear");
        const bodies = messages.map((event) => event.getContent().body);
        assert.ok(bodies.includes("Only for you"), "the first message of all");
    });

    test("a device that logs out is nobody's recipient any more", async () => {
        const borrowed = await anotherDevice(bob);
        const known = async () => (await devicesKnown(alice, bob.getUserId())).includes(borrowed.getDeviceId());
        await eventually(known, "the borrowed device");
        await borrowed.logout(true);
        await eventually(async () => !(await known()), "its end");
        await arrives(await say(alice, "Was that you?", { newKey: true }), bob, bobsTablet);
    });

    test("the nodes are killed: nothing becomes undecryptable", { skip: !restart && "no RESTART_CMD" }, async () => {
        const sent = [];
        for (const client of people()) sent.push(await say(client, "Before", { newKey: true }));
        await restart();
        for (const client of people()) sent.push(await say(client, "After", { newKey: true }));
        for (const message of sent) await arrives(message, alice, bob, bobsTablet);
    });

    test("the link is cut, the nodes are killed, a device is new: all is read when the link returns", {
        skip: !cut && "no CUT_CMD",
    }, async () => {
        await cut();
        const sent = [];
        for (let number = 0; number < 10; number++) {
            sent.push(await say(alice, `Alice alone ${number}`, { newKey: true }));
            sent.push(await say(bob, `Bob alone ${number}`, { newKey: true }));
            if (number === 5) await restart();
        }
        const laptop = await anotherDevice(bob);
        await unlock(laptop);
        await knowsAsSigned(bob, laptop);
        assert.ok(!(await devicesKnown(alice, bob.getUserId())).includes(laptop.getDeviceId()));
        await mend();
        for (const message of sent) await arrives(message, alice, bob, bobsTablet);
        await knowsAsSigned(alice, laptop);
        await arrives(await say(alice, "Welcome, laptop", { newKey: true }), bob, bobsTablet, laptop);
    });

    test("nobody was left with a message that he cannot read", async () => {
        for (const client of [alice, bob, bobsTablet]) {
            const last = await say(client, "That was all");
            await arrives(last, alice, bob, bobsTablet);
        }
        for (const client of people()) {
            const unreadable = () => [...client.received.values()].filter((event) => event.isDecryptionFailure());
            await until(client, () => unreadable().length === 0, () => `the keys of ${unreadable().length} messages`);
        }
    });
});
