//! How servers prove to each other who asks: the `X-Matrix` header and the signed request object behind it.
//!
//! See "Request Authentication" in the server-server API. What is signed is a JSON object around the body; a body that
//! is canonical JSON already, as most servers send it, is checked without being taken apart.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use ed25519_dalek::{Signature, VerifyingKey};
use ruma::{OwnedServerName, ServerName};

use super::{
    format::push_string,
    integrity::{self, BadSignature, ServerKey},
};

/// The name of the scheme.
pub const SCHEME: &str = "X-Matrix";

/// The longest header that is looked at, in bytes: two names, a key id and a signature of 255 bytes each, and room.
pub const MAX_HEADER_BYTES: usize = 2_048;

/// What an `Authorization` header of this scheme says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XMatrix {
    /// The server that says it asks.
    pub origin: OwnedServerName,
    /// The server that it means to ask; older servers do not say.
    pub destination: Option<OwnedServerName>,
    /// The id of the key, `ed25519:VERSION`.
    pub key: String,
    /// The signature, in unpadded base64.
    pub signature: String,
}

/// Why a header is none of this scheme.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// It is of another scheme.
    #[error("not of the scheme X-Matrix")]
    OtherScheme,
    /// It is too long, or not a list of `name=value`.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// A parameter is missing, is there twice, or can not be what it should.
    #[error("its `{0}` is missing, given twice, or not valid")]
    Parameter(&'static str),
}

impl XMatrix {
    /// Reads the value of a header. Values may be quoted or not, in any order; unknown parameters are ignored.
    ///
    /// # Errors
    /// See [`BadHeader`].
    pub fn parse(header: &str) -> Result<Self, BadHeader> {
        if header.len() > MAX_HEADER_BYTES {
            return Err(BadHeader::Malformed("too long"));
        }
        let header = header.trim();
        let (scheme, mut rest) = header.split_once(' ').unwrap_or((header, ""));
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(BadHeader::OtherScheme);
        }
        let [mut origin, mut destination, mut key, mut signature] = [const { None }; 4];
        while let Some((name, value, left)) = parameter(rest)? {
            rest = left;
            let (slot, name) = match name.to_ascii_lowercase().as_str() {
                "origin" => (&mut origin, "origin"),
                "destination" => (&mut destination, "destination"),
                "key" => (&mut key, "key"),
                "sig" => (&mut signature, "sig"),
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(BadHeader::Parameter(name));
            }
        }
        let server = |text: Option<String>, name: &'static str| {
            text.map(|text| OwnedServerName::try_from(text).map_err(|_| BadHeader::Parameter(name)))
                .transpose()
        };
        let missing = |name: &'static str| move || BadHeader::Parameter(name);
        let key = key.ok_or_else(missing("key"))?;
        if !is_key_id(&key) {
            return Err(BadHeader::Parameter("key"));
        }
        Ok(Self {
            origin: server(origin, "origin")?.ok_or_else(missing("origin"))?,
            destination: server(destination, "destination")?,
            key,
            signature: signature.ok_or_else(missing("sig"))?,
        })
    }

    /// Signs a request as the server `origin`. `uri` is path and query; `content` is the body as canonical JSON.
    #[must_use]
    pub fn sign(
        method: &str,
        uri: &str,
        origin: &ServerName,
        destination: &ServerName,
        content: Option<&str>,
        key: &ServerKey,
    ) -> Self {
        let message = request_object(method, uri, origin, destination, content);
        Self {
            origin: origin.to_owned(),
            destination: Some(destination.to_owned()),
            key: key.id().to_owned(),
            signature: key.sign(message.as_bytes()),
        }
    }

    /// Checks the signature of a request to us, `destination`, by the named key of the origin. `content` is the body as
    /// it came, which must be one JSON value.
    ///
    /// # Errors
    /// When it is not the signature of this request by this key.
    pub fn verify(
        &self,
        method: &str,
        uri: &str,
        destination: &ServerName,
        content: Option<&str>,
        key: &[u8; 32],
    ) -> Result<(), BadSignature> {
        let as_it_came = request_object(method, uri, &self.origin, destination, content);
        if verify_text(&as_it_came, &self.signature, key).is_ok() {
            return Ok(());
        }
        let bad = || BadSignature("the signature is not one of this request".to_owned());
        // Whoever sends members in another order, or with spaces, has signed the canonical form of it.
        let content = content.ok_or_else(bad)?;
        let canonical = integrity::canonical_lax(content).map_err(|_| bad())?;
        if canonical == content {
            return Err(bad());
        }
        let object = request_object(method, uri, &self.origin, destination, Some(&canonical));
        verify_text(&object, &self.signature, key)
    }
}

impl fmt::Display for XMatrix {
    /// As the specification asks for the sake of older servers: lower-case names, no spaces, all values in quotes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME} origin=\"{}\"", self.origin)?;
        if let Some(destination) = &self.destination {
            write!(f, ",destination=\"{destination}\"")?;
        }
        write!(f, ",key=\"{}\",sig=\"{}\"", self.key, self.signature)
    }
}

