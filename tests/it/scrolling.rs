//! Servers that give nonsense, too much, too little, too late or nothing when somebody here scrolls up to what only they
//! have: the page shows what is here, and nobody else notices.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use crate::{
    elsewhere::{Elsewhere, check, pdu, until},
    handshakes::finished,
    hostile::{BOB, Scene as Others, told},
    hosts::{Host, id_of},
    joining::join,
    log::Log,
    neighbour::HELD,
    room::{Room, ids},
    server::{Answer, START, ok, text},
};

const BACKFILL: &str = "/_matrix/federation/v1/backfill/";

/// A user in a room of which another server knows what was before; and others with whom all is well.
struct Scene {
    others: Others,
    host: Host,
    /// The page that begins where nothing is known.
    page: String,
}

impl Scene {
    async fn new() -> Self {
        Self::with(|_| ()).await
    }

    /// The same where something is done to the room before it is entered.
    async fn with(change: impl FnOnce(&mut Host)) -> Self {
        let others = Others::new().await;
        let mut host = Host::new(&others.server);
        change(&mut host);
        host.says("make_join", &host.template);
        host.tells(&host.events[..5], &host.events[..5]);
        ok(join(&others.alice, &host.room, &["host.example"]).await);
        let first = host.room.get(&others.alice, "messages?dir=b&limit=100");
        let first = ok(first.await);
        assert_eq!(ids(&first["chunk"]).len(), 1, "only who came is known");
        let page = format!("messages?dir=b&limit=100&from={}", text(&first, "end"));
        Self { others, host, page }
    }

    /// All that was before, as it should be told.
    fn history(&self) -> Value {
        let all: Vec<_> = self.host.events.iter().rev().cloned().collect();
        told("pdus", &all)
    }

    fn answers(&self, answer: impl ToString) {
        let host = &self.host.server;
        host.answers(BACKFILL, StatusCode::OK, answer);
    }

    fn asked(&self) -> usize {
        self.host.server.asked_for(BACKFILL)
    }

    /// Scrolls up, whoever looks on.
    fn scroll(&self) -> impl Future<Output = Answer> + use<> {
        let (alice, room) = (self.others.alice.clone(), Room(self.host.room.0.clone()));
        let page = self.page.clone();
        async move { room.get(&alice, &page).await }
    }

    /// Fails unless nothing more is shown.
    #[track_caller]
    fn shows_nothing(page: Answer) {
        assert_eq!(ok(page)["chunk"], json!([]));
    }

    /// Fails unless all is told once the server tells it.
    async fn is_mended(&mut self) {
        self.answers(self.history());
        let page = ok(self.scroll().await);
        let chunk = ids(&page["chunk"]);
        assert_eq!(chunk.len(), self.host.events.len(), "{page}");
        assert!(page["end"].is_null(), "{page}");
        self.others.all_is_well().await;
        check(&self.others.server);
    }
}

#[tokio::test]
async fn nonsense_in_the_place_of_history_shows_nothing() {
    let log = Log::of_this_thread();
    let mut scene = Scene::new().await;
    let deep = format!("{{\"pdus\":{}{}}}", "[".repeat(50_000), "]".repeat(50_000));
    let huge = format!("{{\"pdus\":[\"{}\"]}}", "x".repeat(100 << 20));
    let whole = scene.history().to_string();
    let cut = &whole[..whole.len() - 3];
    let cases = ["<html>", "", "[]", "{}", "{\"pdus\":{}}", cut, &deep, &huge];
    let events = scene.others.events();
    for (case, garbage) in cases.into_iter().enumerate() {
        scene.answers(garbage);
        Scene::shows_nothing(scene.scroll().await);
        assert_eq!(scene.asked(), case + 1, "it is asked once for a page");
        assert_eq!(log.warnings_about("host.example"), 1);
    }
    for garbage in [json!([7, {}, "x", null]), json!([]), json!([[[[]]]])] {
        scene.answers(json!({ "pdus": garbage }));
        Scene::shows_nothing(scene.scroll().await);
    }
    let host = &scene.host.server;
    host.answers(BACKFILL, StatusCode::INTERNAL_SERVER_ERROR, "{}");
    Scene::shows_nothing(scene.scroll().await);
    assert_eq!(scene.others.events(), events, "nothing of it is kept");
    assert_eq!(log.warnings_about("host.example"), 1);
    for good in ["b.example", "c.example"] {
        assert_eq!(log.warnings_about(good), 0);
    }
    scene.is_mended().await;
}

