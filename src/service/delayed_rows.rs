//! The rows of events that are to be sent later: one for each, how it is found by its user and by its time, and what is left
//! of it afterwards.

use crate::{
    error::Result,
    protocol::ids::UserNid,
    store::{
        Batch, View,
        schema::{
            DELAYED_DUE, DELAYED_ENDED, DELAYED_ENDED_OF, DELAYED_EVENTS, DELAYED_OF,
            DELAYED_TRANSACTIONS, DelayedRow,
        },
    },
};

/// An event that is to be sent later, with its id.
#[derive(Clone, Debug)]
pub(super) struct Delayed {
    pub(super) id: String,
    pub(super) row: DelayedRow,
}

impl Delayed {
    /// All of a user.
    pub(super) fn of_user(view: &View, user: UserNid) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for key in DELAYED_OF.scan(view, &(user,)) {
            let ((_, id), ()) = key?;
            if let Some(row) = DELAYED_EVENTS.get(view, &(id.as_str(),))? {
                all.push(Self { id, row });
            }
        }
        Ok(all)
    }

    /// Writes one that is new, or was removed in the same batch.
    pub(super) fn put(&self, batch: &mut Batch<'_>) {
        let id = self.id.as_str();
        DELAYED_EVENTS.put(batch, &(id,), &self.row);
        DELAYED_OF.put(batch, &(self.row.user, id), &());
        DELAYED_DUE.put(batch, &(self.row.due, id), &(self.row.room,));
    }

    /// Removes it, as it was read.
    pub(super) fn remove(&self, batch: &mut Batch<'_>) {
        let id = self.id.as_str();
        DELAYED_EVENTS.delete(batch, &(id,));
        DELAYED_OF.delete(batch, &(self.row.user, id));
        DELAYED_DUE.delete(batch, &(self.row.due, id));
    }
}

/// When those of a user ended that are still known, and their ids, the first first.
pub(super) fn ended_of(view: &View, user: UserNid) -> Result<Vec<(u64, String)>> {
    let keys = DELAYED_ENDED_OF.scan(view, &(user,));
    keys.map(|key| key.map(|((_, at, id), ())| (at, id)).map_err(Into::into))
        .collect()
}

/// Removes what is left of the events of a user: the answers to all transactions, and `ended`.
pub(super) fn forget_of(batch: &mut Batch<'_>, user: UserNid, ended: &[(u64, String)]) {
    DELAYED_TRANSACTIONS.delete_all(batch, &(user,));
    DELAYED_ENDED_OF.delete_all(batch, &(user,));
    for (_, id) in ended {
        DELAYED_ENDED.delete(batch, &(id.as_str(),));
    }
}
