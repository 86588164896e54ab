//! "Send-to-Device messaging".

use std::sync::Arc;

use ruma::{
    api::client::to_device::send_event_to_device::v3::{Request, Response},
    to_device::DeviceIdOrAllDevices,
};

use crate::{
    error::Result,
    http::{extract::Ruma, routes::Routes},
    service::{Services, e2ee::ToDevice},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.also_guests(send)
}

async fn send(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<Request>,
) -> Result<Response> {
    let messages = request.messages.into_iter().map(|(user, messages)| {
        let messages = messages.into_iter().map(|(device, content)| {
            let device = match device {
                DeviceIdOrAllDevices::DeviceId(device) => device.to_string(),
                DeviceIdOrAllDevices::AllDevices => "*".to_owned(),
            };
            (device, content.into_json())
        });
        (user, messages.collect())
    });
    let sent = ToDevice {
        event_type: request.event_type.to_string(),
        messages: messages.collect(),
    };
    let transaction = request.txn_id.as_str();
    services
        .encryption
        .send_to_device(&requester, transaction, &sent)
        .await?;
    Ok(Response::new())
}
