//! Filters that clients store so that they can name them with a number.

use std::sync::Arc;

use quick_cache::{Weighter, sync::Cache};
use ruma::{OwnedUserId, UserId};

use super::{Accounts, Requester};
use crate::{
    error::{Error, Result},
    protocol::filter::Filter,
    store::schema::{ACCOUNTS, FILTERS},
};

/// The longest filter, in bytes of JSON.
const LONGEST: usize = 64 << 10;

/// How many filters a user may have; one more takes the place of the oldest.
const MOST: usize = 100;

/// How many bytes of filters are kept in memory, counted as JSON.
const CACHED_BYTES: u64 = 4 << 20;

type Key = (OwnedUserId, u64);

/// Filters in memory. A filter never changes.
pub(super) struct Filters(Cache<Key, Kept, Weigh>);

#[derive(Clone)]
struct Kept {
    filter: Arc<Filter>,
    length: usize,
}

#[derive(Clone)]
struct Weigh;

impl Weighter<Key, Kept> for Weigh {
    fn weight(&self, _: &Key, kept: &Kept) -> u64 {
        u64::try_from(kept.length + 200).unwrap_or(u64::MAX)
    }
}

impl Default for Filters {
    fn default() -> Self {
        Self(Cache::with_weighter(1_000, CACHED_BYTES, Weigh))
    }
}

impl Accounts {
    /// Stores a filter and gives its number; the same filter has the same number.
    ///
    /// # Errors
    /// 400 M_BAD_JSON for what is no filter, 413 M_TOO_LARGE.
    pub async fn add_filter(&self, requester: &Requester, json: &str) -> Result<u64> {
        if json.len() > LONGEST {
            return Err(Error::too_large(format!(
                "A filter has at most {LONGEST} bytes"
            )));
        }
        Filter::from_json(json).map_err(|e| Error::bad_json(e.to_string()))?;
        let user = requester.nid;
        let (number, position) = {
            let _changing = self.changing.lock();
            let view = self.store.latest();
            let mut stored = Vec::new();
            for row in FILTERS.scan(&view, &(user,)) {
                let ((_, number), present) = row?;
                if present == json {
                    return Ok(number);
                }
                stored.push(number);
            }
            let account = ACCOUNTS.get(&view, &(user,))?;
            let mut account = account.ok_or_else(|| Error::not_found("The account"))?;
            account.last_filter += 1;
            let number = account.last_filter;
            let committed = self.store.commit(|batch| {
                ACCOUNTS.put(batch, &(user,), &account);
                FILTERS.put(batch, &(user, number), &json.to_owned());
                if let Some(oldest) = stored.first().filter(|_| stored.len() >= MOST) {
                    FILTERS.delete(batch, &(user, *oldest));
                }
                Ok(())
            })?;
            (number, committed.position)
        };
        self.store.durable(position).await?;
        Ok(number)
    }

    /// A filter of the user as they stored it.
    pub fn filter_json(&self, requester: &Requester, id: &str) -> Result<Option<String>> {
        let Ok(number) = id.parse::<u64>() else {
            return Ok(None);
        };
        Ok(FILTERS.get(&self.store.view(), &(requester.nid, number))?)
    }

    /// A filter of a local user, ready to be used.
    pub fn filter(&self, user: &UserId, id: &str) -> Result<Option<Arc<Filter>>> {
        let Ok(number) = id.parse::<u64>() else {
            return Ok(None);
        };
        let key = (user.to_owned(), number);
        if let Some(kept) = self.filters.0.get(&key) {
            return Ok(Some(kept.filter));
        }
        let Some(nid) = self.store.find_user(user)? else {
            return Ok(None);
        };
        let Some(json) = FILTERS.get(&self.store.view(), &(nid, number))? else {
            return Ok(None);
        };
        let filter = Filter::from_json(&json)
            .map_err(|e| Error::Internal(format!("filter {id} of {user} is damaged: {e}")))?;
        let kept = Kept {
            filter: Arc::new(filter),
            length: json.len(),
        };
        self.filters.0.insert(key, kept.clone());
        Ok(Some(kept.filter))
    }
}
