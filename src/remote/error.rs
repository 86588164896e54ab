//! What can go wrong between this node and another server, in words that tell an administrator where to look.

use std::{net::IpAddr, time::Duration};

use http::StatusCode;
use ruma::OwnedServerName;

/// A request to another server that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{server}: {kind}")]
pub struct Error {
    /// The server that was asked.
    pub server: OwnedServerName,
    /// What failed.
    pub kind: Kind,
}

/// What a request to another server gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Kind {
    /// The configuration forbids it; nothing was sent.
    #[error("federation.mode does not let this node talk to it")]
    NotAllowed,
    /// Its name leads nowhere.
    #[error("its name cannot be resolved: {0}")]
    Name(String),
    /// It is no peer and has an address that only peers may have.
    #[error(
        "its address {0} is private; to talk to it, list it in federation.peers, or the range in federation.allowed_ranges"
    )]
    Blocked(IpAddr),
    /// Nobody listens there, or the network does not lead there.
    #[error("cannot connect to {address}: {problem}")]
    Connect {
        /// Where.
        address: String,
        /// What the operating system said.
        problem: String,
    },
    /// It could not prove that it is the server.
    #[error("no secure connection: {0}")]
    Tls(String),
    /// It took too long.
    #[error("no complete answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// So few bytes came that it would never end.
    #[error("its answer trickles: less than {0} bytes in half a minute")]
    Slow(usize),
    /// The connection ended before the answer did.
    #[error("the connection broke off: {0}")]
    Broken(String),
    /// It refused.
    #[error("it answered {status} {errcode}: {message}")]
    Status {
        /// The status of its answer.
        status: StatusCode,
        /// The error code; empty if it gave none.
        errcode: String,
        /// What it said about it.
        message: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// It sent more than anybody needs.
    #[error("its answer is longer than {0} bytes")]
    TooLarge(u64),
    /// Its answer is not what the specification asks for.
    #[error("its answer makes no sense: {0}")]
    BadAnswer(String),
    /// What was to be sent can not be sent to anybody.
    #[error("the request cannot be sent: {0}")]
    Request(String),
}

impl Kind {
    /// About the server `server`.
    pub fn of(self, server: impl Into<OwnedServerName>) -> Error {
        Error {
            server: server.into(),
            kind: self,
        }
    }

    /// Where whoever shall mend it looks next.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::NotAllowed => "Set federation.mode to \"open\" or \"closed\" on this node.",
            Self::Name(_) => {
                "Correct the name, or let the name servers know it; an IP address needs none: --address 10.8.0.2:8448."
            }
            Self::Blocked(_) => "Give the peer an address.",
            Self::Connect { .. } => {
                "Look whether the node runs there and listen.https has this port, whether the address is right, and whether the firewalls on the way let TCP through to it."
            }
            Self::Tls(_) => {
                "Compare the clocks of both machines (`date`). If the certificate there was replaced by one of another authority, pair the nodes again."
            }
            Self::Timeout(_) | Self::Slow(_) | Self::Broken(_) => {
                "Look at the load of the machine there, and at firewalls and proxies on the way: they must not end or delay connections."
            }
            Self::Status { .. } | Self::TooLarge(_) | Self::BadAnswer(_) => {
                "Something else may answer at this address: a reverse proxy must pass /_matrix and /_kontor on to the node."
            }
            Self::Request(_) => "Correct the name of the server.",
        }
    }

    /// Whether the same request may succeed later without anybody doing anything about it.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotAllowed | Self::Blocked(_) | Self::TooLarge(_) | Self::Request(_) => false,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                    )
            }
            // Certificates are renewed, and proxies give strange answers while what is behind them starts.
            Self::Name(_)
            | Self::Connect { .. }
            | Self::Tls(_)
            | Self::Timeout(_)
            | Self::Slow(_)
            | Self::Broken(_)
            | Self::BadAnswer(_) => true,
        }
    }

    /// Whether nothing came back, be it the server or the way to it that is down.
    pub fn is_silence(&self) -> bool {
        matches!(
            self,
            Self::Name(_)
                | Self::Connect { .. }
                | Self::Tls(_)
                | Self::Timeout(_)
                | Self::Slow(_)
                | Self::Broken(_)
        )
    }
}

impl Error {
    /// Whether the same request may succeed later without anybody doing anything about it.
    pub fn is_retryable(&self) -> bool {
        self.kind.is_retryable()
    }

    /// The status and the error code with which the server itself has refused, if it has.
    pub fn refusal(&self) -> Option<(StatusCode, &str)> {
        match &self.kind {
            Kind::Status {
                status, errcode, ..
            } => Some((*status, errcode)),
            _ => None,
        }
    }

    /// Whether the server itself has refused with this error code.
    pub fn refusal_is(&self, errcode: &str) -> bool {
        self.refusal().is_some_and(|(_, said)| said == errcode)
    }

    /// What a client may know: no addresses of the inner network, nothing of the configuration.
    pub fn public_text(&self) -> String {
        let server = &self.server;
        match &self.kind {
            Kind::NotAllowed => format!("This server does not talk to {server}"),
            Kind::Status {
                errcode, message, ..
            } => format!("{server} refused: {errcode} {message}"),
            Kind::Timeout(_) | Kind::Slow(_) => format!("{server} did not answer in time"),
            Kind::TooLarge(_) | Kind::BadAnswer(_) => format!("{server} gave a wrong answer"),
            Kind::Request(_) => format!("The request to {server} could not be made"),
            Kind::Name(_)
            | Kind::Blocked(_)
            | Kind::Connect { .. }
            | Kind::Tls(_)
            | Kind::Broken(_) => format!("{server} cannot be reached"),
        }
    }
}

/// What somebody else wrote, fit for a log and an answer: short, and on one line.
pub(super) fn tame(text: &str, most: usize) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(most).map(visible).collect()
}
