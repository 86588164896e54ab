// Staff members with a real client: registering, logging in, starting, and waiting for what the SDK tells.
import { randomBytes } from "node:crypto";
import { setImmediate as turn, setTimeout as delay } from "node:timers/promises";
import "./quiet.js";
import * as sdk from "matrix-js-sdk";

export const baseUrl = process.env.HOMESERVER_URL ?? "http://127.0.0.1:8008";
const registrationToken = process.env.REGISTRATION_TOKEN;
/** The longest that anything awaited may take. Nothing ever waits this long when the server is right. */
export const LIMIT_MS = Number(process.env.WAIT_LIMIT_MS ?? 20_000);

const started = new Set();

const credentials = (answer) =>
    ({ userId: answer.user_id, deviceId: answer.device_id, accessToken: answer.access_token });

/** Registers an account and answers its credentials; `name` only begins the name, so that a run can be repeated. */
export async function register(name, server = baseUrl) {
    const client = sdk.createClient({ baseUrl: server });
    const username = `${name}-${randomBytes(4).toString("hex")}`;
    const password = `secret of ${username}`;
    const auth = new sdk.InteractiveAuth({
        matrixClient: client,
        supportedStages: [registrationToken ? sdk.AuthType.RegistrationToken : sdk.AuthType.Dummy],
        doRequest: (auth) => client.registerRequest({ username, password, auth: auth ?? undefined }),
        stateUpdated: (stage, status) => {
            if (status.errcode) throw new Error(`${stage}: ${status.errcode} ${status.error}`);
            if (stage === sdk.AuthType.RegistrationToken) {
                auth.submitAuthDict({ type: stage, token: registrationToken, session: auth.getSessionId() });
            }
        },
        requestEmailToken: () => Promise.reject(new Error("no e-mail here")),
    });
    const answer = await auth.attemptAuth();
    return { server, username, password, ...credentials(answer) };
}

/** Logs the account in on a new device and answers its credentials. */
export async function login(account) {
    const answer = await sdk.createClient({ baseUrl: account.server }).loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: account.username },
        password: account.password,
    });
    return { ...account, ...credentials(answer) };
}

/**
 * Starts a client and resolves when its first sync is done.
 * `client.received` has every event that its syncs brought, by event id. `create` goes to the making of the client,
 * `prepare` is done with it before its first sync.
 */
export async function start({ server, userId, deviceId, accessToken }, { prepare, create, ...options } = {}) {
    const identity = { baseUrl: server, userId, deviceId, accessToken };
    const client = sdk.createClient({ ...identity, timelineSupport: true, ...create });
    client.received = new Map();
    client.on(sdk.ClientEvent.Event, (event) => {
        if (event.getId()) client.received.set(event.getId(), event);
    });
    started.add(client);
    await prepare?.(client);
    await client.startClient({ threadSupport: true, lazyLoadMembers: true, initialSyncLimit: 50, ...options });
    await until(client, () => client.isInitialSyncComplete(), "the first sync");
    return client;
}

/** Registers and starts in one. The account is `client.account`. */
export async function newStaff(name, options, server = baseUrl) {
    const account = await register(name, server);
    const client = await start(account, options);
    client.account = account;
    return client;
}

export function stopAll() {
    for (const client of started) client.stopClient();
    started.clear();
}

const SIGNALS = [
    sdk.ClientEvent.Sync,
    sdk.ClientEvent.Event,
    sdk.ClientEvent.Room,
    sdk.ClientEvent.AccountData,
    sdk.MatrixEventEvent.Replaced,
    sdk.MatrixEventEvent.Decrypted,
    sdk.RoomEvent.Timeline,
    sdk.RoomEvent.Receipt,
    sdk.RoomEvent.Tags,
    sdk.RoomEvent.AccountData,
    sdk.RoomEvent.MyMembership,
    sdk.RoomEvent.LocalEchoUpdated,
    sdk.RoomMemberEvent.Typing,
    sdk.RoomStateEvent.Events,
];

