//! Push rules: who is notified of an event, and how loudly.
//!
//! Each user's rules are compiled once. An event is looked at once as well: what the predefined rules make of it is
//! the same for all who have not changed them, but for the few whom it mentions or invites. See "Push rules" in the
//! client-server API.

use std::{
    collections::HashSet,
    sync::{LazyLock, OnceLock},
};

use ruma::{
    OwnedUserId, UserId,
    events::room::member::MembershipState,
    power_levels::NotificationPowerLevelsKey,
    push::{
        Action, ConditionalPushRule, ConditionalPushRuleInit, EventMatchConditionData,
        PatternedPushRule, PushCondition, RoomMemberCountConditionData, RoomMemberCountIs, Ruleset,
        ScalarJsonValue,
    },
};
use serde_json::Value;

use super::{
    event::Event,
    glob::Glob,
    path::{Path, find},
};

/// What becomes of an event for one user.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// Whether it counts as a notification.
    pub notify: bool,
    /// Whether it counts as a highlight too.
    pub highlight: bool,
    /// All actions, for push gateways.
    pub actions: &'a [Action],
}

impl<'a> Outcome<'a> {
    fn of(actions: &'a [Action]) -> Self {
        let notify = actions.iter().any(Action::should_notify);
        Self {
            notify,
            highlight: notify && actions.iter().any(Action::is_highlight),
            actions,
        }
    }
}

/// The types of polls that clients send; those of the specification are not in use.
const POLL_START: &str = "org.matrix.msc3381.poll.start";
const POLL_RESPONSE: &str = "org.matrix.msc3381.poll.response";
const POLL_END: &str = "org.matrix.msc3381.poll.end";

/// The rules that a user starts with. See "Predefined rules".
///
/// Those of MSC3930 come with them: clients have them built in and show them in their settings, so without them a poll
/// would be unread in the app and not on the server. ruma's differ in that they compare the type with its case.
#[must_use]
pub fn predefined(user: &UserId) -> Ruleset {
    let mut rules = Ruleset::server_default(user);
    let two = || RoomMemberCountConditionData::new(RoomMemberCountIs::from(ruma::uint!(2)));
    let in_two = || Some(PushCondition::RoomMemberCount(two()));
    let poll = |name: &str, event_type: &str, also: Option<PushCondition>, like: Kind| {
        let event_type = EventMatchConditionData::new("type".to_owned(), event_type.to_owned());
        let event_type = PushCondition::EventMatch(event_type);
        ConditionalPushRule::from(ConditionalPushRuleInit {
            rule_id: format!(".org.matrix.msc3930.rule.{name}"),
            default: true,
            enabled: true,
            conditions: also.into_iter().chain([event_type]).collect(),
            actions: like.actions().to_vec(),
        })
    };
    rules
        .override_
        .extend([poll("poll_response", POLL_RESPONSE, None, Kind::Nothing)]);
    rules.underride.extend([
        poll("poll_start_one_to_one", POLL_START, in_two(), Kind::Sound),
        poll("poll_start", POLL_START, None, Kind::Notify),
        poll("poll_end_one_to_one", POLL_END, in_two(), Kind::Sound),
        poll("poll_end", POLL_END, None, Kind::Notify),
    ]);
    rules
}

/// A user's rules, ready to be asked.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The enabled ones, in order of priority.
    rules: Vec<Rule>,
    are_predefined: bool,
}

#[derive(Clone, Debug)]
struct Rule {
    conditions: Vec<Condition>,
    actions: Box<[Action]>,
}

#[derive(Clone, Debug)]
enum Condition {
    Matches(Path, Glob),
    BodyMatches(Glob),
    BodyNamesUser,
    MemberCount(RoomMemberCountIs),
    SenderMayNotifyRoom,
    Is(Path, ScalarJsonValue),
    Contains(Path, ScalarJsonValue),
    /// For rules that older clients rely on and that mentions have replaced.
    NoMentions,
    Never,
}

