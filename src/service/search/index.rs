//! The index: words and the events they stand in. The only place that knows the engine.
//!
//! It holds words and numbers but no texts: what is shown comes from the store. With each commit the index says up to which
//! position it is complete, so that after a crash it goes on exactly there.

use std::{
    collections::BinaryHeap,
    fs, io,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use ruma::OwnedEventId;
use serde::{Deserialize, Serialize};
use tantivy::{
    DocSet as _, Index as Engine, IndexReader, IndexSettings, IndexWriter, ReloadPolicy, Searcher,
    SegmentReader, TERMINATED, TantivyDocument, TantivyError, Term,
    columnar::Column,
    directory::{MmapDirectory, error::OpenReadError},
    indexer::IndexWriterOptions,
    query::{
        BooleanQuery, ConstScoreQuery, EnableScoring, Occur, PhraseQuery, Query as _, TermQuery,
    },
    schema::{FAST, Field, INDEXED, IndexRecordOption, Schema, TextFieldIndexing, TextOptions},
    tokenizer::{PreTokenizedString, Token},
};

use super::{
    query::{Forms, Part, Query},
    words::{Language, Languages, words},
};
use crate::protocol::{
    ids::{EventNid, Position, RoomNid, UserNid},
    searchable::Key,
};

/// Raised with every change of what stands in the index or how words are made: an index of another form is made anew.
pub(super) const FORM: u32 = 1;

/// How much memory new entries may take before they are written, in bytes: the least that the engine works with.
const MEMORY: usize = 15_000_000;

/// In how few rooms the engine itself looks for them, which spares it the words of all others.
const FEW_ROOMS: usize = 32;

/// The most entries that are looked at for one search.
const MOST_VISITED: usize = 2_000_000;

/// What is found of an event.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) event: EventNid,
    pub(super) room: RoomNid,
    pub(super) sender: UserNid,
    pub(super) key: Key,
    pub(super) has_url: bool,
    /// Its place in the timeline of its room.
    pub(super) order: i64,
    /// When it was sent, by its origin, in milliseconds since the epoch.
    pub(super) sent: u64,
    /// The edit that `text` is of.
    pub(super) edit: Option<EventNid>,
    pub(super) text: String,
}

/// How far the index has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    form: u32,
    /// All that was written up to here is in it.
    pub(super) until: Position,
    /// One of the events in it, by which a store can be told from another one.
    pub(super) witness: Option<(EventNid, OwnedEventId)>,
}

impl Mark {
    pub(super) fn new(until: Position, witness: Option<(EventNid, OwnedEventId)>) -> Self {
        Self {
            form: FORM,
            until,
            witness,
        }
    }
}

/// Why the index can not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// A service of this process that is just ending, or another process, writes it.
    #[error("somebody else writes to it")]
    Busy,
    /// It was made by another version.
    #[error("it was made by another version of this program")]
    Form,
    /// Files have changed or are missing.
    #[error("these files are damaged: {0:?}")]
    Files(Vec<PathBuf>),
    /// Files are not what they seem.
    #[error("its files cannot be read")]
    Unreadable,
    /// The engine failed.
    #[error("{0}")]
    Engine(#[from] TantivyError),
    /// The system failed.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// By what hits are put in order, the greatest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum By {
    /// How well they fit.
    Rank,
    /// When they were sent.
    Time,
}

/// Where a hit stands among all of them; the greatest comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place {
    /// The rank or the time, as a number that sorts as it does.
    by: u64,
    event: EventNid,
}

/// Something that was found, as far as the index knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hit {
    pub(super) event: EventNid,
    pub(super) room: RoomNid,
    pub(super) edit: Option<EventNid>,
    pub(super) score: f32,
    pub(super) place: Place,
}

/// What the index knows about an entry before it is a hit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) room: RoomNid,
    pub(super) sender: UserNid,
    pub(super) key: u64,
    pub(super) has_url: bool,
    pub(super) order: i64,
}

/// The first of those that were found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// They, in their order.
    pub(super) hits: Vec<Hit>,
    /// Whether there are more behind these.
    pub(super) more: bool,
}

#[derive(Clone, Copy)]
struct Fields {
    event: Field,
    room: Field,
    sender: Field,
    key: Field,
    url: Field,
    order: Field,
    sent: Field,
    edit: Field,
    exact: Field,
    german: Field,
    english: Field,
    russian: Field,
}

impl Fields {
    fn of(self, language: Language) -> Field {
        match language {
            Language::German => self.german,
            Language::English => self.english,
            Language::Russian => self.russian,
        }
    }
}

