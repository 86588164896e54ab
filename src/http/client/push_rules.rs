//! "Push rules".

use std::sync::Arc;

use ruma::api::client::push::{
    delete_pushrule, get_pushrule, get_pushrule_actions, get_pushrule_enabled, get_pushrules_all,
    get_pushrules_global_scope, set_pushrule, set_pushrule_actions, set_pushrule_enabled,
};

use crate::{
    error::Result,
    http::{extract::Ruma, routes::Routes},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(all)
        .on(global)
        .on(get)
        .on(set)
        .on(delete)
        .on(is_enabled)
        .on(enable)
        .on(actions)
        .on(set_actions)
}

async fn all(
    services: Arc<Services>,
    Ruma { requester, .. }: Ruma<get_pushrules_all::v3::Request>,
) -> Result<get_pushrules_all::v3::Response> {
    let rules = services.accounts.ruleset(&requester)?;
    Ok(get_pushrules_all::v3::Response::new(rules))
}

async fn global(
    services: Arc<Services>,
    Ruma { requester, .. }: Ruma<get_pushrules_global_scope::v3::Request>,
) -> Result<get_pushrules_global_scope::v3::Response> {
    let rules = services.accounts.ruleset(&requester)?;
    Ok(get_pushrules_global_scope::v3::Response::new(rules))
}

async fn get(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_pushrule::v3::Request>,
) -> Result<get_pushrule::v3::Response> {
    let accounts = &services.accounts;
    let rule = accounts.push_rule(&requester, &request.kind, &request.rule_id)?;
    Ok(get_pushrule::v3::Response::new(rule.into()))
}

async fn set(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<set_pushrule::v3::Request>,
) -> Result<set_pushrule::v3::Response> {
    let (after, before) = (request.after.as_deref(), request.before.as_deref());
    services
        .accounts
        .set_push_rule(&requester, request.rule, after, before)
        .await?;
    Ok(set_pushrule::v3::Response::new())
}

async fn delete(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<delete_pushrule::v3::Request>,
) -> Result<delete_pushrule::v3::Response> {
    services
        .accounts
        .delete_push_rule(&requester, request.kind, &request.rule_id)
        .await?;
    Ok(delete_pushrule::v3::Response::new())
}

async fn is_enabled(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_pushrule_enabled::v3::Request>,
) -> Result<get_pushrule_enabled::v3::Response> {
    let accounts = &services.accounts;
    let rule = accounts.push_rule(&requester, &request.kind, &request.rule_id)?;
    Ok(get_pushrule_enabled::v3::Response::new(rule.enabled()))
}

async fn enable(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<set_pushrule_enabled::v3::Request>,
) -> Result<set_pushrule_enabled::v3::Response> {
    let (kind, id) = (request.kind, &request.rule_id);
    services
        .accounts
        .enable_push_rule(&requester, kind, id, request.enabled)
        .await?;
    Ok(set_pushrule_enabled::v3::Response::new())
}

async fn actions(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_pushrule_actions::v3::Request>,
) -> Result<get_pushrule_actions::v3::Response> {
    let accounts = &services.accounts;
    let rule = accounts.push_rule(&requester, &request.kind, &request.rule_id)?;
    let actions = rule.actions().to_vec();
    Ok(get_pushrule_actions::v3::Response::new(actions))
}

async fn set_actions(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<set_pushrule_actions::v3::Request>,
) -> Result<set_pushrule_actions::v3::Response> {
    let (kind, id) = (request.kind, &request.rule_id);
    services
        .accounts
        .set_push_rule_actions(&requester, kind, id, request.actions)
        .await?;
    Ok(set_pushrule_actions::v3::Response::new())
}
