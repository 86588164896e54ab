//! What an event has to do with others, read before it is written: relations, threads, redactions, memberships.

use std::sync::Arc;

use ruma::{
    OwnedEventId, UserId, events::room::member::MembershipState,
    room_version_rules::RoomVersionRules,
};

use super::{Context, Member, Redacted};
use crate::{
    error::Result,
    protocol::{
        event::Event,
        ids::{EventNid, RoomNid, UserNid},
    },
    service::rooms::{
        Rooms, Stored,
        aggregations::Tie,
        threads::{THREAD, last_reply},
    },
    store::{
        View,
        schema::{MemberRow, RELATIONS, ROOM_MEMBERS},
    },
};

/// The longest that a chain of relations is followed to the root of a thread.
const MAX_RELATION_HOPS: usize = 3;

impl Rooms {
    /// What an event relates to, as far as that is there.
    pub(in crate::service::rooms) fn context_of(
        &self,
        view: &View,
        event: &Event,
    ) -> Result<Context> {
        let header = &event.header;
        let mut context = Context::default();
        let Some(named) = &header.relation else {
            return Ok(context);
        };
        let parent = self
            .find_event(view, &named.event_id)?
            .filter(|parent| parent.event.header.room_id == header.room_id);
        context.thread = match &parent {
            _ if named.rel_type == THREAD => Some(named.event_id.clone()),
            Some(parent) => self.thread_of(view, parent)?,
            None => None,
        };
        match parent {
            Some(parent) => {
                if named.rel_type == THREAD {
                    context.last_reply = last_reply(view, parent.nid, i64::MAX)?;
                }
                context.relation = Tie::of(event, &parent.event).map(|tie| (parent.nid, tie));
            }
            None => context.awaited.push(named.event_id.clone()),
        }
        Ok(context)
    }

    /// The thread of an event that relates to one in a thread, such as an edit or a reaction.
    fn thread_of(&self, view: &View, parent: &Stored) -> Result<Option<OwnedEventId>> {
        let mut thread = parent.facts.thread.clone();
        let mut relation = parent.event.header.relation.clone();
        for _ in 0..MAX_RELATION_HOPS {
            let (None, Some(up)) = (&thread, &relation) else {
                break;
            };
            let Some(next) = self.find_event(view, &up.event_id)? else {
                break;
            };
            thread.clone_from(&next.facts.thread);
            relation.clone_from(&next.event.header.relation);
        }
        Ok(thread)
    }

    /// The event of the same room that a redaction names, if it is there.
    pub(in crate::service::rooms) fn target_of(
        &self,
        view: &View,
        event: &Event,
    ) -> Result<Option<Arc<Stored>>> {
        let Some(target) = &event.header.redacts else {
            return Ok(None);
        };
        let found = self.find_event(view, target)?;
        Ok(found.filter(|found| found.event.header.room_id == event.header.room_id))
    }

    /// What a redaction makes of its target.
    pub(in crate::service::rooms) fn redaction(
        &self,
        view: &View,
        target: Arc<Stored>,
        rules: &RoomVersionRules,
    ) -> Result<Redacted> {
        let header = &target.event.header;
        let relation = self.tie_of(view, &target)?;
        let last_reply = match (&relation, target.facts.order) {
            (Some((parent, tie)), Some(order)) if tie.kind == THREAD => {
                last_reply(view, *parent, order)?
            }
            _ => None,
        };
        Ok(Redacted {
            emptied: target.emptied(rules)?,
            sender: self.store.user_nid(&header.sender)?,
            relation,
            last_reply,
            target,
        })
    }

    /// What a stored event relates to, if that is written: it is not while what it relates to has no place in the room.
    fn tie_of(&self, view: &View, stored: &Stored) -> Result<Option<(EventNid, Tie)>> {
        let (Some(named), Some(order)) = (&stored.event.header.relation, stored.facts.order) else {
            return Ok(None);
        };
        let Some(parent) = self.find_event(view, &named.event_id)? else {
            return Ok(None);
        };
        let key = (parent.nid, named.rel_type.as_str(), order);
        if !RELATIONS.contains(view, &key)? {
            return Ok(None);
        }
        Ok(Tie::of(&stored.event, &parent.event).map(|tie| (parent.nid, tie)))
    }

    /// What a membership is, and what it becomes.
    pub(in crate::service::rooms) fn member_of(
        &self,
        view: &View,
        room: RoomNid,
        user: &UserId,
        after: MembershipState,
    ) -> Result<Member> {
        let nid = self.store.user_nid(user)?;
        let before = ROOM_MEMBERS.get(view, &(room, nid))?;
        self.member_from(before, nid, user, after)
    }

    /// The same, when what it is has been read.
    pub(in crate::service::rooms) fn member_from(
        &self,
        before: Option<MemberRow>,
        nid: UserNid,
        user: &UserId,
        after: MembershipState,
    ) -> Result<Member> {
        let is_local = user.server_name() == self.server_name;
        Ok(Member {
            user: nid,
            server: if is_local {
                self.server
            } else {
                self.store.server_nid(user.server_name())?
            },
            is_local,
            before,
            after,
        })
    }
}
