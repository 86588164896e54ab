//! "Receipts" and "Fully read markers".

use std::sync::Arc;

use ruma::{
    api::client::{
        read_marker::set_read_marker,
        receipt::create_receipt::{self, v3::ReceiptType},
    },
    events::receipt::ReceiptThread,
};

use crate::{
    error::Result,
    http::{extract::Ruma, routes::Routes},
    service::{Services, ephemeral::Mark},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.also_guests(receipt).also_guests(read_markers)
}

async fn receipt(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<create_receipt::v3::Request>,
) -> Result<create_receipt::v3::Response> {
    let mark = Mark {
        receipt_type: request.receipt_type,
        event_id: request.event_id,
        thread: request.thread,
    };
    let room = &request.room_id;
    services.receipts.set(&requester, room, &[mark]).await?;
    services.presence.active(requester.nid)?;
    Ok(create_receipt::v3::Response::new())
}

async fn read_markers(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<set_read_marker::v3::Request>,
) -> Result<set_read_marker::v3::Response> {
    let marks: Vec<_> = [
        (ReceiptType::FullyRead, request.fully_read),
        (ReceiptType::Read, request.read_receipt),
        (ReceiptType::ReadPrivate, request.private_read_receipt),
    ]
    .into_iter()
    .filter_map(|(receipt_type, event_id)| {
        Some(Mark {
            receipt_type,
            event_id: event_id?,
            thread: ReceiptThread::Unthreaded,
        })
    })
    .collect();
    let room = &request.room_id;
    services.receipts.set(&requester, room, &marks).await?;
    services.presence.active(requester.nid)?;
    Ok(set_read_marker::v3::Response::new())
}
