//! Whether a room wants the signature of a policy server. See "Determining if a Policy Server is enabled in a room" in the
//! server-server API.

use ruma::events::TimelineEventType;

use super::{RoomHead, Rooms};
use crate::{
    error::Result,
    protocol::{
        event::Event,
        ingest::Pdu,
        policy::{self, PolicyServer},
    },
};

/// What a policy server says about an event.
pub(super) enum Advice {
    /// It has signed it, or has nothing to say.
    For,
    /// It was asked in vain.
    Against,
    /// It was not asked yet.
    Unknown(PolicyServer),
}

impl Rooms {
    /// The policy server that must sign an event of this kind before it can be a part of the room as it is now. Where
    /// there is none, as nearly everywhere, it costs one look into the state in memory.
    ///
    /// # Errors
    /// When the store fails.
    pub fn policy_server(
        &self,
        head: &RoomHead,
        event_type: &TimelineEventType,
        state_key: Option<&str>,
    ) -> Result<Option<PolicyServer>> {
        let Some(nid) = head.state.get(&self.policy) else {
            return Ok(None);
        };
        if !policy::is_asked_about(event_type, state_key) {
            return Ok(None);
        }
        let stored = self.event(&self.store.latest(), *nid)?;
        let Some(named) = PolicyServer::named(stored.event.content_json()) else {
            return Ok(None);
        };
        // This node is none. Where a room takes it for one, the others in it find that out.
        let server = self.store.find_server(named.name())?;
        let is_there = server
            .is_some_and(|server| server != self.server && head.servers.contains_key(&server));
        Ok(is_there.then_some(named))
    }

    /// What the room's policy server says about an event, as far as that is known here.
    pub(super) fn advice(&self, head: &RoomHead, pdu: &Pdu) -> Result<Advice> {
        let Event { header, .. } = &pdu.event;
        let key = header.state_key.as_deref();
        let Some(server) = self.policy_server(head, &header.event_type, key)? else {
            return Ok(Advice::For);
        };
        let object = pdu.event.to_canonical();
        if object.is_ok_and(|object| server.has_signed(&object, head.rules)) {
            return Ok(Advice::For);
        }
        Ok(if pdu.refused {
            Advice::Against
        } else {
            Advice::Unknown(server)
        })
    }
}
