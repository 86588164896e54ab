//! Patterns with `*` and `?`, as push rules, filters and server lists use them.
//!
//! See "Glob-style matching" in the appendices. No expression is ever built from what a user has written, and matching
//! takes at most pattern times text steps.

/// One pattern, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    parts: Box<[Part]>,
    /// The pattern itself, if it has no wildcards.
    literal: Option<Box<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// `*`
    Any,
    /// `?`
    One,
    Char(char),
}

impl Glob {
    /// A pattern in which `*` stands for any characters and `?` for any one.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self::with(pattern, |char| match char {
            '*' => Part::Any,
            '?' => Part::One,
            other => Part::Char(other),
        })
    }

    /// A pattern in which only `*` is special, as in the event types of filters.
    #[must_use]
    pub fn with_stars_only(pattern: &str) -> Self {
        Self::with(pattern, |char| {
            if char == '*' {
                Part::Any
            } else {
                Part::Char(char)
            }
        })
    }

    /// A pattern in which nothing is special.
    #[must_use]
    pub fn literal(text: &str) -> Self {
        Self::with(text, Part::Char)
    }

    fn with(pattern: &str, part: impl Fn(char) -> Part) -> Self {
        let mut parts: Vec<_> = pattern.chars().map(part).collect();
        // Two stars say no more than one.
        parts.dedup_by(|a, b| *a == Part::Any && *b == Part::Any);
        let literal = parts
            .iter()
            .all(|part| matches!(part, Part::Char(_)))
            .then(|| pattern.into());
        Self {
            parts: parts.into(),
            literal,
        }
    }

    /// Whether the pattern stands for the whole of `text`.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match &self.literal {
            Some(literal) => **literal == *text,
            None => self.whole(text),
        }
    }

    /// The greedy walk: only the last star has to be tried again.
    fn whole(&self, text: &str) -> bool {
        let (mut parts, mut rest) = (&*self.parts, text.chars());
        let mut again: Option<(&[Part], std::str::Chars<'_>)> = None;
        loop {
            let retry = match (parts.split_first(), rest.clone().next()) {
                (None, None) => return true,
                (Some((Part::Any, after)), _) => {
                    parts = after;
                    again = Some((after, rest.clone()));
                    continue;
                }
                (Some((part, after)), Some(char)) if part.is(char) => {
                    parts = after;
                    rest.next();
                    continue;
                }
                _ => &mut again,
            };
            match retry {
                Some((after, from)) => {
                    // The star takes one character more.
                    if from.next().is_none() {
                        return false;
                    }
                    parts = after;
                    rest = from.clone();
                }
                None => return false,
            }
        }
    }

    /// Whether the pattern stands for some words of `text`: a part that begins and ends where words do.
    ///
    /// See `event_match` on `content.body` in "Push rules". Words are made of ASCII letters, digits and underscores.
    #[must_use]
    pub fn matches_words(&self, text: &str) -> bool {
        match &self.literal {
            _ if self.parts.is_empty() => text.is_empty(),
            Some(literal) => literal_words(literal, text),
            None => self.words(text),
        }
    }

    /// All ways through the pattern at once, begun at every place where a word may begin.
    fn words(&self, text: &str) -> bool {
        let mut alive = vec![false; self.parts.len() + 1];
        let mut next = alive.clone();
        let mut before = None;
        let mut chars = text.chars();
        loop {
            let here = chars.next();
            if starts_word(before, here)
                && let Some(first) = alive.first_mut()
            {
                *first = true;
            }
            // A star may stand for nothing.
            for index in 0..self.parts.len() {
                if alive.get(index) == Some(&true)
                    && self.parts.get(index) == Some(&Part::Any)
                    && let Some(after) = alive.get_mut(index + 1)
                {
                    *after = true;
                }
            }
            if alive.last() == Some(&true) && ends_word(before, here) {
                return true;
            }
            let Some(char) = here else { return false };
            next.fill(false);
            for (index, part) in self.parts.iter().enumerate() {
                if alive.get(index) == Some(&true) && part.is(char) {
                    let to = if *part == Part::Any { index } else { index + 1 };
                    if let Some(reached) = next.get_mut(to) {
                        *reached = true;
                    }
                }
            }
            std::mem::swap(&mut alive, &mut next);
            before = Some(char);
        }
    }
}

impl Part {
    fn is(self, char: char) -> bool {
        match self {
            Self::Any | Self::One => true,
            Self::Char(own) => own == char,
        }
    }
}

