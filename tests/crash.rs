//! The real program under load, killed again and again at random moments: whatever it has acknowledged is there
//! afterwards, nothing is there twice, and the store holds together.
//!
//! `KONTOR_CRASH_KILLS` says how often to kill (50 unless set), `KONTOR_CRASH_SEED` repeats the moments of a run.

#![expect(
    clippy::print_stdout,
    reason = "says with which seed a failure can be repeated"
)]

use std::{
    collections::HashSet,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kontor::clock::{Clock, Entropy};
use serde_json::{Value, json};

/// How many users write at the same time, into how many rooms.
const WRITERS: usize = 6;

struct Node {
    child: Child,
    url: String,
}

impl Node {
    fn start(directory: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kontor"));
        let mut child = command
            .arg("serve")
            .current_dir(directory)
            .env("KONTOR_LISTEN__HTTP", "127.0.0.1:0")
            .env("KONTOR_REGISTRATION__MODE", "open")
            .env("KONTOR_LIMITS__ENABLED", "false")
            .env("KONTOR_LOG__LEVEL", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program runs");
        let stdout = child.stdout.take().expect("it was piped");
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let address = lines
            .find_map(|line| Some(line.split_once("http://")?.1.trim().to_owned()))
            .expect("the banner says where the node listens");
        let url = format!("http://{address}/_matrix/client/v3");
        Self { child, url }
    }

    fn kill(mut self) {
        self.child.kill().expect("it still ran");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Node {
    /// A test that fails leaves no node behind.
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _the_same = self.child.wait();
    }
}

fn check(directory: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_kontor"))
        .arg("check")
        .current_dir(directory)
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let logged = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "kontor check: {said}{logged}");
}

/// One user who writes into one room, over all lives of the node.
struct Writer {
    name: String,
    token: String,
    room: String,
    /// The number of the next message, which is also its transaction.
    next: u64,
    /// The ids of all messages that were acknowledged, in the order of their numbers.
    acknowledged: Vec<String>,
}

impl Writer {
    /// Writes until the node is gone. The message that it leaves unanswered is sent again in the next life.
    async fn write(&mut self, client: &reqwest::Client, url: &str, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let number = self.next;
            let url = format!("{url}/rooms/{}/send/m.room.message/{number}", self.room);
            let body = json!({ "msgtype": "m.text", "body": format!("{} {number}", self.name) });
            let Ok((status, answer)) = call(client.put(&url), &self.token, Some(&body)).await
            else {
                return;
            };
            assert_eq!(status, 200, "{answer}");
            let id = answer["event_id"].as_str().expect("an id").to_owned();
            self.acknowledged.push(id);
            self.next += 1;
        }
    }
}

async fn call(
    request: reqwest::RequestBuilder,
    token: &str,
    body: Option<&Value>,
) -> reqwest::Result<(u16, Value)> {
    let mut request = request.bearer_auth(token);
    if let Some(body) = body {
        request = request.body(body.to_string());
    }
    let mut response = request.send().await?;
    let status = response.status().as_u16();
    let mut whole = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        whole.extend_from_slice(&chunk);
    }
    Ok((status, serde_json::from_slice(&whole).unwrap_or_default()))
}

async fn register(client: &reqwest::Client, url: &str, name: &str) -> String {
    let body = json!({ "username": name, "password": "correct horse", "auth": { "type": "m.login.dummy" } });
    let request = client.post(format!("{url}/register"));
    let (status, answer) = call(request, "", Some(&body)).await.expect("an answer");
    assert_eq!(status, 200, "{answer}");
    answer["access_token"].as_str().expect("a token").to_owned()
}

/// The ids and bodies of all messages of a room, newest first.
async fn messages(
    client: &reqwest::Client,
    url: &str,
    token: &str,
    room: &str,
) -> Vec<(String, String)> {
    let (mut found, mut from) = (Vec::new(), String::new());
    loop {
        let url = format!("{url}/rooms/{room}/messages?dir=b&limit=500{from}");
        let (status, page) = call(client.get(url), token, None).await.expect("an answer");
        assert_eq!(status, 200, "{page}");
        for event in page["chunk"].as_array().expect("a list") {
            if event["type"] == "m.room.message" {
                let text = |value: &Value| value.as_str().expect("a text").to_owned();
                found.push((text(&event["event_id"]), text(&event["content"]["body"])));
            }
        }
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => return found,
        }
    }
}

/// The ids of all messages that are found by a word, newest first; none if the node is gone.
async fn searched(
    client: &reqwest::Client,
    url: &str,
    token: &str,
    word: &str,
) -> reqwest::Result<Vec<String>> {
    let (mut found, mut next) = (Vec::new(), String::new());
    let body = json!({ "search_categories": { "room_events": {
        "search_term": word, "order_by": "recent", "filter": { "limit": 100 },
    } } });
    loop {
        let request = client.post(format!("{url}/search{next}"));
        let (status, page) = call(request, token, Some(&body)).await?;
        assert_eq!(status, 200, "{page}");
        let page = &page["search_categories"]["room_events"];
        let results = page["results"].as_array().expect("a list");
        let ids = results
            .iter()
            .map(|result| result["result"]["event_id"].as_str());
        found.extend(ids.map(|id| id.expect("an id").to_owned()));
        match page["next_batch"].as_str() {
            Some(token) => next = format!("?next_batch={token}"),
            None => return Ok(found),
        }
    }
}

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
}

