//! "Relationships API".

use std::sync::Arc;

use ruma::{
    UInt,
    api::client::relations::{
        get_relating_events, get_relating_events_with_rel_type,
        get_relating_events_with_rel_type_and_event_type,
    },
};

use super::events::{beside, number, token};
use crate::{
    error::Result,
    http::{extract::Ruma, respond::Json, routes::Routes},
    service::{
        Services,
        rooms::{Kind, Page},
    },
};

/// How many events are given if nothing is said.
const USUAL_LIMIT: u32 = 50;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .also_guests(all)
        .also_guests(of_rel_type)
        .also_guests(of_both_types)
}

/// The three endpoints differ in what they say about the relations only.
macro_rules! relations {
    ($name:ident, $endpoint:ident, $request:ident => $rel_type:expr, $event_type:expr) => {
        async fn $name(
            services: Arc<Services>,
            Ruma {
                request: $request,
                requester,
                ..
            }: Ruma<$endpoint::v1::Request>,
        ) -> Result<Json> {
            let kind = Kind {
                rel_type: $rel_type,
                event_type: $event_type,
                recurse: $request.recurse,
            };
            let page = Page {
                from: token("from", $request.from.as_deref())?,
                to: token("to", $request.to.as_deref())?,
                dir: $request.dir,
                limit: number($request.limit.unwrap_or(UInt::from(USUAL_LIMIT))),
            };
            let answer = beside(services, move |services| {
                let (room, parent) = (&$request.room_id, &$request.event_id);
                services
                    .rooms
                    .relations(&requester, room, parent, &kind, page)
            });
            answer.await.map(Json)
        }
    };
}

relations!(all, get_relating_events, request => None, None);
relations!(of_rel_type, get_relating_events_with_rel_type, request =>
    Some(request.rel_type.to_string()), None);
relations!(of_both_types, get_relating_events_with_rel_type_and_event_type, request =>
    Some(request.rel_type.to_string()), Some(request.event_type.clone()));
