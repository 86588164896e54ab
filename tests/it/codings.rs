//! Compressed bodies, as another server sends and asks for them.

use std::io::Read as _;

use http::{HeaderMap, Method, StatusCode, header};
use kontor::coding::Coding;

use crate::{
    neighbour::Neighbour,
    server::{START, TestServer},
};

const SEND: &str = "/_matrix/federation/v1/send/1";

fn transaction(padding: usize) -> String {
    format!(
        "{{\"edus\":[],\"origin\":\"b.example\",\"origin_server_ts\":{START},\"pdus\":[],\"x\":\"{}\"}}",
        "x".repeat(padding)
    )
}

/// Puts a transaction that was signed as text and travels like this.
async fn put(
    server: &TestServer,
    neighbour: &Neighbour,
    (signed, sent): (&str, Vec<u8>),
    coding: &str,
) -> (StatusCode, HeaderMap, String) {
    let signature = neighbour.sign(&Method::PUT, SEND, signed).to_string();
    let headers = [
        ("authorization", signature.as_str()),
        ("content-encoding", coding),
    ];
    let client = server.anonymous();
    client.raw(Method::PUT, SEND, &headers, sent).await
}

#[tokio::test]
async fn compressed_requests_are_read_within_the_limit() {
    let server = TestServer::new();
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let good = transaction(10_000);
    // A signature is over the text, whichever way it came.
    let bomb = transaction(200 << 20);
    for coding in [Coding::Zstd, Coding::Gzip] {
        let packed = coding
            .compress(good.clone().into())
            .await
            .expect("it can be");
        let sent = (good.as_str(), packed.to_vec());
        let (status, headers, body) = put(&server, &neighbour, sent, coding.name()).await;
        assert_eq!(status, StatusCode::OK, "{coding:?}: {body}");
        assert_eq!(headers[header::ACCEPT_ENCODING], "zstd, gzip");

        let packed = coding
            .compress(bomb.clone().into())
            .await
            .expect("it can be");
        assert!(
            packed.len() < 1 << 20,
            "the bytes alone are within the limit"
        );
        let sent = ("{}", packed.to_vec());
        let (status, _, body) = put(&server, &neighbour, sent, coding.name()).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{body}");
        assert!(body.contains("M_TOO_LARGE"), "{body}");

        let forged = (transaction(9_999), packed_of(coding, &good).await);
        let sent = (forged.0.as_str(), forged.1);
        let (status, _, body) = put(&server, &neighbour, sent, coding.name()).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{body}");

        let sent = (good.as_str(), good.clone().into_bytes());
        let (status, _, body) = put(&server, &neighbour, sent, coding.name()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    }
    let sent = (good.as_str(), good.clone().into_bytes());
    let (status, headers, body) = put(&server, &neighbour, sent, "br").await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{body}");
    assert_eq!(headers[header::ACCEPT_ENCODING], "zstd, gzip");
}

async fn packed_of(coding: Coding, text: &str) -> Vec<u8> {
    let packed = coding.compress(text.to_owned().into()).await;
    packed.expect("it can be").to_vec()
}

#[tokio::test]
async fn answers_are_compressed_only_for_servers_that_ask_for_it() {
    let server = TestServer::new();
    for seed in 1..10 {
        // Documents with keys, so that there is something to say.
        let name = format!("s{seed}.example");
        let _known = Neighbour::new(&server.lan, &name, seed);
    }
    let client = server.anonymous();
    let asked: Vec<_> = (1..10)
        .map(|seed| format!("\"s{seed}.example\":{{}}"))
        .collect();
    let body = format!("{{\"server_keys\":{{{}}}}}", asked.join(","));
    let query = "/_matrix/key/v2/query";
    let ask = async |offer: &str, path: &str, body: String| {
        let headers = [("accept-encoding", offer)];
        let router = kontor::http::router(server.services.clone());
        let mut request = http::Request::post(path);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(axum::body::Body::from(body)).expect("one");
        let answer = tower::ServiceExt::oneshot(router, request)
            .await
            .expect("an answer");
        let (parts, body) = answer.into_parts();
        let body = kontor::http::body::read(body, 1 << 20)
            .await
            .expect("whole");
        let coding = parts.headers.get(header::CONTENT_ENCODING).cloned();
        (coding.map(|it| it.to_str().expect("text").to_owned()), body)
    };
    let (_, _, plain) = client.raw(Method::POST, query, &[], body.clone()).await;
    assert!(plain.len() > 1_000, "{plain}");
    let (coding, whole) = ask("zstd, gzip", query, body.clone()).await;
    assert_eq!(coding.as_deref(), Some("zstd"));
    assert!(whole.len() * 2 < plain.len(), "{}", whole.len());
    let whole = Coding::Zstd
        .decompress(whole, 1 << 20)
        .await
        .expect("whole");
    assert_eq!(whole.len(), plain.len());
    let (coding, whole) = ask("gzip", query, body.clone()).await;
    assert_eq!(coding.as_deref(), Some("gzip"));
    let mut text = String::new();
    let read = flate2::read::GzDecoder::new(&*whole).read_to_string(&mut text);
    assert_eq!(read.expect("whole"), plain.len());
    for (offer, path, body) in [
        ("identity", query, body.clone()),
        ("zstd", query, "{\"server_keys\":{}}".to_owned()),
        ("zstd", "/_matrix/client/v3/login", "{}".to_owned()),
    ] {
        assert_eq!(ask(offer, path, body).await.0, None, "{offer} {path}");
    }
}