/// The moments of a run, said so that it can be repeated.
fn moments() -> Entropy {
    let seed = setting("KONTOR_CRASH_SEED").unwrap_or_else(|| Clock::real().now_ms());
    println!("KONTOR_CRASH_SEED={seed}");
    Entropy::seeded(seed)
}

/// A client that opens a connection for each request.
fn connecting() -> reqwest::Client {
    let _already = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .pool_max_idle_per_host(0)
        .build()
        .expect("a client")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_acknowledged_survives_any_kill() {
    let kills = setting("KONTOR_CRASH_KILLS").unwrap_or(50_u64);
    let (entropy, clock) = (moments(), Clock::real());
    let client = connecting();
    let directory = tempfile::tempdir().expect("a directory");

    let node = Node::start(directory.path());
    let mut writers = Vec::new();
    for index in 0..WRITERS {
        let name = format!("writer{index}");
        let token = register(&client, &node.url, &name).await;
        // Half of them share a room.
        let room = if index > 0 && index % 2 == 0 {
            let first: &Writer = &writers[0];
            let url = format!("{}/rooms/{}/join", node.url, first.room);
            let (status, answer) = call(client.post(url), &token, Some(&json!({})))
                .await
                .expect("an answer");
            assert_eq!(status, 200, "{answer}");
            first.room.clone()
        } else {
            let url = format!("{}/createRoom", node.url);
            let body = json!({ "preset": "public_chat" });
            let (status, answer) = call(client.post(url), &token, Some(&body))
                .await
                .expect("an answer");
            assert_eq!(status, 200, "{answer}");
            answer["room_id"].as_str().expect("an id").to_owned()
        };
        writers.push(Writer {
            name,
            token,
            room,
            next: 0,
            acknowledged: Vec::new(),
        });
    }
    node.kill();

    let searcher = writers[1].token.clone();
    let writers = Arc::new(Mutex::new(writers));
    for _ in 0..kills {
        check(directory.path());
        let node = Node::start(directory.path());
        let stop = Arc::new(AtomicBool::new(false));
        let taken = std::mem::take(&mut *writers.lock().expect("not poisoned"));
        let tasks: Vec<_> = taken
            .into_iter()
            .map(|mut writer| {
                let (client, url, stop) = (client.clone(), node.url.clone(), stop.clone());
                async move {
                    writer.write(&client, &url, &stop).await;
                    writer
                }
            })
            .collect();
        let all = futures_util::future::join_all(tasks);
        let url = node.url.clone();
        // Who searches makes the index write, so that it is killed within that too.
        let searching = async {
            while !stop.load(Ordering::Relaxed) {
                let found = searched(&client, &url, &searcher, "writer1");
                if found.await.is_err() {
                    return;
                }
            }
        };
        let moment = Duration::from_millis(20 + entropy.number() % 250);
        let killed = async {
            clock.sleep(moment).await;
            node.kill();
            stop.store(true, Ordering::Relaxed);
        };
        let (returned, (), ()) = tokio::join!(all, searching, killed);
        *writers.lock().expect("not poisoned") = returned;
    }

    check(directory.path());
    let node = Node::start(directory.path());
    let writers = std::mem::take(&mut *writers.lock().expect("not poisoned"));
    let mut total = 0;
    for writer in &writers {
        let found = messages(&client, &node.url, &writer.token, &writer.room).await;
        let own: Vec<_> = found
            .iter()
            .rev()
            .filter(|(_, body)| body.split(' ').next() == Some(&writer.name))
            .collect();
        for (number, id) in writer.acknowledged.iter().enumerate() {
            let (found, body) = own.get(number).unwrap_or_else(|| panic!("{id} is lost"));
            assert_eq!((found, body), (id, &format!("{} {number}", writer.name)));
        }
        // One more may have been written whose answer was lost.
        assert!(
            own.len() <= writer.acknowledged.len() + 1,
            "something is there twice"
        );
        total += writer.acknowledged.len();
        // After the start the index catches up by itself.
        let mut wanted: Vec<_> = own.iter().map(|(id, _)| id.clone()).collect();
        let mut indexed = Vec::new();
        for _ in 0..60 {
            let asked = searched(&client, &node.url, &writer.token, &writer.name);
            indexed = asked.await.expect("an answer");
            if indexed.len() >= wanted.len() {
                break;
            }
            clock.sleep(Duration::from_millis(500)).await;
        }
        indexed.sort();
        wanted.sort();
        assert!(
            indexed == wanted,
            "{} of {} messages are found",
            indexed.len(),
            wanted.len()
        );
    }
    println!("{total} messages acknowledged over {kills} kills, all there once");
    assert!(total > WRITERS, "nothing was written, so nothing was tried");
    node.kill();
}

/// How many claim the keys of one device at the same time.
const CLAIMERS: usize = 4;

/// Claims keys until the node is gone; gives those that it was answered.
async fn claim(client: &reqwest::Client, url: &str, token: &str, stop: &AtomicBool) -> Vec<String> {
    let wanted = json!({ "one_time_keys": { "@alice:localhost": { "PHONE": "a" } } });
    let mut given = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let request = client.post(format!("{url}/keys/claim"));
        let Ok((status, answer)) = call(request, token, Some(&wanted)).await else {
            break;
        };
        assert_eq!(status, 200, "{answer}");
        let keys = answer["one_time_keys"]["@alice:localhost"]["PHONE"].as_object();
        given.extend(keys.into_iter().flatten().map(|(id, _)| id.clone()));
    }
    given
}

