//! An event as the authorization rules see it, whether it is stored or of the same run.

use std::sync::Arc;

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, UserId, events::TimelineEventType, state_res,
};
use serde_json::value::RawValue;

use crate::{protocol::event::Event, service::rooms::Stored};

/// An event that the rules look at.
pub(super) enum Known<'a> {
    Stored(Arc<Stored>),
    Drafted(&'a Event),
}

impl Known<'_> {
    fn event(&self) -> &Event {
        match self {
            Self::Stored(stored) => &stored.event,
            Self::Drafted(event) => event,
        }
    }
}

impl state_res::Event for Known<'_> {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        self.event().event_id()
    }
    fn room_id(&self) -> Option<&RoomId> {
        self.event().room_id()
    }
    fn sender(&self) -> &UserId {
        self.event().sender()
    }
    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.event().origin_server_ts()
    }
    fn event_type(&self) -> &TimelineEventType {
        self.event().event_type()
    }
    fn content(&self) -> &RawValue {
        self.event().content()
    }
    fn state_key(&self) -> Option<&str> {
        self.event().state_key()
    }
    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        self.event().prev_events()
    }
    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        self.event().auth_events()
    }
    fn redacts(&self) -> Option<&OwnedEventId> {
        self.event().redacts()
    }
    fn rejected(&self) -> bool {
        self.event().rejected()
    }
}