impl Rules {
    /// Compiles a user's rules.
    #[must_use]
    pub fn new(ruleset: &Ruleset, user: &UserId) -> Self {
        let conditional = |rule: &ConditionalPushRule| {
            rule.enabled.then(|| {
                let replaced = matches!(
                    &*rule.rule_id,
                    ".m.rule.contains_display_name" | ".m.rule.roomnotif"
                );
                let conditions = rule.conditions.iter().map(Condition::new);
                Rule {
                    conditions: replaced
                        .then_some(Condition::NoMentions)
                        .into_iter()
                        .chain(conditions)
                        .collect(),
                    actions: rule.actions.clone().into(),
                }
            })
        };
        let content = |rule: &PatternedPushRule| {
            rule.enabled.then(|| {
                let replaced = rule.rule_id == ".m.rule.contains_user_name";
                let body = Condition::BodyMatches(lowercase_glob(&rule.pattern));
                Rule {
                    conditions: replaced
                        .then_some(Condition::NoMentions)
                        .into_iter()
                        .chain([body])
                        .collect(),
                    actions: rule.actions.clone().into(),
                }
            })
        };
        let simple = |enabled: bool, key: &str, id: &str, actions: &[Action]| {
            enabled.then(|| Rule {
                conditions: vec![Condition::Matches(Path::new(key), lowercase_glob(id))],
                actions: actions.into(),
            })
        };
        let rooms = ruleset.room.iter().map(|rule| {
            simple(
                rule.enabled,
                "room_id",
                rule.rule_id.as_str(),
                &rule.actions,
            )
        });
        let senders = ruleset
            .sender
            .iter()
            .map(|rule| simple(rule.enabled, "sender", rule.rule_id.as_str(), &rule.actions));
        Self {
            rules: (ruleset.override_.iter().map(conditional))
                .chain(ruleset.content.iter().map(content))
                .chain(rooms)
                .chain(senders)
                .chain(ruleset.underride.iter().map(conditional))
                .flatten()
                .collect(),
            are_predefined: are_predefined(ruleset, user),
        }
    }
}

/// Whether the rules are the ones that every user starts with, apart from the user's own id.
fn are_predefined(ruleset: &Ruleset, user: &UserId) -> bool {
    // Such an id is a pattern, which only the rules themselves can match.
    !user.as_str().contains(['*', '?'])
        && serde_json::to_string(ruleset).ok() == serde_json::to_string(&predefined(user)).ok()
}

fn lowercase_glob(pattern: &str) -> Glob {
    Glob::new(&pattern.to_lowercase())
}

impl Condition {
    fn new(condition: &PushCondition) -> Self {
        match condition {
            PushCondition::EventMatch(data) if data.key == "content.body" => {
                Self::BodyMatches(lowercase_glob(&data.pattern))
            }
            PushCondition::EventMatch(data) => {
                Self::Matches(Path::new(&data.key), lowercase_glob(&data.pattern))
            }
            PushCondition::RoomMemberCount(data) => Self::MemberCount(data.is),
            PushCondition::SenderNotificationPermission(data)
                if data.key == NotificationPowerLevelsKey::Room =>
            {
                Self::SenderMayNotifyRoom
            }
            PushCondition::EventPropertyIs(data) => {
                Self::Is(Path::new(&data.key), data.value.clone())
            }
            PushCondition::EventPropertyContains(data) => {
                Self::Contains(Path::new(&data.key), data.value.clone())
            }
            other if other.kind() == "contains_display_name" => Self::BodyNamesUser,
            // A condition that is not understood never applies.
            _ => Self::Never,
        }
    }
}

/// One event, to be held against the rules of many users.
#[derive(Debug)]
pub struct Occasion<'a> {
    event: &'a Event,
    event_type: String,
    member_count: u64,
    sender_may_notify_room: bool,
    content: OnceLock<Value>,
    /// The body in lower case.
    body: OnceLock<Option<String>>,
    predefined: OnceLock<Predefined>,
}

