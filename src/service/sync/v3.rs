//! Composes the answer of `/sync`. See "Syncing" in the client-server API.

use std::{cell::OnceCell, collections::BTreeSet};

use ruma::{OwnedUserId, UserId, events::room::member::MembershipState};

use super::{
    DeviceLists, Range, Sync, SyncRequest,
    account_data::{ChangedData, all_data},
    json::{Object, plain_event, push_item},
    timeline::Window,
};
use crate::{
    error::{Error, Result},
    protocol::{
        filter::RoomEventFilter,
        format::{Shape, push_string},
        ids::{Position, RoomNid, UserNid},
        token::{PageToken, SyncToken},
    },
    service::{
        Requester,
        e2ee::{MOST_TOLD, Pending},
        rooms::{Reach, Seen, Sight, Stored},
    },
    store::{
        View,
        notify::{Changes, Kinds},
        schema::{HeadRow, KeyCountsRow, MemberRow, ROOM_HEADS, ROOM_MEMBERS, USER_ROOMS},
    },
};

/// The algorithm of the keys that all clients use.
const USUAL_ALGORITHM: &str = "signed_curve25519";

/// One user's sync: what all of its parts need to know.
pub(super) struct Asking<'a> {
    pub(super) view: &'a View,
    pub(super) requester: &'a Requester,
    pub(super) request: &'a SyncRequest,
    pub(super) since: Option<Position>,
}

/// One room in a user's sync.
pub(super) struct RoomPart<'a> {
    pub(super) asking: &'a Asking<'a>,
    pub(super) room: RoomNid,
    pub(super) member: &'a MemberRow,
    pub(super) head: HeadRow,
    pub(super) sight: Sight<'a>,
    /// Where the client's knowledge of the room ends; none if it knows nothing of it.
    pub(super) known: Option<i64>,
    /// What changed; everything, when that is not known.
    pub(super) kinds: Option<Kinds>,
    /// By whom the room is called, once somebody has asked.
    pub(super) heroes: OnceCell<Vec<OwnedUserId>>,
}

impl RoomPart<'_> {
    /// Where in the timeline of a room that the user is not in ends what they may see; none if they see nothing of it.
    pub(super) fn last_seen(&self, sync: &Sync, member: &MemberRow) -> Result<Option<i64>> {
        match self.sight.reach() {
            Ok(Reach::Now) => {
                let stored = sync.rooms.event(self.asking.view, member.event)?;
                Ok(Some(place_of(&stored, member)))
            }
            Ok(Reach::Until(by)) => Ok(by.facts.order),
            Err(error) if error.is_internal() => Err(error),
            Err(_) => Ok(None),
        }
    }

    pub(super) fn may_have(&self, kinds: Kinds) -> bool {
        self.kinds.is_none_or(|changed| changed.any(kinds))
    }
}

/// The rooms of an answer by the user's membership.
#[derive(Default)]
struct Rooms {
    join: Vec<(String, String)>,
    invite: Vec<(String, String)>,
    knock: Vec<(String, String)>,
    leave: Vec<(String, String)>,
    seen: SeenInRooms,
}

/// What the rooms of an answer make of the rest of it.
#[derive(Default)]
struct SeenInRooms {
    /// With whom the user shares a room now who may have been a stranger before.
    met: BTreeSet<UserNid>,
    /// Whether a timeline tells of state that does not hold.
    unsettled: bool,
}

fn finish(answer: &mut Object<'_>, keys: KeyCountsRow, token: SyncToken) {
    write_keys(answer, keys);
    answer.text("next_batch", &token.to_string());
}

/// Writes how many keys of the device are left.
pub(super) fn write_keys(answer: &mut Object<'_>, mut keys: KeyCountsRow) {
    // Some clients take a missing count for an unknown one, so it is always told.
    keys.counts.entry(USUAL_ALGORITHM.to_owned()).or_default();
    let mut counts = Object::new(answer.member("device_one_time_keys_count"));
    for (algorithm, count) in &keys.counts {
        counts.json(algorithm, &count.to_string());
    }
    counts.finish();
    let unused = answer.member("device_unused_fallback_key_types");
    unused.push('[');
    let fallback = keys.fallback.iter().filter(|(_, used)| !**used);
    for (index, (algorithm, _)) in fallback.enumerate() {
        if index > 0 {
            unused.push(',');
        }
        push_string(unused, algorithm);
    }
    unused.push(']');
}

