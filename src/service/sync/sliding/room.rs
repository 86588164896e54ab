//! What is told of one room: all that the client wants when it comes to it, afterwards what is new.

use std::sync::Arc;

use ruma::events::room::member::MembershipState;
use serde_json::Value;

use super::{
    super::{
        Sync, SyncRequest,
        json::{Object, push_item},
        timeline::Window,
        v3::{Asking, RoomPart, place_of},
    },
    Turn,
    connection::{Detail, Stream, Told},
    facts::Facts,
    request::Config,
    state::State,
};
use crate::{
    error::Result,
    protocol::{
        format::{Shape, push_string},
        ids::RoomNid,
        token::PageToken,
    },
    service::rooms::{Seen, Stored},
    store::{
        notify::Kinds,
        schema::{MemberRow, ROOM_HEADS, USER_ROOMS},
    },
};

/// A room in an answer.
pub(super) struct Shown {
    /// What is told; nothing if there is nothing new.
    pub(super) json: Option<String>,
    pub(super) detail: Arc<Detail>,
    /// Whether the client is to forget what it knew of the room.
    pub(super) anew: bool,
    /// The events of the timeline.
    pub(super) events: Vec<Seen>,
}

/// How a room is to be told.
pub(super) struct Wish<'a> {
    pub(super) room: RoomNid,
    pub(super) config: &'a Config,
    pub(super) told: Option<&'a Told>,
    /// What has changed since the client's last answer; anything, when that is not known.
    pub(super) kinds: Option<Kinds>,
}

/// What of a room is told, and from where on.
struct Span {
    /// Where the client's knowledge of the state ends.
    known: Option<i64>,
    anew: bool,
    /// Whether earlier events are told than it would have to be, as the client wants more by now.
    expands: bool,
    upto: i64,
}

impl Sync {
    /// What is told of a room; none if it is not for the user to see.
    pub(super) fn sliding_room(
        &self,
        turn: &Turn<'_>,
        wish: &Wish<'_>,
        facts: Option<&Facts>,
    ) -> Result<Option<Shown>> {
        let key = (turn.requester.nid, wish.room);
        let Some(member) = USER_ROOMS.get(turn.view(), &key)? else {
            return Ok(None);
        };
        let since = wish
            .told
            .and_then(|told| told.sent(Stream::Events).since(turn.since()));
        let request = SyncRequest {
            filter: wish.config.filter.clone(),
            // Clients take the state from `required_state` alone.
            state_after: Some(""),
            ..SyncRequest::bare()
        };
        let asking = Asking {
            view: turn.view(),
            requester: turn.requester,
            request: &request,
            since,
        };
        let is_news = since.is_none_or(|since| member.since > since);
        match member.membership {
            MembershipState::Join => {
                let direct = facts.is_some_and(|facts| facts.direct);
                self.joined_room(turn, wish, &asking, &member, direct)
                    .map(Some)
            }
            // One from somebody whom the user ignores.
            MembershipState::Invite if facts.is_none() => Ok(None),
            MembershipState::Invite | MembershipState::Knock => {
                let json = if is_news {
                    Some(self.asked_room(&asking, wish.room, &member, facts)?)
                } else {
                    None
                };
                Ok(Some(Shown::bare(json, is_news, false)))
            }
            _ if is_news => self.left_room(turn, wish, &asking, &member),
            _ => Ok(wish.told.map(|told| Shown::nothing(told.detail.clone()))),
        }
    }

    /// A room into which the user was invited, or has asked to be.
    fn asked_room(
        &self,
        asking: &Asking<'_>,
        room: RoomNid,
        member: &MemberRow,
        facts: Option<&Facts>,
    ) -> Result<String> {
        let events = self.stripped_events(asking, (room, member))?;
        let mut out = String::new();
        let mut object = Object::new(&mut out);
        object.json("initial", "true");
        object.json("invite_state", &format!("[{events}]"));
        object.json("bump_stamp", &member.since.to_string());
        if facts.is_some_and(|facts| facts.direct) {
            object.json("is_dm", "true");
        }
        object.finish();
        Ok(out)
    }

