//! Words as they are compared: names and what is typed to find them are brought into the same form.

use ruma::UserId;
use unicode_normalization::{UnicodeNormalization as _, char::is_combining_mark};

/// How much of a name is looked at, in characters.
const LONGEST_TEXT: usize = 256;

/// The most words of a name, and of what is typed.
const MOST_WORDS: usize = 16;

/// How much of a word is looked at, in characters.
const LONGEST_WORD: usize = 32;

/// The shortest end of a word by which a user is found, in characters.
const SHORTEST_PART: usize = 2;

/// Added to how near a term is for users of other servers, so that they come after all of this node.
pub(super) const ELSEWHERE: u8 = 2;

/// How near a term is: the beginning of a word, or a part of it; the same for other servers.
pub(super) const RANKS: [u8; 4] = [0, 1, ELSEWHERE, ELSEWHERE + 1];

/// The words of a text, without case and accents, in their order.
pub(super) fn words(text: &str) -> Vec<String> {
    let plain = text
        .chars()
        .take(LONGEST_TEXT)
        .flat_map(char::to_lowercase)
        .nfkd()
        .filter(|char| !is_combining_mark(*char));
    // The one letter of our languages that no decomposition takes apart.
    let plain: String = plain.collect::<String>().replace('ß', "ss");
    plain
        .split(|char: char| !char.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(|word| word.chars().take(LONGEST_WORD).collect())
        .take(MOST_WORDS)
        .collect()
}

/// By what a user is found: each word, and each end of one, so that a part of a word is the beginning of something.
pub(super) fn terms(user: &UserId, name: Option<&str>, elsewhere: bool) -> Vec<(u8, String)> {
    let rank = if elsewhere { ELSEWHERE } else { 0 };
    let mut words = [words(name.unwrap_or_default()), words(user.localpart())].concat();
    words.sort();
    words.dedup();
    let mut terms = Vec::new();
    for word in words {
        let length = word.chars().count();
        for (place, (at, _)) in word.char_indices().enumerate().skip(1) {
            if place + SHORTEST_PART <= length {
                terms.push((rank + 1, word[at..].to_owned()));
            }
        }
        terms.push((rank, word));
    }
    terms.sort();
    terms.dedup();
    terms
}

/// What somebody types to find users.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    /// Each of these begins a word, or a part of one. None: nobody is meant.
    pub(super) words: Vec<String>,
    /// With these the name of the user's server begins, if whole user ids were typed.
    pub(super) servers: Vec<String>,
}

impl Query {
    pub(super) fn new(text: &str) -> Self {
        let mut query = Self::default();
        for typed in text.split_whitespace() {
            let id = typed.strip_prefix('@').and_then(|id| id.split_once(':'));
            let text = match id {
                Some((localpart, server)) => {
                    query.servers.push(server.to_lowercase());
                    localpart
                }
                None => typed,
            };
            query.words.extend(words(text));
        }
        query.words.truncate(MOST_WORDS);
        query
    }

    /// Whether a user is meant who is found by `terms`.
    pub(super) fn fits(&self, user: &UserId, terms: &[(u8, String)]) -> bool {
        let has = |word: &String| terms.iter().any(|(_, term)| term.starts_with(word));
        let server = user.server_name().as_str();
        self.words.iter().all(has) && self.servers.iter().all(|begin| server.starts_with(begin))
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    #[test]
    fn case_accents_and_signs_do_not_matter() {
        for (text, expect) in [
            ("Anna-Lena  Müller", vec!["anna", "lena", "muller"]),
            ("Пётр Ильич", vec!["петр", "ильич"]),
            ("Straße", vec!["strasse"]),
            ("ÉCOLE e\u{301}cole", vec!["ecole", "ecole"]),
            ("ＡＢＣ\0x", vec!["abc", "x"]),
            ("İ", vec!["i"]),
            ("", vec![]),
            ("!! —", vec![]),
        ] {
            let expect: Vec<_> = words(expect.join(" ").as_str());
            assert_eq!(words(text), expect, "{text}");
        }
        assert_eq!(words("Пётр"), ["петр"]);
        assert_eq!(words(&"x".repeat(1_000_000)), ["x".repeat(LONGEST_WORD)]);
        assert_eq!(words(&"x ".repeat(1_000_000)).len(), MOST_WORDS);
    }

    #[test]
    fn a_user_is_found_by_words_and_their_ends() {
        let terms = terms(user_id!("@ab.c:here"), Some("Cde C"), true);
        let expect = [(2, "ab"), (2, "c"), (2, "cde"), (3, "de")];
        let expect = expect.map(|(rank, term)| (rank, term.to_owned()));
        assert_eq!(terms, expect);
    }

    #[test]
    fn all_that_is_typed_must_fit() {
        let user = user_id!("@p.novak:office.example");
        let terms = terms(user, Some("Пётр Novák"), false);
        for typed in [
            "петр",
            "ПЁТР",
            "nov p",
            "ová пет",
            "@p.nov:off",
            "@p:office.example novak",
            "p.novak",
        ] {
            assert!(Query::new(typed).fits(user, &terms), "{typed}");
        }
        for typed in ["петра", "nov x", "@p.nov:example", "novakova"] {
            assert!(!Query::new(typed).fits(user, &terms), "{typed}");
        }
    }
}
