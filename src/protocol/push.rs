//! Push rules: who is notified of an event, and how loudly.
//!
//! Each user's rules are compiled once. An event is looked at once as well: what the predefined rules make of it is
//! the same for all who have not changed them, but for the few whom it mentions or invites. See "Push rules" in the
//! client-server API.

use std::{
    collections::HashSet,
    iter,
    sync::{LazyLock, OnceLock},
};

use ruma::{
    OwnedUserId, UserId,
    events::room::member::MembershipState,
    power_levels::NotificationPowerLevelsKey,
    push::{
        Action, ConditionalPushRule, ConditionalPushRuleInit, EventMatchConditionData,
        PatternedPushRule, PatternedPushRuleInit, PushCondition, RoomMemberCountConditionData,
        RoomMemberCountIs, Ruleset, ScalarJsonValue, SenderNotificationPermissionConditionData,
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

/// The rules by which a text mentions people, unless the event says in `m.mentions` whom it means.
const DISPLAY_NAME_RULE: &str = ".m.rule.contains_display_name";
const ROOM_RULE: &str = ".m.rule.roomnotif";
const USER_NAME_RULE: &str = ".m.rule.contains_user_name";

/// The types of polls that clients send; those of the specification are not in use.
const POLL_START: &str = "org.matrix.msc3381.poll.start";
const POLL_RESPONSE: &str = "org.matrix.msc3381.poll.response";
const POLL_END: &str = "org.matrix.msc3381.poll.end";

/// The rules that a user starts with. See "Predefined rules".
///
/// Two groups come with those of ruma:
///
/// - The rules by which a text that names the user or `@room` mentions them. The specification has dropped them, but
///   the reference server keeps them: many bots and bridges say nothing else, and whoever says in `m.mentions` whom
///   they mean turns them off for that event.
/// - Those of MSC3930 for polls. Clients have them built in and show them in their settings, so without them a poll
///   would be unread in the app and not on the server. ruma's differ in that they compare the type with its case.
#[must_use]
pub fn predefined(user: &UserId) -> Ruleset {
    let mut rules = Ruleset::server_default(user);
    let overrides = std::mem::take(&mut rules.override_).into_iter();
    let overrides = overrides.flat_map(|rule| {
        let by_text = match &*rule.rule_id {
            ".m.rule.is_user_mention" => Some(conditional(
                DISPLAY_NAME_RULE,
                vec![contains_display_name()],
                Kind::SoundAndHighlight,
            )),
            ".m.rule.is_room_mention" => Some(conditional(
                ROOM_RULE,
                vec![
                    matches("content.body", "@room"),
                    PushCondition::SenderNotificationPermission(
                        SenderNotificationPermissionConditionData::new(
                            NotificationPowerLevelsKey::Room,
                        ),
                    ),
                ],
                Kind::Highlight,
            )),
            _ => None,
        };
        iter::once(rule).chain(by_text)
    });
    rules.override_ = overrides.collect();
    rules.content.insert(
        PatternedPushRuleInit {
            rule_id: USER_NAME_RULE.to_owned(),
            default: true,
            enabled: true,
            pattern: user.localpart().to_owned(),
            actions: Kind::SoundAndHighlight.actions().to_vec(),
        }
        .into(),
    );

    let poll = |name: &str, conditions: Vec<PushCondition>, like: Kind| {
        let id = format!(".org.matrix.msc3930.rule.{name}");
        conditional(&id, conditions, like)
    };
    let of = |event_type: &str| matches("type", event_type);
    let in_two = || {
        let two = RoomMemberCountIs::from(ruma::uint!(2));
        PushCondition::RoomMemberCount(RoomMemberCountConditionData::new(two))
    };
    rules.override_.extend([poll(
        "poll_response",
        vec![of(POLL_RESPONSE)],
        Kind::Nothing,
    )]);
    let (start, end) = (|| of(POLL_START), || of(POLL_END));
    rules.underride.extend([
        poll(
            "poll_start_one_to_one",
            vec![in_two(), start()],
            Kind::Sound,
        ),
        poll("poll_start", vec![start()], Kind::Notify),
        poll("poll_end_one_to_one", vec![in_two(), end()], Kind::Sound),
        poll("poll_end", vec![end()], Kind::Notify),
    ]);
    rules
}

fn conditional(id: &str, conditions: Vec<PushCondition>, like: Kind) -> ConditionalPushRule {
    ConditionalPushRule::from(ConditionalPushRuleInit {
        rule_id: id.to_owned(),
        default: true,
        enabled: true,
        conditions,
        actions: like.actions().to_vec(),
    })
}

#[expect(deprecated, reason = "ruma drops it with the rule, which is kept here")]
fn contains_display_name() -> PushCondition {
    PushCondition::ContainsDisplayName
}

fn matches(key: &str, pattern: &str) -> PushCondition {
    PushCondition::EventMatch(EventMatchConditionData::new(
        key.to_owned(),
        pattern.to_owned(),
    ))
}

/// A user's rules, ready to be asked.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The enabled ones, in order of priority.
    rules: Vec<Rule>,
    are_predefined: bool,
    /// The user's localpart.
    localpart: Glob,
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
    /// For the rules by which a text mentions people.
    NoMentions,
    Never,
}

impl Rules {
    /// Compiles a user's rules.
    #[must_use]
    pub fn new(ruleset: &Ruleset, user: &UserId) -> Self {
        let conditional = |rule: &ConditionalPushRule| {
            rule.enabled.then(|| {
                let replaced = [DISPLAY_NAME_RULE, ROOM_RULE].contains(&&*rule.rule_id);
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
                let replaced = rule.rule_id == USER_NAME_RULE;
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
            localpart: Glob::literal(&user.localpart().to_lowercase()),
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
            return Outcome::of(self.kind_for(rules, user, &display_name).actions());
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

    /// What the predefined rules make of the event for one user.
    fn kind_for(&self, rules: &Rules, user: &UserId, display_name: &impl Fn() -> String) -> Kind {
        let predefined = self.predefined();
        let invited = predefined.invited.as_ref();
        if invited.is_some_and(|invited| *invited == user.as_str().to_lowercase()) {
            return Kind::Sound;
        }
        let is_named = || {
            let body = self.body().filter(|_| predefined.names_count);
            body.is_some_and(|body| {
                !predefined.is_decided && rules.localpart.matches_words(body)
                    || self.satisfies(&Condition::BodyNamesUser, display_name)
            })
        };
        if predefined.mentioned.contains(user) || is_named() {
            return Kind::SoundAndHighlight;
        }
        predefined.others
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
    /// Whether a text that names the user mentions them.
    names_count: bool,
    /// For those whom it does not mention.
    others: Kind,
    /// Whether that is so by a rule that comes before the one for user names.
    is_decided: bool,
}

impl Predefined {
    fn new(occasion: &Occasion<'_>) -> Self {
        static AT_ROOM: LazyLock<Glob> = LazyLock::new(|| Glob::literal("@room"));
        let at_room = &*AT_ROOM;
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
            names_count: false,
            others: Kind::Nothing,
            is_decided: true,
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
        let names_count = content.get("m.mentions").is_none();
        let names_room = at(&["m.mentions", "room"]) == Some(&Value::Bool(true))
            || names_count
                && occasion
                    .body()
                    .is_some_and(|body| at_room.matches_words(body));
        let by_override = if names_room && occasion.sender_may_notify_room
            || is_type("m.room.tombstone") && state_key == Some("")
        {
            Some(Kind::Highlight)
        } else if is_type("m.reaction")
            || is_type("m.room.server_acl") && state_key == Some("")
            || at(&["m.relates_to", "rel_type"]).and_then(Value::as_str) == Some("m.replace")
            || is_type(POLL_RESPONSE)
        {
            Some(Kind::Nothing)
        } else {
            None
        };
        let by_underride = || {
            if is_type("m.call.invite") {
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
            }
        };
        Self {
            invited: None,
            mentioned: mentioned
                .filter_map(Value::as_str)
                .filter_map(|id| UserId::parse(id).ok())
                .collect(),
            names_count,
            others: by_override.unwrap_or_else(by_underride),
            is_decided: by_override.is_some(),
        }
    }
}

#[cfg(test)]
mod tests;
