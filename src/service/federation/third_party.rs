//! Asking the server of whoever has invited somebody by e-mail to invite the user that this turned out to be. See
//! "Third-party invites" in the server-server API.

use std::time::Duration;

use ruma::{
    OwnedRoomId, OwnedUserId, api::federation::thirdparty::exchange_invite,
    events::room::member::RoomMemberEventContent, serde::Raw,
};
use serde_json::value::RawValue;

use super::{Federation, directory::question};
use crate::{error::Result, remote::Limits};

/// The other server asks us for a signature meanwhile.
const QUESTION: Limits = Limits {
    time: Duration::from_secs(30),
    body: 64 << 10,
};

impl Federation {
    /// Asks the sender's server to make an invite of a third-party invite.
    ///
    /// # Errors
    /// What that server says, or why it does not; 429 when too many ask.
    pub async fn ask_to_exchange(
        &self,
        room: OwnedRoomId,
        (sender, target): (OwnedUserId, OwnedUserId),
        content: Box<RawValue>,
    ) -> Result<()> {
        let _question = question()?;
        let server = sender.server_name().to_owned();
        let content: Raw<RoomMemberEventContent> = Raw::from_json(content);
        let request = exchange_invite::v1::Request::new(room, sender, target, content);
        self.0
            .remote
            .send_within(&server, request, QUESTION)
            .await?;
        Ok(())
    }
}
