//! The laws of what users have said about single events: that they are to be sent later, or that their threads are followed.

use serde::de::IgnoredAny;

use super::{Check, Complaint};
use crate::store::{
    Result,
    schema::{
        DELAYED_DUE, DELAYED_ENDED, DELAYED_ENDED_OF, DELAYED_EVENTS, DELAYED_OF,
        DELAYED_TRANSACTIONS, ROOM_IDS, THREAD_SUBSCRIPTION_CHANGES, THREAD_SUBSCRIPTIONS,
    },
};

impl Check<'_> {
    /// Each is in the order of changes once, and where it says.
    pub(super) fn thread_subscriptions(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&THREAD_SUBSCRIPTIONS, say, |say, (user, root), row| {
            let change = THREAD_SUBSCRIPTION_CHANGES.get(&self.view, &(user, row.position))?;
            if change != Some((root,)) {
                say(format!(
                    "the thread {root} of user {user} changed at {}, but not in the order of changes",
                    row.position
                ));
            }
            if !self.has_event(root)? {
                say(format!("user {user} follows the thread {root}, which is missing"));
            }
            self.account(say, user, &format!("the thread {root}"))
        })?;
        self.rows(&THREAD_SUBSCRIPTION_CHANGES, say, |say, (user, position), (root,)| {
            let row = THREAD_SUBSCRIPTIONS.get(&self.view, &(user, root))?;
            if row.is_none_or(|row| row.position != position) {
                say(format!(
                    "the thread {root} of user {user} changed at {position}, which was not the last time"
                ));
            }
            Ok(())
        })
    }

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
        self.rows(&DELAYED_ENDED, say, |say, (id,), row| {
            let user = row.event.user;
            if !DELAYED_ENDED_OF.contains(&self.view, &(user, row.at, id.as_str()))? {
                say(format!(
                    "user {user} does not know what became of their delayed event {id}"
                ));
            }
            if DELAYED_EVENTS.contains(&self.view, &(id.as_str(),))? {
                say(format!("the delayed event {id} has ended, and still waits"));
            }
            self.account(say, user, &format!("the delayed event {id} that has ended"))
        })?;
        self.rows(&DELAYED_ENDED_OF, say, |say, (user, at, id), ()| {
            let row = DELAYED_ENDED.get(&self.view, &(id.as_str(),))?;
            if row.is_none_or(|row| (row.event.user, row.at) != (user, at)) {
                say(format!(
                    "the delayed event {id} of user {user} ended at {at}, but does not say so"
                ));
            }
            Ok(())
        })?;
        self.rows(&DELAYED_TRANSACTIONS, say, |say, (user, _, _), _| {
            self.account(say, user, "a transaction for a delayed event")
        })
    }
}