/**
 * Resolves with what `check` answers once that is true-ish; asks again whenever the client tells of anything.
 * `what` says what is awaited, as text or as a function that makes it; `also` is a further emitter to listen to, as
 * [emitter, event].
 */
export function until(client, check, what, also) {
    return new Promise((resolve, reject) => {
        const sources = SIGNALS.map((signal) => [client, signal]);
        if (also) sources.push(also);
        const finish = (settle, value) => {
            clearTimeout(timer);
            for (const [emitter, signal] of sources) emitter.off(signal, look);
            settle(value);
        };
        const look = async () => {
            await turn(); // The SDK tells in the middle of its work: let it finish first.
            try {
                const answer = check();
                if (answer) finish(resolve, answer);
            } catch (error) {
                finish(reject, error);
            }
        };
        const timer = setTimeout(
            () => {
                const awaited = typeof what === "function" ? what() : what;
                finish(reject, new Error(`${client.getUserId()} waited ${LIMIT_MS} ms for ${awaited}`));
            },
            LIMIT_MS,
        );
        for (const [emitter, signal] of sources) emitter.on(signal, look);
        look();
    });
}

/**
 * Resolves with what `ask` answers once that is true-ish; asks the server again and again, for what no sync tells.
 */
export async function eventually(ask, what) {
    const end = Date.now() + LIMIT_MS;
    for (;;) {
        const answer = await ask();
        if (answer) return answer;
        if (Date.now() > end) throw new Error(`waited ${LIMIT_MS} ms for ${what}`);
        await delay(50);
    }
}

/** Resolves with the event once the client's sync has brought it. */
export const receive = (client, eventId) =>
    until(client, () => client.received.get(eventId), `the event ${eventId}`);

/** Resolves with the room once the client is in it as `membership`. */
export const inRoom = (client, roomId, membership = "join") =>
    until(
        client,
        () => client.getRoom(roomId)?.getMyMembership() === membership && client.getRoom(roomId),
        `membership ${membership} in ${roomId}`,
    );

/** A room of `owner` that all `others` have been invited to and have joined; everybody has seen everybody join. */
export async function roomOf(owner, others, options = {}) {
    const { room_id: roomId } = await owner.createRoom({
        preset: "private_chat",
        name: "Office",
        invite: others.map((other) => other.getUserId()),
        ...options,
    });
    for (const other of others) {
        await inRoom(other, roomId, "invite");
        await other.joinRoom(roomId);
        await inRoom(other, roomId);
    }
    await until(
        owner,
        () => others.every((other) => owner.getRoom(roomId)?.getMember(other.getUserId())?.membership === "join"),
        "everybody's join",
    );
    return roomId;
}

/** The content of a text message. */
export const text = (body, more = {}) => ({ msgtype: "m.text", body, ...more });

/**
 * Replies in a thread as an app does it: opens the thread, then sends; answers the event id.
 * (Unopened, the SDK 43 fails when the sync brings its own event before the answer to the sending comes.)
 */
export async function replyInThread(client, roomId, rootId, content) {
    const room = client.getRoom(roomId);
    const root = room.findEventById(rootId);
    const thread = room.getThread(rootId) ?? room.createThread(rootId, root, [root], true);
    await until(client, () => thread.initialEventsFetched, "the thread", [thread, sdk.ThreadEvent.Update]);
    return (await client.sendMessage(roomId, rootId, content)).event_id;
}

/** The ids of the main timeline, oldest first. */
export const timelineIds = (room) => room.getLiveTimeline().getEvents().map((event) => event.getId());

/** The current state as sorted lines "type|state key|event id". */
export const stateLines = (room) =>
    [...room.getLiveTimeline().getState(sdk.Direction.Forward).events.values()]
        .flatMap((byKey) => [...byKey.values()])
        .map((event) => `${event.getType()}|${event.getStateKey()}|${event.getId()}`)
        .sort();

export { sdk };
