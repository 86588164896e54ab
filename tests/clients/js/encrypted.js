// Staff members whose clients encrypt: what they keep as secrets, how they read, and how they verify each other.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { CryptoEvent, VerificationPhase, VerifierEvent } from "matrix-js-sdk/lib/crypto-api/index.js";
import { LIMIT_MS, login, newStaff, sdk, start, until } from "./staff.js";

/** A sync after an outage brings all that was missed: there is nobody here who scrolls up for the rest. */
const longTimelines = new sdk.Filter(undefined);
longTimelines.setTimelineLimit(200);

/** How a client is made and prepared that encrypts; `safe` is what its owner keeps in a drawer: the recovery key. */
const encrypting = (safe) => ({
    create: {
        cryptoCallbacks: {
            getSecretStorageKey: async ({ keys }) => (safe.id in keys ? [safe.id, safe.key] : null),
            cacheSecretStorageKey: (id, _info, key) => Object.assign(safe, { id, key }),
        },
    },
    filter: longTimelines,
    async prepare(client) {
        await client.initRustCrypto({ useIndexedDB: false });
        client.asked = new Promise((resolve) => client.once(CryptoEvent.VerificationRequestReceived, resolve));
    },
});

/** Registers somebody and starts a client that encrypts. */
export async function newConfidant(name, server) {
    const safe = {};
    const client = await newStaff(name, encrypting(safe), server);
    client.safe = safe;
    return client;
}

/** Another device of the same person, which knows the recovery key. */
export async function anotherDevice(client) {
    const account = await login(client.account);
    const other = await start(account, encrypting(client.safe));
    return Object.assign(other, { account, safe: client.safe });
}

/** Signs a new device with the keys that secret storage holds, as its owner does who enters the recovery key. */
export async function unlock(client) {
    const crypto = client.getCrypto();
    assert.ok(await crypto.userHasCrossSigningKeys(client.getUserId(), true));
    await crypto.bootstrapCrossSigning({});
    assert.ok(await crypto.isCrossSigningReady());
}

/** Asks again and again until the answer is true-ish, and resolves with it. `what` is a text, or makes one. */
export async function eventually(check, what) {
    for (const began = Date.now(); Date.now() - began < LIMIT_MS; await sleep(50)) {
        const answer = await check();
        if (answer) return answer;
    }
    throw new Error(`waited ${LIMIT_MS} ms for ${typeof what === "function" ? what() : what}`);
}

/** Resolves with the text of the message once the client has received and decrypted it. */
export const read = (client, eventId) =>
    until(
        client,
        () => {
            const event = client.received.get(eventId);
            return event?.isEncrypted() && !event.isDecryptionFailure() && event.getContent().body;
        },
        () => {
            const event = client.received.get(eventId);
            const state = event ? (event.decryptionFailureReason ?? "not decrypted") : "not received";
            return `${eventId} in clear; it is ${state}`;
        },
    );

/** The devices of a user that the client knows of. */
export async function devicesKnown(client, userId) {
    const known = await client.getCrypto().getUserDeviceInfo([userId]);
    return [...(known.get(userId)?.keys() ?? [])];
}

/** Resolves once the client knows the device of another, and has seen its owner's signature. */
export const knowsAsSigned = (client, device) =>
    eventually(async () => {
        const status = await client.getCrypto().getDeviceVerificationStatus(device.getUserId(), device.getDeviceId());
        return status?.signedByOwner;
    }, `${device.getDeviceId()} of ${device.getUserId()}, signed, at ${client.getUserId()}`);

/** Both compare emoji in the room that they share, and are done. */
export async function compareEmoji(one, other, roomId) {
    const here = await one.getCrypto().requestVerificationDM(other.getUserId(), roomId);
    const there = await other.asked;
    assert.equal(there.otherUserId, one.getUserId());
    await there.accept();
    await eventually(() => here.phase === VerificationPhase.Ready, "the accepted request");
    const verifiers = [await here.startVerification("m.sas.v1")];
    verifiers.push(await eventually(() => there.verifier, "the start"));
    const shown = verifiers.map((verifier) => new Promise((resolve) => verifier.once(VerifierEvent.ShowSas, resolve)));
    const done = verifiers.map((verifier) => verifier.verify());
    const [left, right] = await Promise.race([
        Promise.all(shown),
        Promise.all(done).then(() => assert.fail("done before anything was compared")),
    ]);
    assert.equal(left.sas.emoji.length, 7);
    assert.deepEqual(left.sas.emoji, right.sas.emoji);
    await Promise.all([left.confirm(), right.confirm()]);
    await Promise.all(done);
}
