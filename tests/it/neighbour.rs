//! Another server as far as the node can see it: a name, a key, and whatever it answers.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use kontor::{
    protocol::{
        integrity::{ServerKey, canonical},
        server_keys::{OldKey, publish},
        xmatrix::XMatrix,
    },
    remote::Lan,
};
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName, owned_server_name};
use serde_json::Value;

use crate::server::{Answer, START, TestServer};

/// The name of every node in these tests.
pub(crate) fn us() -> OwnedServerName {
    owned_server_name!("localhost")
}

/// How long the keys of a neighbour are good, in milliseconds.
pub(crate) const VALIDITY: u64 = 3_600_000;

pub(crate) struct Neighbour {
    pub(crate) name: OwnedServerName,
    pub(crate) key: ServerKey,
    shared: Arc<Shared>,
}

/// An answer to a path that comes from what was sent there.
type Computed = (String, Box<dyn Fn(&str) -> String + Send>);

/// The status of an answer that is not there yet.
pub(crate) const HELD: StatusCode = StatusCode::PROCESSING;

#[derive(Default)]
struct Shared {
    /// Answers by path; the longest that fits counts.
    answers: Mutex<Vec<(String, StatusCode, String)>>,
    /// What it answers where there is none of these.
    computed: Mutex<Option<Computed>>,
    /// The paths of everything that it was asked, but for introductions.
    asked: Mutex<Vec<String>>,
    /// The path and body of everything that was put there, in the order of arrival.
    put: Mutex<Vec<(String, Value)>>,
}

/// Takes out of a transaction that somebody is there with a device that has no keys, which comes as soon as users and
/// servers meet; says whether nothing else was in it.
fn only_introduces(body: &mut Value) -> bool {
    let Some(edus) = body["edus"].as_array_mut() else {
        return false;
    };
    let all = edus.len();
    edus.retain(|edu| {
        edu["edu_type"] != "m.device_list_update" || edu["content"]["stream_id"] != 0
    });
    let has_any = edus.len() < all;
    let is_empty = edus.is_empty() && body["pdus"].as_array().is_none_or(Vec::is_empty);
    has_any && is_empty
}

impl Shared {
    fn answer(&self, path: &str, body: &str) -> (StatusCode, String) {
        let answers = self.answers.lock();
        let fitting = answers.iter().filter(|(start, ..)| path.starts_with(start));
        if let Some((_, status, answer)) = fitting.max_by_key(|(start, ..)| start.len()) {
            return (*status, answer.clone());
        }
        match &*self.computed.lock() {
            Some((start, answer)) if path.starts_with(start) => (StatusCode::OK, answer(body)),
            _ => {
                let unknown = "{\"errcode\":\"M_UNRECOGNIZED\"}";
                (StatusCode::NOT_FOUND, unknown.to_owned())
            }
        }
    }
}

impl Neighbour {
    /// A server that publishes its key.
    pub(crate) fn new(lan: &Lan, name: &str, seed: u8) -> Self {
        let name = ServerName::parse(name).expect("it is a name");
        let key = ServerKey::from_seed(&[seed; 32], &format!("k{seed}")).expect("a key");
        let shared = Arc::<Shared>::default();
        let neighbour = Self {
            name: name.clone(),
            key,
            shared: shared.clone(),
        };
        neighbour.publish(&[], START + VALIDITY);
        lan.attach(
            &name,
            Arc::new(move |request| {
                let path = request.uri().to_string();
                let mut is_introduction = false;
                if request.method() == Method::PUT {
                    let body: Value =
                        serde_json::from_slice(request.body()).expect("a body is JSON");
                    is_introduction = only_introduces(&mut body.clone());
                    shared.put.lock().push((path.clone(), body));
                }
                if !is_introduction {
                    shared.asked.lock().push(path.clone());
                }
                let body = String::from_utf8_lossy(request.body()).into_owned();
                let shared = shared.clone();
                Box::pin(async move {
                    let (mut status, mut answer) = shared.answer(&path, &body);
                    while status == HELD {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        (status, answer) = shared.answer(&path, &body);
                    }
                    // Who says nothing else takes it, so that it is there when something is told.
                    if is_introduction && status == StatusCode::NOT_FOUND {
                        (status, answer) = (StatusCode::OK, "{\"pdus\":{}}".to_owned());
                    }
                    // One that never answers.
                    if status == StatusCode::IM_A_TEAPOT {
                        std::future::pending::<()>().await;
                    }
                    let mut response = Response::new(Bytes::from(answer));
                    *response.status_mut() = status;
                    response
                })
            }),
        );
        neighbour
    }

    /// What it answers from now on to requests whose path begins so.
    pub(crate) fn answers(&self, path: &str, status: StatusCode, body: impl ToString) {
        let mut answers = self.shared.answers.lock();
        answers.retain(|(known, ..)| known != path);
        answers.push((path.to_owned(), status, body.to_string()));
    }

    /// What it answers where nothing else is said, from what was sent.
    pub(crate) fn computes(&self, path: &str, answer: impl Fn(&str) -> String + Send + 'static) {
        self.forget(path);
        *self.shared.computed.lock() = Some((path.to_owned(), Box::new(answer)));
    }

    /// Takes back what was said about a path.
    pub(crate) fn forget(&self, path: &str) {
        let mut answers = self.shared.answers.lock();
        answers.retain(|(known, ..)| known != path);
    }

    /// Publishes its key, and older ones.
    pub(crate) fn publish(&self, old: &[OldKey], valid_until: u64) {
        let document = publish(&self.name, &self.key, old, valid_until);
        self.answers(
            "/_matrix/key/v2/server",
            StatusCode::OK,
            canonical(&document),
        );
    }

    /// How often anything was asked of it so far.
    pub(crate) fn asked(&self) -> usize {
        self.shared.asked.lock().len()
    }

    /// How often it was asked for something, and not just told.
    pub(crate) fn questions(&self) -> usize {
        self.asked() - self.asked_for("/_matrix/federation/v1/send/")
    }

    /// How often anything was asked whose path begins so.
    pub(crate) fn asked_for(&self, path: &str) -> usize {
        let asked = self.shared.asked.lock();
        asked.iter().filter(|asked| asked.starts_with(path)).count()
    }

    /// The path and body of everything that was put there so far, without introductions.
    pub(crate) fn put(&self) -> Vec<(String, Value)> {
        let mut all = self.all_put();
        all.retain_mut(|(_, body)| !only_introduces(body));
        all
    }

    /// The same with them.
    pub(crate) fn all_put(&self) -> Vec<(String, Value)> {
        self.shared.put.lock().clone()
    }

    /// The header of a request of it to us.
    pub(crate) fn sign(&self, method: &Method, path: &str, body: &str) -> XMatrix {
        let content = Some(body).filter(|body| !body.is_empty());
        XMatrix::sign(method.as_str(), path, &self.name, &us(), content, &self.key)
    }

    /// Asks the node something, signed as it should be.
    pub(crate) async fn get(&self, server: &TestServer, path: &str) -> Answer {
        let header = self.sign(&Method::GET, path, "");
        self.send(server, Method::GET, path, &header, "").await
    }

    /// Asks with a header of any kind.
    pub(crate) async fn send(
        &self,
        server: &TestServer,
        method: Method,
        path: &str,
        header: &XMatrix,
        body: &str,
    ) -> Answer {
        let header = header.to_string();
        let headers = [("authorization", header.as_str())];
        let client = server.anonymous();
        let (status, _, body) = client.raw(method, path, &headers, body.to_owned()).await;
        let body: Value = serde_json::from_str(&body).expect("the answer is JSON");
        (status, body)
    }
}
