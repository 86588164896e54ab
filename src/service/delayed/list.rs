//! How their sender is told of delayed events: of those that wait, and of what has become of the others.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{DelayedEvents, not_there};
use crate::{
    error::{Error, Result},
    service::{
        Requester,
        delayed_rows::{Delayed, ended_of},
    },
    store::schema::{DELAYED_ENDED, DELAYED_EVENTS, DelayedRow, EndedRow, Outcome},
};

/// A delayed event as its sender is told of it.
#[derive(Debug, Serialize)]
pub struct Told {
    delay_id: String,
    room_id: String,
    #[serde(rename = "type")]
    event_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<String>,
    delay: u64,
    running_since: u64,
    content: Box<RawValue>,
    #[serde(flatten)]
    end: Option<End>,
}

/// What has become of it.
#[derive(Debug, Serialize)]
struct End {
    /// The name in the proposal, and the one of its drafts, which apps know.
    origin_server_ts: u64,
    finalised_ts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Reason>,
}

#[derive(Debug, Serialize)]
struct Reason {
    errcode: String,
    error: String,
}

impl DelayedEvents {
    /// The events of the user that wait, by when they are due.
    ///
    /// # Errors
    /// When the store fails.
    pub fn list(&self, requester: &Requester) -> Result<Vec<Told>> {
        let (mut kept, _) = self.of_user(&self.store.view(), requester)?;
        let sending = self.sending.lock().clone();
        kept.retain(|delayed| !sending.contains(&delayed.id));
        kept.sort_by_key(|delayed| delayed.row.due);
        let told = kept.into_iter();
        told.map(|Delayed { id, row }| self.told(id, row, None))
            .collect()
    }

    /// Those that were sent, cancelled or refused lately, in this order.
    ///
    /// # Errors
    /// When the store fails.
    pub fn list_ended(&self, requester: &Requester) -> Result<Vec<Told>> {
        let view = self.store.view();
        let mut told = Vec::new();
        for (_, id) in ended_of(&view, requester.nid)? {
            if let Some(row) = DELAYED_ENDED.get(&view, &(id.as_str(),))? {
                told.push(self.told_ended(id, row)?);
            }
        }
        Ok(told)
    }

    /// One of either.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND.
    pub fn get(&self, requester: &Requester, id: &str) -> Result<Told> {
        let view = self.store.view();
        let row = DELAYED_EVENTS.get(&view, &(id,))?;
        let row = row.filter(|row| row.user == requester.nid);
        if let Some(row) = row
            && !self.is_void(&view, &row)?
        {
            return self.told(id.to_owned(), row, None);
        }
        let row = DELAYED_ENDED.get(&view, &(id,))?;
        let row = row.filter(|row| row.event.user == requester.nid);
        self.told_ended(id.to_owned(), row.ok_or_else(not_there)?)
    }

    fn told_ended(&self, id: String, row: EndedRow) -> Result<Told> {
        let (event_id, error) = match row.outcome {
            Outcome::Sent(id) => (Some(id.to_string()), None),
            Outcome::Cancelled => (None, None),
            Outcome::Refused { errcode, message } => {
                let error = message;
                (None, Some(Reason { errcode, error }))
            }
        };
        let end = End {
            origin_server_ts: row.at,
            finalised_ts: row.at,
            event_id,
            error,
        };
        self.told(id, row.event, Some(end))
    }

    fn told(&self, id: String, row: DelayedRow, end: Option<End>) -> Result<Told> {
        let damaged = |e| Error::Internal(format!("a delayed event is damaged: {e}"));
        let content = RawValue::from_string(row.content).map_err(damaged)?;
        Ok(Told {
            room_id: self.store.room_id(row.room)?.to_string(),
            event_type: row.event_type,
            state_key: row.state_key,
            delay: row.delay,
            running_since: row.since,
            content,
            delay_id: id,
            end,
        })
    }
}
