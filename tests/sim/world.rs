//! The offices, their users, their rooms and the network between them; and what time does to them.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use kontor::{
    clock::{Clock, Entropy},
    config::Peer,
    remote::{Lan, memory::Faults},
};
use ruma::OwnedServerName;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    deeds::{Deed, Done},
    follower::Follower,
    room::Room,
    server::{Client, START, TestServer},
    several::{handler, named},
};

/// How many things happen before everything comes to rest.
const MOMENTS: u64 = 40;

/// The longest that a request or an answer is on its way, in milliseconds.
const MOST_DELAY: u64 = 300;

pub(crate) struct Office {
    pub(crate) name: OwnedServerName,
    node: Option<TestServer>,
    /// Cancelled when the machine is off: whoever speaks with it hears no more.
    power: CancellationToken,
    /// What its users have asked for and not been answered yet.
    pub(crate) asked: JoinSet<Done>,
}

impl Office {
    pub(crate) fn node(&self) -> &TestServer {
        self.node.as_ref().expect("it is only off within a restart")
    }
}

pub(crate) struct Person {
    pub(crate) client: Client,
    /// Where their account is.
    pub(crate) home: usize,
    pub(crate) follower: Follower,
}

pub(crate) struct World {
    /// Draws what happens.
    chance: Entropy,
    clock: Clock,
    lan: Lan,
    /// The links that are down.
    down: BTreeSet<(usize, usize)>,
    /// Whether nobody takes a right from anybody, so that nothing that was sent may be refused anywhere.
    pub(crate) is_peaceful: bool,
    pub(crate) offices: Vec<Office>,
    pub(crate) people: Vec<Person>,
    pub(crate) rooms: Vec<Arc<Room>>,
    /// What was answered, and what was not because a node went off.
    pub(crate) done: Vec<Done>,
    pub(crate) unanswered: Arc<Mutex<Vec<(usize, Deed)>>>,
    story: String,
}

impl Drop for World {
    fn drop(&mut self) {
        // The nodes hold the network, which holds them.
        for office in &self.offices {
            self.lan.detach(&office.name);
        }
        #[expect(
            clippy::print_stderr,
            reason = "whoever replays a seed wants to see it"
        )]
        if std::thread::panicking() && std::env::var_os("KONTOR_SEED").is_some() {
            eprintln!("{}", self.story);
        }
    }
}

impl World {
    /// Offices that reach each other, with users of whom most are in most rooms.
    pub(crate) async fn new(seed: u64) -> Self {
        let clock = Clock::manual(START);
        let lan = Lan::new(clock.clone(), Entropy::seeded(seed ^ 0x1a2));
        let mut world = Self {
            chance: Entropy::seeded(seed),
            clock,
            lan,
            down: BTreeSet::new(),
            is_peaceful: seed.is_multiple_of(3),
            offices: Vec::new(),
            people: Vec::new(),
            rooms: Vec::new(),
            done: Vec::new(),
            unanswered: Arc::default(),
            story: format!("seed {seed}\n"),
        };
        let count = 3 + world.draw(3);
        let names: Vec<_> = (0..count)
            .map(|at| named(&format!("n{at}.example")))
            .collect();
        for name in names.clone() {
            // Its clock may be wrong by minutes.
            let clock = world.clock.beside(START + world.draw(600_000));
            let node = TestServer::timed(
                clock,
                |config, _| Some(world.lan.port(&config.server.name)),
                |config| {
                    config.server.name.clone_from(&name);
                    for peer in names.iter().filter(|peer| **peer != name) {
                        config
                            .federation
                            .peers
                            .insert(peer.clone(), Peer::default());
                    }
                },
            );
            let mut office = Office {
                name,
                node: Some(node),
                power: CancellationToken::new(),
                asked: JoinSet::new(),
            };
            office.plug_in(&world.lan);
            world.offices.push(office);
            let home = world.offices.len() - 1;
            for user in 0..=world.draw(2) {
                let client = world.offices[home]
                    .node()
                    .register(&format!("u{user}"))
                    .await;
                world.people.push(Person {
                    follower: Follower::new(&client),
                    client,
                    home,
                });
            }
        }
        for _ in 0..=world.draw(2) {
            world.begin_room().await;
        }
        world
    }

