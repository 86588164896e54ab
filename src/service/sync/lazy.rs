//! Which members a device has been told already, so that lazy loading tells each only once.
//!
//! In memory only: after a restart a device gets some members again, which does no harm.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use quick_cache::sync::Cache;

use super::v3::Asking;
use crate::{
    protocol::ids::{EventNid, Position, RoomNid, StateKeyNid, UserNid},
    service::Requester,
};

/// How many pairs of a device and a room are remembered.
const REMEMBERED: usize = 20_000;

type Device = (UserNid, Option<String>, RoomNid);

pub(super) struct SentMembers(Cache<Device, Arc<Sent>>);

/// The members of one room that one device was told of, and where the answer that told it ended.
#[derive(Default)]
pub(super) struct Sent(Mutex<HashMap<StateKeyNid, (EventNid, Position)>>);

impl SentMembers {
    pub(super) fn new() -> Self {
        Self(Cache::new(REMEMBERED))
    }

    /// What a device knows of a room's members; nothing, when it begins `afresh`.
    pub(super) fn of(&self, requester: &Requester, room: RoomNid, afresh: bool) -> Arc<Sent> {
        let device = (requester.nid, requester.device_id.clone(), room);
        if let Some(sent) = self.0.get(&device).filter(|_| !afresh) {
            return sent;
        }
        let sent = Arc::new(Sent::default());
        self.0.insert(device, sent.clone());
        sent
    }
}

impl Sent {
    /// Takes note of a member event that is told in the answer to `asking`; true if it is news to the device.
    ///
    /// An answer that the device does not go on from may never have arrived, so what it told is told again.
    pub(super) fn remember(
        &self,
        asking: &Asking<'_>,
        member: StateKeyNid,
        event: EventNid,
    ) -> bool {
        let mut sent = self.0.lock();
        let known = sent.get(&member).is_some_and(|(known, told)| {
            *known == event && asking.since.is_some_and(|since| *told <= since)
        });
        if !known {
            sent.insert(member, (event, asking.view.position()));
        }
        !known
    }
}