/// An open index.
pub(super) struct Index {
    reader: IndexReader,
    writer: Mutex<IndexWriter>,
    fields: Fields,
    directory: PathBuf,
}

fn schema() -> (Schema, Fields) {
    let mut schema = Schema::builder();
    let text = |positions| {
        let positions = if positions {
            IndexRecordOption::WithFreqsAndPositions
        } else {
            IndexRecordOption::WithFreqs
        };
        // Texts come in words, so no tokenizer of the engine is ever asked.
        let indexing = TextFieldIndexing::default()
            .set_tokenizer("raw")
            .set_index_option(positions);
        TextOptions::default().set_indexing_options(indexing)
    };
    let fields = Fields {
        event: schema.add_u64_field("event", FAST | INDEXED),
        room: schema.add_u64_field("room", FAST | INDEXED),
        sender: schema.add_u64_field("sender", FAST),
        key: schema.add_u64_field("key", FAST),
        url: schema.add_u64_field("url", FAST),
        order: schema.add_i64_field("order", FAST),
        sent: schema.add_u64_field("sent", FAST),
        edit: schema.add_u64_field("edit", FAST),
        exact: schema.add_text_field("exact", text(true)),
        german: schema.add_text_field("de", text(false)),
        english: schema.add_text_field("en", text(false)),
        russian: schema.add_text_field("ru", text(false)),
    };
    (schema.build(), fields)
}

impl Index {
    /// Opens the index in a directory; none if there is none.
    ///
    /// # Errors
    /// When it can not be used and has to be made anew, unless it is [`Broken::Busy`].
    pub(super) fn open(directory: &Path) -> Result<Option<(Self, Mark)>, Broken> {
        if !directory.exists() {
            return Ok(None);
        }
        // The engine takes much of its files for granted.
        let opened = catch_unwind(|| Self::open_there(directory));
        opened.unwrap_or(Err(Broken::Unreadable))
    }

