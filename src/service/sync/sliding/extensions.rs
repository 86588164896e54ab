//! What a client hears besides its rooms: messages to the device, whose devices have changed, account data, receipts,
//! who is typing, and which threads its user follows.

use std::{cell::OnceCell, collections::HashSet};

use ruma::OwnedRoomId;

use super::{
    super::{
        DeviceLists, Range, Sync, SyncRequest,
        account_data::{ChangedData, all_data},
        json::{Object, plain_event},
        v3::{write_device_lists, write_keys},
    },
    Turn,
    connection::{Sent, Stream, Told},
    request::{Extensions, OfRooms},
    room::Shown,
};
use crate::{
    error::{Error, Result},
    protocol::{
        ids::{Position, RoomNid},
        token::SyncToken,
    },
    service::{
        e2ee::{MOST_TOLD, Pending},
        rooms::Seen,
        threads::{ThreadChanges, Threads},
    },
    store::{
        notify::{Changes, Kinds},
        schema::KeyCountsRow,
    },
};

/// What is told besides the rooms.
#[derive(Default)]
pub(super) struct Besides {
    data: OnceCell<ChangedData>,
    data_of_rooms: Vec<(String, String)>,
    receipts: Vec<(String, String)>,
    typing: Vec<(String, String)>,
    global: String,
    pub(super) data_sent: Sent,
    messages: Option<(Pending, SyncToken)>,
    keys: Option<(KeyCountsRow, DeviceLists)>,
    pub(super) devices_sent: Sent,
    has_new_keys: bool,
    threads: ThreadChanges,
    pub(super) threads_sent: Sent,
}

/// A room of an answer, and why it is in it.
pub(super) struct Place<'a> {
    pub(super) room: RoomNid,
    pub(super) id: &'a OwnedRoomId,
    /// The lists that show it.
    pub(super) lists: &'a [&'a str],
    pub(super) subscribed: bool,
    pub(super) kinds: Option<Kinds>,
    /// Whether the user is in the room.
    pub(super) is_in: bool,
}

impl Place<'_> {
    fn wants(&self, asked: &OfRooms) -> bool {
        asked.wants(self.lists, self.subscribed.then_some(self.id.as_str()))
    }

    /// Whether there may be something to tell, or to remember, beside what happens in the room.
    pub(super) fn has_more(&self, asked: &Extensions, told: &Told) -> bool {
        self.is_in
            && asked.of_rooms().into_iter().any(|(stream, asked)| {
                let is_touched = self.kinds.is_none_or(|kinds| kinds.any(stream.kinds()));
                is_touched || (told.sent(stream) != Sent::Live && self.wants(asked))
            })
    }
}

impl Extensions {
    const fn of_rooms(&self) -> [(Stream, &OfRooms); 3] {
        [
            (Stream::Data, &self.account_data),
            (Stream::Receipts, &self.receipts),
            (Stream::Typing, &self.typing),
        ]
    }
}

impl Besides {
    pub(super) fn is_empty(&self) -> bool {
        let has_messages = self
            .messages
            .as_ref()
            .is_some_and(|(m, _)| !m.events.is_empty());
        let has_lists = self
            .keys
            .as_ref()
            .is_some_and(|(_, lists)| !lists.is_empty());
        self.data_of_rooms.is_empty()
            && self.receipts.is_empty()
            && self.typing.is_empty()
            && self.global.is_empty()
            && !has_messages
            && !has_lists
            && !self.has_new_keys
            && self.threads.is_empty()
    }

