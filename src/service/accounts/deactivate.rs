//! Another password, and the end of an account.

use ruma::api::client::uiaa::AuthData;

use super::{Accounts, Requester, removal::Removal, sessions::devices_of};
use crate::{
    error::{Error, Result},
    protocol::ids::UserNid,
    service::delayed_rows::{Delayed, ended_of, forget_of},
    store::schema::{
        ACCOUNTS, AccountRow, BACKUP_KEYS, KEY_BACKUPS, PROFILES, THREAD_SUBSCRIPTION_CHANGES,
        THREAD_SUBSCRIPTIONS,
    },
};

impl Accounts {
    /// Gives the user another password, once they have given the old one; and logs all other devices out, if they
    /// wish.
    ///
    /// # Errors
    /// 400 M_WEAK_PASSWORD; what the client must do first, see [`Error::Uiaa`].
    pub async fn change_password(
        &self,
        requester: &Requester,
        password: String,
        log_out_others: bool,
        auth: Option<&AuthData>,
    ) -> Result<()> {
        self.check_strength(&password)?;
        self.confirm(requester, "change the password", auth).await?;
        self.set_password(requester.nid, password).await?;
        if log_out_others {
            let own = requester.device_id.as_deref();
            let others = |id: &str| Some(id) != own;
            self.remove_devices(requester.nid, others).await?;
        }
        Ok(())
    }

    /// Gives an account another password.
    ///
    /// # Errors
    /// 400 M_WEAK_PASSWORD; 404 M_NOT_FOUND for an account that is closed.
    pub async fn set_password(&self, user: UserNid, password: String) -> Result<()> {
        self.check_strength(&password)?;
        let hash = self.passwords.hash(password).await?;
        let position = {
            let _changing = self.changing.lock();
            let mut account = self.open_account(user)?;
            account.password = Some(hash);
            let committed = self.store.commit(|batch| {
                ACCOUNTS.put(batch, &(user,), &account);
                Ok(())
            })?;
            committed.position
        };
        Ok(self.store.durable(position).await?)
    }

    /// Closes an account for good: its sessions end, its password, its profile and its backups of keys are
    /// deleted, what it wanted to send later is not sent, and its user id is never given again. With `erase`, what others can see of it shall go as well. Leaving rooms is up to the caller.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND for an account that is closed already.
    pub async fn deactivate(&self, user: UserNid, erase: bool) -> Result<()> {
        let position = {
            let _changing = self.changing.lock();
            let mut account = self.open_account(user)?;
            account.deactivated = true;
            account.erased = erase;
            account.password = None;
            let view = self.store.latest();
            let mut removal = Removal::prepare(&view, user, devices_of(&view, user)?)?;
            let fields = PROFILES.scan(&view, &(user,));
            let fields = fields.map(|row| row.map(|((_, field), _)| field));
            let fields: Vec<_> = fields.collect::<Result<_, _>>()?;
            let delayed = Delayed::of_user(&view, user)?;
            let ended = ended_of(&view, user)?;
            let committed = self.store.commit(|batch| {
                ACCOUNTS.put(batch, &(user,), &account);
                removal.write(batch);
                KEY_BACKUPS.delete_all(batch, &(user,));
                BACKUP_KEYS.delete_all(batch, &(user,));
                THREAD_SUBSCRIPTIONS.delete_all(batch, &(user,));
                THREAD_SUBSCRIPTION_CHANGES.delete_all(batch, &(user,));
                for delayed in &delayed {
                    delayed.remove(batch);
                }
                forget_of(batch, user, &ended);
                for field in &fields {
                    PROFILES.delete(batch, &(user, field.as_str()));
                }
                Ok(())
            })?;
            self.sessions.forget(removal.access_tokens());
            committed.position
        };
        Ok(self.store.durable(position).await?)
    }

    /// The row of an account that is not closed. To be called while `changing` is held.
    fn open_account(&self, user: UserNid) -> Result<AccountRow> {
        let account = ACCOUNTS.get(&self.store.latest(), &(user,))?;
        account
            .filter(|account| !account.deactivated)
            .ok_or_else(|| Error::not_found("The account"))
    }
}
