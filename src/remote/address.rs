//! Which addresses a server may have that nobody has listed as a peer.
//!
//! Anybody can name any server in a room or an invite, and point that name at any address. Without this rule they could
//! make the node knock at the doors of the office's own network.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::LazyLock,
};

use crate::config::{Federation, Network};

/// What is not on the public internet: the special-purpose registries of IANA.
const PRIVATE: [&str; 27] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "::ffff:0:0:0/96",
];

static RANGES: LazyLock<Vec<Network>> = LazyLock::new(|| {
    let ranges = PRIVATE.iter().map(|range| range.parse());
    ranges
        .collect::<Result<_, _>>()
        .expect("the list above holds ranges")
});

/// Whether a server outside the peer table may be contacted there.
pub(super) fn is_permitted(address: IpAddr, federation: &Federation) -> bool {
    let address = address.to_canonical();
    let meant = embedded(address).unwrap_or(address);
    federation.allows(meant) || !RANGES.iter().any(|range| range.contains(meant))
}

/// The IPv4 address that an IPv6 address leads to by translation (NAT64) or in a tunnel (6to4).
fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else {
        return None;
    };
    let bytes = address.octets();
    let four = |start: usize| {
        let part = bytes.get(start..start + 4)?;
        let part: [u8; 4] = part.try_into().ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(part)))
    };
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => four(12),
        [0x2002, ..] => four(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_permitted() {
        let federation = Federation::default();
        let permitted = |text: &str| is_permitted(text.parse().unwrap(), &federation);
        for public in [
            "1.1.1.1",
            "172.15.255.255",
            "172.32.0.1",
            "100.63.0.1",
            "2a01::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
        ] {
            assert!(permitted(public), "{public}");
        }
        for private in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::127.0.0.1",
            "2002:7f00:1::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "2001:db8::1",
        ] {
            assert!(!permitted(private), "{private}");
        }
    }

    #[test]
    fn allowed_ranges_are_exceptions() {
        let federation = Federation {
            allowed_ranges: vec!["127.0.0.0/8".parse().unwrap()],
            ..Federation::default()
        };
        let permitted = |text: &str| is_permitted(text.parse().unwrap(), &federation);
        assert!(permitted("127.0.0.1") && permitted("::ffff:127.0.0.1"));
        assert!(!permitted("::1") && !permitted("10.0.0.1"));
    }
}