    pub(super) fn write(self, asked: &Extensions, out: &mut String) -> Result<()> {
        let mut object = Object::new(out);
        if let Some((messages, until)) = self.messages {
            let mut part = Object::new(object.member("to_device"));
            part.text("next_batch", &until.to_string());
            part.json("events", &format!("[{}]", messages.events));
            part.finish();
        }
        if let Some((keys, lists)) = self.keys {
            let mut part = Object::new(object.member("e2ee"));
            write_device_lists(&mut part, &lists);
            write_keys(&mut part, keys);
            part.finish();
        }
        if asked.account_data.enabled == Some(true) {
            let mut part = Object::new(object.member("account_data"));
            part.json("global", &format!("[{}]", self.global));
            part.object("rooms", &self.data_of_rooms);
            part.finish();
        }
        for (name, asked, rooms) in [
            ("receipts", &asked.receipts, self.receipts),
            ("typing", &asked.typing, self.typing),
        ] {
            if asked.enabled == Some(true) {
                let mut part = Object::new(object.member(name));
                part.object("rooms", &rooms);
                part.finish();
            }
        }
        if !self.threads.is_empty() {
            let name = "io.element.msc4308.thread_subscriptions";
            write_threads(&self.threads, object.member(name))?;
        }
        object.finish();
        Ok(())
    }
}

/// Writes the newest changes, and from where on the older ones are to be fetched if there were more than fit.
fn write_threads(changes: &ThreadChanges, out: &mut String) -> Result<()> {
    let broken = |e| Error::Internal(format!("an answer could not be written: {e}"));
    let mut part = Object::new(out);
    for (name, json) in [
        ("subscribed", serde_json::to_string(&changes.subscribed)),
        ("unsubscribed", serde_json::to_string(&changes.unsubscribed)),
    ] {
        let json = json.map_err(broken)?;
        if json != "{}" {
            part.json(name, &json);
        }
    }
    if let Some(until) = changes.more_until {
        part.text("prev_batch", &SyncToken::at(until).to_string());
    }
    part.finish();
    Ok(())
}

impl Sync {
    /// Adds what does not belong to a room.
    pub(super) fn besides_rooms(&self, turn: &Turn<'_>, besides: &mut Besides) -> Result<()> {
        let (asked, base) = (&turn.asked.extensions, turn.base);
        besides.data_sent = base.data;
        if asked.account_data.enabled == Some(true) {
            let since = base.data.since(base.position);
            if base.data != Sent::Live || turn.range.may_have(Kinds::ACCOUNT_DATA) {
                besides.global = Self::data_since(turn, since)?.global;
            }
            besides.data_sent = Sent::Live;
        } else if turn.range.may_have(Kinds::ACCOUNT_DATA) {
            besides.data_sent = base.data.missed(base.position);
        }
        besides.devices_sent = base.devices.missed(base.position);
        if asked.e2ee.enabled == Some(true) {
            let keys = self.keys(turn.view(), turn.requester)?;
            besides.has_new_keys = base.position.is_some_and(|since| keys.position > since);
            besides.keys = Some((keys, self.devices_since(turn)?));
            besides.devices_sent = Sent::Live;
        }
        if asked.to_device.enabled == Some(true)
            && let Some(device) = &turn.requester.device_id
        {
            let position = turn.view().position();
            let since = turn.asked.messages_since()?;
            // A token from the future was given out before this store was restored from a copy.
            let since = since.filter(|since| since.position <= position);
            let most = asked
                .to_device
                .limit
                .and_then(|limit| usize::try_from(limit).ok());
            let most = most.unwrap_or(MOST_TOLD).clamp(1, MOST_TOLD);
            let device = (turn.requester.nid, device.as_str());
            let messages = self.encryption.pending(turn.view(), device, since, most)?;
            let until = SyncToken::at(messages.until.unwrap_or(position));
            besides.messages = Some((messages, until));
        }
        self.threads_followed(turn, besides)
    }

    fn threads_followed(&self, turn: &Turn<'_>, besides: &mut Besides) -> Result<()> {
        let (asked, base) = (&turn.asked.extensions.threads, turn.base);
        let may_have = turn.range.may_have(Kinds::THREADS);
        besides.threads_sent = base.threads;
        if asked.enabled == Some(true) {
            if base.threads != Sent::Live || may_have {
                let since = base.threads.since(base.position).unwrap_or_default();
                let limit = asked.limit.map(|limit| usize::try_from(limit).ok());
                let limit = limit.map_or(Threads::USUAL, |limit| limit.unwrap_or(Threads::MOST));
                let limit = limit.clamp(1, Threads::MOST);
                let bounds = (since, turn.view().position());
                let user = turn.requester.nid;
                besides.threads = self.threads.changes(turn.view(), user, bounds, limit)?;
            }
            besides.threads_sent = Sent::Live;
        } else if may_have {
            besides.threads_sent = base.threads.missed(base.position);
        }
        Ok(())
    }

