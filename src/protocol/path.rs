//! Dot-separated paths to the properties of an event, as push rules and filters name them.
//!
//! See "Dot-separated property paths" in the appendices.

use std::collections::BTreeMap;

use serde_json::Value;

/// The names on the way to one property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(Box<[String]>);

impl Path {
    /// Reads a path: dots part the names, a backslash takes the meaning from a dot or a backslash after it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut names = vec![];
        let mut name = String::new();
        let mut chars = text.chars().peekable();
        while let Some(char) = chars.next() {
            match char {
                '.' => names.push(std::mem::take(&mut name)),
                '\\' => name.push(
                    chars
                        .next_if(|next| matches!(next, '.' | '\\'))
                        .unwrap_or('\\'),
                ),
                other => name.push(other),
            }
        }
        names.push(name);
        Self(names.into())
    }

    /// The names from the outermost to the innermost; at least one.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

/// The value at the end of `names`, if all objects on the way have them.
#[must_use]
pub fn find<'a>(value: &'a Value, names: &[String]) -> Option<&'a Value> {
    names
        .iter()
        .try_fold(value, |value, name| value.as_object()?.get(name))
}

/// Several paths, merged for cutting an object down to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Projection(BTreeMap<String, Projection>);

impl Projection {
    /// A projection to these paths.
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut root = Self::default();
        for path in paths {
            root.add(&path.0);
        }
        root
    }

    fn add(&mut self, names: &[String]) {
        let Some((name, rest)) = names.split_first() else {
            return;
        };
        // Below a property that is taken whole there is nothing to choose.
        let whole = self.0.get(name).is_some_and(|inner| inner.0.is_empty());
        let inner = self.0.entry(name.clone()).or_default();
        if rest.is_empty() {
            inner.0.clear();
        } else if !whole {
            inner.add(rest);
        }
    }

    /// What of `value` the paths lead to; an object that has none of it is left out.
    #[must_use]
    pub fn apply(&self, value: Value) -> Option<Value> {
        if self.0.is_empty() {
            return Some(value);
        }
        let Value::Object(mut object) = value else {
            return None;
        };
        let kept: serde_json::Map<_, _> = self
            .0
            .iter()
            .filter_map(|(name, inner)| Some((name.clone(), inner.apply(object.remove(name)?)?)))
            .collect();
        (!kept.is_empty()).then_some(Value::Object(kept))
    }
}

#[cfg(test)]
mod tests {
    //! Escapes, and what a projection leaves.

    use serde_json::json;

    use super::*;

    #[test]
    fn escapes() {
        for (text, expect) in [
            ("a", &["a"][..]),
            ("content.body", &["content", "body"]),
            (
                r"content.m\.relates_to.rel_type",
                &["content", "m.relates_to", "rel_type"],
            ),
            (r"content.m\\foo", &["content", r"m\foo"]),
            (r"a\x.b", &[r"a\x", "b"]),
            (r"a\\.b", &[r"a\", "b"]),
            (r"a\", &[r"a\"]),
            ("", &[""]),
            ("a..b", &["a", "", "b"]),
        ] {
            assert_eq!(Path::new(text).names(), expect, "{text}");
        }
    }

    #[test]
    fn projections() {
        let event = json!({ "type": "t", "content": { "body": "b", "a.b": { "c": 1, "d": 2 }, "x": [1] }, "sender": "s" });
        for (paths, expect) in [
            (&["type"][..], json!({ "type": "t" })),
            (
                &["content.body", "sender"],
                json!({ "content": { "body": "b" }, "sender": "s" }),
            ),
            (
                &[r"content.a\.b.c"],
                json!({ "content": { "a.b": { "c": 1 } } }),
            ),
            (
                &["content", "content.body"],
                json!({ "content": event["content"] }),
            ),
            (
                &["content.body", "content"],
                json!({ "content": event["content"] }),
            ),
            (
                &["content.body", "content.x"],
                json!({ "content": { "body": "b", "x": [1] } }),
            ),
            (&["type", "content.none"], json!({ "type": "t" })),
            (&["type", "sender.x", "content.x.0"], json!({ "type": "t" })),
        ] {
            let paths: Vec<_> = paths.iter().map(|path| Path::new(path)).collect();
            assert_eq!(
                Projection::new(&paths).apply(event.clone()),
                Some(expect),
                "{paths:?}"
            );
        }
        assert_eq!(Projection::new(&[Path::new("none")]).apply(event), None);
    }

    #[test]
    fn finding() {
        let value = json!({ "a": { "b": [1], "c": null } });
        let names = |text: &str| Path::new(text).names().to_vec();
        assert_eq!(find(&value, &names("a.b")), Some(&json!([1])));
        assert_eq!(find(&value, &names("a.c")), Some(&Value::Null));
        assert_eq!(find(&value, &names("a.b.0")), None);
        assert_eq!(find(&value, &names("a.d")), None);
    }
}