/// Uploads keys until the node is gone; `made` are those that were acknowledged. No key is uploaded twice.
async fn upload(
    client: &reqwest::Client,
    url: &str,
    token: &str,
    (next, made): (&mut usize, &mut Vec<usize>),
    stop: &AtomicBool,
) {
    while !stop.load(Ordering::Relaxed) {
        let keys = (*next..*next + 10).map(|n| (format!("a:{n}"), json!({ "key": n })));
        let body = json!({ "one_time_keys": Value::Object(keys.collect()) });
        *next += 10;
        let request = client.post(format!("{url}/keys/upload"));
        let Ok((status, answer)) = call(request, token, Some(&body)).await else {
            return;
        };
        match status {
            200 => made.extend(*next - 10..*next),
            // There are enough.
            413 => Clock::real().sleep(Duration::from_millis(5)).await,
            _ => panic!("{answer}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_one_time_key_is_given_twice_over_any_kill() {
    let kills = setting("KONTOR_CRASH_KILLS").unwrap_or(20_u64);
    let (entropy, clock) = (moments(), Clock::real());
    let client = connecting();
    let directory = tempfile::tempdir().expect("a directory");
    let node = Node::start(directory.path());
    let body = json!({ "username": "alice", "password": "correct horse", "device_id": "PHONE",
        "auth": { "type": "m.login.dummy" } });
    let request = client.post(format!("{}/register", node.url));
    let (status, answer) = call(request, "", Some(&body)).await.expect("an answer");
    assert_eq!(status, 200, "{answer}");
    let alice = answer["access_token"].as_str().expect("a token").to_owned();
    let bob = register(&client, &node.url, "bob").await;
    node.kill();

    let (mut next, mut made, mut seen) = (0, Vec::new(), HashSet::new());
    for _ in 0..kills {
        check(directory.path());
        let node = Node::start(directory.path());
        let (stop, url) = (AtomicBool::new(false), node.url.clone());
        let claims = (0..CLAIMERS).map(|_| claim(&client, &url, &bob, &stop));
        let moment = Duration::from_millis(20 + entropy.number() % 250);
        let killed = async {
            clock.sleep(moment).await;
            node.kill();
            stop.store(true, Ordering::Relaxed);
        };
        let uploads = upload(&client, &url, &alice, (&mut next, &mut made), &stop);
        let (given, (), ()) = tokio::join!(futures_util::future::join_all(claims), uploads, killed);
        for id in given.into_iter().flatten() {
            assert!(seen.insert(id.clone()), "{id} is given twice");
        }
    }

    check(directory.path());
    let node = Node::start(directory.path());
    // All that is left.
    let wanted = json!({ "one_time_keys": { "@alice:localhost": { "PHONE": "a" } } });
    loop {
        let request = client.post(format!("{}/keys/claim", node.url));
        let (status, answer) = call(request, &bob, Some(&wanted)).await.expect("an answer");
        assert_eq!(status, 200, "{answer}");
        let keys = answer["one_time_keys"]["@alice:localhost"]["PHONE"].as_object();
        let Some((id, _)) = keys.and_then(|keys| keys.iter().next()) else {
            break;
        };
        assert!(seen.insert(id.clone()), "{id} is given twice");
    }
    // What was uploaded was given, but for the answers that were lost with the node.
    let lost = made.iter().filter(|n| !seen.contains(&format!("a:{n}")));
    let (made, lost) = (made.len(), lost.count());
    println!(
        "{made} keys uploaded, {} given once over {kills} kills, {lost} answers lost",
        seen.len()
    );
    let most = usize::try_from(kills).expect("it is small") * CLAIMERS;
    assert!(lost <= most, "{lost} keys were lost");
    assert!(!seen.is_empty(), "nothing was given, so nothing was tried");
    node.kill();
}