    fn joined_room(
        &self,
        turn: &Turn<'_>,
        wish: &Wish<'_>,
        asking: &Asking<'_>,
        member: &MemberRow,
        direct: bool,
    ) -> Result<Shown> {
        let anew = asking.since.is_none_or(|since| member.since > since);
        let before = wish.told.filter(|_| !anew).map(|told| &*told.detail);
        let mut part = self.part(asking, wish.room, member, wish.kinds)?;
        let span = Span {
            known: part.known.filter(|_| !anew),
            anew,
            expands: before.is_some_and(|b| !b.whole && b.limit < wish.config.limit),
            upto: turn.view().position().live_order(),
        };
        part.known = span.known;
        let mut body = self.body(turn, wish, &part, &span)?;
        let unread = self.unread(&part)?;
        if before.is_none_or(|before| before.unread != unread) {
            body.json("notification_count", &unread.notifications.to_string());
            body.json("highlight_count", &unread.highlights.to_string());
        }
        let counts = (part.head.joined, part.head.invited);
        if before.is_none_or(|before| before.counts != counts) {
            body.json("joined_count", &counts.0.to_string());
            body.json("invited_count", &counts.1.to_string());
        }
        if before.map_or(direct, |before| before.direct != direct) {
            body.flag("is_dm", direct);
        }
        body.detail.unread = unread;
        body.detail.counts = counts;
        body.detail.direct = direct;
        let bump = self.bump_stamp(turn.view(), wish.room, &part.head)?;
        let bump = if bump > 0 {
            bump
        } else {
            member.since.live_order()
        };
        Ok(body.finish(anew, bump))
    }

    /// A room that the user has left, as it was then.
    fn left_room(
        &self,
        turn: &Turn<'_>,
        wish: &Wish<'_>,
        asking: &Asking<'_>,
        member: &MemberRow,
    ) -> Result<Option<Shown>> {
        if !ROOM_HEADS.contains(turn.view(), &(wish.room,))? {
            return match wish.told {
                Some(_) => self.farewell_of(asking, wish.room, member).map(Some),
                None => Ok(None),
            };
        }
        let mut part = self.part(asking, wish.room, member, None)?;
        if let Some(known) = part.known
            && !self.was_joined(&part, known)?
        {
            part.known = None;
        }
        let upto = part.last_seen(self, member)?;
        let Some(upto) = upto.filter(|upto| part.known.is_none_or(|known| known < *upto)) else {
            // Who declines an invite is told just that: the room was never open to them.
            return match wish.told {
                Some(_) => self.farewell_of(asking, wish.room, member).map(Some),
                None => Ok(None),
            };
        };
        let anew = part.known.is_none();
        let span = Span {
            known: part.known,
            anew,
            expands: false,
            upto,
        };
        let mut body = self.body(turn, wish, &part, &span)?;
        body.detail.left = true;
        Ok(Some(body.finish(anew, member.since.live_order())))
    }

    /// Nothing but the event by which the user went. Where another branch of the room has undone that they came, there
    /// is no such event.
    fn farewell_of(&self, asking: &Asking<'_>, room: RoomNid, member: &MemberRow) -> Result<Shown> {
        let stored = self.rooms.event(asking.view, member.event)?;
        let membership = member.membership.clone();
        let before = place_of(&stored, member) - 1;
        let mut out = String::new();
        let mut object = Object::new(&mut out);
        object.json("initial", "true");
        if stored.event.header.membership.as_ref() == Some(&membership) {
            let sight = self.rooms.sight(asking.view, room, asking.requester)?;
            let mut state = String::new();
            sight.show_state(&mut state, [&*stored], Shape::Sync);
            object.json("required_state", &format!("[{state}]"));
            let mut event = String::new();
            sight.show(&mut event, &Seen { stored, membership }, Shape::Sync)?;
            object.json("timeline", &format!("[{event}]"));
            object.json("num_live", "1");
        }
        object.text("prev_batch", &PageToken(before).to_string());
        object.json("bump_stamp", &member.since.to_string());
        object.finish();
        Ok(Shown::bare(Some(out), true, true))
    }

