//! Words of messages, in the forms in which they are found: as they stand, without case and accents, and by their stems in
//! Russian, German and English.
//!
//! What is written and what is searched for goes through the same steps, so it matters little how clever they are, but much
//! that they are the same. Another way of doing this raises [`FORM`](super::index::FORM).

use std::borrow::Cow;

use rust_stemmers::{Algorithm, Stemmer};
use unicode_normalization::{UnicodeNormalization as _, char::is_combining_mark};

/// How much of a word is looked at, in characters: longer than any part number or hash.
const LONGEST_WORD: usize = 128;

/// How many signs of a language a text must have, to be taken for it alone.
const ENOUGH_SIGNS: usize = 2;

/// Words that German and no English text is full of.
const GERMAN: &[&str] = &[
    "aber", "alle", "auch", "auf", "aus", "bei", "beim", "bin", "bis", "bitte", "danke", "dann",
    "das", "dass", "dem", "den", "der", "des", "dich", "dir", "doch", "du", "durch", "ein", "eine",
    "einem", "einen", "einer", "eines", "er", "es", "euch", "für", "gibt", "habe", "haben",
    "heute", "hier", "ich", "ihm", "ihn", "ihr", "im", "immer", "ist", "ja", "jetzt", "kann",
    "kannst", "kein", "keine", "könnte", "mal", "mehr", "mein", "mich", "mir", "mit", "morgen",
    "muss", "nach", "nein", "nicht", "noch", "nur", "ob", "oder", "ohne", "schon", "sehr", "sich",
    "sie", "sind", "soll", "um", "und", "uns", "unser", "vom", "von", "vor", "warum", "wenn",
    "werden", "wie", "wieder", "wir", "wird", "wo", "wurde", "zu", "zum", "zur", "über",
];

/// Words that English and no German text is full of.
const ENGLISH: &[&str] = &[
    "about", "after", "again", "all", "also", "and", "any", "are", "be", "because", "been", "but",
    "by", "can", "could", "did", "do", "does", "for", "from", "get", "had", "has", "have", "he",
    "her", "here", "his", "how", "if", "into", "is", "it", "its", "just", "let", "like", "me",
    "more", "my", "no", "not", "now", "of", "on", "only", "or", "our", "out", "please", "she",
    "should", "some", "than", "thank", "thanks", "that", "the", "their", "them", "then", "there",
    "these", "they", "this", "to", "today", "tomorrow", "up", "us", "very", "we", "were", "what",
    "when", "where", "which", "who", "why", "with", "would", "yes", "you", "your",
];

/// A language whose word forms are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Language {
    German,
    English,
    Russian,
}

/// One word of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word<'t> {
    /// As it stands there.
    pub(super) text: &'t str,
    /// Without case.
    lower: String,
    /// Without case and accents.
    pub(super) plain: String,
    /// The same with umlauts in two letters, where there are some.
    pub(super) spelt_out: Option<String>,
}

/// The words of a text, in their order.
pub(super) fn words(text: &str) -> impl Iterator<Item = Word<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let start = rest.find(char::is_alphanumeric)?;
            rest = rest.get(start..)?;
            let end = word_end(rest);
            let (word, behind) = rest.split_at(end);
            rest = behind;
            if let Some(word) = Word::new(word) {
                return Some(word);
            }
        }
    })
}

/// Where the word ends that `text` begins with.
fn word_end(text: &str) -> usize {
    let mut chars = text.char_indices();
    if chars.next().is_some_and(|(_, first)| is_ideograph(first)) {
        return chars
            .find(|(_, char)| !is_combining_mark(*char))
            .map_or(text.len(), |(at, _)| at);
    }
    let goes_on =
        |char: char| (char.is_alphanumeric() && !is_ideograph(char)) || is_combining_mark(char);
    chars
        .find(|(_, char)| !goes_on(*char))
        .map_or(text.len(), |(at, _)| at)
}