fn literal_words(literal: &str, text: &str) -> bool {
    let mut from = 0;
    while let Some(found) = text.get(from..).and_then(|rest| rest.find(literal)) {
        let (start, end) = (from + found, from + found + literal.len());
        let (head, tail) = (
            text.get(..start).unwrap_or_default(),
            text.get(end..).unwrap_or_default(),
        );
        if starts_word(head.chars().next_back(), literal.chars().next())
            && ends_word(literal.chars().next_back(), tail.chars().next())
        {
            return true;
        }
        from = start + literal.chars().next().map_or(1, char::len_utf8);
    }
    false
}

fn is_word(char: Option<char>) -> bool {
    char.is_some_and(|char| char.is_ascii_alphanumeric() || char == '_')
}

fn starts_word(before: Option<char>, first: Option<char>) -> bool {
    !is_word(before) || !is_word(first)
}

fn ends_word(last: Option<char>, after: Option<char>) -> bool {
    !is_word(last) || !is_word(after)
}

#[cfg(test)]
mod tests {
    //! Patterns by table, and against a naive matcher.

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wholes() {
        for (pattern, text, expect) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything", true),
            ("a", "a", true),
            ("a", "A", false),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "abcd", false),
            ("m.room.*", "m.room.message", true),
            ("m.room.*", "m.roomxmessage", false),
            ("*.example.org", "a.b.example.org", true),
            ("?", "ü", true),
            ("?", "", false),
            ("??", "a", false),
            ("lunc?*", "lunch plans", true),
            ("lunc?*", "lunch", true),
            ("lunc?*", " lunch", false),
            ("lunc?*", "lunc", false),
            ("a*b*c", "a1b2b3c", true),
            ("a**b", "ab", true),
            ("[a-z].+", "[a-z].+", true),
            ("[a-z].+", "abc", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), expect, "{pattern} {text}");
        }
        assert!(Glob::with_stars_only("a?*").matches("a?b"));
        assert!(!Glob::with_stars_only("a?*").matches("axb"));
    }

    #[test]
    fn words() {
        for (pattern, text, expect) in [
            ("cake", "I like cake", true),
            ("cake", "cake!", true),
            ("cake", "pancake", false),
            ("cake", "pancake cake", true),
            ("cake", "cakes", false),
            ("cak*", "I like cakes", true),
            ("cak?", "some cake, please", true),
            ("cak?", "cak", false),
            ("c*e", "cooked cheese pie", true),
            ("*ake", "pancake", true),
            ("ake", "pancake", false),
            ("", "", true),
            ("", "a", false),
            ("a b", "x a b y", true),
            ("größe", "die größe!", true),
            ("gr", "größe", true),
            ("@room", "hey @room", true),
            ("@room", "hey@room", true),
            ("!foo", "x!foox !foo", true),
            ("a*", "b", false),
            ("?a", "xya", false),
            ("?a", "b !a", true),
        ] {
            assert_eq!(
                Glob::new(pattern).matches_words(text),
                expect,
                "{pattern:?} in {text:?}"
            );
        }
    }

    #[test]
    fn hostile_patterns_end() {
        let text = "a".repeat(5_000);
        assert!(!Glob::new(&"*a".repeat(120)).matches(&format!("{text}b")));
        assert!(!Glob::new(&format!("{}b", "a*".repeat(120))).matches_words(&text));
    }

    fn naive(parts: &[Part], text: &[char]) -> bool {
        match (parts.split_first(), text.split_first()) {
            (None, rest) => rest.is_none(),
            (Some((Part::Any, after)), None) => naive(after, text),
            (Some((Part::Any, after)), Some((_, rest))) => naive(after, text) || naive(parts, rest),
            (Some(_), None) => false,
            (Some((part, after)), Some((char, rest))) => part.is(*char) && naive(after, rest),
        }
    }

    proptest! {
        #[test]
        fn as_the_naive_matcher(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            let glob = Glob::new(&pattern);
            let chars: Vec<_> = text.chars().collect();
            prop_assert_eq!(glob.matches(&text), naive(&glob.parts, &chars));
        }

        #[test]
        fn words_are_parts_between_boundaries(pattern in "[ab *?!]{1,6}", text in "[ab !]{0,8}") {
            let glob = Glob::new(&pattern);
            let chars: Vec<_> = text.chars().collect();
            let at = |index: usize| chars.get(index).copied();
            let expect = (0..=chars.len()).any(|start| (start..=chars.len()).any(|end| {
                let before = start.checked_sub(1).and_then(at);
                let last = end.checked_sub(1).and_then(at);
                starts_word(before, at(start)) && ends_word(last, at(end)) && naive(&glob.parts, &chars[start..end])
            }));
            prop_assert_eq!(glob.matches_words(&text), expect);
        }
    }
}
