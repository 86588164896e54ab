//! The laws of what the node carries from device to device.

use serde::de::IgnoredAny;

use super::{Check, Complaint};
use crate::{
    protocol::ids::{ServerNid, UserNid},
    store::{
        Result,
        schema::{
            DEVICES, LASTING_EDUS, RECEIVED_TO_DEVICE, SENT_TO_DEVICE, SERVER_NAMES, TO_DEVICE,
        },
    },
};

impl Check<'_> {
    pub(super) fn encryption(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&TO_DEVICE, say, |say, (user, device, position), json| {
            if serde_json::from_str::<IgnoredAny>(&json).is_err() {
                say(format!(
                    "what waits for the device {device} of user {user} is not JSON"
                ));
            }
            if position > self.view.position() {
                say(format!(
                    "a message waits since {position}, which has not come yet"
                ));
            }
            self.device(say, (user, &device), "a message")
        })?;
        self.rows(&SENT_TO_DEVICE, say, |say, (user, device, _, _), _| {
            self.device(say, (user, &device), "a transaction")
        })?;
        self.rows(&LASTING_EDUS, say, |say, (server, position), json| {
            if serde_json::from_str::<IgnoredAny>(&json).is_err() {
                say(format!("what server {server} is to be told is not JSON"));
            }
            if position > self.view.position() {
                say(format!(
                    "server {server} is to be told something of {position}, which has not come yet"
                ));
            }
            self.has_name(say, server)
        })?;
        self.rows(&RECEIVED_TO_DEVICE, say, |say, (server, _), _| {
            self.has_name(say, server)
        })
    }

    fn has_name(&self, say: &mut dyn FnMut(Complaint), server: ServerNid) -> Result<()> {
        if !SERVER_NAMES.contains(&self.view, &(server,))? {
            say(format!(
                "server {server} writes to devices, but has no name"
            ));
        }
        Ok(())
    }

    /// Complains if `what` is of a device that is not there.
    fn device(
        &self,
        say: &mut dyn FnMut(Complaint),
        (user, device): (UserNid, &str),
        what: &str,
    ) -> Result<()> {
        if !DEVICES.contains(&self.view, &(user, device))? {
            say(format!(
                "{what} is for the device {device} of user {user}, which is not there"
            ));
        }
        Ok(())
    }
}