    fn open_there(directory: &Path) -> Result<Option<(Self, Mark)>, Broken> {
        let opened = Engine::open_in_dir(directory);
        let engine = match opened {
            Ok(engine) => engine,
            // One that was never committed to.
            Err(TantivyError::OpenReadError(OpenReadError::FileDoesNotExist(_))) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let payload = engine.load_metas()?.payload.unwrap_or_default();
        let mark: Mark = serde_json::from_str(&payload).map_err(|_| Broken::Form)?;
        if mark.form != FORM || engine.schema() != schema().0 {
            return Err(Broken::Form);
        }
        validate(&engine)?;
        Ok(Some((Self::over(engine, directory)?, mark)))
    }

    /// Makes an empty index in a directory, in the place of whatever is there.
    pub(super) fn create(directory: &Path) -> Result<Self, Broken> {
        remove(directory)?;
        fs::create_dir_all(directory)?;
        let files = MmapDirectory::open(directory).map_err(TantivyError::from)?;
        let engine = Engine::create(files, schema().0, IndexSettings::default())?;
        Self::over(engine, directory)
    }

    fn over(engine: Engine, directory: &Path) -> Result<Self, Broken> {
        let options = IndexWriterOptions::builder()
            .memory_budget_per_thread(MEMORY)
            .num_worker_threads(1)
            .num_merge_threads(1)
            .build();
        let writer = engine.writer_with_options(options).map_err(|e| match e {
            TantivyError::LockFailure(..) => Broken::Busy,
            error => Broken::Engine(error),
        })?;
        // By itself it would look for changes twice a second, for ever.
        let reader = engine.reader_builder().reload_policy(ReloadPolicy::Manual);
        let reader = reader.try_into()?;
        Ok(Self {
            reader,
            writer: Mutex::new(writer),
            fields: schema().1,
            directory: directory.to_owned(),
        })
    }

    /// Adds an entry, which counts from the next commit on. If there may be one of the event already it is replaced.
    pub(super) fn put(&self, entry: &Entry, may_be_there: bool) -> Result<(), Broken> {
        let document = self.document(entry);
        let writer = self.writer.lock();
        if may_be_there {
            writer.delete_term(Term::from_field_u64(self.fields.event, entry.event.0));
        }
        writer.add_document(document)?;
        Ok(())
    }

    /// Removes the entry of an event, if there is one, with the next commit.
    pub(super) fn remove(&self, event: EventNid) {
        let writer = self.writer.lock();
        writer.delete_term(Term::from_field_u64(self.fields.event, event.0));
    }

    fn document(&self, entry: &Entry) -> TantivyDocument {
        let fields = self.fields;
        let mut document = TantivyDocument::new();
        for (field, number) in [
            (fields.event, entry.event.0),
            (fields.room, entry.room.0),
            (fields.sender, entry.sender.0),
            (fields.key, entry.key.number()),
            (fields.url, u64::from(entry.has_url)),
            (fields.sent, entry.sent),
            (fields.edit, entry.edit.map_or(0, |edit| edit.0)),
        ] {
            document.add_u64(field, number);
        }
        document.add_i64(fields.order, entry.order);
        let words: Vec<_> = words(&entry.text).collect();
        let languages = Languages::of(&words);
        let (mut exact, mut german, mut english, mut russian) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (position, word) in words.iter().enumerate() {
            exact.push(token(position, word.plain.clone()));
            exact.extend(word.spelt_out.clone().map(|text| token(position, text)));
            for (language, stem) in word.stems(languages) {
                let list = match language {
                    Language::German => &mut german,
                    Language::English => &mut english,
                    Language::Russian => &mut russian,
                };
                list.push(token(position, stem));
            }
        }
        for (field, tokens) in [
            (fields.exact, exact),
            (fields.german, german),
            (fields.english, english),
            (fields.russian, russian),
        ] {
            if !tokens.is_empty() {
                let text = String::new();
                document.add_pre_tokenized_text(field, PreTokenizedString { text, tokens });
            }
        }
        document
    }

    /// Makes what was put and removed so far durable, and found.
    pub(super) fn commit(&self, mark: &Mark) -> Result<(), Broken> {
        let payload = serde_json::to_string(mark).map_err(io::Error::from)?;
        let mut writer = self.writer.lock();
        let mut commit = writer.prepare_commit()?;
        commit.set_payload(&payload);
        commit.commit()?;
        drop(writer);
        self.reader.reload()?;
        Ok(())
    }

    /// How many entries can be found.
    pub(super) fn len(&self) -> u64 {
        self.reader.searcher().num_docs()
    }

    /// How many bytes its files have.
    pub(super) fn size(&self) -> u64 {
        let Ok(files) = fs::read_dir(&self.directory) else {
            return 0;
        };
        let sizes = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len()));
        sizes.sum()
    }

    /// The first `most` of those behind a place for which `admits` says yes.
    ///
    /// `rooms` are those in which `admits` may say so at all, if they are few.
    pub(super) fn find(
        &self,
        query: &Query,
        rooms: &[RoomNid],
        admits: impl Fn(Candidate) -> bool,
        (by, behind): (By, Option<Place>),
        most: usize,
    ) -> Result<Found, Broken> {
        let Some(query) = self.engine_query(query, rooms) else {
            return Ok(Found::default());
        };
        let searcher = self.reader.searcher();
        let weight = query.weight(EnableScoring::enabled_from_searcher(&searcher))?;
        let mut best: BinaryHeap<std::cmp::Reverse<Ranked>> = BinaryHeap::new();
        let (mut more, mut left) = (false, MOST_VISITED);
        for segment in newest_first(&searcher)? {
            let columns = Columns::of(segment)?;
            let mut scorer = weight.scorer(segment, 1.0)?;
            let alive = segment.alive_bitset();
            let mut doc = scorer.doc();
            while doc != TERMINATED && left > 0 {
                left -= 1;
                if alive.is_none_or(|alive| alive.is_alive(doc)) && admits(columns.candidate(doc)) {
                    let hit = columns.hit(doc, scorer.score(), by);
                    if behind.is_none_or(|behind| hit.place < behind) {
                        best.push(std::cmp::Reverse(Ranked(hit)));
                        if best.len() > most {
                            best.pop();
                            more = true;
                        }
                    }
                }
                doc = scorer.advance();
            }
        }
        let hits = best.into_sorted_vec();
        Ok(Found {
            hits: hits.into_iter().map(|ranked| ranked.0.0).collect(),
            more,
        })
    }

    fn engine_query(&self, query: &Query, rooms: &[RoomNid]) -> Option<BooleanQuery> {
        if query.parts.is_empty() || rooms.is_empty() {
            return None;
        }
        let mut must: Vec<(Occur, Box<dyn tantivy::query::Query>)> = Vec::new();
        for part in &query.parts {
            let part: Box<dyn tantivy::query::Query> = match part {
                Part::Word(forms) => Box::new(self.word_query(forms)),
                Part::Phrase(phrase) => Box::new(self.phrase_query(phrase)),
            };
            must.push((Occur::Must, part));
        }
        if rooms.len() <= FEW_ROOMS {
            let rooms = rooms.iter().map(|room| {
                let term = Term::from_field_u64(self.fields.room, room.0);
                let term = TermQuery::new(term, IndexRecordOption::Basic);
                should(term)
            });
            let rooms = BooleanQuery::new(rooms.collect());
            let rooms = ConstScoreQuery::new(Box::new(rooms), 0.0);
            must.push((Occur::Must, Box::new(rooms)));
        }
        Some(BooleanQuery::new(must))
    }

    fn word_query(&self, forms: &Forms) -> BooleanQuery {
        let exact = forms
            .plains()
            .map(|plain| Term::from_field_text(self.fields.exact, plain));
        let stems = forms
            .stems
            .iter()
            .map(|(language, stem)| Term::from_field_text(self.fields.of(*language), stem));
        let terms = exact.chain(stems).map(|term| {
            let term = TermQuery::new(term, IndexRecordOption::WithFreqs);
            should(term)
        });
        BooleanQuery::new(terms.collect())
    }

    /// With umlauts in one letter, or in two: both stand at one place of a text.
    fn phrase_query(&self, phrase: &[Forms]) -> BooleanQuery {
        let term = |text: &str| Term::from_field_text(self.fields.exact, text);
        let plain: Vec<_> = phrase.iter().map(|forms| term(&forms.plain)).collect();
        let spelt_out: Vec<_> = phrase
            .iter()
            .map(|forms| term(forms.spelt_out.as_ref().unwrap_or(&forms.plain)))
            .collect();
        let mut ways = vec![plain];
        if !ways.contains(&spelt_out) {
            ways.push(spelt_out);
        }
        let ways = ways.into_iter().map(|terms| {
            let phrase = PhraseQuery::new(terms);
            should(phrase)
        });
        BooleanQuery::new(ways.collect())
    }
}