    async fn begin_room(&mut self) {
        let creator = self.someone();
        let version = ["10", "11", "12"][self.pick(3)];
        let room = Deed::create(&self.people[creator].client, version).await;
        let room = Arc::new(room);
        self.tell(&format!(
            "{} makes {} ({version})",
            self.called(creator),
            room.0
        ));
        self.rooms.push(room.clone());
        let via = self.offices[self.people[creator].home].name.clone();
        for at in 0..self.people.len() {
            if at != creator && self.draw(10) < 7 {
                let deed = Deed::Join {
                    room: room.clone(),
                    via: via.clone(),
                };
                let client = self.people[at].client.clone();
                let done = self
                    .until(async move { deed.carry_out(at, client).await })
                    .await;
                assert_eq!(done.status, StatusCode::OK, "{}", done.body);
            }
        }
    }

    /// Lets all that happens happen.
    pub(crate) async fn live(&mut self) {
        let most = [0, 30, 120][self.pick(3)];
        let faults = Faults {
            lost: self.draw(most + 1),
            unanswered: self.draw(most + 1),
            doubled: self.draw(most + 1),
            delay: Duration::from_millis(1 + self.draw(MOST_DELAY)),
        };
        self.tell(&format!("{faults:?}"));
        self.lan.set_faults(faults);
        for _ in 0..MOMENTS {
            match self.draw(100) {
                0..12 => self.switch_a_link(),
                12..15 => self.stop_an_office().await,
                15..18 => self.kill_an_office().await,
                18..30 => {
                    let who = self.someone();
                    self.follow(who).await;
                }
                _ => self.do_something(),
            }
            let pause = self.draw(400);
            self.step(Duration::from_millis(pause)).await;
            self.gather();
        }
    }

    fn switch_a_link(&mut self) {
        let (a, b) = (self.pick(self.offices.len()), self.pick(self.offices.len()));
        if a == b {
            return;
        }
        let link = (a.min(b), a.max(b));
        let up = self.down.remove(&link);
        if !up {
            self.down.insert(link);
        }
        self.set_links(a, true);
        let (a, b) = (&self.offices[a].name, &self.offices[b].name);
        let line = format!("the link {a} - {b} is {}", if up { "up" } else { "down" });
        self.tell(&line);
    }

    async fn stop_an_office(&mut self) {
        let at = self.pick(self.offices.len());
        self.tell(&format!("{} stops and starts", self.offices[at].name));
        self.restart(at).await;
    }

    async fn kill_an_office(&mut self) {
        let at = self.pick(self.offices.len());
        self.tell(&format!("{} is killed and starts", self.offices[at].name));
        // Some are in the middle of something.
        for _ in 0..self.draw(20) {
            tokio::task::yield_now().await;
        }
        // What it does from now on nobody may hear of, as it will not remember it.
        self.set_links(at, false);
        let mut node = self.offices[at].node.take().expect("it is on");
        // It finds what is on the disk at this moment, and nothing that a stop would have written.
        let copied = tempfile::tempdir().expect("there is room for a temporary directory");
        let (from, to) = (node.directory.path(), copied.path());
        copy(&from.join("store"), &to.join("store")).expect("the store can be copied");
        let disk = std::mem::replace(&mut node.directory, copied);
        self.offices[at].node = Some(node);
        self.restart(at).await;
        drop(disk);
        self.set_links(at, true);
    }

    async fn restart(&mut self, at: usize) {
        let office = &mut self.offices[at];
        office.power.cancel();
        self.lan.detach(&office.name);
        office.asked.shutdown().await;
        let node = office.node.take().expect("it is on");
        self.until(node.stop()).await;
        // Whoever spoke with it has noticed.
        self.step(Duration::from_millis(1)).await;
        self.offices[at].node = Some(node.restart());
        self.offices[at].plug_in(&self.lan);
    }

    /// Cuts all links of an office, or restores those that were up.
    fn set_links(&self, of: usize, up: bool) {
        for other in (0..self.offices.len()).filter(|other| *other != of) {
            let up = up && !self.down.contains(&(of.min(other), of.max(other)));
            let (a, b) = (&self.offices[of].name, &self.offices[other].name);
            self.lan.set_link(a, b, up);
        }
    }

    /// Restores all links.
    pub(crate) fn heal(&mut self) {
        self.tell("all links are up");
        self.lan.set_faults(Faults::default());
        self.down.clear();
        for at in 0..self.offices.len() {
            self.set_links(at, true);
        }
    }

    fn do_something(&mut self) {
        let who = self.someone();
        let deed = self.some_deed(who);
        self.begin(who, deed);
        if self.draw(2) == 0 {
            let who = self.someone();
            let deed = self.some_quiet_deed(who);
            self.begin(who, deed);
        }
    }

