//! "Device management".

use std::sync::Arc;

use ruma::{
    MilliSecondsSinceUnixEpoch,
    api::client::device::{
        Device as RumaDevice, delete_device, delete_devices, get_device, get_devices, update_device,
    },
};

use crate::{
    error::{Error, Result},
    http::{extract::Ruma, routes::Routes},
    service::{Services, accounts::Device},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .also_guests(list)
        .also_guests(get)
        .also_guests(rename)
        .on(delete)
        .on(delete_many)
}

fn shown(device: Device) -> RumaDevice {
    let mut shown = RumaDevice::new(device.id.into());
    shown.display_name = device.display_name;
    shown.last_seen_ip = device.last_seen_ip;
    let ts = device.last_seen_ts.and_then(|ts| ts.try_into().ok());
    shown.last_seen_ts = ts.map(MilliSecondsSinceUnixEpoch);
    shown
}

async fn list(
    services: Arc<Services>,
    Ruma { requester, .. }: Ruma<get_devices::v3::Request>,
) -> Result<get_devices::v3::Response> {
    let devices = services.accounts.devices(&requester)?;
    let devices = devices.into_iter().map(shown).collect();
    Ok(get_devices::v3::Response::new(devices))
}

async fn get(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_device::v3::Request>,
) -> Result<get_device::v3::Response> {
    let device = services
        .accounts
        .device(&requester, request.device_id.as_str())?;
    let device = device.ok_or_else(|| Error::not_found("The device"))?;
    Ok(get_device::v3::Response::new(shown(device)))
}

async fn rename(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<update_device::v3::Request>,
) -> Result<update_device::v3::Response> {
    let id = request.device_id.as_str();
    services
        .accounts
        .rename_device(&requester, id, request.display_name)
        .await?;
    Ok(update_device::v3::Response::new())
}

async fn delete(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<delete_device::v3::Request>,
) -> Result<delete_device::v3::Response> {
    let ids = [request.device_id.into()].into();
    services
        .accounts
        .delete_devices(&requester, ids, request.auth.as_ref())
        .await?;
    Ok(delete_device::v3::Response::new())
}

async fn delete_many(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<delete_devices::v3::Request>,
) -> Result<delete_devices::v3::Response> {
    let ids = request.devices.into_iter().map(Into::into).collect();
    services
        .accounts
        .delete_devices(&requester, ids, request.auth.as_ref())
        .await?;
    Ok(delete_devices::v3::Response::new())
}
