//! "Server Side Search".

use std::sync::Arc;

use ruma::api::client::search::search_events;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::events::beside;
use crate::{
    error::{Error, Result},
    http::{
        extract::{Accepts, Ruma},
        respond::Json,
        routes::Routes,
    },
    protocol::{filter::RoomEventFilter, searchable::Key},
    service::{
        Services,
        search::{Around, Grouping, Order, Wanted},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    let accepts = Accepts {
        only_reads: true,
        ..Accepts::USUAL
    };
    routes.accepting(accepts, search)
}

/// What is asked for. ruma's type does not keep all of the filter.
#[derive(Deserialize)]
struct Body {
    search_categories: Categories,
}

#[derive(Deserialize)]
struct Categories {
    room_events: Option<RoomEvents>,
}

#[derive(Deserialize)]
struct RoomEvents {
    search_term: String,
    keys: Option<Vec<String>>,
    filter: Option<Box<RawValue>>,
    order_by: Option<String>,
    event_context: Option<EventContext>,
    include_state: Option<bool>,
    groupings: Option<Groupings>,
}

#[derive(Deserialize)]
struct EventContext {
    before_limit: Option<u64>,
    after_limit: Option<u64>,
    include_profile: Option<bool>,
}

#[derive(Deserialize)]
struct Groupings {
    #[serde(default)]
    group_by: Vec<GroupBy>,
}

#[derive(Deserialize)]
struct GroupBy {
    key: Option<String>,
}

async fn search(
    services: Arc<Services>,
    Ruma {
        request,
        requester,
        body,
        ..
    }: Ruma<search_events::v3::Request>,
) -> Result<Json> {
    let body: Body = serde_json::from_slice(&body).map_err(|e| Error::bad_json(e.to_string()))?;
    services.search.caught_up().await?;
    let Some(room_events) = body.search_categories.room_events else {
        return Ok(Json("{\"search_categories\":{}}".to_owned()));
    };
    let wanted = wanted(room_events, request.next_batch)?;
    let answer = beside(services, move |services| {
        services.search.search(&requester, wanted)
    });
    answer.await.map(Json)
}

fn wanted(asked: RoomEvents, next_batch: Option<String>) -> Result<Wanted> {
    let unknown = |what: &str, name: &str| {
        let name: String = name.chars().take(100).collect();
        Error::invalid_param(format!("{what}: {name} is unknown"))
    };
    let keys = match asked.keys {
        None => Key::ALL.to_vec(),
        Some(names) => names
            .iter()
            .map(|name| Key::named(name).ok_or_else(|| unknown("keys", name)))
            .collect::<Result<_>>()?,
    };
    let filter = match &asked.filter {
        None => RoomEventFilter::default(),
        Some(json) => RoomEventFilter::from_json(json.get())
            .map_err(|e| Error::invalid_param(e.to_string()))?,
    };
    let order = match asked.order_by.as_deref() {
        None | Some("rank") => Order::Rank,
        Some("recent") => Order::Recent,
        Some(other) => return Err(unknown("order_by", other)),
    };
    let mut groupings = Vec::new();
    for group in asked.groupings.into_iter().flat_map(|it| it.group_by) {
        let grouping = match group.key.as_deref() {
            Some("room_id") => Grouping::Room,
            Some("sender") => Grouping::Sender,
            other => return Err(unknown("group_by", other.unwrap_or("nothing"))),
        };
        if !groupings.contains(&grouping) {
            groupings.push(grouping);
        }
    }
    Ok(Wanted {
        term: asked.search_term,
        keys,
        filter,
        order,
        around: asked.event_context.map(|around| Around {
            before: around.before_limit.unwrap_or(5),
            after: around.after_limit.unwrap_or(5),
            include_profile: around.include_profile.unwrap_or_default(),
        }),
        include_state: asked.include_state.unwrap_or_default(),
        groupings,
        next_batch,
    })
}
