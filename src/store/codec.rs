//! Order-preserving tuple keys and versioned values.
//!
//! The law of keys: the byte order of encoded keys is the order of the tuples, decoding gives back what was encoded,
//! and the encoding of the leading parts is a prefix of the encoding of the whole. Strings are escaped
//! (`00` -> `00 FF`) and closed by `00 01`, except as the last part, because JSON strings may hold NUL.

use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId};
use serde::{Serialize, de::DeserializeOwned};

use crate::protocol::ids::{
    EventNid, Position, RoomNid, ServerNid, SnapshotId, StateKeyNid, UserNid,
};

/// One component of a key.
pub trait Part: Sized {
    /// Appends the component; `last` when nothing can follow it.
    fn encode(&self, last: bool, out: &mut Vec<u8>);
    /// Takes the component off the front of `input`.
    fn decode(last: bool, input: &mut &[u8]) -> Option<Self>;
}

/// Something that encodes exactly as the component `P` does, such as a `&str` for a `String`.
pub trait AsPart<P: Part> {
    /// Appends the component; `last` when nothing can follow it.
    fn encode_as(&self, last: bool, out: &mut Vec<u8>);
}

/// A whole key: a tuple of parts.
pub trait Key: Sized {
    /// Reads a key back.
    fn decode(input: &[u8]) -> Option<Self>;
}

/// Something that encodes as the whole key `K`.
pub trait AsKey<K: Key> {
    /// The key's bytes.
    fn key_bytes(&self) -> Vec<u8>;
}

/// Something that encodes as the leading parts of `K`.
pub trait AsPrefix<K: Key> {
    /// The bytes with which every such key begins.
    fn prefix_bytes(&self) -> Vec<u8>;
}

impl<P: Part> AsPart<P> for P {
    fn encode_as(&self, last: bool, out: &mut Vec<u8>) {
        self.encode(last, out);
    }
}

fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(*head)
}

impl Part for u64 {
    fn encode(&self, _last: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_be_bytes());
    }
    fn decode(_last: bool, input: &mut &[u8]) -> Option<Self> {
        take(input).map(Self::from_be_bytes)
    }
}

impl Part for i64 {
    fn encode(&self, _last: bool, out: &mut Vec<u8>) {
        // With the sign bit flipped, negative numbers sort before positive ones.
        out.extend_from_slice(&(self.cast_unsigned() ^ (1 << 63)).to_be_bytes());
    }
    fn decode(_last: bool, input: &mut &[u8]) -> Option<Self> {
        take(input).map(|bytes| (u64::from_be_bytes(bytes) ^ (1 << 63)).cast_signed())
    }
}

impl Part for u8 {
    fn encode(&self, _last: bool, out: &mut Vec<u8>) {
        out.push(*self);
    }
    fn decode(_last: bool, input: &mut &[u8]) -> Option<Self> {
        take(input).map(|[byte]| byte)
    }
}

