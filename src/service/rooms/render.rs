//! Events as JSON for one user: what the event says, and what the node knows besides.
//!
//! See "Room event format" and "Forming relationships between events" in the client-server API.

use std::{fmt::Write as _, ops::Bound};

use ruma::events::room::member::MembershipState;

use super::{Seen, Sight, Stored, threads::THREAD};
use crate::{
    error::{Error, Result},
    protocol::{
        event::{Event, Origin},
        format::{self, Shape, Unsigned},
        ids::EventNid,
        version,
    },
    store::schema::{ACCOUNTS, EDITS, RELATIONS, ROOM_HEADS},
};

/// The most references that are told with an event.
const MAX_REFERENCES: usize = 100;

/// The most edits, from the newest back, among which one is looked for that the asker may see.
const MAX_EDITS: usize = 50;

/// The most relations that are looked at to find some that are not by ignored users.
const MAX_LOOKED_AT: usize = 1_000;

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
        self.add_replaced(stored, &mut unsigned)?;
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

    /// Appends state events as the members of a JSON array, without its brackets: just what they say. Only the asker's own
    /// membership comes with what it replaced: whoever has accepted an invite learns so that it was to a direct chat.
    pub fn show_state<'s>(
        &self,
        out: &mut String,
        events: impl IntoIterator<Item = &'s Stored>,
        shape: Shape,
    ) -> Result<()> {
        for (index, stored) in events.into_iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            let mut unsigned = self.unsigned(stored);
            let header = &stored.event.header;
            if header.membership.is_some()
                && header.state_key.as_deref() == Some(self.asker.user_id.as_str())
            {
                self.add_replaced(stored, &mut unsigned)?;
            }
            format::push_client(out, &stored.event, shape, &unsigned);
        }
        Ok(())
    }

    /// What a state event has replaced.
    fn add_replaced(&self, stored: &Stored, unsigned: &mut Unsigned) -> Result<()> {
        if let Some(replaced) = stored.facts.replaces {
            let replaced = self.rooms.event(self.view, replaced)?;
            unsigned.prev_content = Some(replaced.event.content_json().to_owned());
            unsigned.prev_sender = Some(replaced.event.header.sender.to_string());
            unsigned.replaces_state = Some(replaced.event.header.id.clone());
        }
        Ok(())
    }

    /// What needs no other event.
    fn unsigned(&self, stored: &Stored) -> Unsigned {
        let header = &stored.event.header;
        let now = i64::try_from(self.rooms.clock.now_ms()).unwrap_or(i64::MAX);
        let origin = stored.facts.origin.as_ref();
        let origin = origin.filter(|_| header.sender == self.asker.user_id);
        let delay_id = origin.and_then(Origin::delay_id);
        let by_this_device = origin.filter(|origin| {
            delay_id.is_none() && self.asker.device_id.as_ref() == Some(&origin.device_id)
        });
        Unsigned {
            age: Some(now.saturating_sub(i64::from(header.origin_server_ts.0))),
            transaction_id: by_this_device.map(|origin| origin.txn_id.clone()),
            delay_id: delay_id.map(ToOwned::to_owned),
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
        if !self.has_related(stored.nid)? {
            return Ok(None);
        }
        let mut members = Vec::new();
        if let Some(references) = self.references(stored.nid)? {
            members.push(format!("\"m.reference\":{{\"chunk\":[{references}]}}"));
        }
        if stored.facts.redacted_by.is_none()
            && let Some(edit) = self.edit(stored, shape)?
        {
            members.push(format!("\"m.replace\":{edit}"));
        }
        if kind != Some(THREAD)
            && let Some(thread) = self.thread(stored, shape)?
        {
            members.push(format!("\"m.thread\":{thread}"));
        }
        Ok((!members.is_empty()).then(|| format!("{{{}}}", members.join(","))))
    }

    /// Whether anything relates to an event in the ways that are aggregated. To most nothing does, and one look says so.
    fn has_related(&self, parent: EventNid) -> Result<bool> {
        let first = (parent, "m.reference", i64::MIN);
        let last = (parent, THREAD, i64::MAX);
        let bounds = (Bound::Included(first), Bound::Included(last));
        let mut rows = RELATIONS.range(self.view, &(parent,), bounds);
        Ok(rows.next().transpose()?.is_some())
    }

    fn references(&self, parent: EventNid) -> Result<Option<String>> {
        let (mut chunk, mut told) = (String::new(), 0);
        let bounds = (
            Bound::Unbounded,
            Bound::Excluded((parent, "m.reference", self.horizon())),
        );
        let rows = RELATIONS.range(self.view, &(parent, "m.reference"), bounds);
        for row in rows.take(MAX_LOOKED_AT) {
            let (_, row) = row?;
            if told == MAX_REFERENCES {
                break;
            }
            if self.ignores(row.sender)? {
                continue;
            }
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
            told += 1;
        }
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    /// The newest valid edit that the asker may see. See "Validity of replacement events".
    fn edit(&self, original: &Stored, shape: Shape) -> Result<Option<String>> {
        let bounds: (Bound<(EventNid, u64, &str)>, _) = (Bound::Unbounded, Bound::Unbounded);
        let newest = EDITS.range_back(self.view, &(original.nid,), bounds);
        for row in newest.take(MAX_EDITS) {
            let (_, (edit,)) = row?;
            let edit = self.rooms.event(self.view, edit)?;
            let is_in_time = edit.facts.order.is_some_and(|order| order < self.horizon());
            if is_in_time && self.sees(&edit)?.is_some() {
                return Ok(Some(self.bare(&edit, shape)));
            }
        }
        Ok(None)
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
    fn thread(&self, root: &Stored, shape: Shape) -> Result<Option<String>> {
        let bounds = (
            Bound::Unbounded,
            Bound::Excluded((root.nid, THREAD, self.horizon())),
        );
        let newest = RELATIONS.range_back(self.view, &(root.nid, THREAD), bounds);
        let mut hidden = 0;
        for row in newest.take(MAX_LOOKED_AT) {
            let (_, row) = row?;
            if self.ignores(row.sender)? {
                continue;
            }
            let stored = self.rooms.event(self.view, row.event)?;
            let Some(membership) = self.sees(&stored)? else {
                hidden += 1;
                if hidden == MAX_HIDDEN_REPLIES {
                    break;
                }
                continue;
            };
            let mut json = String::from("{\"latest_event\":");
            self.show(&mut json, &Seen { stored, membership }, shape)?;
            let _ = write!(
                json,
                ",\"count\":{},\"current_user_participated\":{}}}",
                self.replies(root.nid)?,
                self.has_taken_part(root)?
            );
            return Ok(Some(json));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
