//! Keeps the index true. Whoever writes an account, a profile, or a membership of a user of another server leaves a row
//! that names the user; whoever searches next brings the index up to date, and so does the node now and then.

use std::ops::Bound;

use ruma::{UserId, events::room::member::MembershipState};
use serde_json::Value;

use super::{UserDirectory, words::terms};
use crate::{
    error::Result,
    protocol::ids::{EventNid, Position, UserNid},
    store::{
        self, Store, View,
        schema::{
            ACCOUNTS, DirectoryRow, META, PROFILES, USER_DIRECTORY, USER_DIRECTORY_CHANGES,
            USER_DIRECTORY_TERMS, USER_ROOMS,
        },
    },
};

/// How many users are looked at in one commit.
const CHUNK: usize = 256;

/// How words are made from names. Another number makes the index anew.
const FORM: u64 = 1;

/// Sees to it that there is an index of the present form, or will be one with the next search.
pub(super) fn open(store: &Store) -> Result<()> {
    let view = store.latest();
    if META.get(&view, &("user_directory",))? == Some((FORM,)) {
        return Ok(());
    }
    let mut users: Vec<UserNid> = Vec::new();
    for row in ACCOUNTS.scan(&view, &()) {
        users.push(row?.0.0);
    }
    for row in USER_ROOMS.scan(&view, &()) {
        let ((user, _), _) = row?;
        if users.last() != Some(&user) {
            users.push(user);
        }
    }
    for chunk in users.chunks(CHUNK) {
        let _not_awaited = store.commit(|batch| {
            for user in chunk {
                batch.note_user(*user);
            }
            Ok(())
        })?;
    }
    let _not_awaited = store.commit(|batch| {
        META.put(batch, &("user_directory",), &(FORM,));
        Ok(())
    })?;
    Ok(())
}

impl UserDirectory {
    /// Brings the index up to date with up to `most` changes; says whether that was all of them.
    ///
    /// # Errors
    /// When the store fails.
    pub fn catch_up(&self, most: usize) -> Result<bool> {
        let mut done = self.caught_up.lock();
        let mut left = most;
        while left > 0 {
            let view = self.store.view();
            let bounds = (Bound::Excluded(*done), Bound::Unbounded);
            let changes = USER_DIRECTORY_CHANGES.range(&view, &(), bounds);
            let keys = changes.take(CHUNK).map(|row| row.map(|(key, ())| key));
            let keys: Vec<(Position, UserNid)> = keys.collect::<store::Result<_>>()?;
            let Some(&last) = keys.last() else {
                return Ok(true);
            };
            self.renew(&view, &keys)?;
            *done = last;
            left = left.saturating_sub(keys.len());
        }
        Ok(false)
    }

    fn renew(&self, view: &View, keys: &[(Position, UserNid)]) -> Result<()> {
        let mut users: Vec<_> = keys.iter().map(|(_, user)| *user).collect();
        users.sort();
        users.dedup();
        // Rows of the index that are not durable yet are rows all the same.
        let index = self.store.latest();
        let mut rows = Vec::new();
        for user in users {
            let before = USER_DIRECTORY.get(&index, &(user,))?;
            let after = self.row(view, user)?;
            if before != after {
                rows.push((user, before, after));
            }
        }
        let _not_awaited = self.store.commit(|batch| {
            for key in keys {
                USER_DIRECTORY_CHANGES.delete(batch, key);
            }
            for (user, before, after) in &rows {
                for (rank, term) in before.iter().flat_map(|row| &row.terms) {
                    USER_DIRECTORY_TERMS.delete(batch, &(*rank, term.as_str(), *user));
                }
                for (rank, term) in after.iter().flat_map(|row| &row.terms) {
                    USER_DIRECTORY_TERMS.put(batch, &(*rank, term.as_str(), *user), &());
                }
                match after {
                    Some(row) => USER_DIRECTORY.put(batch, &(*user,), row),
                    None => USER_DIRECTORY.delete(batch, &(*user,)),
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    /// What is told of a user, and by what they are found; none if they are not.
    fn row(&self, view: &View, user: UserNid) -> Result<Option<DirectoryRow>> {
        let id = self.store.user_id(user)?;
        if id.server_name() != self.server_name {
            let shown = self.shown_elsewhere(view, user)?;
            return Ok(shown.map(|content| row(&id, &content, true)));
        }
        let account = ACCOUNTS.get(view, &(user,))?;
        if account.is_none_or(|account| account.deactivated || account.guest) {
            return Ok(None);
        }
        // Only what the user says to everybody: a name in one room may be meant for that room alone.
        let mut profile = Value::Null;
        for field in ["displayname", "avatar_url"] {
            if let Some(json) = PROFILES.get(view, &(user, field))? {
                profile[field] = serde_json::from_str(&json).unwrap_or_default();
            }
        }
        Ok(Some(row(&id, &profile, false)))
    }

    /// The content of the newest of the events by which a user of another server is in rooms.
    fn shown_elsewhere(&self, view: &View, user: UserNid) -> Result<Option<Value>> {
        let mut newest: Option<EventNid> = None;
        for row in USER_ROOMS.scan(view, &(user,)) {
            let (_, member) = row?;
            if member.membership == MembershipState::Join {
                newest = newest.max(Some(member.event));
            }
        }
        let Some(newest) = newest else {
            return Ok(None);
        };
        let member = self.rooms.event(view, newest)?;
        Ok(Some(member.event.content_as().unwrap_or_default()))
    }
}

fn row(user: &UserId, content: &Value, elsewhere: bool) -> DirectoryRow {
    let text = |name: &str| {
        let text = content[name].as_str().filter(|text| !text.is_empty());
        text.map(ToOwned::to_owned)
    };
    let display_name = text("displayname");
    DirectoryRow {
        terms: terms(user, display_name.as_deref(), elsewhere),
        display_name,
        avatar_url: text("avatar_url"),
    }
}