/// Whether a text is the id of a key that we can check: `ed25519:` and letters, digits and underscores.
#[must_use]
pub fn is_key_id(text: &str) -> bool {
    text.len() <= 255
        && text.strip_prefix("ed25519:").is_some_and(|version| {
            // Synapse has made keys with other characters, so that these are not refused here.
            !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_graphic())
        })
}

/// Checks a signature in unpadded base64.
///
/// # Errors
/// When it is not the key's signature of `text`, or one of the two is not valid.
pub fn verify_text(text: &str, signature: &str, key: &[u8; 32]) -> Result<(), BadSignature> {
    let bad = |what: &str| BadSignature(what.to_owned());
    let signature = STANDARD_NO_PAD
        .decode(signature.trim_end_matches('='))
        .ok()
        .and_then(|bytes| Signature::from_slice(&bytes).ok())
        .ok_or_else(|| bad("the signature is not 64 bytes in base64"))?;
    let key = VerifyingKey::from_bytes(key).map_err(|_| bad("the key is not an ed25519 key"))?;
    key.verify_strict(text.as_bytes(), &signature)
        .map_err(|_| bad("the signature does not fit"))
}

/// What is signed, as canonical JSON if `content` is.
fn request_object(
    method: &str,
    uri: &str,
    origin: &ServerName,
    destination: &ServerName,
    content: Option<&str>,
) -> String {
    let room = content.map_or(0, str::len) + uri.len() + 256;
    let mut text = String::with_capacity(room);
    text.push('{');
    if let Some(content) = content {
        text.push_str("\"content\":");
        text.push_str(content);
        text.push(',');
    }
    for (name, value, end) in [
        ("\"destination\":", destination.as_str(), ','),
        ("\"method\":", method, ','),
        ("\"origin\":", origin.as_str(), ','),
        ("\"uri\":", uri, '}'),
    ] {
        text.push_str(name);
        push_string(&mut text, value);
        text.push(end);
    }
    text
}

/// A parameter's name and value, and what comes after it.
type Parameter<'h> = (&'h str, String, &'h str);

/// The first parameter of a list; `None` at its end.
fn parameter(text: &str) -> Result<Option<Parameter<'_>>, BadHeader> {
    let gap = |c: char| c == ',' || c == ' ' || c == '\t';
    let text = text.trim_start_matches(gap);
    if text.is_empty() {
        return Ok(None);
    }
    let (name, text) = text
        .split_once('=')
        .ok_or(BadHeader::Malformed("a parameter without `=`"))?;
    let name = name.trim_end();
    let text = text.trim_start_matches([' ', '\t']);
    let Some(mut quoted) = text.strip_prefix('"') else {
        let end = text.find(gap).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        if value.contains('"') {
            return Err(BadHeader::Malformed("a quote within a value"));
        }
        return Ok(Some((name, value.to_owned(), rest)));
    };
    let mut value = String::new();
    loop {
        let end = quoted
            .find(['"', '\\'])
            .ok_or(BadHeader::Malformed("a quote that does not end"))?;
        let (part, rest) = quoted.split_at(end);
        value.push_str(part);
        let mut rest = rest.chars();
        if rest.next() == Some('"') {
            let rest = rest.as_str();
            if !rest.is_empty() && !rest.starts_with(gap) {
                return Err(BadHeader::Malformed("no comma after a value"));
            }
            return Ok(Some((name, value, rest)));
        }
        value.extend(rest.next());
        quoted = rest.as_str();
    }
}

#[cfg(test)]
mod tests {
    use ruma::{owned_server_name, server_name};

    use super::*;

    fn key() -> ServerKey {
        ServerKey::from_seed(&[7; 32], "k1").unwrap()
    }

    fn public() -> [u8; 32] {
        let bytes = STANDARD_NO_PAD.decode(key().public_base64()).unwrap();
        bytes.try_into().unwrap()
    }

    fn expected() -> XMatrix {
        XMatrix {
            origin: owned_server_name!("a.example:8448"),
            destination: Some(owned_server_name!("b.example")),
            key: "ed25519:k1".to_owned(),
            signature: "AB+/cd".to_owned(),
        }
    }