    /// Has somebody do something, without waiting for what comes of it.
    pub(crate) fn begin(&mut self, who: usize, deed: Deed) {
        self.tell(&format!("{} {deed:?}", self.called(who)));
        let (client, home) = (self.people[who].client.clone(), self.people[who].home);
        let unanswered = self.unanswered.clone();
        self.offices[home].asked.spawn(async move {
            let pending = Pending(Some((who, deed.clone())), unanswered);
            let done = deed.carry_out(who, client).await;
            pending.end();
            done
        });
    }

    /// Takes note of what was answered.
    pub(crate) fn gather(&mut self) {
        let mut done = Vec::new();
        for office in &mut self.offices {
            while let Some(answered) = office.asked.try_join_next() {
                match answered {
                    Ok(answered) => done.push(answered),
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => {}
                }
            }
        }
        for done in done {
            self.tell(&format!(
                "  {} {:?}: {} {}",
                self.called(done.who),
                done.deed,
                done.status,
                done.body
            ));
            assert!(
                done.status != StatusCode::INTERNAL_SERVER_ERROR,
                "{:?}: {}",
                done.deed,
                done.body
            );
            self.done.push(done);
        }
    }

    /// Lets somebody's client look what is new.
    pub(crate) async fn follow(&mut self, who: usize) {
        let mut follower = std::mem::take(&mut self.people[who].follower);
        let follower = self
            .until(async move {
                follower.follow().await;
                follower
            })
            .await;
        self.people[who].follower = follower;
    }

    /// Lets time pass while something goes on.
    pub(crate) async fn until<T>(&self, what: impl Future<Output = T>) -> T {
        let mut what = Box::pin(what);
        loop {
            tokio::select! {
                biased;
                done = &mut what => return done,
                () = self.step(Duration::from_millis(20)) => {}
            }
        }
    }

    /// Lets time pass. The runtime's own stands still until everybody waits.
    pub(crate) async fn step(&self, by: Duration) {
        tokio::time::sleep(by.max(Duration::from_millis(1))).await;
        self.clock.advance(by);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// A number below another.
    pub(crate) fn draw(&self, below: u64) -> u64 {
        self.chance.number() % below
    }

    pub(crate) fn pick(&self, below: usize) -> usize {
        let below = u64::try_from(below).expect("it is small");
        usize::try_from(self.draw(below)).expect("it is small")
    }

    pub(crate) fn someone(&self) -> usize {
        self.pick(self.people.len())
    }

    fn called(&self, who: usize) -> String {
        self.people[who].client.user_id.clone()
    }

    pub(crate) fn tell(&mut self, line: &str) {
        let now = self.clock.now_ms() - START;
        writeln!(self.story, "{now:>8} {line}").expect("a text takes all");
    }
}

/// Copies the files of a directory that holds no others, as they are at one moment.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let names = || -> std::io::Result<BTreeSet<_>> {
        let files = std::fs::read_dir(from)?;
        files.map(|file| Ok(file?.file_name())).collect()
    };
    loop {
        std::fs::create_dir_all(to)?;
        let before = names()?;
        let copied = before
            .iter()
            .try_for_each(|name| std::fs::copy(from.join(name), to.join(name)).map(drop));
        // The engine makes and removes files beside its work, and what it says of them must fit them.
        if copied.is_ok() && names()? == before {
            return Ok(());
        }
        std::fs::remove_dir_all(to)?;
    }
}

/// Notes what was not answered because nobody was there any more who could have heard it.
struct Pending(Option<(usize, Deed)>, Arc<Mutex<Vec<(usize, Deed)>>>);

impl Pending {
    fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(pending) = self.0.take() {
            self.1.lock().expect("nobody panics with it").push(pending);
        }
    }
}

impl Office {
    /// Lets others reach the node.
    fn plug_in(&mut self, lan: &Lan) {
        self.power = CancellationToken::new();
        self.node().services.federation.resume();
        let (handler, power) = (handler(self.node()), self.power.clone());
        lan.attach(
            &self.name,
            Arc::new(move |request| {
                let (answer, power) = (handler(request), power.clone());
                Box::pin(async move {
                    let broken = || {
                        let mut response = Response::new(Bytes::new());
                        *response.status_mut() = StatusCode::BAD_GATEWAY;
                        response
                    };
                    let answered = power.run_until_cancelled_owned(answer).await;
                    answered.unwrap_or_else(broken)
                })
            }),
        );
    }
}
