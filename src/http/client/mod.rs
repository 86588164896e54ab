//! The client-server API, one file per section of the specification.

mod account;
mod account_data;
mod backup;
mod dehydrated_device;
mod delayed_events;
mod devices;
mod directory;
mod discovery;
mod events;
mod filters;
mod keys;
mod legacy;
mod membership;
mod mutual_rooms;
mod notifications;
mod openid;
mod presence;
mod profile;
mod push_rules;
mod receipts;
mod registration;
mod relations;
mod reports;
mod rtc;
mod send;
mod session;
mod sliding;
mod spaces;
mod state;
mod sync;
mod third_party;
mod threads;
mod to_device;
mod typing;
mod user_directory;

pub(super) use self::directory::listing;
use super::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    let routes = discovery::routes(routes);
    let routes = session::routes(routes);
    let routes = registration::routes(routes);
    let routes = account::routes(routes);
    let routes = devices::routes(routes);
    let routes = openid::routes(routes);
    let routes = profile::routes(routes);
    let routes = user_directory::routes(routes);
    let routes = mutual_rooms::routes(routes);
    let routes = notifications::routes(routes);
    let routes = legacy::routes(routes);
    let routes = reports::routes(routes);
    let routes = third_party::routes(routes);
    let routes = account_data::routes(routes);
    let routes = push_rules::routes(routes);
    let routes = filters::routes(routes);
    let routes = membership::routes(routes);
    let routes = directory::routes(routes);
    let routes = spaces::routes(routes);
    let routes = send::routes(routes);
    let routes = delayed_events::routes(routes);
    let routes = events::routes(routes);
    let routes = state::routes(routes);
    let routes = relations::routes(routes);
    let routes = typing::routes(routes);
    let routes = receipts::routes(routes);
    let routes = presence::routes(routes);
    let routes = rtc::routes(routes);
    let routes = threads::routes(routes);
    let routes = to_device::routes(routes);
    let routes = keys::routes(routes);
    let routes = backup::routes(routes);
    let routes = dehydrated_device::routes(routes);
    let routes = sliding::routes(routes);
    sync::routes(routes)
}
