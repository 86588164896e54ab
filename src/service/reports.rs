//! What users report to the people who run the node. See "Reporting Content".

use std::sync::Arc;

use ruma::{EventId, RoomId, UserId};

use super::{
    Requester,
    accounts::Accounts,
    limits::{Kind, Limits},
    rooms::{Rooms, Stranger},
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    store::{
        Store,
        schema::{REPORTS, ROOM_MEMBERS, ReportRow, Reported},
    },
};

/// The longest reason, in bytes.
const LONGEST_REASON: usize = 8 << 10;

/// What users have reported.
pub struct Reports {
    store: Store,
    clock: Clock,
    limits: Limits,
    accounts: Arc<Accounts>,
    rooms: Arc<Rooms>,
}

impl Reports {
    pub(super) fn new(
        store: Store,
        clock: Clock,
        limits: Limits,
        accounts: Arc<Accounts>,
        rooms: Arc<Rooms>,
    ) -> Self {
        Self {
            store,
            clock,
            limits,
            accounts,
            rooms,
        }
    }

    /// Reports a room, which the user need not be in.
    ///
    /// # Errors
    /// 404 for a room that the user can know nothing of; 400 for a reason that is too long.
    pub async fn report_room(
        &self,
        requester: &Requester,
        room: &RoomId,
        reason: String,
    ) -> Result<()> {
        self.check(requester, &reason)?;
        let missing = || Error::not_found("The room");
        let nid = self.store.find_room(room)?.ok_or_else(missing)?;
        let view = self.store.view();
        if !ROOM_MEMBERS.contains(&view, &(nid, requester.nid))? {
            let summary = self.rooms.summary(&view, nid)?.ok_or_else(missing)?;
            let who = Stranger::User(requester.nid);
            if !self.rooms.may_know(&view, &summary, who)? {
                return Err(missing());
            }
        }
        self.write(requester, Reported::Room(nid), reason).await
    }

    /// Reports an event of a room that the user is in.
    ///
    /// # Errors
    /// 404 when the user is not in the room or does not see the event; 400 for a reason that is too long.
    pub async fn report_event(
        &self,
        requester: &Requester,
        room: &RoomId,
        event: &EventId,
        reason: String,
    ) -> Result<()> {
        self.check(requester, &reason)?;
        let missing = || Error::not_found("The event, or your membership in its room,");
        let nid = self.store.find_room(room)?.ok_or_else(missing)?;
        let view = self.store.view();
        let sight = self.rooms.sight(&view, nid, requester)?;
        if !sight.is_joined() {
            return Err(missing());
        }
        let found = sight.find(room, event)?.ok_or_else(missing)?;
        let reported = Reported::Event(nid, found.stored.nid);
        self.write(requester, reported, reason).await
    }

    /// Reports a user, with whom the reporter need not share a room.
    ///
    /// # Errors
    /// 404 for a user whom this node does not know; 400 for a reason that is too long.
    pub async fn report_user(
        &self,
        requester: &Requester,
        user: &UserId,
        reason: String,
    ) -> Result<()> {
        self.check(requester, &reason)?;
        let missing = || Error::not_found("The user");
        let nid = self.store.find_user(user)?.ok_or_else(missing)?;
        let is_local = user.server_name() == self.rooms.server_name();
        if is_local && self.accounts.find(&self.store.view(), user)?.is_none() {
            return Err(missing());
        }
        self.write(requester, Reported::User(nid), reason).await
    }

    fn check(&self, requester: &Requester, reason: &str) -> Result<()> {
        if reason.len() > LONGEST_REASON {
            return Err(Error::invalid_param(format!(
                "A reason has at most {LONGEST_REASON} bytes"
            )));
        }
        self.limits.check(Kind::Report, requester.user_id.as_str())
    }

    async fn write(&self, requester: &Requester, about: Reported, reason: String) -> Result<()> {
        let row = ReportRow {
            ts: self.clock.now_ms(),
            reporter: requester.nid,
            about,
            reason,
        };
        let committed = self.store.commit(|batch| {
            let position = batch.position();
            REPORTS.put(batch, &(position,), &row);
            Ok(())
        })?;
        Ok(self.store.durable(committed.position).await?)
    }
}
