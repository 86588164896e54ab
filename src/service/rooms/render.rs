//! Events as JSON for one user: what the event says, and what the node knows besides.
//!
//! See "Room event format" and "Forming relationships between events" in the client-server API.

use std::{fmt::Write as _, ops::Bound, sync::Arc};

use ruma::events::{TimelineEventType, room::member::MembershipState};
use serde::{Deserialize, de::IgnoredAny};

use super::{Rooms, Seen, Sight, Stored};
use crate::{
    error::{Error, Result},
    protocol::{
        event::Event,
        format::{self, Shape, Unsigned},
        ids::EventNid,
        searchable::REPLACE,
        version,
    },
    store::{
        self, View,
        schema::{ACCOUNTS, RELATIONS, ROOM_HEADS, RelationRow},
    },
};

/// The most references that are told with an event.
const MAX_REFERENCES: usize = 100;

/// The most edits among which the valid newest one is looked for.
const MAX_EDITS: usize = 50;

/// The most relations among which these are looked for, for everybody at once.
const MAX_EDITS_READ: usize = 500;

/// The most replies, from the newest back, among which one is looked for that the asker may see.
const MAX_HIDDEN_REPLIES: usize = 20;

impl Sight<'_> {
    /// Appends the JSON of an event with everything that is known about it.
    pub fn show(&self, out: &mut String, seen: &Seen, shape: Shape) -> Result<()> {
        let stored = &seen.stored;
        let mut unsigned = self.unsigned(stored);
        unsigned.membership = Some(seen.membership.to_string());
        if seen.membership != MembershipState::Join && self.is_erased(stored)? {
            let emptied = self.emptied(stored)?;
            format::push_client(out, &emptied, shape, &unsigned);
            return Ok(());
        }
        if let Some(replaced) = stored.facts.replaces {
            let replaced = self.rooms.event(self.view, replaced)?;
            unsigned.prev_content = Some(replaced.event.content_json().to_owned());
            unsigned.prev_sender = Some(replaced.event.header.sender.to_string());
            unsigned.replaces_state = Some(replaced.event.header.id.clone());
        }
        if let Some(redaction) = stored.facts.redacted_by {
            let redaction = self.rooms.event(self.view, redaction)?;
            unsigned.redacted_because = Some(self.bare(&redaction, shape));
        }
        unsigned.relations = self.relations(stored, shape)?;
        format::push_client(out, &stored.event, shape, &unsigned);
        Ok(())
    }

    /// Whether the sender has asked to be forgotten by those who were not there when the event was sent.
    fn is_erased(&self, stored: &Stored) -> Result<bool> {
        let Some(sender) = self.rooms.store.find_user(&stored.event.header.sender)? else {
            return Ok(false);
        };
        let account = ACCOUNTS.get(self.view, &(sender,))?;
        Ok(account.is_some_and(|account| account.erased))
    }

    fn emptied(&self, stored: &Stored) -> Result<Event> {
        let head = ROOM_HEADS.get(self.view, &(self.room,))?;
        let rules = head.and_then(|head| version::rules(&head.version));
        let rules = rules.ok_or_else(|| Error::Internal("a room has no version".to_owned()))?;
        stored.emptied(rules)
    }

    /// Appends events as the members of a JSON array, without its brackets.
    pub fn show_all(&self, out: &mut String, seen: &[Seen], shape: Shape) -> Result<()> {
        for (index, seen) in seen.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            self.show(out, seen, shape)?;
        }
        Ok(())
    }

    /// Appends state events as the members of a JSON array, without its brackets: just what they say.
    pub fn show_state<'s>(
        &self,
        out: &mut String,
        events: impl IntoIterator<Item = &'s Stored>,
        shape: Shape,
    ) {
        for (index, stored) in events.into_iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            format::push_client(out, &stored.event, shape, &self.unsigned(stored));
        }
    }

    /// What needs no other event.
    fn unsigned(&self, stored: &Stored) -> Unsigned {
        let header = &stored.event.header;
        let now = i64::try_from(self.rooms.clock.now_ms()).unwrap_or(i64::MAX);
        let by_this_device = |device: &str| {
            header.sender == self.asker.user_id && self.asker.device_id.as_deref() == Some(device)
        };
        Unsigned {
            age: Some(now.saturating_sub(i64::from(header.origin_server_ts.0))),
            transaction_id: stored
                .facts
                .origin
                .as_ref()
                .filter(|origin| by_this_device(&origin.device_id))
                .map(|origin| origin.txn_id.clone()),
            ..Unsigned::default()
        }
    }

    fn bare(&self, stored: &Stored, shape: Shape) -> String {
        format::client(&stored.event, shape, &self.unsigned(stored))
    }

    /// The aggregations of an event as a JSON object, if there are any.
    fn relations(&self, stored: &Stored, shape: Shape) -> Result<Option<String>> {
        let header = &stored.event.header;
        let kind = header.relation.as_ref().map(|relation| &*relation.rel_type);
        // Nothing can relate to a state event, an edit or a reaction.
        if stored.event.is_state() || matches!(kind, Some("m.replace" | "m.annotation")) {
            return Ok(None);
        }
        let related = self.related(stored.nid)?;
        if related.is_empty() {
            return Ok(None);
        }
        let mut members = Vec::new();
        if let Some(references) = self.references(&related.references)? {
            members.push(format!("\"m.reference\":{{\"chunk\":[{references}]}}"));
        }
        if stored.facts.redacted_by.is_none()
            && let Some(edit) = self.edit(stored, &related.edits, shape)?
        {
            members.push(format!("\"m.replace\":{edit}"));
        }
        if kind != Some("m.thread")
            && let Some(thread) = self.thread(stored, &related.replies, shape)?
        {
            members.push(format!("\"m.thread\":{thread}"));
        }
        Ok((!members.is_empty()).then(|| format!("{{{}}}", members.join(","))))
    }

    /// What relates to an event in the ways that are aggregated: one scan, which for most events finds nothing.
    fn related(&self, parent: EventNid) -> Result<Related> {
        let mut related = Related::default();
        let horizon = self.horizon();
        let first = (parent, "m.reference", i64::MIN);
        let last = (parent, "m.thread", i64::MAX);
        let bounds = (Bound::Included(first), Bound::Included(last));
        for row in RELATIONS.range(self.view, &(parent,), bounds) {
            let ((_, kind, order), row) = row?;
            let list = match kind.as_str() {
                _ if order >= horizon => continue,
                "m.reference" => &mut related.references,
                "m.replace" => &mut related.edits,
                "m.thread" => &mut related.replies,
                _ => continue,
            };
            if !self.ignores(row.sender)? {
                list.push(row);
            }
        }
        Ok(related)
    }

    fn references(&self, rows: &[RelationRow]) -> Result<Option<String>> {
        let mut chunk = String::new();
        for row in rows.iter().take(MAX_REFERENCES) {
            let stored = self.rooms.event(self.view, row.event)?;
            if self.sees(&stored)?.is_none() {
                continue;
            }
            chunk.push_str(if chunk.is_empty() {
                "{\"event_id\":"
            } else {
                ",{\"event_id\":"
            });
            format::push_string(&mut chunk, stored.event.header.id.as_str());
            chunk.push('}');
        }
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    /// The newest valid edit. See "Validity of replacement events".
    fn edit(
        &self,
        original: &Stored,
        rows: &[RelationRow],
        shape: Shape,
    ) -> Result<Option<String>> {
        if rows.is_empty() {
            return Ok(None);
        }
        let sees = |edit: &Stored| Ok(self.sees(edit)?.is_some());
        let rooms = self.rooms;
        let newest = rooms.newest_edit(self.view, original, rows, sees)?;
        Ok(newest.map(|edit| self.bare(&edit, shape)))
    }

    /// Whether the asker is shown what the event says: nobody is once it was redacted, and whoever was not there when it was
    /// sent is not if its sender has asked to be forgotten.
    pub fn shows_content(&self, seen: &Seen) -> Result<bool> {
        if seen.stored.facts.redacted_by.is_some() {
            return Ok(false);
        }
        Ok(seen.membership == MembershipState::Join || !self.is_erased(&seen.stored)?)
    }

    /// The summary of the thread that an event is the root of. See "Threading".
    fn thread(&self, root: &Stored, rows: &[RelationRow], shape: Shape) -> Result<Option<String>> {
        for row in rows.iter().rev().take(MAX_HIDDEN_REPLIES) {
            let stored = self.rooms.event(self.view, row.event)?;
            let Some(membership) = self.sees(&stored)? else {
                continue;
            };
            let participated = root.event.header.sender == self.asker.user_id
                || rows.iter().any(|row| row.sender == self.asker.nid);
            let mut json = String::from("{\"latest_event\":");
            self.show(&mut json, &Seen { stored, membership }, shape)?;
            let _ = write!(
                json,
                ",\"count\":{},\"current_user_participated\":{participated}}}",
                rows.len()
            );
            return Ok(Some(json));
        }
        Ok(None)
    }
}

