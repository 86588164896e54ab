//! Looks up names of other servers: bounded in time and number, and cached for as long as the records say.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_resolver::{TokioResolver, config::LookupIpStrategy, net::NetError, proto::rr::RData};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::timeout};

use crate::clock::Clock;

/// The most look-ups at the same time.
const LOOKUPS: usize = 64;

/// How long one may take, with all its repetitions.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long one question to one name server may take.
const ONE_QUESTION: Duration = Duration::from_secs(3);

/// How long the system's settings are believed; a laptop or a VPN changes them under us.
const SETTINGS_AGE: Duration = Duration::from_mins(5);

/// The longest time that an answer is remembered.
const LONGEST: Duration = Duration::from_hours(1);

/// The longest time that it is remembered that there is no answer.
const LONGEST_NOTHING: Duration = Duration::from_mins(1);

/// The most records of one answer that are used.
const MOST: usize = 8;

/// Where a service is, as an SRV record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The smaller, the sooner it is tried.
    pub priority: u16,
    /// Among those of the same priority: the greater, the sooner.
    pub weight: u16,
    /// The host that has it.
    pub host: String,
    /// Its port there.
    pub port: u16,
}

/// What answers questions about names.
#[derive(Debug)]
pub(super) enum Dns {
    /// The name servers and the hosts file of the system.
    System(Box<System>),
    /// A fixed list, for tests: nothing outside of the machine is asked.
    Fixed(FixedNames),
}

/// Names for tests.
#[derive(Clone, Debug, Default)]
pub struct FixedNames {
    /// Addresses of names.
    pub addresses: HashMap<String, Vec<IpAddr>>,
    /// SRV records of names.
    pub services: HashMap<String, Vec<Service>>,
    /// Every question that was asked.
    pub asked: Arc<Mutex<Vec<String>>>,
}

/// The resolver of the system.
#[derive(Debug)]
pub(super) struct System {
    clock: Clock,
    seats: Semaphore,
    /// Made when it is first needed, and anew now and then.
    resolver: Mutex<Option<(Instant, TokioResolver)>>,
}

impl Dns {
    pub(super) fn system(clock: Clock) -> Self {
        Self::System(Box::new(System {
            clock,
            seats: Semaphore::new(LOOKUPS),
            resolver: Mutex::default(),
        }))
    }

    /// The addresses of a host, those of IPv6 and IPv4 in turn; an error in words if there are none.
    pub(super) async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        let found = match self {
            Self::System(system) => system.addresses(host).await?,
            Self::Fixed(names) => names.addresses(host),
        };
        if found.is_empty() {
            return Err(format!("{host} has no address"));
        }
        Ok(in_turn(found))
    }

    /// The SRV records of a name, the first to try first. None may also mean that nobody could say.
    pub(super) async fn services(&self, name: &str) -> Vec<Service> {
        let mut found = match self {
            Self::System(system) => system.services(name).await.unwrap_or_else(|problem| {
                tracing::debug!(name, problem, "no SRV records");
                Vec::new()
            }),
            Self::Fixed(names) => names.services(name),
        };
        found.sort_by_key(|service| (service.priority, u16::MAX - service.weight));
        found.truncate(MOST);
        found
    }
}

impl FixedNames {
    fn addresses(&self, host: &str) -> Vec<IpAddr> {
        self.asked.lock().push(format!("A {host}"));
        self.addresses.get(host).cloned().unwrap_or_default()
    }

    fn services(&self, name: &str) -> Vec<Service> {
        self.asked.lock().push(format!("SRV {name}"));
        self.services.get(name).cloned().unwrap_or_default()
    }
}

impl System {
    fn resolver(&self) -> Result<TokioResolver, String> {
        let now = self.clock.instant();
        let mut resolver = self.resolver.lock();
        if let Some((made, resolver)) = &*resolver
            && now - *made < SETTINGS_AGE
        {
            return Ok(resolver.clone());
        }
        let made = TokioResolver::builder_tokio().and_then(|mut builder| {
            let options = builder.options_mut();
            options.timeout = ONE_QUESTION;
            options.attempts = 2;
            options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
            options.cache_size = 4_096;
            options.positive_max_ttl = Some(LONGEST);
            options.negative_max_ttl = Some(LONGEST_NOTHING);
            builder.build()
        });
        let made = made.map_err(|e| format!("the system's name servers cannot be used: {e}"))?;
        *resolver = Some((now, made.clone()));
        Ok(made)
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        let resolver = self.resolver()?;
        let name = complete(host);
        let found = self.bounded(host, resolver.lookup_ip(name)).await?;
        Ok(found.map_or_else(Vec::new, |found| found.iter().take(2 * MOST).collect()))
    }