    /// Timeline, state, and what the room is called.
    fn body(
        &self,
        turn: &Turn<'_>,
        wish: &Wish<'_>,
        part: &RoomPart<'_>,
        span: &Span,
    ) -> Result<Body> {
        let before = wish.told.filter(|_| !span.anew).map(|told| &*told.detail);
        let window = self.sliding_window(wish, part, span)?;
        let state = self.required_state(part, (&window, span.upto), (wish.config, before))?;
        let mut body = Body {
            json: String::from("{"),
            detail: before.cloned().unwrap_or_default(),
            events: Vec::new(),
        };
        if span.anew {
            body.flag("initial", true);
        }
        self.names(part, &state, span, &mut body)?;
        if !state.events.is_empty() {
            let events = state.events.iter().map(|stored| &**stored);
            body.reserve(events.chain(window.shown.iter().map(|seen| &*seen.stored)));
            body.list("required_state", |out| part.write_state(&state.events, out))?;
        }
        if span.anew || !window.shown.is_empty() || window.limited {
            Self::timeline(turn, part, &window, &mut body)?;
        }
        if span.expands {
            body.flag("unstable_expanded_timeline", true);
        }
        let limit = wish.config.limit;
        let detail = &mut body.detail;
        if span.anew || span.expands {
            (detail.limit, detail.whole) = (limit, !window.limited);
        } else if window.limited {
            (detail.limit, detail.whole) = (limit, false);
        }
        detail.left = false;
        detail.wanted = state.wanted;
        detail.members = state.members;
        body.events = window.shown;
        Ok(body)
    }

    fn sliding_window(&self, wish: &Wish<'_>, part: &RoomPart<'_>, span: &Span) -> Result<Window> {
        if !span.expands {
            let is_behind = wish
                .told
                .is_none_or(|told| told.sent(Stream::Events).is_behind());
            let may_have = is_behind || part.may_have(Stream::Events.kinds());
            if may_have || span.anew {
                return self.window(part, span.upto);
            }
            return Ok(Window::empty(span.upto));
        }
        // As if the client knew nothing.
        let asking = Asking {
            since: None,
            ..*part.asking
        };
        let whole = self.part(&asking, part.room, part.member, None)?;
        self.window(&whole, span.upto)
    }

    fn timeline(
        turn: &Turn<'_>,
        part: &RoomPart<'_>,
        window: &Window,
        body: &mut Body,
    ) -> Result<()> {
        let is_live = |seen: &&Seen| match (turn.since(), seen.stored.facts.order) {
            (Some(since), Some(order)) => order > since.live_order(),
            _ => false,
        };
        let live = window.shown.iter().rev().take_while(is_live).count();
        body.list("timeline", |out| part.write_events(&window.shown, out))?;
        body.text("prev_batch", &PageToken(window.before).to_string());
        body.flag("limited", window.limited);
        body.json("num_live", &live.to_string());
        Ok(())
    }

