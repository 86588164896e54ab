//! "End-to-End Encryption".

use std::sync::Arc;

use ruma::api::federation::{
    device::get_devices,
    keys::{claim_keys, get_keys},
};

use crate::{
    error::Result,
    http::{extract::Ruma, respond::Json, routes::Routes},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(query).on(claim).on(devices)
}

async fn query(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_keys::v1::Request>,
) -> Result<Json> {
    tracing::debug!(origin = %requester.server, "keys are asked for");
    let wanted = request.device_keys.into_iter().map(|(user, devices)| {
        let devices = devices.into_iter().map(|device| device.to_string());
        (user, devices.collect())
    });
    Json::of(&services.federation.told_keys(&wanted.collect())?)
}

async fn devices(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_devices::v1::Request>,
) -> Result<Json> {
    tracing::debug!(origin = %requester.server, "devices are asked for");
    Json::of(&services.encryption.told_devices(&request.user_id)?)
}

async fn claim(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<claim_keys::v1::Request>,
) -> Result<Json> {
    tracing::debug!(origin = %requester.server, "keys are claimed");
    let wanted = request.one_time_keys.into_iter().map(|(user, devices)| {
        let devices = devices.into_iter();
        let devices =
            devices.map(|(device, algorithm)| (device.to_string(), algorithm.to_string()));
        (user, devices.collect())
    });
    let wanted = wanted.collect();
    Json::of(&services.federation.told_claimed(&wanted).await?)
}
