//! Writing one event of a local user. Where the room has a policy server it is asked in between, and the room is free
//! meanwhile. See "Policy Servers" in the server-server API.

use ruma::{CanonicalJsonObject, OwnedEventId, RoomId};

use super::Lifecycle;
use crate::{
    error::{Error, Result},
    protocol::{
        ingest::{Need, Pdu, Verdict},
        policy::PolicyServer,
    },
    service::rooms::{NewEvent, Outcome, RoomGuard, RoomHead, Run, Transaction},
    store::schema::TRANSACTIONS,
};

/// How often an event is drafted anew because the state that it stands on has changed. Afterwards it is written as it
/// is, if the room allows it: what follows brings both together.
const MOST_DRAFTS: usize = 3;

/// How often a policy server is asked about one event.
const MOST_ASKED: usize = 6;

impl Lifecycle {
    /// Adds one event to the end of a room, and lets go of the room. The same transaction gives the same event again, and
    /// so does a piece of state that is so already.
    ///
    /// # Errors
    /// [`Error::Denied`] when the room does not allow it; what its policy server says against it, or why that can not be
    /// asked.
    pub(super) async fn write(&self, mut guard: RoomGuard, new: NewEvent) -> Result<OwnedEventId> {
        let head = guard.head();
        if let Some(id) = self.present(head, &new)? {
            return Ok(id);
        }
        self.check_content(head, &new)?;
        match self.policy_for(head, &new)? {
            None => self.append(head, new),
            Some(policy) => Box::pin(self.write_recommended(guard, policy, new)).await,
        }
    }