impl Part for [u8; 32] {
    fn encode(&self, _last: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn decode(_last: bool, input: &mut &[u8]) -> Option<Self> {
        take(input)
    }
}

fn encode_text(text: &str, last: bool, out: &mut Vec<u8>) {
    if last {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    for byte in text.bytes() {
        out.push(byte);
        if byte == 0 {
            out.push(0xFF);
        }
    }
    out.extend_from_slice(&[0x00, 0x01]);
}

fn decode_text(last: bool, input: &mut &[u8]) -> Option<String> {
    if last {
        return String::from_utf8(std::mem::take(input).to_vec()).ok();
    }
    let mut text = Vec::new();
    loop {
        match take(input)? {
            [0x00] => match take(input)? {
                [0xFF] => text.push(0),
                [0x01] => return String::from_utf8(text).ok(),
                [_] => return None,
            },
            [byte] => text.push(byte),
        }
    }
}

impl Part for String {
    fn encode(&self, last: bool, out: &mut Vec<u8>) {
        encode_text(self, last, out);
    }
    fn decode(last: bool, input: &mut &[u8]) -> Option<Self> {
        decode_text(last, input)
    }
}

impl AsPart<String> for &str {
    fn encode_as(&self, last: bool, out: &mut Vec<u8>) {
        encode_text(self, last, out);
    }
}

macro_rules! nid_parts {
    ($($nid:ident),*) => {$(
        impl Part for $nid {
            fn encode(&self, last: bool, out: &mut Vec<u8>) {
                self.0.encode(last, out);
            }
            fn decode(last: bool, input: &mut &[u8]) -> Option<Self> {
                u64::decode(last, input).map($nid)
            }
        }
    )*};
}
nid_parts!(
    RoomNid,
    EventNid,
    UserNid,
    ServerNid,
    StateKeyNid,
    SnapshotId,
    Position
);

macro_rules! tuple_keys {
    (@prefixes ($($k:ident),+) ) => {};
    ($($k:ident $q:ident $n:tt),+; last $l:ident $lq:ident $ln:tt) => {
        impl<$($k: Part,)+ $l: Part> Key for ($($k,)+ $l,) {
            fn decode(mut input: &[u8]) -> Option<Self> {
                let key = ($($k::decode(false, &mut input)?,)+ $l::decode(true, &mut input)?,);
                input.is_empty().then_some(key)
            }
        }
        impl<$($k: Part, $q: AsPart<$k>,)+ $l: Part, $lq: AsPart<$l>> AsKey<($($k,)+ $l,)> for ($($q,)+ $lq,) {
            fn key_bytes(&self) -> Vec<u8> {
                let mut out = Vec::with_capacity(48);
                $(self.$n.encode_as(false, &mut out);)+
                self.$ln.encode_as(true, &mut out);
                out
            }
        }
    };
}

impl<A: Part> Key for (A,) {
    fn decode(mut input: &[u8]) -> Option<Self> {
        let key = (A::decode(true, &mut input)?,);
        input.is_empty().then_some(key)
    }
}
impl<A: Part, QA: AsPart<A>> AsKey<(A,)> for (QA,) {
    fn key_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        self.0.encode_as(true, &mut out);
        out
    }
}
tuple_keys!(A QA 0; last B QB 1);
tuple_keys!(A QA 0, B QB 1; last C QC 2);
tuple_keys!(A QA 0, B QB 1, C QC 2; last D QD 3);

/// The empty prefix: the whole table.
impl<K: Key> AsPrefix<K> for () {
    fn prefix_bytes(&self) -> Vec<u8> {
        Vec::new()
    }
}

macro_rules! tuple_prefixes {
    ($($k:ident $q:ident $n:tt),+; $($rest:ident),+) => {
        impl<$($k: Part, $q: AsPart<$k>,)+ $($rest: Part),+> AsPrefix<($($k,)+ $($rest,)+)> for ($($q,)+) {
            fn prefix_bytes(&self) -> Vec<u8> {
                let mut out = Vec::with_capacity(48);
                $(self.$n.encode_as(false, &mut out);)+
                out
            }
        }
    };
}
tuple_prefixes!(A QA 0; B);
tuple_prefixes!(A QA 0; B, C);
tuple_prefixes!(A QA 0, B QB 1; C);
tuple_prefixes!(A QA 0; B, C, D);
tuple_prefixes!(A QA 0, B QB 1; C, D);
tuple_prefixes!(A QA 0, B QB 1, C QC 2; D);

/// What a table holds for a key.
pub trait Value: Sized {
    /// The bytes to store.
    fn to_bytes(&self) -> Vec<u8>;
    /// Reads a value back; `None` when the bytes are not such a value.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl Value for () {
    fn to_bytes(&self) -> Vec<u8> {
        Vec::new()
    }
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.is_empty().then_some(())
    }
}

/// Raw text, such as JSON.
impl Value for String {
    fn to_bytes(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        String::from_utf8(bytes.to_vec()).ok()
    }
}

impl Value for Vec<u8> {
    fn to_bytes(&self) -> Vec<u8> {
        self.clone()
    }
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(bytes.to_vec())
    }
}

impl<P: Part> Value for (P,) {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8);
        self.0.encode(true, &mut out);
        out
    }
    fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let value = P::decode(true, &mut bytes)?;
        bytes.is_empty().then_some((value,))
    }
}

/// Something that may be missing.
impl<P: Part> Value for Option<P> {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(part) = self {
            part.encode(true, &mut out);
        }
        out
    }
    fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(None);
        }
        let part = P::decode(true, &mut bytes)?;
        bytes.is_empty().then_some(Some(part))
    }
}

/// The same behind something that is always there.
impl<P: Part, Q: Part> Value for (P, Option<Q>) {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16);
        self.0.encode(false, &mut out);
        out.extend(self.1.to_bytes());
        out
    }
    fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let first = P::decode(false, &mut bytes)?;
        Some((first, Option::from_bytes(bytes)?))
    }
}

macro_rules! id_values {
    ($($id:ty),*) => {$(
        impl Value for $id {
            fn to_bytes(&self) -> Vec<u8> {
                self.as_str().as_bytes().to_vec()
            }
            fn from_bytes(bytes: &[u8]) -> Option<Self> {
                std::str::from_utf8(bytes).ok()?.try_into().ok()
            }
        }
    )*};
}
id_values!(OwnedEventId, OwnedRoomId, OwnedUserId, OwnedServerName);

/// A small struct, stored compactly behind one byte that says which version of the struct it is.
pub trait Record: Serialize + DeserializeOwned {
    /// Raised whenever the stored shape changes; older shapes are read by [`Record::upgrade`].
    const VERSION: u8 = 1;

    /// Reads a value that an older version of this program has written.
    fn upgrade(_version: u8, _bytes: &[u8]) -> Option<Self> {
        None
    }
}

impl<R: Record> Value for R {
    fn to_bytes(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![R::VERSION]).expect("records hold only plain data")
    }
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (&version, rest) if version == R::VERSION => postcard::from_bytes(rest).ok(),
            (&version, rest) => R::upgrade(version, rest),
        }
    }
}

#[cfg(test)]
mod tests;