    async fn services(&self, name: &str) -> Result<Vec<Service>, String> {
        let resolver = self.resolver()?;
        let found = self
            .bounded(name, resolver.srv_lookup(complete(name)))
            .await?;
        let Some(found) = found else {
            return Ok(Vec::new());
        };
        let records = found
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(service) => Some(Service {
                    priority: service.priority,
                    weight: service.weight,
                    host: service.target.to_utf8().trim_end_matches('.').to_owned(),
                    port: service.port,
                }),
                _ => None,
            });
        // A lone dot says that the service is not offered.
        Ok(records
            .filter(|service| !service.host.is_empty())
            .take(64)
            .collect())
    }

    /// What a look-up finds; `None` when there is nothing to find.
    async fn bounded<T>(
        &self,
        name: &str,
        lookup: impl Future<Output = Result<T, NetError>>,
    ) -> Result<Option<T>, String> {
        let answer = timeout(PATIENCE, async {
            let _seat = self.seats.acquire().await.expect("it is never closed");
            lookup.await
        });
        match answer.await {
            Err(_) => Err(format!(
                "the name servers did not answer about {name} in time"
            )),
            Ok(Ok(found)) => Ok(Some(found)),
            Ok(Err(error)) if error.is_no_records_found() || error.is_nx_domain() => Ok(None),
            Ok(Err(error)) => Err(format!("the name servers failed about {name}: {error}")),
        }
    }
}

/// A name with dots is meant as it is; a single word may be completed by the system's search list.
fn complete(name: &str) -> String {
    if name.contains('.') && !name.ends_with('.') {
        format!("{name}.")
    } else {
        name.to_owned()
    }
}

/// The addresses of both kinds in turn, so that one kind that does not work costs one attempt only.
fn in_turn(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (sixes, fours): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let (mut sixes, mut fours) = (sixes.into_iter(), fours.into_iter());
    let mut mixed = Vec::new();
    loop {
        let pair = [sixes.next(), fours.next()];
        if pair == [None, None] || mixed.len() >= MOST {
            mixed.truncate(MOST);
            return mixed;
        }
        mixed.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_addresses_are_tried_in_turn() {
        let parse = |list: &[&str]| -> Vec<IpAddr> {
            list.iter().map(|text| text.parse().unwrap()).collect()
        };
        assert_eq!(
            in_turn(parse(&["1.1.1.1", "2.2.2.2", "3.3.3.3", "2a01::1"])),
            parse(&["2a01::1", "1.1.1.1", "2.2.2.2", "3.3.3.3"])
        );
        let many = vec![IpAddr::from([1, 1, 1, 1]); 100];
        assert_eq!(in_turn(many).len(), MOST);
    }

    #[tokio::test]
    async fn services_come_in_the_order_to_try_them() {
        let service = |priority, weight, host: &str| Service {
            priority,
            weight,
            host: host.to_owned(),
            port: 1,
        };
        let listed = vec![service(2, 9, "c"), service(1, 0, "b"), service(1, 5, "a")];
        let dns = Dns::Fixed(FixedNames {
            services: HashMap::from([("x".to_owned(), listed)]),
            ..FixedNames::default()
        });
        let hosts: Vec<_> = dns
            .services("x")
            .await
            .into_iter()
            .map(|s| s.host)
            .collect();
        assert_eq!(hosts, ["a", "b", "c"]);
        assert!(dns.addresses("nobody").await.is_err());
    }

    #[test]
    fn names_with_dots_are_not_completed() {
        assert_eq!(complete("a.example"), "a.example.");
        assert_eq!(complete("a.example."), "a.example.");
        assert_eq!(complete("intern"), "intern");
    }
}