    /// Adds some events to the end of a room: all or none, if it has no policy server.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub(super) async fn write_all(
        &self,
        mut guard: RoomGuard,
        events: impl IntoIterator<Item = NewEvent>,
    ) -> Result<()> {
        let events: Vec<NewEvent> = events.into_iter().collect();
        let head = guard.head();
        let mut is_free = true;
        for event in &events {
            is_free &= self.policy_for(head, event)?.is_none();
        }
        if is_free {
            let mut run = Run::new(&self.rooms, head);
            for event in events {
                run.add(event)?;
            }
            return run.commit(|_| {});
        }
        let room = head.id.clone();
        drop(guard);
        for event in events {
            self.write(self.lock_again(&room).await?, event).await?;
        }
        Ok(())
    }

    /// The policy server that must sign an event before it is sent.
    pub(super) fn policy_for(
        &self,
        head: &RoomHead,
        new: &NewEvent,
    ) -> Result<Option<PolicyServer>> {
        let key = new.state_key.as_deref();
        self.rooms.policy_server(head, &new.event_type, key)
    }

    async fn write_recommended(
        &self,
        mut guard: RoomGuard,
        mut policy: PolicyServer,
        new: NewEvent,
    ) -> Result<OwnedEventId> {
        let room = guard.head().id.clone();
        let mut drafts = 0;
        let mut draft = None;
        for _ in 0..MOST_ASKED {
            let head = guard.head();
            let rules = head.rules;
            let (event, on) = match draft.take() {
                Some(draft) => draft,
                None => {
                    drafts += 1;
                    let event = Run::new(&self.rooms, head).try_out(new.clone())?;
                    (event, head.row.chain.tip)
                }
            };
            drop(guard);
            let pdu = self.federation.recommended(&policy, &event, rules).await?;
            guard = self.lock_again(&room).await?;
            let head = guard.head();
            if let Some(id) = self.present(head, &new)? {
                return Ok(id);
            }
            self.check_content(head, &new)?;
            // Messages that have come meanwhile only make a fork, which the next event heals.
            if head.row.chain.tip != on && drafts < MOST_DRAFTS {
                match self.policy_for(head, &new)? {
                    None => return self.append(head, new),
                    Some(other) => policy = other,
                }
                continue;
            }
            match self.write_signed(head, &pdu, new.transaction.clone())? {
                None => return Ok(pdu.event.header.id),
                Some(Need::Recommendation(other)) => {
                    policy = other;
                    draft = Some((event, on));
                }
                Some(need) => {
                    return Err(Error::Internal(format!(
                        "an event of ours needs what it was made from: {need:?}"
                    )));
                }
            }
        }
        Err(Error::forbidden(
            "The room changes its policy server all the time; try again",
        ))
    }

    /// An event as the room's policy server has signed it, to be written later; none where there is no such server.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub(super) async fn signed_ahead(&self, room: &RoomId, new: &NewEvent) -> Result<Option<Pdu>> {
        let mut guard = self.lock_again(room).await?;
        let head = guard.head();
        let rules = head.rules;
        let Some(policy) = self.policy_for(head, new)? else {
            return Ok(None);
        };
        let event = Run::new(&self.rooms, head).try_out(new.clone())?;
        drop(guard);
        let signed = self.federation.recommended(&policy, &event, rules);
        Ok(Some(Box::pin(signed).await?))
    }

    /// Writes an event that was signed before; what it needs if that is not enough.
    ///
    /// # Errors
    /// 403 when the room does not take it any more.
    pub(super) fn write_signed(
        &self,
        head: &mut RoomHead,
        pdu: &Pdu,
        transaction: Option<Transaction>,
    ) -> Result<Option<Need>> {
        self.rooms.check_now(head, &pdu.event)?;
        match self.rooms.accept_own(head, pdu, transaction)? {
            Outcome::Needs(need) => Ok(Some(need)),
            Outcome::Written {
                verdict: Verdict::Rejected(denied) | Verdict::SoftFailed(denied),
                ..
            } => Err(denied.into()),
            Outcome::Written { .. } | Outcome::Known => Ok(None),
        }
    }

    /// Waits for the lock of a room that was let go of.
    pub(super) async fn lock_again(&self, room: &RoomId) -> Result<RoomGuard> {
        let mut guard = self.rooms.lock(room).await?;
        if self.rooms.takes_part(guard.head()) {
            Ok(guard)
        } else {
            Err(Error::forbidden("You are not in this room"))
        }
    }

    /// The event that has done already what this one would do.
    fn present(&self, head: &RoomHead, new: &NewEvent) -> Result<Option<OwnedEventId>> {
        match self.repeated(&head.id, new)? {
            Some(id) => Ok(Some(id)),
            None => self.as_it_is(head, new),
        }
    }

    /// The event that the same transaction has made.
    pub(super) fn repeated(&self, room: &RoomId, new: &NewEvent) -> Result<Option<OwnedEventId>> {
        let (Some(transaction), Some(room)) = (&new.transaction, self.store.find_room(room)?)
        else {
            return Ok(None);
        };
        let sender = self.store.user_nid(&new.sender)?;
        let device = transaction.origin.device_id.as_str();
        let key = (sender, device, room, transaction.key());
        let view = self.store.latest();
        let Some(row) = TRANSACTIONS.get(&view, &key)? else {
            return Ok(None);
        };
        let made = self.rooms.event(&view, row.event)?;
        Ok(Some(made.event.header.id.clone()))
    }

    /// The state event that says the same already, by the same user.
    fn as_it_is(&self, head: &RoomHead, new: &NewEvent) -> Result<Option<OwnedEventId>> {
        let Some(state_key) = &new.state_key else {
            return Ok(None);
        };
        let view = self.store.latest();
        let event_type = new.event_type.to_string();
        let present = self
            .rooms
            .entry(&view, &head.state, &event_type, state_key)?;
        let same = present.filter(|present| {
            let content = present.event.content_as::<CanonicalJsonObject>();
            present.event.header.sender == new.sender
                && content.is_ok_and(|content| content == new.content)
        });
        Ok(same.map(|same| same.event.header.id.clone()))
    }
}