    /// Name, avatar, and by whom a room without a name is called.
    fn names(
        &self,
        part: &RoomPart<'_>,
        state: &State,
        span: &Span,
        body: &mut Body,
    ) -> Result<()> {
        let text = |kind: &str, member: &str| -> Result<Option<String>> {
            let entry = self.rooms.entry(part.asking.view, &state.end, kind, "")?;
            let content = entry.and_then(|e| e.event.content_as::<Value>().ok());
            let text = content.and_then(|content| Some(content.get(member)?.as_str()?.to_owned()));
            Ok(text.filter(|text| !text.is_empty()))
        };
        let may_differ = span.anew || state.name_changed || state.members_changed;
        let called = if may_differ {
            text("m.room.name", "name")?
        } else {
            None
        };
        let mut tell = |name: &str, is_told: bool, text: Option<&str>| match text {
            _ if !span.anew && !is_told => {}
            Some(text) => body.text(name, text),
            None if !span.anew => body.json(name, "null"),
            None => {}
        };
        tell("name", state.name_changed, called.as_deref());
        if span.anew || state.avatar_changed {
            let avatar = text("m.room.avatar", "url")?;
            tell("avatar", state.avatar_changed, avatar.as_deref());
        }
        if may_differ && called.is_none() {
            let mut heroes = String::new();
            for user in self.find_heroes(part)? {
                let event = self.rooms.entry(
                    part.asking.view,
                    &state.end,
                    "m.room.member",
                    user.as_str(),
                )?;
                let content = event.and_then(|e| e.event.content_as::<Value>().ok());
                let mut hero = String::new();
                let mut object = Object::new(&mut hero);
                object.text("user_id", user.as_str());
                for member in ["displayname", "avatar_url"] {
                    let text = content
                        .as_ref()
                        .and_then(|content| content.get(member)?.as_str());
                    if let Some(text) = text {
                        object.text(member, text);
                    }
                }
                object.finish();
                push_item(&mut heroes, &hero);
            }
            body.json("heroes", &format!("[{heroes}]"));
        }
        Ok(())
    }
}

/// A room that is being written.
struct Body {
    /// What there is so far, without the last brace.
    json: String,
    detail: Detail,
    events: Vec<Seen>,
}

/// About how much is told of an event besides what it says.
const EVENT_OVERHEAD: usize = 200;

impl Body {
    /// Makes room for events, which are most of what is told.
    fn reserve<'s>(&mut self, events: impl Iterator<Item = &'s Stored>) {
        let sizes = events.map(|stored| stored.event.client.len() + EVENT_OVERHEAD);
        self.json.reserve(sizes.sum());
    }

    /// Begins a member and gives where its value is to be written.
    fn member(&mut self, name: &str) -> &mut String {
        if self.has_members() {
            self.json.push(',');
        }
        push_string(&mut self.json, name);
        self.json.push(':');
        &mut self.json
    }

    fn has_members(&self) -> bool {
        self.json.len() > 1
    }

    fn json(&mut self, name: &str, json: &str) {
        self.member(name).push_str(json);
    }

    fn text(&mut self, name: &str, text: &str) {
        push_string(self.member(name), text);
    }

    fn flag(&mut self, name: &str, flag: bool) {
        self.json(name, if flag { "true" } else { "false" });
    }

    /// A list, of which `items` writes what stands between the brackets.
    fn list(&mut self, name: &str, items: impl FnOnce(&mut String) -> Result<()>) -> Result<()> {
        self.member(name).push('[');
        items(&mut self.json)?;
        self.json.push(']');
        Ok(())
    }

    fn finish(mut self, anew: bool, bump: i64) -> Shown {
        let has_news = self.has_members();
        if has_news {
            self.json("bump_stamp", &bump.max(0).to_string());
        }
        self.json.push('}');
        Shown {
            json: has_news.then_some(self.json),
            detail: Arc::new(self.detail),
            anew,
            events: self.events,
        }
    }
}

impl Shown {
    /// No news of a room.
    pub(super) const fn nothing(detail: Arc<Detail>) -> Self {
        Self {
            json: None,
            detail,
            anew: false,
            events: Vec::new(),
        }
    }

    /// A room of which the client knows nothing but that the user is not in it.
    fn bare(json: Option<String>, anew: bool, left: bool) -> Self {
        let detail = Detail {
            left,
            ..Detail::default()
        };
        Self {
            json,
            detail: Arc::new(detail),
            anew,
            events: Vec::new(),
        }
    }
}
