//! Push rules, kept as account data and compiled for those who evaluate them.

use std::sync::Arc;

use quick_cache::sync::Cache;
use ruma::{
    OwnedUserId, UserId,
    push::{
        Action, AnyPushRule, AnyPushRuleRef, InsertPushRuleError, NewPushRule, RemovePushRuleError,
        RuleKind, Ruleset,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    Accounts, Requester,
    data::{GLOBAL, Writing},
};
use crate::{
    error::{Error, Result},
    protocol::push::{self, Rules},
    store::schema::ACCOUNT_DATA,
};

/// Where the rules are kept.
pub(super) const PUSH_RULES: &str = "m.push_rules";

/// How many users' rules are kept in memory.
const CACHED: usize = 10_000;

/// The most that all rules of a user may take, in bytes of JSON.
const LARGEST: usize = 256 << 10;

/// Rules in memory, written only while `changing` is held.
pub(super) struct CompiledRules(Cache<OwnedUserId, Arc<Rules>>);

impl Default for CompiledRules {
    fn default() -> Self {
        Self(Cache::new(CACHED))
    }
}

/// The content of `m.push_rules`.
#[derive(Deserialize, Serialize)]
struct Content {
    global: Ruleset,
}

/// The content that a new account begins with.
pub(super) fn first_rules(user: &UserId) -> Result<String> {
    to_json(push::predefined(user))
}

fn to_json(global: Ruleset) -> Result<String> {
    serde_json::to_string(&Content { global })
        .map_err(|e| Error::Internal(format!("push rules could not be written: {e}")))
}

/// The rules of a user, with those that were predefined after they were stored.
fn parse(content: Option<&str>, user: &UserId) -> Result<Ruleset> {
    let predefined = push::predefined(user);
    let Some(content) = content else {
        return Ok(predefined);
    };
    let content: Content = serde_json::from_str(content)
        .map_err(|e| Error::Internal(format!("the push rules of {user} are damaged: {e}")))?;
    let mut ruleset = content.global;
    ruleset.update_with_server_default(predefined);
    Ok(ruleset)
}

impl Accounts {
    /// A local user's rules, ready to be asked. Those who have none of their own are given the predefined ones.
    pub fn push_rules(&self, user: &UserId) -> Result<Arc<Rules>> {
        if let Some(rules) = self.push_rules.0.get(user) {
            return Ok(rules);
        }
        // Held over reading and remembering, so that a change in between is not forgotten.
        let _changing = self.changing.lock();
        let content = match self.store.find_user(user)? {
            Some(nid) => ACCOUNT_DATA.get(&self.store.latest(), &(nid, GLOBAL, PUSH_RULES))?,
            None => None,
        };
        let ruleset = parse(content.as_ref().map(|row| &*row.content), user)?;
        let rules = Arc::new(Rules::new(&ruleset, user));
        self.push_rules.0.insert(user.to_owned(), rules.clone());
        Ok(rules)
    }

    /// All rules of the user.
    pub fn ruleset(&self, requester: &Requester) -> Result<Ruleset> {
        let content = self.account_data(requester, None, PUSH_RULES)?;
        parse(content.as_deref(), &requester.user_id)
    }

    /// One rule of the user.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND.
    pub fn push_rule(
        &self,
        requester: &Requester,
        kind: &RuleKind,
        rule_id: &str,
    ) -> Result<AnyPushRule> {
        let ruleset = self.ruleset(requester)?;
        let rule = ruleset.get(kind.clone(), rule_id);
        rule.map(AnyPushRuleRef::to_owned).ok_or_else(no_such_rule)
    }

    /// Adds a rule, or replaces the one with its id.
    ///
    /// # Errors
    /// 400 when the rule can not be, or its neighbours are not there.
    pub async fn set_push_rule(
        &self,
        requester: &Requester,
        rule: NewPushRule,
        after: Option<&str>,
        before: Option<&str>,
    ) -> Result<()> {
        self.change_rules(requester, |rules| {
            rules
                .insert(rule, after, before)
                .map_err(|e: InsertPushRuleError| Error::invalid_param(e.to_string()))
        })
        .await
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND; 400 for a predefined one.
    pub async fn delete_push_rule(
        &self,
        requester: &Requester,
        kind: RuleKind,
        rule_id: &str,
    ) -> Result<()> {
        self.change_rules(requester, |rules| {
            rules.remove(kind, rule_id).map_err(|e| match e {
                RemovePushRuleError::NotFound => no_such_rule(),
                e => Error::invalid_param(e.to_string()),
            })
        })
        .await
    }

    /// Turns a rule on or off.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND.
    pub async fn enable_push_rule(
        &self,
        requester: &Requester,
        kind: RuleKind,
        rule_id: &str,
        enabled: bool,
    ) -> Result<()> {
        self.change_rules(requester, |rules| {
            rules
                .set_enabled(kind, rule_id, enabled)
                .map_err(|_| no_such_rule())
        })
        .await
    }

    /// Replaces what a rule does.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND.
    pub async fn set_push_rule_actions(
        &self,
        requester: &Requester,
        kind: RuleKind,
        rule_id: &str,
        actions: Vec<Action>,
    ) -> Result<()> {
        self.change_rules(requester, |rules| {
            rules
                .set_actions(kind, rule_id, actions)
                .map_err(|_| no_such_rule())
        })
        .await
    }

    async fn change_rules(
        &self,
        requester: &Requester,
        change: impl FnOnce(&mut Ruleset) -> Result<()>,
    ) -> Result<()> {
        let (user, user_id) = (requester.nid, &requester.user_id);
        let position = {
            let _changing = self.changing.lock();
            let view = self.store.latest();
            let mut compiled = None;
            let writing = Writing::prepare(&view, user, GLOBAL, PUSH_RULES, |content| {
                let mut ruleset = parse(content, user_id)?;
                change(&mut ruleset)?;
                compiled = Some(Rules::new(&ruleset, user_id));
                let content = to_json(ruleset)?;
                if content.len() > LARGEST {
                    return Err(Error::too_large("These are too many push rules"));
                }
                Ok(content)
            })?;
            let committed = self.store.commit(|batch| {
                writing.write(batch);
                Ok(())
            })?;
            if let Some(rules) = compiled {
                self.push_rules.0.insert(user_id.clone(), Arc::new(rules));
            }
            committed.position
        };
        Ok(self.store.durable(position).await?)
    }
}

fn no_such_rule() -> Error {
    Error::not_found("The push rule")
}