/// Writes whose devices have changed, if there are such.
pub(super) fn write_device_lists(answer: &mut Object<'_>, lists: &DeviceLists) {
    if lists.is_empty() {
        return;
    }
    let mut object = Object::new(answer.member("device_lists"));
    for (name, users) in [("changed", &lists.changed), ("left", &lists.left)] {
        let list = object.member(name);
        let mut items = String::new();
        for user in users {
            let mut text = String::new();
            push_string(&mut text, user.as_str());
            push_item(&mut items, &text);
        }
        list.push('[');
        list.push_str(&items);
        list.push(']');
    }
    object.finish();
}

impl Sync {
    /// The answer when nothing has happened.
    pub(super) fn empty(&self, requester: &Requester, position: Position) -> Result<String> {
        // Nothing has changed, so the present moment will do.
        let keys = self.keys(&self.store.view(), requester)?;
        let mut out = String::new();
        let mut answer = Object::new(&mut out);
        finish(&mut answer, keys, SyncToken::at(position));
        answer.finish();
        Ok(out)
    }

    /// How many keys the device has that asks.
    pub(super) fn keys(&self, view: &View, requester: &Requester) -> Result<KeyCountsRow> {
        let Some(device) = &requester.device_id else {
            return Ok(KeyCountsRow::default());
        };
        let row = self.encryption.key_counts(view, (requester.nid, device))?;
        Ok(row.unwrap_or_default())
    }

    /// Works out the answer; none if there is nothing to tell and `skip_empty` says to wait on.
    pub(super) fn build(
        &self,
        requester: &Requester,
        request: &SyncRequest,
        range: &Range,
        skip_empty: bool,
    ) -> Result<Option<String>> {
        let asking = Asking {
            view: &range.view,
            requester,
            request,
            since: range.since,
        };
        let data = match &range.changes {
            Changes::Some(changed) if !changed.values().any(|k| k.any(Kinds::ACCOUNT_DATA)) => {
                ChangedData::default()
            }
            _ => Self::changed_data(&asking)?,
        };
        let mut rooms = Rooms::default();
        match &range.changes {
            Changes::None => {}
            Changes::Some(changed) => {
                for (room, kinds) in changed {
                    let Some(room) = room else { continue };
                    let Some(member) = USER_ROOMS.get(asking.view, &(requester.nid, *room))? else {
                        continue;
                    };
                    self.add_room(&asking, &data, (*room, &member, Some(*kinds)), &mut rooms)?;
                }
            }
            Changes::Unknown => {
                for row in USER_ROOMS.scan(asking.view, &(requester.nid,)) {
                    let ((_, room), member) = row?;
                    self.add_room(&asking, &data, (room, &member, None), &mut rooms)?;
                }
            }
        }
        let presence = if range.may_have(Kinds::PRESENCE) || !rooms.seen.met.is_empty() {
            self.presence_events(&asking, &rooms.seen.met)?
        } else {
            String::new()
        };
        let messages = self.messages(&asking, range)?;
        let keys = self.keys(asking.view, requester)?;
        let lists = self.device_lists(&asking, range)?;
        let is_empty = presence.is_empty()
            && asking.since.is_some_and(|since| keys.position <= since)
            && messages.events.is_empty()
            && lists.is_empty()
            && data.global.is_empty()
            && rooms.is_empty();
        if is_empty && skip_empty {
            return Ok(None);
        }

        let mut out = String::new();
        let mut answer = Object::new(&mut out);
        answer.events("account_data", &data.global);
        answer.events("presence", &presence);
        answer.events("to_device", &messages.events);
        write_device_lists(&mut answer, &lists);
        if !rooms.is_empty() {
            let mut object = Object::new(answer.member("rooms"));
            object.object("join", &rooms.join);
            object.object("invite", &rooms.invite);
            object.object("knock", &rooms.knock);
            object.object("leave", &rooms.leave);
            object.finish();
        }
        let token = SyncToken {
            position: range.view.position(),
            messages: messages.until,
            unsettled: rooms
                .seen
                .unsettled
                .then(|| asking.since.unwrap_or_default()),
        };
        finish(&mut answer, keys, token);
        answer.finish();
        Ok(Some(out))
    }