#[tokio::test]
async fn nothing_that_is_not_the_rooms_own_history_is_taken() {
    let mut scene = Scene::new().await;
    let events = scene.others.events();
    let all = scene.host.events.clone();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut all = all.clone();
        all.iter_mut().for_each(change);
        told("pdus", &all)
    };
    // By nobody, by somebody else in the name of the host, and for another room.
    let bad = &scene.others.bad;
    let unsigned = changed(&|event| event["signatures"] = json!({}));
    let by_another = changed(&|event| {
        let signature = event["signatures"]["host.example"]["ed25519:k5"].take();
        event["signatures"] = json!({ bad.name.as_str(): { "ed25519:k2": signature } });
    });
    let forged = changed(&|event| {
        event["signatures"]["host.example"]["ed25519:k5"] = "AAAA".into();
    });
    let elsewhere = changed(&|event| event["room_id"] = "!other:host.example".into());
    // What the node knows of another room, and what it does not.
    let mut other = Elsewhere::of(&scene.others.server, &scene.others.room).await;
    let unknown = other.say(&scene.others.good, BOB, "of another room");
    let state: Vec<_> = other.state.values().map(pdu).collect();
    let of_another = told("pdus", &[state, vec![pdu(&unknown)]].concat());
    // The host's own, but nothing leads there.
    let mut apart = all[4].clone();
    apart["content"]["topic"] = "apart".into();
    let (_, apart) = finished(&scene.host.server, "10", &apart);
    let apart = told("pdus", &[serde_json::from_str(&apart).expect("JSON")]);
    for answer in [unsigned, by_another, forged, elsewhere, of_another, apart] {
        scene.answers(answer);
        Scene::shows_nothing(scene.scroll().await);
        assert_eq!(scene.others.events(), events, "nothing of it is kept");
    }
    scene.is_mended().await;
}

#[tokio::test]
async fn who_scrolls_up_waits_a_few_seconds_for_a_server_that_is_silent_or_slow() {
    let mut scene = Scene::new().await;
    let clock = scene.others.server.clock.clone();
    // It never answers; or what it says, byte for byte, is not whole in time.
    for (round, how) in [StatusCode::IM_A_TEAPOT, HELD].into_iter().enumerate() {
        let history = scene.history();
        scene.host.server.answers(BACKFILL, how, history);
        let page = TaskTracker::new().spawn(scene.scroll());
        until(async || scene.asked() == round + 1).await;
        // Nobody else waits.
        scene.others.all_is_well().await;
        let before = clock.instant();
        until(async || {
            clock.advance(Duration::from_millis(500));
            page.is_finished()
        })
        .await;
        let took = clock.instant() - before;
        assert!(took <= Duration::from_secs(10), "{took:?}");
        Scene::shows_nothing(page.await.expect("it ends"));
        clock.advance(Duration::from_secs(5));
    }
    assert_eq!(scene.asked(), 2);
    scene.is_mended().await;
}

#[tokio::test]
async fn a_history_that_forks_everywhere_costs_few_requests() {
    let nobody = |number: usize| format!("${number:043}");
    let mut scene = Scene::with(|host| {
        let auth = host.events[4]["auth_events"].clone();
        let mut last = host.template["event"]["prev_events"][0].clone();
        for number in 0..60 {
            let mut prev: Vec<Value> = (0..19).map(|at| nobody(number * 20 + at).into()).collect();
            prev.push(last);
            let owner = &host.events[0]["sender"];
            let event = json!({
                "type": "m.room.topic", "state_key": "", "content": { "topic": number },
                "sender": owner, "room_id": host.room.0, "origin_server_ts": START,
                "depth": 7 + number, "prev_events": prev, "auth_events": auth,
            });
            let (id, event) = finished(&host.server, "10", &event);
            host.events
                .push(serde_json::from_str(&event).expect("JSON"));
            last = id.into();
        }
        host.template["event"]["prev_events"] = json!([last]);
    })
    .await;
    let state: Vec<_> = scene.host.events[..5].to_vec();
    let ids: Vec<_> = state.iter().map(id_of).collect();
    let ids = json!({ "pdu_ids": ids, "auth_chain_ids": [] });
    scene.host.says("state_ids", ids);
    scene.answers(scene.history());
    let before = scene.host.server.questions();
    let page = ok(scene.scroll().await);
    let asked = scene.host.server.questions() - before;
    assert!(asked <= 300, "{asked}");
    assert!(page["chunk"].is_array(), "{page}");
    scene.others.all_is_well().await;
}
