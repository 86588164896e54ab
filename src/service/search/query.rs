//! What somebody types to find messages: plain words, of which all must be there, and "words in quotes", which must be there
//! just so.

use super::words::{Language, Languages, Word, words};
use crate::error::{Error, Result};

/// The longest text to search for, in bytes.
const LONGEST_TERM: usize = 1024;

/// The most words of it that are looked for.
const MOST_WORDS: usize = 64;

/// What is looked for. All of it must be in a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) parts: Vec<Part>,
}

/// One thing that must be in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A word in any of its forms.
    Word(Forms),
    /// These words, one right after the other, as they stand here.
    Phrase(Vec<Forms>),
}

/// The forms by which a word is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forms {
    /// Without case and accents.
    pub(super) plain: String,
    /// With umlauts in two letters.
    pub(super) spelt_out: Option<String>,
    /// The stems; none for words of a phrase.
    pub(super) stems: Vec<(Language, String)>,
}

impl Forms {
    fn exact(word: &Word<'_>) -> Self {
        Self {
            plain: word.plain.clone(),
            spelt_out: word.spelt_out.clone(),
            stems: Vec::new(),
        }
    }

    fn any(word: &Word<'_>) -> Self {
        Self {
            stems: word.stems(Languages::Any),
            ..Self::exact(word)
        }
    }

    /// The forms without accents, each once.
    pub(super) fn plains(&self) -> impl Iterator<Item = &str> {
        let spelt_out = self.spelt_out.as_deref();
        [Some(&*self.plain), spelt_out].into_iter().flatten()
    }

    /// Whether a word of a text, which has these stems, is one of the forms.
    fn is(&self, word: &Word<'_>, stems: &[(Language, String)]) -> bool {
        self.plains()
            .any(|plain| plain == word.plain || Some(plain) == word.spelt_out.as_deref())
            || self.stems.iter().any(|stem| stems.contains(stem))
    }
}

impl Query {
    /// Reads what somebody has typed. Nothing in it has a meaning but words, their order and quotation marks.
    ///
    /// # Errors
    /// 400 for a text that is too long.
    pub(super) fn new(term: &str) -> Result<Self> {
        if term.len() > LONGEST_TERM {
            return Err(Error::invalid_param(format!(
                "search_term has more than {LONGEST_TERM} bytes: search for fewer words"
            )));
        }
        let mut query = Self::default();
        let mut left = MOST_WORDS;
        for (index, text) in term.split(is_quote).enumerate() {
            if index % 2 == 1 {
                let phrase = words(text).take(left).map(|word| Forms::exact(&word));
                query.push_phrase(phrase.collect(), &mut left);
                continue;
            }
            for chunk in text.split_whitespace() {
                // What has a number in it is a date, an amount or the name of a thing, which has no forms.
                if chunk.contains(char::is_numeric) {
                    let phrase = words(chunk).take(left).map(|word| Forms::exact(&word));
                    query.push_phrase(phrase.collect(), &mut left);
                } else {
                    let parts: Vec<_> = words(chunk)
                        .take(left)
                        .map(|word| Part::Word(Forms::any(&word)))
                        .collect();
                    left -= parts.len();
                    query.parts.extend(parts);
                }
            }
        }
        let mut seen: Vec<Part> = Vec::with_capacity(query.parts.len());
        for part in query.parts {
            if !seen.contains(&part) {
                seen.push(part);
            }
        }
        Ok(Self { parts: seen })
    }

    fn push_phrase(&mut self, mut phrase: Vec<Forms>, left: &mut usize) {
        *left -= phrase.len();
        match phrase.len() {
            0 => {}
            1 => self.parts.extend(phrase.pop().map(Part::Word)),
            _ => self.parts.push(Part::Phrase(phrase)),
        }
    }

    /// Adds the words of a text that are looked for, as they stand there.
    pub(super) fn highlight(&self, text: &str, highlights: &mut Vec<String>, most: usize) {
        for word in words(text) {
            if highlights.len() >= most {
                return;
            }
            let stems = word.stems(Languages::Any);
            let mut forms = self.parts.iter().flat_map(|part| match part {
                Part::Word(forms) => std::slice::from_ref(forms),
                Part::Phrase(phrase) => phrase.as_slice(),
            });
            if forms.any(|forms| forms.is(&word, &stems)) {
                let word = word.text.to_owned();
                if !highlights.contains(&word) {
                    highlights.push(word);
                }
            }
        }
    }
}

fn is_quote(char: char) -> bool {
    matches!(char, '"' | '“' | '”' | '„' | '«' | '»')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts, with a bar between the words of a phrase and a tilde behind a word that has forms.
    fn parts(term: &str) -> String {
        let query = Query::new(term).unwrap();
        let parts = query.parts.iter().map(|part| match part {
            Part::Word(forms) if forms.stems.is_empty() => forms.plain.clone(),
            Part::Word(forms) => format!("{}~", forms.plain),
            Part::Phrase(phrase) => {
                let words: Vec<_> = phrase.iter().map(|forms| forms.plain.as_str()).collect();
                words.join("|")
            }
        });
        parts.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn words_and_phrases_are_told_apart() {
        for (term, expect) in [
            ("hello world", "hello~ world~"),
            ("Hello  hello", "hello~"),
            (r#""hello world" now"#, "hello|world now~"),
            (r#"say "Now""#, "say~ now"),
            ("„Neues Haus“ «да»", "neues|haus да"),
            (r#"open "the end"#, "open~ the|end"),
            ("AB-1234/5", "ab|1234|5"),
            ("E-Mail", "e~ mail~"),
            ("12.03.2026 10", "12|03|2026 10"),
            ("", ""),
            (" \"\" -- ", ""),
            // Nothing of what engines call a query.
            (
                "body:x OR (a AND b) NOT c^2 d* [1 TO 2]",
                "body~ x~ or~ a~ and~ b~ not~ c|2 d~ 1 to~ 2",
            ),
        ] {
            assert_eq!(parts(term), expect, "{term}");
        }
    }

    #[test]
    fn what_is_typed_is_bounded() {
        assert!(Query::new(&"x".repeat(LONGEST_TERM + 1)).is_err());
        let many: Vec<_> = (0..200).map(|number| format!("a{number}")).collect();
        assert_eq!(Query::new(&many.join(" ")).unwrap().parts.len(), MOST_WORDS);
        let phrase = format!("\"{}\"", "y ".repeat(400));
        let query = Query::new(&phrase).unwrap();
        assert!(matches!(&query.parts[..], [Part::Phrase(words)] if words.len() == MOST_WORDS));
    }

    #[test]
    fn words_that_were_found_are_told_as_they_stand() {
        let query = Query::new("rechnung \"AB 12\" mueller").unwrap();
        let mut told = Vec::new();
        query.highlight("Die Rechnungen ab-12 von Müller, müller!", &mut told, 10);
        assert_eq!(told, ["Rechnungen", "ab", "12", "Müller", "müller"]);
        query.highlight("Rechnungen RECHNUNG", &mut told, 6);
        assert_eq!(told.len(), 6);
    }
}