    /// What other devices have sent to the one that asks.
    fn messages(&self, asking: &Asking<'_>, range: &Range) -> Result<Pending> {
        let token = asking.request.since;
        let rest = token.is_some_and(|token| token.messages.is_some());
        match &asking.requester.device_id {
            Some(device) if rest || range.may_have(Kinds::DEVICES) => {
                let token = token.filter(|_| asking.since.is_some());
                let device = (asking.requester.nid, device.as_str());
                self.encryption
                    .pending(asking.view, device, token, MOST_TOLD)
            }
            _ => Ok(Pending::default()),
        }
    }

    fn add_room(
        &self,
        asking: &Asking<'_>,
        data: &ChangedData,
        (room, member, kinds): (RoomNid, &MemberRow, Option<Kinds>),
        rooms: &mut Rooms,
    ) -> Result<()> {
        // Other devices must hear of a room that was left and forgotten since, or they would show it for ever.
        if member.forgotten && asking.since.is_none() {
            return Ok(());
        }
        let id = self.store.room_id(room)?;
        if !asking.request.filter.room.allows_room(&id) {
            return Ok(());
        }
        let is_news = asking.since.is_none_or(|since| member.since > since);
        match member.membership {
            MembershipState::Join => {
                let news = (member, kinds);
                if let Some(json) = self.joined(asking, data, room, news, &mut rooms.seen)? {
                    rooms.join.push((id.to_string(), json));
                }
            }
            MembershipState::Invite if is_news || asking.request.full_state => {
                if self.is_unwanted(asking, room, member)? {
                    return Ok(());
                }
                let json = self.stripped(asking, (room, member), "invite_state")?;
                rooms.invite.push((id.to_string(), json));
            }
            MembershipState::Knock if is_news || asking.request.full_state => {
                let json = self.stripped(asking, (room, member), "knock_state")?;
                rooms.knock.push((id.to_string(), json));
            }
            MembershipState::Leave | MembershipState::Ban if is_news => {
                let archived = asking.request.filter.room.include_leave;
                if asking.since.is_none() && !archived {
                    return Ok(());
                }
                if let Some(json) = self.left(asking, data, room, member)? {
                    rooms.leave.push((id.to_string(), json));
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn part<'a>(
        &'a self,
        asking: &'a Asking<'a>,
        room: RoomNid,
        member: &'a MemberRow,
        kinds: Option<Kinds>,
    ) -> Result<RoomPart<'a>> {
        let head = ROOM_HEADS.get(asking.view, &(room,))?;
        Ok(RoomPart {
            asking,
            room,
            member,
            head: head.ok_or_else(|| Error::Internal(format!("room {room} has no head")))?,
            sight: self.rooms.sight(asking.view, room, asking.requester)?,
            known: asking.since.map(Position::live_order),
            kinds,
            heroes: OnceCell::new(),
        })
    }

    fn joined(
        &self,
        asking: &Asking<'_>,
        data: &ChangedData,
        room: RoomNid,
        (member, kinds): (&MemberRow, Option<Kinds>),
        seen: &mut SeenInRooms,
    ) -> Result<Option<String>> {
        let mut part = self.part(asking, room, member, kinds)?;
        let newly_joined = asking.since.is_none_or(|since| member.since > since);
        if newly_joined {
            (part.known, part.kinds) = (None, None);
        }
        let upto = asking.view.position().live_order();
        let window = self.window(&part, upto)?;
        if let Some(since) = asking.since {
            self.meet(&part, &window, since, &mut seen.met)?;
        }
        seen.unsettled |= !window.undone.is_empty();
        let state = self.state_events(&part, &window, upto, &self.owed(&part)?)?;
        let ephemeral = self.ephemeral(&part)?;
        let account_data = if newly_joined {
            all_data(asking, room)?
        } else {
            data.room(room).to_owned()
        };
        let is_silent = window.shown.is_empty()
            && !window.limited
            && state.is_empty()
            && ephemeral.is_empty()
            && account_data.is_empty()
            && !part.kinds.is_some_and(|kinds| kinds.any(Kinds::RECEIPTS));
        if is_silent && !newly_joined && !asking.request.full_state {
            return Ok(None);
        }

        let mut out = String::new();
        let mut object = Object::new(&mut out);
        // Clients have come to expect all sections, as the reference server writes them.
        object.event_list("account_data", &account_data);
        object.event_list("ephemeral", &ephemeral);
        write_state(&mut object, asking, &state);
        if window.summary_changed || part.known.is_none() {
            self.summary(&part, object.member("summary"))?;
        }
        Self::write_timeline(&part, &window, &mut object)?;
        self.write_unread(&part, &mut object)?;
        object.finish();
        Ok(Some(out))
    }

    fn left(
        &self,
        asking: &Asking<'_>,
        data: &ChangedData,
        room: RoomNid,
        member: &MemberRow,
    ) -> Result<Option<String>> {
        if !ROOM_HEADS.contains(asking.view, &(room,))? {
            return self.left_outside(asking, data, room, member).map(Some);
        }
        let mut part = self.part(asking, room, member, None)?;
        // Who was not in the room when the client last asked knows nothing of it.
        if let Some(known) = part.known
            && !self.was_joined(&part, known)?
        {
            part.known = None;
        }
        let (window, state) = match part.last_seen(self, member)? {
            Some(upto) if part.known.is_none_or(|known| known < upto) => {
                let window = self.window(&part, upto)?;
                let state = self.state_events(&part, &window, upto, &[])?;
                (window, state)
            }
            // Who declines an invite or takes back a knock is told just that: the room was never open to them.
            _ => self.farewell(&part, member)?,
        };
        let mut out = String::new();
        let mut object = Object::new(&mut out);
        object.event_list("account_data", data.room(room));
        write_state(&mut object, asking, &state);
        Self::write_timeline(&part, &window, &mut object)?;
        object.finish();
        Ok(Some(out))
    }

    /// A room that this node does not know, of which a user was told from outside: nothing but how that has ended.
    fn left_outside(
        &self,
        asking: &Asking<'_>,
        data: &ChangedData,
        room: RoomNid,
        member: &MemberRow,
    ) -> Result<String> {
        let stored = self.rooms.event(asking.view, member.event)?;
        let before = place_of(&stored, member) - 1;
        let membership = member.membership.clone();
        let sight = self.rooms.sight(asking.view, room, asking.requester)?;
        let mut state = String::new();
        if asking.request.state_after.is_some() {
            sight.show_state(&mut state, [&*stored], Shape::Sync)?;
        }
        let mut events = String::from("[");
        sight.show(&mut events, &Seen { stored, membership }, Shape::Sync)?;
        events.push(']');
        let mut out = String::new();
        let mut object = Object::new(&mut out);
        object.event_list("account_data", data.room(room));
        write_state(&mut object, asking, &state);
        let mut timeline = Object::new(object.member("timeline"));
        timeline.json("events", &events);
        timeline.json("limited", "false");
        timeline.text("prev_batch", &PageToken(before).to_string());
        timeline.finish();
        object.finish();
        Ok(out)
    }

    /// A timeline of nothing but the event by which the user went, and the state that a client takes from it. Where another
    /// branch of the room has undone that they came, there is no such event.
    fn farewell(&self, part: &RoomPart<'_>, member: &MemberRow) -> Result<(Window, String)> {
        let stored = self.rooms.event(part.asking.view, member.event)?;
        let membership = member.membership.clone();
        let has_gone = stored.event.header.membership.as_ref() == Some(&membership);
        let mut state = String::new();
        if has_gone && part.asking.request.state_after.is_some() {
            part.write_state(std::slice::from_ref(&stored), &mut state)?;
        }
        let before = place_of(&stored, member) - 1;
        let seen = has_gone.then_some(Seen { stored, membership });
        let window = Window {
            shown: seen.into_iter().collect(),
            unshown_state: Vec::new(),
            limited: false,
            split: false,
            before,
            summary_changed: false,
            undone: Vec::new(),
        };
        Ok((window, state))
    }

    fn write_timeline(part: &RoomPart<'_>, window: &Window, object: &mut Object<'_>) -> Result<()> {
        let mut timeline = Object::new(object.member("timeline"));
        let events = timeline.member("events");
        events.push('[');
        part.write_events(&window.shown, events)?;
        events.push(']');
        timeline.json("limited", if window.limited { "true" } else { "false" });
        timeline.text("prev_batch", &PageToken(window.before).to_string());
        timeline.finish();
        Ok(())
    }

    /// Who types. A client that is told of a room anew may know of some who typed before.
    fn typing_in(&self, part: &RoomPart<'_>, since: Option<Position>) -> Result<Option<String>> {
        let (view, asker) = (part.asking.view, part.asking.requester);
        let content = self.typing.since(view, part.room, since, asker)?;
        if content.is_some() || part.asking.since == since {
            return Ok(content);
        }
        let since = part.asking.since;
        self.typing.since(view, part.room, since, asker)
    }

    /// Typing and receipts.
    fn ephemeral(&self, part: &RoomPart<'_>) -> Result<String> {
        let filter = &part.asking.request.filter.room.ephemeral;
        let (view, room) = (part.asking.view, part.room);
        let since = part.known.and(part.asking.since);
        let mut events = String::new();
        if part.may_have(Kinds::TYPING)
            && wants(filter, "m.typing")
            && let Some(content) = self.typing_in(part, since)?
        {
            push_item(&mut events, &plain_event("m.typing", &content));
        }
        if part.may_have(Kinds::RECEIPTS)
            && wants(filter, "m.receipt")
            && let Some(content) = self
                .receipts
                .since(view, room, since, part.asking.requester)?
        {
            push_item(&mut events, &plain_event("m.receipt", &content));
        }
        Ok(events)
    }

    /// Adds those to `met` who have come into the room, or all who are there if it is the user who came.
    fn meet(
        &self,
        part: &RoomPart<'_>,
        window: &Window,
        since: Position,
        met: &mut BTreeSet<UserNid>,
    ) -> Result<()> {
        let (view, room) = (part.asking.view, part.room);
        if part.known.is_none() {
            for row in ROOM_MEMBERS.scan(view, &(room,)) {
                let ((_, user), member) = row?;
                if member.membership == MembershipState::Join {
                    met.insert(user);
                }
            }
        }
        for seen in &window.shown {
            let header = &seen.stored.event.header;
            if let (Some(MembershipState::Join), Some(user)) =
                (&header.membership, &header.state_key)
                && let Ok(user) = <&UserId>::try_from(user.as_str())
                && let Some(user) = self.store.find_user(user)?
                && let Some(member) = ROOM_MEMBERS.get(view, &(room, user))?
                && member.membership == MembershipState::Join
                && member.since > since
            {
                met.insert(user);
            }
        }
        Ok(())
    }

    fn presence_events(&self, asking: &Asking<'_>, met: &BTreeSet<UserNid>) -> Result<String> {
        let filter = &asking.request.filter.presence;
        let mut events = String::new();
        let mut told = self
            .presence
            .since(asking.view, asking.since, asking.requester)?;
        let mut strangers = met.clone();
        strangers.remove(&asking.requester.nid);
        for (user, _) in &told {
            if let Some(user) = self.store.find_user(user)? {
                strangers.remove(&user);
            }
        }
        told.extend(self.presence.of(strangers)?);
        for (user, event) in told {
            if filter.allows(&user, "m.presence") {
                push_item(&mut events, &event);
            }
        }
        Ok(events)
    }
}

impl Rooms {
    fn is_empty(&self) -> bool {
        self.join.is_empty()
            && self.invite.is_empty()
            && self.knock.is_empty()
            && self.leave.is_empty()
    }
}

impl Range {
    pub(super) fn may_have(&self, kinds: Kinds) -> bool {
        match &self.changes {
            Changes::None => false,
            Changes::Some(changed) => changed.values().any(|changed| changed.any(kinds)),
            Changes::Unknown => true,
        }
    }
}

/// Where in the timeline a membership came to be: at its event, unless the room's history had been split.
pub(super) fn place_of(stored: &Stored, member: &MemberRow) -> i64 {
    let since = member.since.live_order();
    stored.facts.order.map_or(since, |order| order.max(since))
}

fn wants(filter: &RoomEventFilter, event_type: &str) -> bool {
    filter.event.allows_type(event_type)
}

fn write_state(object: &mut Object<'_>, asking: &Asking<'_>, state: &str) {
    match asking.request.state_after {
        Some(name) => object.event_list(name, state),
        None => object.event_list("state", state),
    }
}