    fn devices_since(&self, turn: &Turn<'_>) -> Result<DeviceLists> {
        let base = turn.base;
        let position = turn.view().position();
        // A client that begins anew says by its messages how far it was told the last time.
        let messages = turn.asked.messages_since()?;
        let messages = messages
            .map(|token| token.position)
            .filter(|since| *since <= position);
        let since = base.devices.since(base.position).or(messages);
        let request = SyncRequest::bare();
        let asking = turn.asking(&request, since);
        if base.devices == Sent::Live {
            return self.device_lists(&asking, turn.range);
        }
        let range = Range {
            view: turn.view().clone(),
            since,
            changes: Changes::Unknown,
        };
        self.device_lists(&asking, &range)
    }

    fn data_since(turn: &Turn<'_>, since: Option<Position>) -> Result<ChangedData> {
        let request = SyncRequest::bare();
        Self::changed_data(&turn.asking(&request, since))
    }

    /// Adds what belongs to a room that the user is in; `told` becomes how far the client is told.
    pub(super) fn besides_room(
        &self,
        turn: &Turn<'_>,
        place: &Place<'_>,
        shown: &Shown,
        told: &mut Told,
        besides: &mut Besides,
    ) -> Result<()> {
        let base = turn.since();
        for (stream, asked) in turn.asked.extensions.of_rooms() {
            let sent = told.sent(stream);
            let may_have = place.kinds.is_none_or(|kinds| kinds.any(stream.kinds()));
            if !place.wants(asked) {
                if may_have {
                    told.set(stream, sent.missed(base));
                }
                continue;
            }
            told.set(stream, Sent::Live);
            if sent == Sent::Live && !may_have {
                continue;
            }
            let since = sent.since(base);
            let id = || place.id.to_string();
            match stream {
                Stream::Data => {
                    let data = Self::data_of(turn, place.room, (sent, since), besides)?;
                    if !data.is_empty() {
                        besides.data_of_rooms.push((id(), format!("[{data}]")));
                    }
                }
                Stream::Receipts => {
                    if let Some(content) = self.receipts_of(turn, place.room, since, shown)? {
                        besides
                            .receipts
                            .push((id(), plain_event("m.receipt", &content)));
                    }
                }
                _ => {
                    if let Some(content) =
                        self.typing
                            .since(turn.view(), place.room, since, turn.requester)?
                    {
                        besides
                            .typing
                            .push((id(), plain_event("m.typing", &content)));
                    }
                }
            }
        }
        Ok(())
    }

    fn data_of(
        turn: &Turn<'_>,
        room: RoomNid,
        (sent, since): (Sent, Option<Position>),
        besides: &Besides,
    ) -> Result<String> {
        let request = SyncRequest::bare();
        match (sent, since) {
            (_, None) => all_data(&turn.asking(&request, None), room),
            (Sent::Live, _) => {
                if besides.data.get().is_none() {
                    let data = Self::data_since(turn, since)?;
                    let _only_once = besides.data.set(data);
                }
                let data = besides.data.get();
                Ok(data.map_or_else(String::new, |data| data.room(room).to_owned()))
            }
            _ => Ok(Self::data_since(turn, since)?.room(room).to_owned()),
        }
    }

    /// Receipts since a position; at first those that belong to what is shown of the room, and the user's own.
    fn receipts_of(
        &self,
        turn: &Turn<'_>,
        room: RoomNid,
        since: Option<Position>,
        shown: &Shown,
    ) -> Result<Option<String>> {
        if since.is_some() || !shown.anew {
            return self
                .receipts
                .since(turn.view(), room, since, turn.requester);
        }
        let id = |seen: &Seen| seen.stored.event.header.id.clone();
        let events: HashSet<_> = shown.events.iter().map(id).collect();
        self.receipts
            .of_events(turn.view(), room, &events, turn.requester)
    }
}
