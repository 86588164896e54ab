//! What came before `/sync`: clients of old, and those who look into a room without entering it, ask for what there is and
//! then for what comes. See `/initialSync`, `/rooms/{roomId}/initialSync` and `/events` in the client-server API.

use std::time::Duration;

use ruma::{OwnedRoomId, RoomId, api::Direction, events::room::member::MembershipState};

use super::{
    MAX_TIMEOUT, Sync, SyncRequest,
    account_data::{GLOBAL, all_data},
    json::{Object, push_item},
    v3::Asking,
};
use crate::{
    error::{Error, Result},
    protocol::{filter::RoomEventFilter, format::Shape, ids::Position, token::PageToken},
    service::{
        Requester,
        rooms::{Page, Seen, Sight},
    },
    store::{
        View,
        schema::{MemberRow, PUBLIC_ROOMS, ROOM_HEADS, ROOM_MEMBERS, USER_ROOMS},
    },
};

/// The most events that are told at once: of one room, and of all when something is waited for.
const MAX_EVENTS: usize = 100;

/// A wait for events.
#[derive(Clone, Debug)]
pub struct Listening {
    /// The room, which the user need not be in if everybody may read it; none for all that they are in.
    pub room: Option<OwnedRoomId>,
    /// Behind which place to begin: now, if nothing is said.
    pub from: Option<PageToken>,
    /// How long to wait.
    pub timeout: Duration,
}

impl Sync {
    /// A room with its state and newest messages, as the answer of `/rooms/{roomId}/initialSync`.
    ///
    /// # Errors
    /// 403 when the user was never in the room and it is not open to everybody.
    pub fn initial_of_room(
        &self,
        requester: &Requester,
        room: &RoomId,
        limit: usize,
    ) -> Result<String> {
        let view = self.store.view();
        let request = SyncRequest::bare();
        let asking = asking(&view, requester, &request);
        let sight = self.rooms.sight_of(&view, room, requester)?;
        let member = ROOM_MEMBERS.get(&view, &(sight.room, requester.nid))?;
        self.initial(&asking, &sight, member.as_ref(), limit)
    }

    /// The rooms of a user, as the answer of `/initialSync`; with `archived` also those that they have left.
    ///
    /// # Errors
    /// When the store fails.
    pub fn initial_of_all(
        &self,
        requester: &Requester,
        limit: usize,
        archived: bool,
    ) -> Result<String> {
        let view = self.store.view();
        let request = SyncRequest::bare();
        let asking = asking(&view, requester, &request);
        let mut rooms = String::new();
        for row in USER_ROOMS.scan(&view, &(requester.nid,)) {
            let ((_, room), member) = row?;
            let wanted = match member.membership {
                MembershipState::Join => true,
                MembershipState::Invite => !self.is_unwanted(&asking, room, &member)?,
                MembershipState::Leave | MembershipState::Ban => archived && !member.forgotten,
                _ => false,
            };
            if !wanted {
                continue;
            }
            let sight = self.rooms.sight(&view, room, requester)?;
            if member.membership == MembershipState::Invite {
                push_item(&mut rooms, &self.invite(&asking, &sight, &member)?);
                continue;
            }
            match self.initial(&asking, &sight, Some(&member), limit) {
                Ok(json) => push_item(&mut rooms, &json),
                Err(error) if error.is_internal() => return Err(error),
                // An invite that was declined leaves nothing to be seen.
                Err(_) => {}
            }
        }
        let mut presence = String::new();
        for (_, event) in self.presence.since(&view, None, requester)? {
            push_item(&mut presence, &event);
        }
        let mut out = String::new();
        let mut answer = Object::new(&mut out);
        answer.text("end", &now(&view).to_string());
        answer.json("presence", &format!("[{presence}]"));
        answer.json("rooms", &format!("[{rooms}]"));
        let data = all_data(&asking, GLOBAL)?;
        answer.json("account_data", &format!("[{data}]"));
        answer.finish();
        Ok(out)
    }

    /// A room as the user sees it.
    fn initial(
        &self,
        asking: &Asking<'_>,
        sight: &Sight<'_>,
        member: Option<&MemberRow>,
        limit: usize,
    ) -> Result<String> {
        let view = asking.view;
        let state = sight.readable_state()?;
        let page = Page {
            from: None,
            to: None,
            dir: Direction::Backward,
            limit: limit.clamp(1, MAX_EVENTS),
        };
        let mut slice = sight.slice(page, &RoomEventFilter::default())?;
        slice.events.reverse();
        let is_listed = PUBLIC_ROOMS.contains(view, &(sight.room,))?;
        let mut out = String::with_capacity((state.len() + slice.events.len()) * 800);
        let mut room = Object::new(&mut out);
        room.text("room_id", self.store.room_id(sight.room)?.as_str());
        if let Some(member) = member {
            room.text("membership", member.membership.as_str());
        }
        let mut messages = Object::new(room.member("messages"));
        if !slice.exhausted {
            messages.text("start", &slice.end.to_string());
        }
        messages.text("end", &now(view).to_string());
        let chunk = messages.member("chunk");
        chunk.push('[');
        sight.show_all(chunk, &slice.events, Shape::Client)?;
        chunk.push(']');
        messages.finish();
        let list = room.member("state");
        list.push('[');
        sight.show_state(list, state.iter().map(|stored| &**stored), Shape::Client)?;
        list.push(']');
        room.text("visibility", if is_listed { "public" } else { "private" });
        let data = all_data(asking, sight.room)?;
        room.json("account_data", &format!("[{data}]"));
        room.finish();
        Ok(out)
    }

