//! Live connections over loopback: what a well-behaved client gets, and what a bad one cannot do.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::Listeners;
use crate::{
    clock::Clock,
    config::Config,
    http::{body, peer::PeerAddr},
};

const SOON: Duration = Duration::from_secs(10);

/// A running pair of listeners with a few routes to provoke them.
struct Served {
    http: SocketAddr,
    https: SocketAddr,
    data_dir: tempfile::TempDir,
    clock: Clock,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Served {
    #[expect(clippy::disallowed_methods, reason = "a test has no task tracker")]
    async fn start() -> Self {
        let data_dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.server.data_dir = data_dir.path().to_owned();
        config.listen.http = Some(([127, 0, 0, 1], 0).into());
        config.listen.https = Some(([127, 0, 0, 1], 0).into());
        let clock = Clock::manual(Clock::real().now_ms());
        let listeners = Listeners::bind(&config, clock.clone()).await.unwrap();
        let stop = CancellationToken::new();
        Self {
            http: listeners.http().unwrap(),
            https: listeners.https().unwrap(),
            data_dir,
            clock,
            stop: stop.clone(),
            running: tokio::spawn(listeners.run(router(), stop)),
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.http).await.unwrap()
    }

    /// The whole answer to `request`, until the server closes.
    async fn ask(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        read_to_end(&mut stream).await
    }

    async fn stopped(self) {
        self.stop.cancel();
        timeout(SOON, self.running).await.unwrap().unwrap();
    }
}

fn router() -> Router {
    Router::new()
        .route("/peer", get(|Extension(PeerAddr(peer)): Extension<PeerAddr>| async move { peer.ip().to_string() }))
        .route("/body", post(measure))
        .route("/deaf", post(|| async { "no" }))
        .route("/slow", get(|| async { tokio::time::sleep(Duration::from_millis(500)).await }))
        .route("/forever", get(std::future::pending::<()>))
        .route("/much", get(|| async { vec![b'x'; 64 << 20] }))
}

async fn measure(body: Body) -> Response {
    match body::read(body, 1 << 20).await {
        Ok(body) => body.len().to_string().into_response(),
        Err(error) => error.into_response(),
    }
}

async fn read_to_end(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut answer = Vec::new();
    timeout(SOON, stream.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn requests_know_their_peer() {
    let served = Served::start().await;
    let answer = served
        .ask("GET /peer HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("127.0.0.1"),
        "{answer}"
    );
    let forwarded = "GET /peer HTTP/1.0\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n";
    assert!(served.ask(forwarded).await.ends_with("9.9.9.9"));
    served.stopped().await;
}

#[tokio::test]
async fn tls_is_trusted_by_whoever_trusts_the_authority() {
    let served = Served::start().await;
    let mut roots = RootCertStore::empty();
    let authority = served.data_dir.path().join("tls/ca.pem");
    roots
        .add(CertificateDer::from_pem_file(authority).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    for name in ["localhost", "127.0.0.1"] {
        let stream = TcpStream::connect(served.https).await.unwrap();
        let mut stream = connector
            .connect(ServerName::try_from(name).unwrap(), stream)
            .await
            .unwrap();
        let request = b"GET /peer HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        assert!(
            read_to_end(&mut stream).await.ends_with("127.0.0.1"),
            "{name}"
        );
    }
    served.stopped().await;
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_on_one_port() {
    let served = Served::start().await;
    let client = reqwest_without_tls(reqwest::ClientBuilder::http2_prior_knowledge);
    let answer = client
        .get(format!("http://{}/peer", served.http))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.version(), http::Version::HTTP_2);
    let client = reqwest_without_tls(|builder| builder);
    let answer = client
        .get(format!("http://{}/peer", served.http))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.version(), http::Version::HTTP_11);
    drop(client);
    served.stopped().await;
}

fn reqwest_without_tls(
    set: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    set(reqwest::Client::builder()).build().unwrap()
}

#[tokio::test]
async fn a_body_without_end_is_refused_and_the_answer_arrives() {
    let served = Served::start().await;
    let (mut read, mut write) = served.connect().await.into_split();
    write
        .write_all(b"POST /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await
        .unwrap();
    let chunk = [b"10000\r\n".as_slice(), &vec![b'x'; 0x10000], b"\r\n"].concat();
    // A client that sends for as long as it is let, and reads at the same time.
    let mut sent = 0;
    let send = async {
        while timeout(SOON, write.write_all(&chunk))
            .await
            .unwrap()
            .is_ok()
        {
            sent += 0x10000;
        }
    };
    let mut answer = vec![0; 12];
    let receive = timeout(SOON, read.read_exact(&mut answer));
    tokio::join!(send, receive).1.unwrap().unwrap();
    assert!(sent < 16 << 20, "{sent} bytes were taken in");
    assert_eq!(answer, b"HTTP/1.1 413");
    served.stopped().await;
}

#[tokio::test]
async fn an_announced_body_is_refused_unread() {
    let served = Served::start().await;
    let request = "POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 1073741824\r\n\r\nx";
    let mut stream = served.connect().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = read_to_end(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 413") && answer.contains("M_TOO_LARGE"),
        "{answer}"
    );
    served.stopped().await;
}

#[tokio::test]
async fn a_body_that_nobody_wants_does_not_end_the_connection() {
    let served = Served::start().await;
    for (head, body) in [
        ("Content-Length: 5", "hello"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
    ] {
        let mut stream = served.connect().await;
        let head = format!("POST /deaf HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n");
        for _ in 0..3 {
            // Many clients send the body by itself.
            stream.write_all(head.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.write_all(body.as_bytes()).await.unwrap();
        }
        let last = b"GET /peer HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(last).await.unwrap();
        let answers = read_to_end(&mut stream).await;
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 4, "{answers}");
    }
    served.stopped().await;
}

#[tokio::test]
async fn a_connection_that_ends_by_an_unread_body_says_so() {
    let served = Served::start().await;
    for head in [
        "Content-Length: 1073741824",
        "Content-Length: 5\r\nExpect: 100-continue",
    ] {
        let request = format!("POST /deaf HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n");
        let answer = served.ask(&request).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    served.stopped().await;
}

#[tokio::test]
async fn a_hundred_thousand_requests_in_one_go_are_answered_in_order() {
    const COUNT: usize = 100_000;
    let served = Served::start().await;
    let (mut read, mut write) = served.connect().await.into_split();
    let one = b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";
    let send = async {
        write.write_all(&one.repeat(COUNT - 1)).await.unwrap();
        write.write_all(b"POST /body HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx").await.unwrap();
    };
    let mut answers = String::new();
    timeout(6 * SOON, async {
        tokio::join!(send, read.read_to_string(&mut answers))
    })
    .await
    .unwrap()
    .1
    .unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), COUNT);
    served.stopped().await;
}

#[tokio::test]
async fn garbage_and_endless_heads_are_answered_with_an_error() {
    let served = Served::start().await;
    let endless = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(1 << 20));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(10_000));
    let path = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    for (request, status) in [
        ("\u{1}".repeat(100_000), "400"),
        ("\n".repeat(100_000), "431"),
        (endless, "431"),
        (many, "431"),
        (path, "431"),
    ] {
        let (mut read, mut write) = served.connect().await.into_split();
        // The server may close before it has taken all of it.
        let _ = write.write_all(request.as_bytes()).await;
        let answer = read_to_end(&mut read).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{status}: {answer}"
        );
    }
    served.stopped().await;
}

