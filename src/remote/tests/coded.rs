//! Compressed bodies: only for those who offer to read them, and never more than the limit when they are taken apart.

use bytes::Bytes;
use http::Request;
use ruma::{OwnedServerName, ServerName};

use super::{Does, Web, names};
use crate::{
    coding::Coding,
    remote::{Kind, Limits, Network},
};

const PATH: &str = "/_matrix/x";

const LIMITS: Limits = Limits {
    body: 100_000,
    ..Limits::USUAL
};

struct Setting {
    web: Web,
    network: Network,
    server: OwnedServerName,
}

impl Setting {
    async fn new() -> Self {
        let web = Web::new(&["a.example"]).await;
        let network = web.network(&web.federation(), names(&["a.example"], &[]));
        let server = ServerName::parse(format!("a.example:{}", web.port)).unwrap();
        Self {
            web,
            network,
            server,
        }
    }

    /// Sends a body of so many bytes; gives the answer, and what has come of the body there.
    async fn put(&self, size: usize) -> (Result<Bytes, Kind>, Vec<(String, Vec<u8>)>) {
        let request = Request::put(PATH).body(vec![b'x'; size].into()).unwrap();
        let answer = self.network.exchange(&self.server, request, LIMITS).await;
        let came = std::mem::take(&mut *self.web.bodies.lock());
        (answer.map(http::Response::into_body), came)
    }

    fn answers(&self, status: &str, headers: &str, body: &[u8]) {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n"
        );
        let whole = [head.as_bytes(), body].concat();
        self.web.does(PATH, Does::Bytes(whole));
    }
}

fn codings(came: &[(String, Vec<u8>)]) -> Vec<&str> {
    came.iter().map(|(coding, _)| coding.as_str()).collect()
}

#[tokio::test]
async fn bodies_are_compressed_for_those_who_have_offered_it() {
    let setting = Setting::new().await;
    setting.answers("200 OK", "", b"{}");
    for _ in 0..2 {
        let (_, came) = setting.put(2_000).await;
        assert_eq!(codings(&came), [""], "nobody has offered anything");
    }
    for (offer, expect) in [("gzip, zstd", "zstd"), ("gzip", "gzip"), ("identity", "")] {
        let offer = format!("accept-encoding: {offer}\r\n");
        setting.answers("200 OK", &offer, b"{}");
        let _learns = setting.put(2_000).await;
        let (answer, came) = setting.put(2_000).await;
        assert_eq!(answer.unwrap(), "{}");
        assert_eq!(codings(&came), [expect]);
        let (_, body) = &came[0];
        if let Some(coding) = Coding::of(expect).unwrap() {
            let body = Bytes::from(body.clone());
            let there = coding.decompress(body, 2_000).await.unwrap();
            assert_eq!(there, vec![b'x'; 2_000]);
            assert_eq!(
                codings(&setting.put(10).await.1),
                [""],
                "it is not worth it"
            );
        }
    }
}

#[tokio::test]
async fn whoever_reads_it_no_more_gets_the_same_as_it_is() {
    let setting = Setting::new().await;
    setting.answers("200 OK", "accept-encoding: zstd\r\n", b"{}");
    let _learns = setting.put(2_000).await;
    setting.answers("415 Unsupported Media Type", "", b"{}");
    let (answer, came) = setting.put(2_000).await;
    assert!(answer.is_ok());
    assert_eq!(codings(&came), ["zstd", ""]);
    assert_eq!(codings(&setting.put(2_000).await.1), [""], "it was noted");
}

#[tokio::test]
async fn answers_are_taken_apart_within_the_limit() {
    let setting = Setting::new().await;
    for coding in [Coding::Zstd, Coding::Gzip] {
        let name = format!("content-encoding: {}\r\n", coding.name());
        let body = Bytes::from(vec![b'y'; 90_000]);
        let packed = coding.compress(body.clone()).await.unwrap();
        setting.answers("200 OK", &name, &packed);
        assert_eq!(setting.put(1).await.0, Ok(body));
        let bomb = coding
            .compress(vec![b'y'; 50_000_000].into())
            .await
            .unwrap();
        setting.answers("200 OK", &name, &bomb);
        assert_eq!(setting.put(1).await.0, Err(Kind::TooLarge(LIMITS.body)));
        setting.answers("200 OK", &name, b"garbage, not compressed at all");
        let answer = setting.put(1).await.0;
        assert!(matches!(answer, Err(Kind::BadAnswer(_))), "{answer:?}");
    }
    setting.answers("200 OK", "content-encoding: br\r\n", b"x");
    let answer = setting.put(1).await.0;
    assert!(matches!(answer, Err(Kind::BadAnswer(_))), "{answer:?}");
}
