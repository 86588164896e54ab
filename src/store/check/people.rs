//! The laws of how people and what they say are found, and of who types.

use super::{Check, Complaint};
use crate::{
    protocol::ids::UserNid,
    store::{
        Result,
        schema::{
            ACCOUNTS, EVENTS, PROFILES, REPORTS, ROOM_HEADS, ROOM_IDS, Reported, SEARCH_AGAIN,
            TYPING, USER_DIRECTORY, USER_DIRECTORY_CHANGES, USER_DIRECTORY_TERMS, USER_IDS,
        },
    },
};

impl Check<'_> {
    pub(super) fn people(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.reports(say)?;
        self.rows(&SEARCH_AGAIN, say, |say, (position, event), ()| {
            if position > self.view.position() || event.0 >= position.0 {
                say(format!(
                    "event {event} is to be found by another text since {position}, which is not after it"
                ));
            }
            if !self.has_event(event)? {
                say(format!(
                    "event {event} is to be found by another text, but is missing"
                ));
            }
            Ok(())
        })?;
        self.rows(&TYPING, say, |say, (room,), ()| {
            if !ROOM_HEADS.contains(&self.view, &(room,))? {
                say(format!("somebody types in room {room}, which is not here"));
            }
            Ok(())
        })?;
        let mut waiting = std::collections::HashSet::new();
        self.rows(&USER_DIRECTORY_CHANGES, say, |say, (position, user), ()| {
            waiting.insert(user);
            if position > self.view.position() {
                say(format!(
                    "user {user} changed at {position}, which has not come yet"
                ));
            }
            Ok(())
        })?;
        self.rows(&USER_DIRECTORY, say, |say, (user,), row| {
            if !USER_IDS.contains(&self.view, &(user,))? {
                say(format!("user {user} is in the directory but has no name"));
            }
            for (rank, term) in &row.terms {
                if !USER_DIRECTORY_TERMS.contains(&self.view, &(*rank, term.as_str(), user))? {
                    say(format!("user {user} is not found by {term}"));
                }
            }
            if let Some(account) = ACCOUNTS.get(&self.view, &(user,))?
                && !waiting.contains(&user)
            {
                self.found_as_called(say, user, account.deactivated, row.display_name)?;
            }
            Ok(())
        })?;
        self.rows(&USER_DIRECTORY_TERMS, say, |say, (rank, term, user), ()| {
            let row = USER_DIRECTORY.get(&self.view, &(user,))?;
            if row.is_none_or(|row| !row.terms.contains(&(rank, term.clone()))) {
                say(format!("user {user} is found by {term}, but should not be"));
            }
            Ok(())
        })?;
        self.rows(&ACCOUNTS, say, |say, (user,), account| {
            if !account.deactivated
                && !account.guest
                && !waiting.contains(&user)
                && !USER_DIRECTORY.contains(&self.view, &(user,))?
            {
                say(format!("user {user} is missing from the directory"));
            }
            Ok(())
        })
    }

    fn reports(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&REPORTS, say, |say, (position,), row| {
            let is_there = match row.about {
                Reported::Room(room) => ROOM_IDS.contains(&self.view, &(room,))?,
                Reported::Event(room, event) => EVENTS
                    .get(&self.view, &(event,))?
                    .is_some_and(|event| event.room == room),
                Reported::User(user) => USER_IDS.contains(&self.view, &(user,))?,
            };
            if !is_there {
                say(format!(
                    "the report of {position} is about {:?}, which is missing",
                    row.about
                ));
            }
            self.account(say, row.reporter, &format!("the report of {position}"))
        })
    }

    fn found_as_called(
        &self,
        say: &mut dyn FnMut(Complaint),
        user: UserNid,
        deactivated: bool,
        found_as: Option<String>,
    ) -> Result<()> {
        if deactivated {
            say(format!("user {user} is deactivated, but can be found"));
        }
        let name = PROFILES.get(&self.view, &(user, "displayname"))?;
        let name: Option<String> = name.and_then(|json| serde_json::from_str(&json).ok());
        if name.filter(|name| !name.is_empty()) != found_as {
            say(format!("user {user} is found by a name that is not theirs"));
        }
        Ok(())
    }
}