/// Whether a letter is a word, or written without a space to the next.
fn is_ideograph(char: char) -> bool {
    matches!(char, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

impl<'t> Word<'t> {
    fn new(text: &'t str) -> Option<Self> {
        let lower: String = text
            .nfkc()
            .flat_map(char::to_lowercase)
            .nfc()
            .take(LONGEST_WORD)
            .collect();
        let plain = plain(&lower);
        if plain.is_empty() {
            return None;
        }
        let spelt_out = lower.contains(['ä', 'ö', 'ü']).then(|| {
            let lower = lower.replace('ä', "ae");
            plain_of(&lower.replace('ö', "oe").replace('ü', "ue"))
        });
        Some(Self {
            text,
            lower,
            plain,
            spelt_out,
        })
    }

    /// Whether it is a word of a script in which there are stems.
    fn script(&self) -> Option<Script> {
        let mut script = None;
        for char in self.lower.chars().filter(|char| !is_combining_mark(*char)) {
            let this = match char {
                'a'..='z' | '\u{df}'..='\u{24f}' => Script::Latin,
                '\u{400}'..='\u{52f}' => Script::Cyrillic,
                // Numbers and what has numbers in it have no forms.
                _ => return None,
            };
            if script.is_some_and(|script| script != this) {
                return None;
            }
            script = Some(this);
        }
        script
    }

    /// Its stems, as far as it may be a word of one of these languages.
    pub(super) fn stems(&self, languages: Languages) -> Vec<(Language, String)> {
        let list: &[Language] = match (self.script(), languages) {
            (None, _) => &[],
            (Some(Script::Cyrillic), _) => &[Language::Russian],
            (Some(Script::Latin), Languages::German) => &[Language::German],
            (Some(Script::Latin), Languages::English) => &[Language::English],
            (Some(Script::Latin), Languages::Any) => &[Language::German, Language::English],
        };
        list.iter()
            .map(|language| (*language, self.stem(*language)))
            .collect()
    }

    fn stem(&self, language: Language) -> String {
        let (algorithm, word) = match language {
            Language::German => (Algorithm::German, Cow::Borrowed(&*self.lower)),
            Language::English => (Algorithm::English, Cow::Borrowed(&*self.plain)),
            // The rules do not know the dots.
            Language::Russian => (Algorithm::Russian, Cow::Owned(self.lower.replace('ё', "е"))),
        };
        plain(&Stemmer::create(algorithm).stem(&word))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Script {
    Latin,
    Cyrillic,
}

/// Without accents.
fn plain(lower: &str) -> String {
    if lower.is_ascii() {
        return lower.to_owned();
    }
    plain_of(lower)
}

fn plain_of(lower: &str) -> String {
    let plain = lower.nfkd().filter(|char| !is_combining_mark(*char));
    // The one letter of our languages that no decomposition takes apart.
    plain.collect::<String>().replace('ß', "ss")
}

/// Of which languages the words of a text in Latin letters may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Languages {
    German,
    English,
    /// It can not be said.
    Any,
}

impl Languages {
    /// Guesses by the small words that every sentence has, and by umlauts.
    pub(super) fn of(words: &[Word<'_>]) -> Self {
        let (mut german, mut english) = (0, 0);
        for word in words {
            let lower = word.lower.as_str();
            if lower.contains(['ä', 'ö', 'ü', 'ß']) || GERMAN.binary_search(&lower).is_ok() {
                german += 1;
            } else if ENGLISH.binary_search(&lower).is_ok() {
                english += 1;
            }
        }
        if german >= ENOUGH_SIGNS && german > english * 2 {
            Self::German
        } else if english >= ENOUGH_SIGNS && english > german * 2 {
            Self::English
        } else {
            Self::Any
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plains(text: &str) -> Vec<String> {
        words(text).map(|word| word.plain).collect()
    }

    fn languages(text: &str) -> Languages {
        Languages::of(&words(text).collect::<Vec<_>>())
    }

    /// Whether somebody who types `typed` finds `written`, which stands in a text of these languages.
    fn meets(written: &str, of: Languages, typed: &str) -> bool {
        let written = words(written).next().unwrap();
        let typed = words(typed).next().unwrap();
        let stems = written.stems(of);
        let typed_stems = typed.stems(Languages::Any);
        written.plain == typed.plain || stems.iter().any(|stem| typed_stems.contains(stem))
    }

    #[test]
    fn a_text_falls_into_words() {
        for (text, expect) in [
            ("Hello, world!", vec!["hello", "world"]),
            ("AB-1234/5", vec!["ab", "1234", "5"]),
            (
                "Müller Straße ÉCOLE e\u{301}cole",
                vec!["muller", "strasse", "ecole", "ecole"],
            ),
            ("Ёлка ПЁТР йод", vec!["елка", "петр", "иод"]),
            ("ＡＢＣ １２", vec!["abc", "12"]),
            ("你好 world", vec!["你", "好", "world"]),
            ("Wort你", vec!["wort", "你"]),
            ("İ", vec!["i"]),
            ("\u{301}!", vec![]),
            ("", vec![]),
            ("— „“ 👍", vec![]),
        ] {
            assert_eq!(plains(text), expect, "{text}");
        }
        assert_eq!(plains(&"x".repeat(60_000)), ["x".repeat(LONGEST_WORD)]);
        let text = "Der Müller";
        let told: Vec<_> = words(text).map(|word| word.text).collect();
        assert_eq!(told, ["Der", "Müller"]);
    }

    #[test]
    fn umlauts_are_also_spelt_out() {
        let spelt_out = |text| words(text).next().unwrap().spelt_out;
        assert_eq!(spelt_out("Müller").as_deref(), Some("mueller"));
        assert_eq!(spelt_out("MU\u{308}LLER").as_deref(), Some("mueller"));
        assert_eq!(spelt_out("Größe").as_deref(), Some("groesse"));
        assert_eq!(spelt_out("Straße"), None);
        assert_eq!(spelt_out("café"), None);
    }

    #[test]
    fn forms_of_a_word_meet() {
        use Languages::{Any, English, German};
        for (written, of, typed) in [
            ("договора", Any, "договор"),
            ("договорами", Any, "ДОГОВОРЫ"),
            ("Ёлки", Any, "елка"),
            ("новый", Any, "новая"),
            ("отчёты", German, "отчет"),
            ("Rechnungen", German, "Rechnung"),
            ("Häuser", German, "Haus"),
            ("Häuser", Any, "hauser"),
            ("Verträge", Any, "vertrag"),
            ("meetings", English, "meeting"),
            ("invoices", Any, "Invoice"),
            ("running", English, "run"),
            ("1234", Any, "1234"),
        ] {
            assert!(meets(written, of, typed), "{written} by {typed}");
        }
        for (written, of, typed) in [
            ("договор", Any, "дорога"),
            ("Rechnungen", English, "Rechnung"),
            ("running", German, "run"),
            ("12345", Any, "1234"),
            ("v1s", Any, "v1"),
        ] {
            assert!(!meets(written, of, typed), "{written} by {typed}");
        }
    }

    #[test]
    fn the_language_is_told_by_small_words() {
        for (text, expect) in [
            (
                "Bitte schick mir die Rechnungen für heute",
                Languages::German,
            ),
            ("Please send me the invoices for today", Languages::English),
            ("Rechnungen", Languages::Any),
            ("Привет, the server is down, bitte prüfen", Languages::Any),
            ("the und", Languages::Any),
            ("", Languages::Any),
        ] {
            assert_eq!(languages(text), expect, "{text}");
        }
        assert!(GERMAN.is_sorted() && ENGLISH.is_sorted());
        assert!(GERMAN.iter().all(|word| !ENGLISH.contains(word)));
    }
}
