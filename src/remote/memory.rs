//! A network in memory, for simulations: nodes in one process, and everything that goes wrong between offices, from a
//! seed.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};

use super::{Limits, Transport, error::Kind};
use crate::clock::{Clock, Entropy};

/// An answer that is on its way.
pub type Answering = Pin<Box<dyn Future<Output = Response<Bytes>> + Send>>;

/// A node that answers requests, whose URI is only path and query.
pub type Handler = Arc<dyn Fn(Request<Bytes>) -> Answering + Send + Sync>;

/// What goes wrong, in parts of a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Requests that do not arrive.
    pub lost: u64,
    /// Requests that arrive and are carried out, but whose answer does not come back.
    pub unanswered: u64,
    /// Requests that arrive twice.
    pub doubled: u64,
    /// How long a request or an answer is on its way at most. Requests overtake each other when it is not zero.
    pub delay: Duration,
}

/// The network between all nodes. Clones are the same network.
#[derive(Clone)]
pub struct Lan(Arc<Shared>);

struct Shared {
    clock: Clock,
    entropy: Entropy,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<OwnedServerName, Handler>,
    /// Pairs whose link is down, in both directions.
    cuts: HashSet<(OwnedServerName, OwnedServerName)>,
    faults: Faults,
}

/// One node's way into the network.
#[derive(Clone)]
pub struct Port {
    lan: Lan,
    name: OwnedServerName,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Lan {
    /// A network on which nothing goes wrong. What does later is drawn from `entropy`; delays are slept on `clock`.
    pub fn new(clock: Clock, entropy: Entropy) -> Self {
        Self(Arc::new(Shared {
            clock,
            entropy,
            state: Mutex::default(),
        }))
    }

    /// What the node `name` sends by.
    pub fn port(&self, name: &ServerName) -> Transport {
        Transport::Memory(Port {
            lan: self.clone(),
            name: name.to_owned(),
        })
    }

    /// Lets the node `name` be reached; a node of the same name is replaced.
    pub fn attach(&self, name: &ServerName, handler: Handler) {
        self.0.state.lock().nodes.insert(name.to_owned(), handler);
    }

    /// Takes a node from the network, as when its machine is off.
    pub fn detach(&self, name: &ServerName) {
        self.0.state.lock().nodes.remove(name);
    }

    /// Cuts the link between two nodes, or restores it. What is under way is lost with it.
    pub fn set_link(&self, a: &ServerName, b: &ServerName, up: bool) {
        let mut state = self.0.state.lock();
        for pair in [(a, b), (b, a)] {
            let pair = (pair.0.to_owned(), pair.1.to_owned());
            if up {
                state.cuts.remove(&pair);
            } else {
                state.cuts.insert(pair);
            }
        }
    }

    /// What goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.state.lock().faults = faults;
    }

    /// Whether something happens that does so many times in a thousand.
    fn happens(&self, per_mille: u64) -> bool {
        per_mille > 0 && self.0.entropy.number() % 1000 < per_mille
    }

    async fn travel(&self, most: Duration) {
        let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        if most > 0 {
            let time = Duration::from_micros(self.0.entropy.number() % most);
            self.0.clock.sleep(time).await;
        }
    }

    /// The node at the other end of a link that is up.
    fn reach(&self, from: &ServerName, to: &ServerName) -> Result<Handler, Kind> {
        let state = self.0.state.lock();
        let unreachable = |problem: &str| Kind::Connect {
            address: to.to_string(),
            problem: problem.to_owned(),
        };
        if state.cuts.contains(&(from.to_owned(), to.to_owned())) {
            return Err(unreachable("the link is down"));
        }
        let node = state.nodes.get(to).cloned();
        node.ok_or_else(|| unreachable("nobody is there"))
    }
}

impl Port {
    pub(super) async fn exchange(
        &self,
        server: &ServerName,
        request: Request<Bytes>,
        limits: Limits,
    ) -> Result<Response<Bytes>, Kind> {
        let late = self.lan.0.clock.sleep(limits.time);
        tokio::select! {
            outcome = self.attempt(server, request) => match outcome {
                Ok(response) if u64::try_from(response.body().len()).is_ok_and(|length| length > limits.body) => {
                    Err(Kind::TooLarge(limits.body))
                }
                outcome => outcome,
            },
            () = late => Err(Kind::Timeout(limits.time)),
        }
    }

    async fn attempt(
        &self,
        server: &ServerName,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Kind> {
        let lan = &self.lan;
        let faults = lan.0.state.lock().faults;
        let broken = || Kind::Broken("the network lost it".to_owned());
        lan.travel(faults.delay).await;
        let node = lan.reach(&self.name, server)?;
        if lan.happens(faults.lost) {
            return Err(broken());
        }
        if lan.happens(faults.doubled) {
            let _only_the_second_comes_back = node(request.clone()).await;
        }
        let response = node(request).await;
        // It may be stopped while the answer is on its way.
        drop(node);
        lan.travel(faults.delay).await;
        // The link may have gone down meanwhile.
        lan.reach(&self.name, server)?;
        if lan.happens(faults.unanswered) {
            return Err(broken());
        }
        Ok(response)
    }
}

impl fmt::Debug for Lan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lan").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use ruma::server_name;

    use super::*;

    /// How often the node was asked, and how often an answer came back, of a hundred requests.
    async fn hundred(faults: Faults, up: bool) -> (u64, u64) {
        let lan = Lan::new(Clock::manual(0), Entropy::seeded(1));
        let (a, b) = (server_name!("a.example"), server_name!("b.example"));
        let asked = Arc::new(AtomicU64::new(0));
        let counter = asked.clone();
        let handler = move |_| -> Answering {
            counter.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Response::new(Bytes::new()) })
        };
        lan.attach(b, Arc::new(handler));
        lan.set_faults(faults);
        lan.set_link(b, a, up);
        let port = lan.port(a);
        let mut answered = 0;
        for _ in 0..100 {
            let request = Request::new(Bytes::new());
            answered += u64::from(port.exchange(b, request, Limits::USUAL).await.is_ok());
        }
        (asked.load(Ordering::Relaxed), answered)
    }

    #[tokio::test]
    async fn what_goes_wrong_is_drawn_from_the_seed() {
        let none = Faults::default();
        assert_eq!(hundred(none, true).await, (100, 100));
        assert_eq!(hundred(none, false).await, (0, 0));
        let (asked, answered) = hundred(Faults { lost: 500, ..none }, true).await;
        assert!(asked == answered && (20..80).contains(&asked), "{asked}");
        let (asked, answered) = hundred(
            Faults {
                unanswered: 500,
                ..none
            },
            true,
        )
        .await;
        assert!(asked == 100 && (20..80).contains(&answered), "{answered}");
        let doubled = Faults {
            doubled: 500,
            ..none
        };
        let (asked, answered) = hundred(doubled, true).await;
        assert!(answered == 100 && (120..180).contains(&asked), "{asked}");
        assert_eq!(hundred(doubled, true).await, (asked, answered));
    }
}