impl<'a> Occasion<'a> {
    /// An event in a room with so many joined members, sent by someone who may or may not notify the whole room.
    #[must_use]
    pub fn new(event: &'a Event, member_count: u64, sender_may_notify_room: bool) -> Self {
        Self {
            event,
            event_type: event.header.event_type.to_string(),
            member_count,
            sender_may_notify_room,
            content: OnceLock::new(),
            body: OnceLock::new(),
            predefined: OnceLock::new(),
        }
    }

    /// What the event means to `user`, who has these rules; nobody is notified of their own events.
    ///
    /// `display_name` gives the user's name in the room, if a rule asks for it.
    pub fn evaluate<'r>(
        &self,
        rules: &'r Rules,
        user: &UserId,
        display_name: impl Fn() -> String,
    ) -> Outcome<'r> {
        if *user == *self.event.header.sender {
            return Outcome::of(&[]);
        }
        if rules.are_predefined {
            return Outcome::of(self.predefined().kind_for(user).actions());
        }
        let applying = rules.rules.iter().find(|rule| {
            rule.conditions
                .iter()
                .all(|condition| self.satisfies(condition, &display_name))
        });
        Outcome::of(applying.map_or(&[], |rule| &rule.actions))
    }

    fn satisfies(&self, condition: &Condition, display_name: &impl Fn() -> String) -> bool {
        match condition {
            Condition::Matches(path, glob) => self
                .text(path)
                .is_some_and(|text| glob.matches(&text.to_lowercase())),
            Condition::BodyMatches(glob) => {
                self.body().is_some_and(|body| glob.matches_words(body))
            }
            Condition::BodyNamesUser => {
                let name = Glob::literal(&display_name().to_lowercase());
                self.body().is_some_and(|body| name.matches_words(body))
            }
            Condition::MemberCount(is) => {
                let count = self.member_count.try_into().unwrap_or(ruma::UInt::MAX);
                std::ops::RangeBounds::contains(is, &count)
            }
            Condition::SenderMayNotifyRoom => self.sender_may_notify_room,
            Condition::Is(path, value) => match self.text(path) {
                Some(text) => value.as_str() == Some(text),
                None => self.value(path).is_some_and(|found| is(found, value)),
            },
            Condition::Contains(path, value) => self
                .value(path)
                .and_then(Value::as_array)
                .is_some_and(|items| items.iter().any(|item| is(item, value))),
            Condition::NoMentions => self.content().get("m.mentions").is_none(),
            Condition::Never => false,
        }
    }

    /// The property that a path leads to, if it is a text.
    fn text(&self, path: &Path) -> Option<&str> {
        let header = &self.event.header;
        match path.names() {
            [name] => match &**name {
                "type" => Some(&self.event_type),
                "sender" => Some(header.sender.as_str()),
                "room_id" => Some(header.room_id.as_str()),
                "event_id" => Some(header.id.as_str()),
                "state_key" => header.state_key.as_deref(),
                "redacts" => header.redacts.as_ref().map(|id| id.as_str()),
                _ => None,
            },
            _ => self.value(path)?.as_str(),
        }
    }

    fn value(&self, path: &Path) -> Option<&Value> {
        match path.names().split_first()? {
            (name, rest) if name == "content" && !rest.is_empty() => find(self.content(), rest),
            _ => None,
        }
    }

    fn content(&self) -> &Value {
        self.content
            .get_or_init(|| self.event.content_as().unwrap_or_default())
    }

    fn body(&self) -> Option<&str> {
        self.body
            .get_or_init(|| Some(self.content().get("body")?.as_str()?.to_lowercase()))
            .as_deref()
    }

    fn predefined(&self) -> &Predefined {
        self.predefined.get_or_init(|| Predefined::new(self))
    }
}

/// Whether a found value is the one that a condition names; lists and objects never are.
fn is(found: &Value, wanted: &ScalarJsonValue) -> bool {
    match wanted {
        ScalarJsonValue::Null => found.is_null(),
        ScalarJsonValue::Bool(wanted) => found.as_bool() == Some(*wanted),
        ScalarJsonValue::Integer(wanted) => found.as_i64() == Some(i64::from(*wanted)),
        ScalarJsonValue::String(wanted) => found.as_str() == Some(wanted),
    }
}

