//! Walks over the graph of auth events that stop as soon as nothing more can be found.
//!
//! Numbers of events are handed out so that an event has a higher number than all that authorise it. Going from high
//! to low numbers is therefore a topological order, and a walk need never come back. See "State resolution" of room
//! versions 2 and 12.

use std::collections::{BTreeMap, BTreeSet};

use super::ids::EventNid;

/// The most states that can be held against each other; a PDU follows 20 events at most.
pub const MAX_STATES: usize = 64;

/// A bit for every state.
type Mask = u64;

/// The events that are in the auth chain of some, but not of all of the states.
///
/// A state is given by its `conflicts`, the events that not all states have: one list for each state, of which those
/// beyond [`MAX_STATES`] are not looked at. What all states have comes in `agreed`, from the highest number to the
/// lowest; only its beginning is taken, unless the walk has to go to the end. `auth_edges` gives the events that
/// authorise one.
///
/// # Errors
/// What `auth_edges` answers.
pub fn auth_difference<E, A: AsRef<[EventNid]>>(
    conflicts: &[Vec<EventNid>],
    agreed: impl IntoIterator<Item = EventNid>,
    mut auth_edges: impl FnMut(EventNid) -> Result<A, E>,
) -> Result<BTreeSet<EventNid>, E> {
    let mut pending = Pending::default();
    let masks = std::iter::successors(Some(1), |bit: &Mask| {
        bit.checked_shl(1).filter(|bit| *bit != 0)
    });
    let states: Vec<(Mask, &Vec<EventNid>)> = masks.zip(conflicts).collect();
    pending.all = states.iter().fold(0, |all, (bit, _)| all | bit);
    for (bit, state) in states {
        for event in state {
            pending.reach(auth_edges(*event)?.as_ref(), bit);
        }
    }

    let mut agreed = agreed.into_iter().peekable();
    let mut difference = BTreeSet::new();
    while pending.partial > 0 {
        // Whatever stands above the next event may reach it; whatever stands below can not.
        let next = pending.events.last_key_value().map(|(event, _)| *event);
        while let Some(event) = agreed.next_if(|event| Some(*event) > next) {
            pending.reach(auth_edges(event)?.as_ref(), pending.all);
        }
        let Some((event, mask)) = pending.take() else {
            break;
        };
        if mask != pending.all {
            difference.insert(event);
        }
        pending.reach(auth_edges(event)?.as_ref(), mask);
    }
    Ok(difference)
}

/// Events that were reached but not yet visited, and from which states.
#[derive(Default)]
struct Pending {
    events: BTreeMap<EventNid, Mask>,
    all: Mask,
    /// How many of them were not reached from all states.
    partial: usize,
}

impl Pending {
    fn reach(&mut self, events: &[EventNid], mask: Mask) {
        for event in events {
            let old = self.events.entry(*event).or_insert_with(|| {
                self.partial += 1;
                0
            });
            let was_partial = *old != self.all;
            *old |= mask;
            if was_partial && *old == self.all {
                self.partial -= 1;
            }
        }
    }

    fn take(&mut self) -> Option<(EventNid, Mask)> {
        let (event, mask) = self.events.pop_last()?;
        if mask != self.all {
            self.partial -= 1;
        }
        Some((event, mask))
    }
}

/// The events on all paths from one conflicting event to another, both ends among them.
///
/// See "Conflicted state subgraph" of room version 12.
///
/// # Errors
/// What `auth_edges` answers.
pub fn conflicted_subgraph<E, A: AsRef<[EventNid]>>(
    conflicted: &BTreeSet<EventNid>,
    mut auth_edges: impl FnMut(EventNid) -> Result<A, E>,
) -> Result<BTreeSet<EventNid>, E> {
    let Some(lowest) = conflicted.first().copied() else {
        return Ok(BTreeSet::new());
    };
    // Down from the conflicting events, but never below the last of them.
    let mut pending = conflicted.clone();
    let mut visited: BTreeMap<EventNid, Vec<EventNid>> = BTreeMap::new();
    while let Some(event) = pending.pop_last() {
        let edges: Vec<_> = auth_edges(event)?
            .as_ref()
            .iter()
            .copied()
            .filter(|auth| *auth >= lowest)
            .collect();
        pending.extend(edges.iter().copied());
        visited.insert(event, edges);
    }
    // Up again: what leads to a conflicting event stays.
    let mut subgraph = BTreeSet::new();
    for (event, edges) in visited {
        if conflicted.contains(&event) || edges.iter().any(|auth| subgraph.contains(auth)) {
            subgraph.insert(event);
        }
    }
    Ok(subgraph)
}

#[cfg(test)]
mod tests {
    //! Against the definitions, taken literally, on random graphs.

    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// For each event the events that authorise it, by number.
    type Graph = Vec<Vec<EventNid>>;