/// Reads all files to the end and compares their checksums.
fn validate(engine: &Engine) -> Result<(), Broken> {
    let damaged = engine.validate_checksum()?;
    if damaged.is_empty() {
        return Ok(());
    }
    Err(Broken::Files(damaged.into_iter().collect()))
}

/// One of several ways in which something may be found.
fn should(query: impl tantivy::query::Query) -> (Occur, Box<dyn tantivy::query::Query>) {
    (Occur::Should, Box::new(query))
}

/// Removes an index with all that is in its directory.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn token(position: usize, text: String) -> Token {
    Token {
        position,
        text,
        ..Token::default()
    }
}

/// The parts of the index, that with the newest event first: a search that looks at many finds the newest at least.
fn newest_first(searcher: &Searcher) -> Result<Vec<&SegmentReader>, TantivyError> {
    let mut segments = Vec::new();
    for segment in searcher.segment_readers() {
        let newest = segment.fast_fields().u64("event")?.max_value();
        segments.push((newest, segment));
    }
    segments.sort_by_key(|(newest, _)| std::cmp::Reverse(*newest));
    Ok(segments.into_iter().map(|(_, segment)| segment).collect())
}

/// The numbers of the entries in one part of the index.
struct Columns {
    event: Column<u64>,
    room: Column<u64>,
    sender: Column<u64>,
    key: Column<u64>,
    url: Column<u64>,
    order: Column<i64>,
    sent: Column<u64>,
    edit: Column<u64>,
}

impl Columns {
    fn of(segment: &SegmentReader) -> Result<Self, TantivyError> {
        let fast = segment.fast_fields();
        Ok(Self {
            event: fast.u64("event")?,
            room: fast.u64("room")?,
            sender: fast.u64("sender")?,
            key: fast.u64("key")?,
            url: fast.u64("url")?,
            order: fast.i64("order")?,
            sent: fast.u64("sent")?,
            edit: fast.u64("edit")?,
        })
    }

    fn candidate(&self, doc: u32) -> Candidate {
        let number = |column: &Column<u64>| column.first(doc).unwrap_or_default();
        Candidate {
            room: RoomNid(number(&self.room)),
            sender: UserNid(number(&self.sender)),
            key: number(&self.key),
            has_url: number(&self.url) != 0,
            order: self.order.first(doc).unwrap_or_default(),
        }
    }

    fn hit(&self, doc: u32, score: f32, by: By) -> Hit {
        let number = |column: &Column<u64>| column.first(doc).unwrap_or_default();
        let event = EventNid(number(&self.event));
        let edit = number(&self.edit);
        let by = match by {
            // Scores are not negative, and such numbers sort as their bits do.
            By::Rank => u64::from(score.max(0.0).to_bits()),
            By::Time => number(&self.sent),
        };
        Hit {
            event,
            room: RoomNid(number(&self.room)),
            edit: (edit != 0).then_some(EventNid(edit)),
            score,
            place: Place { by, event },
        }
    }
}

/// A hit, compared by its place.
struct Ranked(Hit);

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.0.place == other.0.place
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.place.cmp(&other.0.place)
    }
}