/// What the predefined rules can make of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Nothing,
    Notify,
    Sound,
    Highlight,
    SoundAndHighlight,
    Ring,
}

impl Kind {
    /// The actions, as the predefined rules themselves have them.
    fn actions(self) -> &'static [Action] {
        static ACTIONS: LazyLock<[Box<[Action]>; 5]> = LazyLock::new(|| {
            use ruma::push::ConditionalPushRule as Of;
            let someone = ruma::user_id!("@a:b");
            [
                Of::message(),
                Of::room_one_to_one(),
                Of::tombstone(),
                Of::is_user_mention(someone),
                Of::call(),
            ]
            .map(|rule| rule.actions.into())
        });
        let [notify, sound, highlight, both, ring] = &*ACTIONS;
        match self {
            Self::Nothing => &[],
            Self::Notify => notify,
            Self::Sound => sound,
            Self::Highlight => highlight,
            Self::SoundAndHighlight => both,
            Self::Ring => ring,
        }
    }
}

/// What the predefined rules make of one event, for everyone at once.
///
/// The rules are gone through in their own order; a test holds this to what ruma says of them.
#[derive(Debug)]
struct Predefined {
    /// In lower case, as the rule compares without case.
    invited: Option<String>,
    mentioned: HashSet<OwnedUserId>,
    others: Kind,
}

impl Predefined {
    fn new(occasion: &Occasion<'_>) -> Self {
        let content = occasion.content();
        let at = |names: &[&str]| {
            names
                .iter()
                .try_fold(content, |value, name| value.as_object()?.get(*name))
        };
        let text_is = |value: Option<&Value>, expect: &str| {
            value
                .and_then(Value::as_str)
                .is_some_and(|text| text.eq_ignore_ascii_case(expect))
        };
        let is_type = |expect: &str| occasion.event_type.eq_ignore_ascii_case(expect);
        let state_key = occasion.event.header.state_key.as_deref();
        let nobody = || Self {
            invited: None,
            mentioned: HashSet::new(),
            others: Kind::Nothing,
        };

        if text_is(at(&["msgtype"]), "m.notice") {
            return nobody();
        }
        if is_type("m.room.member") {
            let invite = text_is(at(&["membership"]), MembershipState::Invite.as_str());
            return Self {
                invited: state_key.filter(|_| invite).map(str::to_lowercase),
                ..nobody()
            };
        }
        let mentioned = at(&["m.mentions", "user_ids"])
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let one_to_one = occasion.member_count == 2;
        let names_room = at(&["m.mentions", "room"]) == Some(&Value::Bool(true));
        let others = if names_room && occasion.sender_may_notify_room
            || is_type("m.room.tombstone") && state_key == Some("")
        {
            Kind::Highlight
        } else if is_type("m.reaction")
            || is_type("m.room.server_acl") && state_key == Some("")
            || at(&["m.relates_to", "rel_type"]).and_then(Value::as_str) == Some("m.replace")
        {
            Kind::Nothing
        } else if is_type("m.call.invite") {
            Kind::Ring
        } else if ["m.room.message", "m.room.encrypted", POLL_START, POLL_END]
            .into_iter()
            .any(is_type)
        {
            if one_to_one {
                Kind::Sound
            } else {
                Kind::Notify
            }
        } else {
            Kind::Nothing
        };
        Self {
            invited: None,
            mentioned: mentioned
                .filter_map(Value::as_str)
                .filter_map(|id| UserId::parse(id).ok())
                .collect(),
            others,
        }
    }

    fn kind_for(&self, user: &UserId) -> Kind {
        if self
            .invited
            .as_ref()
            .is_some_and(|invited| *invited == user.as_str().to_lowercase())
        {
            Kind::Sound
        } else if self.mentioned.contains(user) {
            Kind::SoundAndHighlight
        } else {
            self.others
        }
    }
}

#[cfg(test)]
mod tests;
