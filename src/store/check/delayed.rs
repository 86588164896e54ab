//! The laws of events that are to be sent later.

use serde::de::IgnoredAny;

use super::{Check, Complaint};
use crate::store::{
    Result,
    schema::{DELAYED_DUE, DELAYED_EVENTS, DELAYED_OF, DELAYED_TRANSACTIONS, ROOM_IDS},
};

impl Check<'_> {
    /// Each is found by its user and by its time, and nothing else is.
    pub(super) fn delayed(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&DELAYED_EVENTS, say, |say, (id,), row| {
            if !DELAYED_OF.contains(&self.view, &(row.user, id.as_str()))? {
                say(format!(
                    "user {} does not know of their delayed event {id}",
                    row.user
                ));
            }
            if DELAYED_DUE.get(&self.view, &(row.due, id.as_str()))? != Some((row.room,)) {
                say(format!("the delayed event {id} is never sent"));
            }
            if serde_json::from_str::<IgnoredAny>(&row.content).is_err() {
                say(format!("the content of the delayed event {id} is not JSON"));
            }
            if !ROOM_IDS.contains(&self.view, &(row.room,))? {
                say(format!(
                    "the delayed event {id} is for room {}, which has no name",
                    row.room
                ));
            }
            self.account(say, row.user, &format!("the delayed event {id}"))
        })?;
        self.rows(&DELAYED_OF, say, |say, (user, id), ()| {
            let row = DELAYED_EVENTS.get(&self.view, &(id.as_str(),))?;
            if row.is_none_or(|row| row.user != user) {
                say(format!(
                    "user {user} has a delayed event {id}, which is not there"
                ));
            }
            Ok(())
        })?;
        self.rows(&DELAYED_DUE, say, |say, (due, id), _| {
            let row = DELAYED_EVENTS.get(&self.view, &(id.as_str(),))?;
            if row.is_none_or(|row| row.due != due) {
                say(format!(
                    "the delayed event {id} is to be sent at {due}, but does not say so"
                ));
            }
            Ok(())
        })?;
        self.rows(&DELAYED_TRANSACTIONS, say, |say, (user, _, _), _| {
            self.account(say, user, "a transaction for a delayed event")
        })
    }
}
