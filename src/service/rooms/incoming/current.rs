//! What an accepted event makes of the room's current state, and of all that is counted by it.

use ruma::{UserId, events::room::member::MembershipState};

use super::plan::{Current, Delta, Plan, Target, is_same, is_tip, sorted};
use crate::{
    error::Result,
    protocol::{event::Event, ids::StateKeyNid},
    service::rooms::{RoomHead, Rooms, append::Change},
    store::{View, difference},
};

impl Rooms {
    pub(super) fn plan_current(
        &self,
        view: &View,
        head: &mut RoomHead,
        plan: &mut Plan,
    ) -> Result<()> {
        let on_tip = is_tip(head, &plan.ground);
        if plan.others.is_empty() {
            plan.is_straight = on_tip;
            plan.current = Current::After;
            let delta = if on_tip {
                Delta::default()
            } else {
                difference(&head.state, &plan.ground.state)
            };
            return self.plan_changes(view, head, plan, delta);
        }
        let mut others = Vec::new();
        for (_, nid) in &plan.others {
            others.push(self.event(view, *nid)?.after());
        }
        let resolved = if plan.sets.is_none() && plan.ground.fresh.is_none() {
            let after = plan.ground.chain.tip;
            let snapshots = sorted(others.into_iter().chain([after]));
            let mut old = Vec::new();
            for (_, nid) in &head.row.extremities {
                old.push(self.event(view, *nid)?.after());
            }
            if snapshots == sorted(old.into_iter()) {
                return Ok(());
            }
            self.resolve(view, head.rules, &snapshots)?
        } else {
            if plan.sets.is_some() && plan.promoted.is_none() {
                // It takes part in the resolution, so it needs its number now. Should the node stop here, it is known
                // without its place, and finds it when it comes again.
                plan.promoted = Some(self.store_unplaced(head, plan)?);
            }
            let mut after = plan.ground.state.clone();
            if let (Some((key, _)), Some(stored)) = (plan.sets, &plan.promoted) {
                after.insert(key, stored.nid);
            }
            let mut states = Vec::new();
            for id in sorted(others.into_iter()) {
                states.push(self.store.state(id)?);
            }
            states.push(after.clone());
            let view = self.store.latest();
            self.resolve_states(&view, head.rules, &states)?
        };
        let mut after = plan.ground.state.clone();
        if let (Some((key, _)), Some(stored)) = (plan.sets, &plan.promoted) {
            after.insert(key, stored.nid);
        }
        let delta = difference(&head.state, &resolved);
        if delta.0.is_empty() && delta.1.is_empty() {
            return Ok(());
        }
        plan.current = if is_same(&resolved, &after) {
            Current::After
        } else {
            Current::Resolved {
                base: head.row.chain.base(&self.store, 1)?,
                state: resolved,
                delta: delta.clone(),
            }
        };
        self.plan_changes(view, head, plan, delta)
    }

    /// What becomes current if the event is no end of the room, as what follows it came first: what it follows is no end
    /// any more either.
    pub(super) fn plan_without(&self, view: &View, head: &RoomHead, plan: &mut Plan) -> Result<()> {
        if plan.others.is_empty() {
            // Whoever makes two events that follow each other does not leave the room without an end.
            plan.others.clone_from(&head.row.extremities);
        }
        if plan.others.len() == head.row.extremities.len() {
            return Ok(());
        }
        let mut ends = Vec::new();
        for (_, nid) in &plan.others {
            ends.push(self.event(view, *nid)?.after());
        }
        let state = self.resolve(view, head.rules, &sorted(ends.into_iter()))?;
        let delta = difference(&head.state, &state);
        if delta.0.is_empty() && delta.1.is_empty() {
            return Ok(());
        }
        plan.current = Current::Resolved {
            base: head.row.chain.base(&self.store, 1)?,
            state,
            delta: delta.clone(),
        };
        self.plan_changes(view, head, plan, delta)
    }

    /// What changes for the members and whatever else is counted by the current state.
    fn plan_changes(
        &self,
        view: &View,
        head: &RoomHead,
        plan: &mut Plan,
        (set, removed): Delta,
    ) -> Result<()> {
        let own = plan.promoted.as_ref().map(|stored| stored.nid);
        let this = plan.sets.map(|(key, _)| key);
        let mut changes: Vec<(StateKeyNid, Target)> = Vec::new();
        for (key, nid) in set {
            if Some(nid) == own {
                changes.push((key, Target::This));
            } else if this != Some(key) || !matches!(plan.current, Current::After) {
                changes.push((key, Target::Other(nid)));
            }
        }
        for key in removed {
            if this != Some(key) || !matches!(plan.current, Current::After) {
                changes.push((key, Target::Nothing));
            }
        }
        if let (Some(key), Current::After) = (this, &plan.current)
            && !changes.iter().any(|(other, _)| *other == key)
        {
            changes.push((key, Target::This));
        }
        for (key, target) in changes {
            let change = self.change(view, head, key, target, &plan.event)?;
            plan.changes.push((change, target));
        }
        Ok(())
    }

    fn change(
        &self,
        view: &View,
        head: &RoomHead,
        key: StateKeyNid,
        target: Target,
        this: &Event,
    ) -> Result<Change> {
        let name = self.store.state_key(key)?;
        let (event_type, state_key) = (name.0.clone(), name.1.clone());
        let mut member = None;
        // The rules let nobody be a member whose name is none.
        if event_type == "m.room.member"
            && let Ok(user) = <&UserId>::try_from(state_key.as_str())
        {
            let after = match target {
                Target::This => this.header.membership.clone(),
                Target::Other(nid) => self.event(view, nid)?.event.header.membership.clone(),
                Target::Nothing => None,
            };
            let after = after.unwrap_or(MembershipState::Leave);
            member = Some(self.member_of(view, head.nid, user, after)?);
        }
        Ok(Change {
            key,
            event_type,
            state_key,
            member,
        })
    }
}
