//! stub
use crate::{
    error::Result,
    protocol::ids::*,
    service::Requester,
    store::{View, schema::ReceiptRow},
};
use ruma::OwnedUserId;
use std::sync::Arc;
pub struct Typing;
pub struct Receipts;
pub struct Presence;
impl Typing {
    pub fn since(&self, _: RoomNid, _: Option<Position>) -> Result<Option<String>> {
        Ok(None)
    }
}
impl Receipts {
    pub fn since(
        &self,
        _: &View,
        _: RoomNid,
        _: Option<Position>,
        _: &Requester,
    ) -> Result<Option<String>> {
        Ok(None)
    }
    pub fn of(&self, _: &View, _: RoomNid, _: UserNid) -> Result<Vec<ReceiptRow>> {
        Ok(vec![])
    }
}
impl Presence {
    pub fn synced(&self, _: &Requester, _: ruma::presence::PresenceState) -> Result<()> {
        Ok(())
    }
    pub fn since(
        &self,
        _: &View,
        _: Option<Position>,
        _: &Requester,
    ) -> Result<Vec<(OwnedUserId, String)>> {
        Ok(vec![])
    }
}