#[tokio::test]
async fn a_client_that_says_nothing_is_let_go() {
    let served = Served::start().await;
    let mut silent = served.connect().await;
    let mut waiting = served.connect().await;
    waiting
        .write_all(b"GET /forever HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    served.clock.advance(Duration::from_secs(74));
    let mut byte = [0];
    let early = timeout(Duration::from_millis(100), silent.read(&mut byte)).await;
    assert!(early.is_err(), "still connected");
    served.clock.advance(Duration::from_secs(2));
    assert_eq!(
        timeout(SOON, silent.read(&mut byte))
            .await
            .unwrap()
            .unwrap(),
        0
    );
    // One whose request runs may be as silent as it likes.
    let running = timeout(Duration::from_millis(100), waiting.read(&mut byte)).await;
    assert!(running.is_err(), "still connected");
    drop(waiting);
    served.stopped().await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_let_go() {
    let served = Served::start().await;
    let mut stream = served.connect().await;
    stream
        .write_all(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    served.clock.advance(Duration::from_secs(300));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut answer = Vec::new();
    let end = timeout(SOON, stream.read_to_end(&mut answer))
        .await
        .unwrap();
    assert!(end.is_err() || answer.len() < 64 << 20, "cut off");
    served.stopped().await;
}

#[tokio::test]
async fn a_stop_lets_running_requests_finish_and_admits_nobody() {
    let served = Served::start().await;
    let address = served.http;
    let mut idle = served.connect().await;
    let mut busy = served.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (answer, refused, ()) = tokio::join!(
        read_to_end(&mut busy),
        async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            TcpStream::connect(address).await
        },
        served.stopped(),
    );
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(refused.is_err(), "refused");
    assert_eq!(read_to_end(&mut idle).await, "");
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_those_who_never_finish() {
    let served = Served::start().await;
    let mut stuck = served.connect().await;
    stuck
        .write_all(b"GET /forever HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stop = served.stop.clone();
    stop.cancel();
    timeout(Duration::from_secs(5), served.running)
        .await
        .expect("within 5 seconds")
        .unwrap();
    assert!(matches!(stuck.read(&mut [0]).await, Ok(0) | Err(_)));
}
