// A message is found again by any form of its words, in three languages, by who may read it and by nobody else.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { eventually, inRoom, newStaff, receive, roomOf, stopAll, text } from "./staff.js";

const SAID = {
    ru: "Подпишите договоры до пятницы, их ждёт бухгалтерия",
    de: "Die Verträge liegen bei den Kolleginnen im Schrank",
    en: "The invoices were checked and mailed yesterday",
    name: "Frau Müller-Lüdenscheidt hat am Montag angerufen",
    number: "Заказ № 4711-2026 на сумму 15 300 рублей отправлен",
};

describe("searching messages", () => {
    let alice, bob, carol, roomId;
    const ids = {};
    before(async () => {
        [alice, bob, carol] = await Promise.all(["alice", "bob", "carol"].map((name) => newStaff(name)));
        roomId = await roomOf(alice, [bob]);
        for (const [what, body] of Object.entries(SAID)) {
            ids[what] = (await alice.sendMessage(roomId, text(body))).event_id;
        }
        await receive(bob, ids.number);
    });
    after(stopAll);

    const search = async (client, term, filter) => client.searchRoomEvents({ term, filter });
    const found = (results) => results.results.map((result) => result.context.getEvent().getId());
    /** Waits until exactly these events are found, in any order, and answers the results. */
    const finds = (client, term, events, filter) =>
        eventually(
            async () => {
                const results = await search(client, term, filter);
                return JSON.stringify(found(results).sort()) === JSON.stringify([...events].sort()) && results;
            },
            `"${term}" to find ${events}`,
        );

    for (const [what, forms] of Object.entries({
        ru: ["договоры", "договорами", "Договор", "бухгалтерии", "подпишите договор"],
        de: ["Verträge", "Vertrag", "VERTRÄGEN", "Kollegin", "Schränke"],
        en: ["invoices", "invoice", "Checking", "mail", "checked invoice"],
        name: ["Müller-Lüdenscheidt", "lüdenscheidt", "Frau Müller"],
        number: ["4711-2026", "4711", "заказы 4711"],
    })) {
        test(`a message is found by its words in any form: ${what}`, async () => {
            for (const form of forms) {
                const { results, count, highlights } = await finds(bob, form, [ids[what]]);
                const event = results[0].context.getEvent();
                assert.equal(event.getContent().body, SAID[what]);
                assert.equal(event.getSender(), alice.getUserId());
                assert.equal(count, 1);
                const body = SAID[what].toLowerCase();
                assert.ok(
                    highlights.some((word) => body.includes(word.toLowerCase())),
                    `${form}: nothing to highlight in ${JSON.stringify(highlights)}`,
                );
            }
        });
    }

    test("what nobody said is not found", async () => {
        await finds(bob, "договоры", [ids.ru]); // What came before is in the index.
        for (const term of ["самолёт", "Flugzeug", "aeroplane", "4712", "договоры самолёт"]) {
            assert.deepEqual(found(await search(bob, term)), [], term);
        }
    });

    test("what was said before and after comes along", async () => {
        const { results } = await finds(bob, "invoice", [ids.en]);
        const around = results[0].context.getTimeline().map((event) => event.getId());
        assert.deepEqual(around, [ids.de, ids.en, ids.name]);
    });

    test("only who is in the room finds what is said there", async () => {
        await finds(alice, "Vertrag", [ids.de]);
        assert.deepEqual(found(await search(carol, "Vertrag")), []);
    });

    test("a search can be kept to one room", async () => {
        const other = await roomOf(bob, [carol], { name: "Archive" });
        const { event_id: there } = await bob.sendMessage(other, text("Ein Vertrag von 1998"));
        await finds(bob, "Verträge", [ids.de, there]);
        await finds(bob, "Verträge", [there], { rooms: [other] });
        await finds(bob, "Verträge", [ids.de], { rooms: [roomId] });
        await finds(bob, "Verträge", [], { senders: [carol.getUserId()] });
        assert.deepEqual(found(await search(carol, "Verträge", { rooms: [roomId] })), []);
    });

    test("what is edited is found by its new words, what is redacted by none", async () => {
        const { event_id: id } = await alice.sendMessage(roomId, text("Wir treffen uns am Bahnhof"));
        await finds(bob, "Bahnhöfe", [id]);
        const content = text("Wir treffen uns im Rathaus");
        await alice.sendMessage(roomId, {
            ...text("* Wir treffen uns im Rathaus"),
            "m.new_content": content,
            "m.relates_to": { rel_type: "m.replace", event_id: id },
        });
        // Once, be it at the message or at its edit.
        await eventually(async () => found(await search(bob, "Rathauses")).length === 1, "the new words");
        await finds(bob, "Bahnhof", []);
        await alice.redactEvent(roomId, id);
        await finds(bob, "Rathaus", []);
    });

    test("the newest comes first, and there is more page by page", async () => {
        const sent = [];
        for (let n = 0; n < 25; n++) {
            sent.unshift((await alice.sendMessage(roomId, text(`Протокол совещания ${n}`))).event_id);
        }
        await eventually(async () => (await search(bob, "протоколы")).count === 25, "all of them");
        const results = await search(bob, "протоколами", { limit: 10 });
        assert.deepEqual(found(results), sent.slice(0, 10));
        await bob.backPaginateRoomEventsSearch(results);
        assert.deepEqual(found(results), sent.slice(0, 20));
        await bob.backPaginateRoomEventsSearch(results);
        assert.deepEqual(found(results), sent);
        assert.equal(results.next_batch, undefined);
    });

    test("who comes later finds only what they may read", async () => {
        const closed = await roomOf(alice, [bob], {
            name: "Board",
            initial_state: [
                { type: "m.room.history_visibility", state_key: "", content: { history_visibility: "joined" } },
            ],
        });
        const { event_id: before } = await alice.sendMessage(closed, text("Geheime Gehälter"));
        await finds(bob, "Gehalt", [before]);
        await alice.invite(closed, carol.getUserId());
        await inRoom(carol, closed, "invite");
        await carol.joinRoom(closed);
        await inRoom(carol, closed);
        const { event_id: since } = await alice.sendMessage(closed, text("Offene Gehälter"));
        await finds(carol, "Gehälter", [since]);
        await bob.leave(closed);
        await inRoom(bob, closed, "leave");
        const { event_id: gone } = await alice.sendMessage(closed, text("Neue Gehälter"));
        await finds(carol, "Gehälter", [since, gone]);
        assert.ok(!found(await search(bob, "Gehälter")).includes(gone));
    });
});
