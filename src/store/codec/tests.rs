//! The laws of keys, on random tuples.

use proptest::prelude::*;

use super::*;

fn text() -> impl Strategy<Value = String> {
    // Few letters, so that prefixes and NULs meet often.
    proptest::collection::vec(
        prop_oneof![Just('\0'), Just('\u{1}'), Just('a'), Just('ÿ')],
        0..6,
    )
    .prop_map(|letters| letters.into_iter().collect())
}

proptest! {
    #[test]
    fn byte_order_is_tuple_order(a in (any::<i64>(), text(), text()), b in (any::<i64>(), text(), text())) {
        prop_assert_eq!(a.key_bytes().cmp(&b.key_bytes()), a.cmp(&b));
        let (a, b) = ((a.1, a.0, u64::try_from(a.2.len()).unwrap()), (b.1, b.0, u64::try_from(b.2.len()).unwrap()));
        prop_assert_eq!(a.key_bytes().cmp(&b.key_bytes()), a.cmp(&b));
    }

    #[test]
    fn decoding_gives_back_what_was_encoded(a in any::<u64>(), b in text(), c in any::<i64>(), d in text()) {
        let key = (a, b, c, d);
        prop_assert_eq!(<(u64, String, i64, String)>::decode(&key.key_bytes()), Some(key));
    }

    #[test]
    fn leading_parts_are_a_prefix(a in text(), b in any::<u64>(), c in text()) {
        let key = (a.clone(), b, c);
        let one: Vec<u8> = AsPrefix::<(String, u64, String)>::prefix_bytes(&(a.clone(),));
        let two: Vec<u8> = AsPrefix::<(String, u64, String)>::prefix_bytes(&(a, b));
        prop_assert!(key.key_bytes().starts_with(&one) && key.key_bytes().starts_with(&two));
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let _ = <(String, u64, String)>::decode(&bytes);
        let _ = <([u8; 32],)>::decode(&bytes);
    }
}