    fn number(index: usize) -> EventNid {
        EventNid(u64::try_from(index).expect("small"))
    }

    fn edges(graph: &Graph, event: EventNid) -> &[EventNid] {
        graph
            .get(usize::try_from(event.0).expect("small"))
            .expect("in the graph")
    }

    fn graph() -> impl Strategy<Value = Graph> {
        proptest::collection::vec(
            proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
            1..40,
        )
        .prop_map(|picks| {
            let pick = |(at, picks): (usize, Vec<prop::sample::Index>)| {
                let below = picks
                    .iter()
                    .filter(|_| at > 0)
                    .map(|pick| number(pick.index(at.max(1))));
                below.collect::<BTreeSet<_>>().into_iter().collect()
            };
            picks.into_iter().enumerate().map(pick).collect()
        })
    }

    /// Everything reachable from the events, the events themselves only if another one reaches them.
    fn chain<'a>(
        graph: &Graph,
        events: impl IntoIterator<Item = &'a EventNid>,
    ) -> BTreeSet<EventNid> {
        let mut todo: Vec<_> = events
            .into_iter()
            .flat_map(|event| edges(graph, *event))
            .copied()
            .collect();
        let mut seen = BTreeSet::new();
        while let Some(event) = todo.pop() {
            if seen.insert(event) {
                todo.extend(edges(graph, event));
            }
        }
        seen
    }

    fn some_events(graph: &Graph, picks: &[prop::sample::Index]) -> BTreeSet<EventNid> {
        picks
            .iter()
            .map(|pick| number(pick.index(graph.len())))
            .collect()
    }

    proptest! {
        #[test]
        fn difference_as_defined(
            graph in graph(),
            states in proptest::collection::vec(proptest::collection::vec(any::<prop::sample::Index>(), 0..6), 1..4),
        ) {
            let states: Vec<_> = states.iter().map(|picks| some_events(&graph, picks)).collect();
            let agreed = states.iter().skip(1).fold(states.first().cloned().unwrap_or_default(), |all, state| &all & state);
            let conflicts: Vec<Vec<_>> = states.iter().map(|state| (state - &agreed).into_iter().collect()).collect();

            let chains: Vec<_> = states.iter().map(|state| chain(&graph, state)).collect();
            let union = chains.iter().fold(BTreeSet::new(), |all, chain| &all | chain);
            let shared = chains.iter().skip(1).fold(chains.first().cloned().unwrap_or_default(), |all, chain| &all & chain);

            let found = auth_difference(&conflicts, agreed.into_iter().rev(), |event| Ok::<_, Infallible>(edges(&graph, event)));
            prop_assert_eq!(found, Ok(&union - &shared));
        }

        #[test]
        fn subgraph_as_defined(graph in graph(), picks in proptest::collection::vec(any::<prop::sample::Index>(), 0..6)) {
            let conflicted = some_events(&graph, &picks);
            let below = chain(&graph, &conflicted);
            let reaches = |event: EventNid| !chain(&graph, [&event]).is_disjoint(&conflicted);
            let on_a_path = below.into_iter().filter(|event| reaches(*event));
            let expect: BTreeSet<_> = on_a_path.chain(conflicted.iter().copied()).collect();

            let found = conflicted_subgraph(&conflicted, |event| Ok::<_, Infallible>(edges(&graph, event)));
            prop_assert_eq!(found, Ok(expect));
        }
    }

    #[test]
    fn a_fork_at_the_end_of_a_long_history_is_cheap() {
        // A chain of 10,000 events; two states differ in the last two.
        let edges = |event: EventNid| {
            event
                .0
                .checked_sub(1)
                .map(EventNid)
                .into_iter()
                .collect::<Vec<_>>()
        };
        let mut asked = 0;
        let mut count = |event| {
            asked += 1;
            Ok::<_, Infallible>(edges(event))
        };
        let agreed = (0..9_990).rev().map(EventNid);
        let conflicts = [vec![EventNid(9_999)], vec![EventNid(9_998)]];
        let found = auth_difference(&conflicts, agreed, &mut count).expect("infallible");
        assert_eq!(found, BTreeSet::from([EventNid(9_998)]));
        assert!(asked < 10, "{asked} events were looked at");
    }

    #[test]
    fn errors_come_back() {
        let fails = |_| Err::<Vec<EventNid>, _>("the disk is gone");
        assert_eq!(
            auth_difference(&[vec![EventNid(1)], vec![]], [], fails),
            Err("the disk is gone")
        );
        assert_eq!(
            conflicted_subgraph(&BTreeSet::from([EventNid(1)]), fails),
            Err("the disk is gone")
        );
        assert_eq!(
            auth_difference(&[], [EventNid(1)], fails),
            Ok(BTreeSet::new())
        );
    }
}