impl Rooms {
    /// The newest valid edit of an event that anybody sees who sees all of its room.
    pub fn edit_of(&self, view: &View, original: &Stored) -> Result<Option<Arc<Stored>>> {
        type Key = (EventNid, &'static str, i64);
        let all = (Bound::<Key>::Unbounded, Bound::<Key>::Unbounded);
        let rows = RELATIONS.range_back(view, &(original.nid, REPLACE), all);
        let mut rows: Vec<_> = rows
            .take(MAX_EDITS_READ)
            .map(|row| row.map(|(_, row)| row))
            .collect::<store::Result<_>>()?;
        rows.reverse();
        self.newest_edit(view, original, &rows, |_| Ok(true))
    }

    /// The newest valid edit among those of an event, oldest first, that `sees` admits.
    fn newest_edit(
        &self,
        view: &View,
        original: &Stored,
        rows: &[RelationRow],
        sees: impl Fn(&Stored) -> Result<bool>,
    ) -> Result<Option<Arc<Stored>>> {
        if rows.is_empty() {
            return Ok(None);
        }
        let sender = self.store.find_user(&original.event.header.sender)?;
        let mut newest = None;
        let own = rows.iter().rev().filter(|row| Some(row.sender) == sender);
        for row in own.take(MAX_EDITS) {
            let edit = self.event(view, row.event)?;
            if !replaces(&edit, original) || !sees(&edit)? {
                continue;
            }
            let header = &edit.event.header;
            let age = (header.origin_server_ts, header.id.clone());
            if newest.as_ref().is_none_or(|(newest, _)| age > *newest) {
                newest = Some((age, edit));
            }
        }
        Ok(newest.map(|(_, edit)| edit))
    }
}

/// Events that relate to one, by the way in which they do, oldest first.
#[derive(Default)]
struct Related {
    references: Vec<RelationRow>,
    edits: Vec<RelationRow>,
    replies: Vec<RelationRow>,
}

impl Related {
    fn is_empty(&self) -> bool {
        self.references.is_empty() && self.edits.is_empty() && self.replies.is_empty()
    }
}

/// Whether an edit by the same sender is one. The new content of an encrypted one can not be seen from here.
fn replaces(edit: &Stored, original: &Stored) -> bool {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.new_content")]
        _new_content: IgnoredAny,
    }
    edit.event.header.event_type == original.event.header.event_type
        && !edit.event.is_state()
        && (edit.event.header.event_type == TimelineEventType::RoomEncrypted
            || edit.event.content_as::<Content>().is_ok())
}

#[cfg(test)]
mod tests;