    #[test]
    fn headers_of_all_kinds_are_read() {
        for header in [
            r#"X-Matrix origin="a.example:8448",destination="b.example",key="ed25519:k1",sig="AB+/cd""#,
            // Colons without quotes, as older servers write them; other cases, orders and gaps.
            "X-Matrix origin=a.example:8448,destination=b.example,key=ed25519:k1,sig=AB+/cd",
            "x-matrix  SIG=AB+/cd ,\tkey=\"ed25519:k1\" , Origin=a.example:8448,destination=\"b.example\"",
            r#"X-Matrix origin="a.exam\ple:8448",destination="b.example",new="a\"b,c",key="ed25519:k1",sig="AB+/cd""#,
        ] {
            assert_eq!(XMatrix::parse(header), Ok(expected()), "{header}");
        }
        let written = expected().to_string();
        assert_eq!(XMatrix::parse(&written), Ok(expected()), "{written}");
        let without = "X-Matrix origin=a.example,key=ed25519:k1,sig=AB";
        assert_eq!(XMatrix::parse(without).unwrap().destination, None);
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for (header, expect) in [
            ("Bearer abc", BadHeader::OtherScheme),
            ("", BadHeader::OtherScheme),
            ("X-Matrix", BadHeader::Parameter("key")),
            (
                "X-Matrix origin",
                BadHeader::Malformed("a parameter without `=`"),
            ),
            (
                "X-Matrix origin=a.example,key=ed25519:k,sig=\"abc",
                BadHeader::Malformed("a quote that does not end"),
            ),
            (
                "X-Matrix origin=a.example,key=ed25519:k,sig=\"abc\\",
                BadHeader::Malformed("a quote that does not end"),
            ),
            (
                "X-Matrix origin=\"a.example\"key=ed25519:k",
                BadHeader::Malformed("no comma after a value"),
            ),
            (
                "X-Matrix origin=a.example,origin=b.example,key=ed25519:k,sig=a",
                BadHeader::Parameter("origin"),
            ),
            (
                "X-Matrix origin=a_b!,key=ed25519:k,sig=a",
                BadHeader::Parameter("origin"),
            ),
            (
                "X-Matrix origin=a.example,key=rsa:k,sig=a",
                BadHeader::Parameter("key"),
            ),
            (
                "X-Matrix origin=a.example,key=ed25519:k",
                BadHeader::Parameter("sig"),
            ),
        ] {
            assert_eq!(XMatrix::parse(header), Err(expect), "{header}");
        }
        let long = format!("X-Matrix origin={}", "a".repeat(MAX_HEADER_BYTES));
        assert_eq!(XMatrix::parse(&long), Err(BadHeader::Malformed("too long")));
    }

    #[test]
    fn only_the_request_that_was_signed_is_accepted() {
        let (a, b) = (server_name!("a.example"), server_name!("b.example"));
        let body = r#"{"a":1,"b":["\u00e4"]}"#;
        let canonical = integrity::canonical_lax(body).unwrap();
        let signed = XMatrix::sign("PUT", "/x?y=z", a, b, Some(&canonical), &key());
        assert_eq!(XMatrix::parse(&signed.to_string()), Ok(signed.clone()));
        let verify = |method: &str, uri: &str, us: &ServerName, content: Option<&str>| {
            signed.verify(method, uri, us, content, &public()).is_ok()
        };
        assert!(verify("PUT", "/x?y=z", b, Some(&canonical)));
        // Whatever order the body comes in, the canonical form is what was signed.
        assert!(verify(
            "PUT",
            "/x?y=z",
            b,
            Some("{ \"b\": [\"ä\"], \"a\": 1.0 }")
        ));
        for (method, uri, us, content) in [
            ("GET", "/x?y=z", b, Some(&*canonical)),
            ("PUT", "/x?y=", b, Some(&*canonical)),
            ("PUT", "/x?y=z", a, Some(&*canonical)),
            ("PUT", "/x?y=z", b, Some("{}")),
            ("PUT", "/x?y=z", b, Some("{\"a\":1.5}")),
            ("PUT", "/x?y=z", b, None),
        ] {
            assert!(
                !verify(method, uri, us, content),
                "{method} {uri} {us} {content:?}"
            );
        }
        let other = |change: fn(&mut XMatrix)| {
            let mut other = signed.clone();
            change(&mut other);
            other.verify("PUT", "/x?y=z", b, Some(&canonical), &public())
        };
        assert!(other(|x| x.origin = owned_server_name!("c.example")).is_err());
        assert!(other(|x| x.signature = "AAAA".to_owned()).is_err());
        assert!(other(|x| x.signature = "-".to_owned()).is_err());
        assert!(other(|_| ()).is_ok());
        assert!(
            signed
                .verify("PUT", "/x?y=z", b, Some(&canonical), &[1; 32])
                .is_err()
        );
    }

    #[test]
    fn a_body_with_fractions_is_accepted_as_it_came() {
        let (a, b) = (server_name!("a.example"), server_name!("b.example"));
        let body = r#"{"a":1.5}"#;
        let signed = XMatrix::sign("PUT", "/x", a, b, Some(body), &key());
        assert!(signed.verify("PUT", "/x", b, Some(body), &public()).is_ok());
    }

    #[test]
    fn the_object_is_the_one_of_the_specification() {
        let (a, b) = (server_name!("a.example"), server_name!("b.example"));
        assert_eq!(
            request_object("GET", "/p?q=\"", a, b, None),
            r#"{"destination":"b.example","method":"GET","origin":"a.example","uri":"/p?q=\""}"#
        );
        assert_eq!(
            request_object("PUT", "/p", a, b, Some("{}")),
            r#"{"content":{},"destination":"b.example","method":"PUT","origin":"a.example","uri":"/p"}"#
        );
    }
}
