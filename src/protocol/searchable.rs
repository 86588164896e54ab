//! Which events have text that can be searched for, and which text that is.
//!
//! See "Server Side Search" in the client-server API.

use ruma::events::TimelineEventType;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    event::{Event, Header},
    replacement::REPLACE,
};

/// Where in an event a text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// What a message says.
    Body,
    /// What a room is called.
    Name,
    /// What a room is about.
    Topic,
}

impl Key {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Body, Self::Name, Self::Topic];

    /// The key that a client names so.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "content.body" => Some(Self::Body),
            "content.name" => Some(Self::Name),
            "content.topic" => Some(Self::Topic),
            _ => None,
        }
    }

    /// What stands for it where there is only room for a number.
    #[must_use]
    pub fn number(self) -> u64 {
        match self {
            Self::Body => 0,
            Self::Name => 1,
            Self::Topic => 2,
        }
    }

    /// The type of the events that have it.
    #[must_use]
    pub fn event_type(self) -> TimelineEventType {
        match self {
            Self::Body => TimelineEventType::RoomMessage,
            Self::Name => TimelineEventType::RoomName,
            Self::Topic => TimelineEventType::RoomTopic,
        }
    }

    /// Where an event that is called so has its text, if it has one.
    #[must_use]
    pub fn of(event_type: &TimelineEventType, state_key: Option<&str>) -> Option<Self> {
        match (event_type, state_key) {
            (TimelineEventType::RoomMessage, None) => Some(Self::Body),
            (TimelineEventType::RoomName, Some("")) => Some(Self::Name),
            (TimelineEventType::RoomTopic, Some("")) => Some(Self::Topic),
            _ => None,
        }
    }

    /// Where this event has its text, if it has one that anybody is shown.
    #[must_use]
    pub fn of_event(header: &Header) -> Option<Self> {
        let is_shown = !header.flags.rejected && !header.flags.soft_failed;
        Self::of(&header.event_type, header.state_key.as_deref()).filter(|_| is_shown)
    }
}

/// Whether this event says that it takes the place of what another one says.
#[must_use]
pub fn is_edit(header: &Header) -> bool {
    let relation = header.relation.as_ref();
    header.state_key.is_none() && relation.is_some_and(|relation| relation.rel_type == REPLACE)
}

/// The text of an event. What of it is not text is left out.
#[must_use]
pub fn text(event: &Event, key: Key) -> Option<String> {
    #[derive(Deserialize)]
    struct Content {
        name: Option<Text>,
        topic: Option<Text>,
    }
    match key {
        Key::Body => event.content_as::<Message>().ok()?.into_text(),
        Key::Name => event.content_as::<Content>().ok()?.name?.0,
        Key::Topic => event.content_as::<Content>().ok()?.topic?.0,
    }
    .filter(|text| !text.is_empty())
}

/// The text that an edit puts in the place of what was said.
#[must_use]
pub fn new_text(edit: &Event) -> Option<String> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.new_content")]
        new: Message,
    }
    let content = edit.content_as::<Content>().ok()?;
    content.new.into_text().filter(|text| !text.is_empty())
}

/// Whether the content of an event has a `url`.
#[must_use]
pub fn has_url(event: &Event) -> bool {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "url")]
        _url: IgnoredAny,
    }
    event.content_as::<Content>().is_ok()
}

#[derive(Deserialize)]
struct Message {
    body: Option<Text>,
    filename: Option<Text>,
    #[serde(rename = "m.relates_to")]
    relates_to: Option<RelatesTo>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RelatesTo {
    Reply {
        #[serde(rename = "m.in_reply_to")]
        _to: IgnoredAny,
    },
    Other(IgnoredAny),
}

/// A text, or anything else, which is as good as nothing.
struct Text(Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(Self(match value {
            serde_json::Value::String(text) => Some(text),
            _ => None,
        }))
    }
}

impl Message {
    fn into_text(self) -> Option<String> {
        let body = self.body.and_then(|body| body.0);
        let mut text = match self.relates_to {
            Some(RelatesTo::Reply { .. }) => without_quote(&body?).to_owned(),
            _ => body?,
        };
        // A file with a caption has both.
        if let Some(name) = self.filename.and_then(|name| name.0)
            && name != text
        {
            text.push('\n');
            text.push_str(&name);
        }
        Some(text)
    }
}

/// What is said in a reply, without what it repeats for old apps.
fn without_quote(body: &str) -> &str {
    if !body.starts_with("> <") && !body.starts_with("> * <") {
        return body;
    }
    let mut rest = body;
    while rest.starts_with('>') {
        rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
    }
    rest.trim_start_matches('\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(content: &str) -> Option<String> {
        serde_json::from_str::<Message>(content).ok()?.into_text()
    }

    #[test]
    fn the_text_of_a_message_is_what_its_sender_has_written() {
        for (content, expect) in [
            (r#"{"body":"hello"}"#, Some("hello")),
            (
                r#"{"body":"a caption","filename":"plan.pdf"}"#,
                Some("a caption\nplan.pdf"),
            ),
            (
                r#"{"body":"plan.pdf","filename":"plan.pdf"}"#,
                Some("plan.pdf"),
            ),
            (r#"{"body":7}"#, None),
            ("{}", None),
            (
                r#"{"body":"> <@a:b> old\n> more\n\nnew","m.relates_to":{"m.in_reply_to":{"event_id":"$x"}}}"#,
                Some("new"),
            ),
            (
                r#"{"body":"> quoted by hand\nnew","m.relates_to":{"m.in_reply_to":{"event_id":"$x"}}}"#,
                Some("> quoted by hand\nnew"),
            ),
            (
                r#"{"body":"> <@a:b> old\n\nnew"}"#,
                Some("> <@a:b> old\n\nnew"),
            ),
            (r#"{"body":"odd","m.relates_to":"nothing"}"#, Some("odd")),
        ] {
            assert_eq!(said(content).as_deref(), expect, "{content}");
        }
    }

    #[test]
    fn only_messages_names_and_topics_have_text() {
        use TimelineEventType as Type;
        for (event_type, state_key, expect) in [
            (Type::RoomMessage, None, Some(Key::Body)),
            (Type::RoomMessage, Some(""), None),
            (Type::RoomName, Some(""), Some(Key::Name)),
            (Type::RoomName, None, None),
            (Type::RoomTopic, Some("x"), None),
            (Type::RoomTopic, Some(""), Some(Key::Topic)),
            (Type::RoomEncrypted, None, None),
        ] {
            assert_eq!(Key::of(&event_type, state_key), expect, "{event_type}");
        }
    }
}
