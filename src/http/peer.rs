//! Who is at the other end of a connection, also when a reverse proxy stands between.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use crate::config::Network;

/// The client's address; every request carries it in its extensions. Behind a trusted proxy the port is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// The client behind `connected`: the last address in `X-Forwarded-For` that is not itself a trusted proxy.
///
/// Everything further left was written by the client and proves nothing.
pub(super) fn client(connected: SocketAddr, headers: &HeaderMap, trusted: &[Network]) -> PeerAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = connected;
    if !is_trusted(connected.ip()) {
        return PeerAddr(client);
    }
    let hops = headers
        .get_all("x-forwarded-for")
        .into_iter()
        .rev()
        .filter_map(|header| header.to_str().ok())
        .flat_map(|list| list.rsplit(','));
    for hop in hops {
        let Some(address) = parse(hop.trim()) else {
            break;
        };
        client = SocketAddr::new(address, 0);
        if !is_trusted(address) {
            break;
        }
    }
    PeerAddr(client)
}

/// An address as proxies write it: bare, or with a port.
fn parse(hop: &str) -> Option<IpAddr> {
    let with_port = || hop.parse::<SocketAddr>().map(|address| address.ip());
    hop.parse().or_else(|_| with_port()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted = ["127.0.0.1".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
        for (connected, headers, expected) in [
            ("127.0.0.1:5", vec![], "127.0.0.1:5"),
            ("9.9.9.9:5", vec!["1.1.1.1"], "9.9.9.9:5"),
            ("127.0.0.1:5", vec!["1.1.1.1"], "1.1.1.1:0"),
            ("127.0.0.1:5", vec!["6.6.6.6, 1.1.1.1"], "1.1.1.1:0"),
            (
                "127.0.0.1:5",
                vec!["6.6.6.6", "1.1.1.1, 10.0.0.1"],
                "1.1.1.1:0",
            ),
            ("127.0.0.1:5", vec!["[2001:db8::1]:443"], "[2001:db8::1]:0"),
            ("127.0.0.1:5", vec!["1.1.1.1, nonsense"], "127.0.0.1:5"),
            ("127.0.0.1:5", vec!["10.0.0.7"], "10.0.0.7:0"),
        ] {
            let mut map = HeaderMap::new();
            for header in &headers {
                map.append("x-forwarded-for", header.parse().unwrap());
            }
            let found = client(connected.parse().unwrap(), &map, &trusted);
            assert_eq!(
                found,
                PeerAddr(expected.parse().unwrap()),
                "{connected} {headers:?}"
            );
        }
    }
}
