//! "Relationships API" and "Threading".

use std::sync::Arc;

use ruma::{
    UInt,
    api::{
        Direction,
        client::{
            relations::{
                get_relating_events, get_relating_events_with_rel_type,
                get_relating_events_with_rel_type_and_event_type,
            },
            threads::get_threads,
        },
    },
};

use super::events::{beside, number, token};
use crate::{
    error::{Error, Result},
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
        .also_guests(threads)
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

async fn threads(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_threads::v1::Request>,
) -> Result<Json> {
    let page = Page {
        from: token("from", request.from.as_deref())?,
        to: None,
        dir: Direction::Backward,
        limit: number(request.limit.unwrap_or(UInt::from(USUAL_LIMIT))),
    };
    let participated = match &request.include {
        get_threads::v1::IncludeThreads::All => false,
        get_threads::v1::IncludeThreads::Participated => true,
        _ => return Err(Error::invalid_param("include: `all` or `participated`")),
    };
    let answer = beside(services, move |services| {
        let room = &request.room_id;
        services.rooms.threads(&requester, room, participated, page)
    });
    answer.await.map(Json)
}