    fn invite(&self, asking: &Asking<'_>, sight: &Sight<'_>, member: &MemberRow) -> Result<String> {
        let event = self.rooms.event(asking.view, member.event)?;
        let mut out = String::new();
        let mut room = Object::new(&mut out);
        room.text("room_id", self.store.room_id(sight.room)?.as_str());
        room.text("membership", "invite");
        sight.show_state(room.member("invite"), [&*event], Shape::Client)?;
        room.finish();
        Ok(out)
    }

    /// Events as they come, as the answer of `/events`: at once if there are some, else as soon as there are or the wait
    /// is over.
    ///
    /// # Errors
    /// 403 for a room that the user may not read.
    pub async fn events(&self, requester: &Requester, listening: &Listening) -> Result<String> {
        let patience = self.clock.sleep(listening.timeout.min(MAX_TIMEOUT));
        tokio::pin!(patience);
        let mut from = listening.from;
        loop {
            // No view is held over the wait: it would keep what is overwritten meanwhile from being tidied up.
            let (begin, next) = {
                let view = self.store.view();
                let begin = from.unwrap_or(now(&view));
                let room = listening.room.as_deref();
                let (events, end) = self.heard(&view, requester, room, begin)?;
                if !events.is_empty() {
                    return Ok(chunk(begin, end, &events));
                }
                from = Some(end);
                if begin < end && end < now(&view) {
                    // There is more behind what is not the user's to see.
                    continue;
                }
                (end, Position(view.position().0 + 1))
            };
            tokio::select! {
                moved = self.store.durable(next) => moved?,
                () = &mut patience => return Ok(chunk(begin, begin, "")),
                () = self.stop.cancelled() => return Ok(chunk(begin, begin, "")),
            }
        }
    }

    /// The events behind a place, as what stands between the brackets of a list, and up to where these are all.
    fn heard(
        &self,
        view: &View,
        requester: &Requester,
        room: Option<&RoomId>,
        from: PageToken,
    ) -> Result<(String, PageToken)> {
        let sights = match room {
            Some(room) => vec![self.rooms.sight_of(view, room, requester)?],
            None => self.joined_with_news(view, requester, from)?,
        };
        let page = Page {
            from: Some(from),
            to: None,
            dir: Direction::Forward,
            limit: MAX_EVENTS,
        };
        let mut end = now(view).max(from);
        let mut events: Vec<(i64, usize, Seen)> = Vec::new();
        for (index, sight) in sights.iter().enumerate() {
            // For whoever has left since, or looks in from outside, this says whether they may.
            sight.reach()?;
            let slice = sight.slice(page, &RoomEventFilter::default())?;
            if !slice.exhausted {
                end = end.min(slice.end);
            }
            for seen in slice.events {
                events.push((seen.stored.facts.order.unwrap_or_default(), index, seen));
            }
        }
        events.sort_by_key(|(order, _, _)| *order);
        events.truncate(MAX_EVENTS);
        if let Some((order, _, _)) = events.last().filter(|_| events.len() == MAX_EVENTS) {
            end = end.min(PageToken(*order));
        }
        events.retain(|(order, _, _)| PageToken(*order) <= end);
        let mut list = String::new();
        for (_, index, seen) in &events {
            let mut item = String::new();
            sights[*index].show(&mut item, seen, Shape::Client)?;
            push_item(&mut list, &item);
        }
        Ok((list, end))
    }

    /// The rooms that a user is in and that have gone on since.
    fn joined_with_news<'v>(
        &'v self,
        view: &'v View,
        requester: &'v Requester,
        from: PageToken,
    ) -> Result<Vec<Sight<'v>>> {
        let mut sights = Vec::new();
        for row in USER_ROOMS.scan(view, &(requester.nid,)) {
            let ((_, room), member) = row?;
            if member.membership == MembershipState::Join
                && let Some(head) = ROOM_HEADS.get(view, &(room,))?
                && head.last.live_order() > from.0
            {
                sights.push(self.rooms.sight(view, room, requester)?);
            }
        }
        Ok(sights)
    }

    /// An event of whatever room, as the answer of `/events/{eventId}`.
    ///
    /// # Errors
    /// 404 when the user does not see such an event.
    pub fn one_event(&self, requester: &Requester, id: &ruma::EventId) -> Result<String> {
        let found = self.rooms.find_event(&self.store.view(), id)?;
        let found = found.ok_or_else(|| Error::not_found("The event"))?;
        let room = &found.event.header.room_id;
        self.rooms.single_event(requester, room, id)
    }
}

fn asking<'a>(view: &'a View, requester: &'a Requester, request: &'a SyncRequest) -> Asking<'a> {
    Asking {
        view,
        requester,
        request,
        since: None,
    }
}

/// The place behind all that there is.
fn now(view: &View) -> PageToken {
    PageToken(view.position().live_order())
}

fn chunk(start: PageToken, end: PageToken, events: &str) -> String {
    let mut out = String::with_capacity(events.len() + 64);
    let mut answer = Object::new(&mut out);
    answer.text("start", &start.to_string());
    answer.text("end", &end.to_string());
    answer.json("chunk", &format!("[{events}]"));
    answer.finish();
    out
}
