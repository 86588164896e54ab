//! Two devices compare emoji.

use anyhow::{Context, Result, ensure};
use matrix_sdk::{
    encryption::verification::{SasVerification, VerificationRequest, VerificationRequestState},
    ruma::events::key::verification::VerificationMethod,
};

use crate::{
    device::Device,
    report::{Looked, so, until},
};

/// `asking` has sent the request; `asked` accepts it, both see the same emoji, say so, and are done.
pub async fn compare_emoji(
    asking: &Device,
    request: VerificationRequest,
    asked: &Device,
) -> Result<()> {
    let arrived = until("the request", async || {
        let encryption = asked.client.encryption();
        let found = encryption
            .get_verification_request(asking.user_id(), request.flow_id())
            .await;
        Ok(found.ok_or_else(|| "none".to_owned()))
    })
    .await?;
    arrived
        .accept_with_methods(vec![VerificationMethod::SasV1])
        .await?;
    until("the accepted request", async || {
        so(request.is_ready(), state(&request))
    })
    .await?;

    let here = request
        .start_sas()
        .await?
        .context("the request is not ready")?;
    let there = until("the start", async || Ok(begun(&arrived))).await?;
    there.accept().await?;
    until("the emoji", async || {
        let seen = here.can_be_presented() && there.can_be_presented();
        so(seen, format!("{:?}, {:?}", here.state(), there.state()))
    })
    .await?;
    let symbols = |sas: &SasVerification| sas.emoji().map(|emoji| emoji.map(|one| one.symbol));
    ensure!(
        symbols(&here).is_some() && symbols(&here) == symbols(&there),
        "the emoji differ"
    );

    here.confirm().await?;
    there.confirm().await?;
    until("the end of the verification", async || {
        let done = here.is_done() && there.is_done() && request.is_done() && arrived.is_done();
        so(done, format!("{:?}, {:?}", here.state(), there.state()))
    })
    .await
}

fn begun(request: &VerificationRequest) -> Looked<SasVerification> {
    match request.state() {
        VerificationRequestState::Transitioned { verification } => verification
            .sas()
            .ok_or_else(|| "another method".to_owned()),
        _ => Err(state(request)),
    }
}

fn state(request: &VerificationRequest) -> String {
    format!("{:?}", request.state())
}
