//! A connection to another server as the HTTP library wants it, and what its errors come from.

use std::{
    error::Error as StdError,
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use http::Uri;
use hyper::rt::ReadBufCursor;
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use ruma::OwnedServerName;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{
    client::Network,
    error::{Kind, tame},
    trust::explain,
};

/// Connects for one server's client.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) server: OwnedServerName,
    pub(super) network: Network,
}

impl Connector {
    async fn connect(self) -> Result<Secured, Failure> {
        let stream = self.network.connect_to(&self.server).await;
        Ok(Secured(TokioIo::new(stream.map_err(Failure)?)))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Secured;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Secured, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

/// What failed, on its way through the library.
#[derive(Debug)]
pub(super) struct Failure(Kind);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Failure {}

/// A connection that says which version of HTTP was agreed on.
pub(super) struct Secured(TokioIo<TlsStream<TcpStream>>);

impl Connection for Secured {
    fn connected(&self) -> Connected {
        let (_, tls) = self.0.inner().get_ref();
        if tls.alpn_protocol() == Some(b"h2") {
            Connected::new().negotiated_h2()
        } else {
            Connected::new()
        }
    }
}

impl hyper::rt::Read for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }
}

/// What an error of the library comes from.
pub(super) fn kind_of(error: &(dyn StdError + 'static)) -> Kind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(Failure(kind)) = error.downcast_ref() {
            return kind.clone();
        }
        if let Some(error) = error.downcast_ref::<io::Error>()
            && let kind @ Kind::Tls(_) = kind_of_io(error)
        {
            return kind;
        }
        cause = error.source();
    }
    Kind::Broken(words(error))
}

pub(super) fn kind_of_io(error: &io::Error) -> Kind {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(tls) => Kind::Tls(explain(tls)),
        None => Kind::Broken(error.to_string()),
    }
}

/// An error with its causes, of which the last usually says most.
pub(super) fn words(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    tame(&text, 300)
}
