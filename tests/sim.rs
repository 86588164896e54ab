//! A simulation of offices that federate: several nodes in one process, over links that lose, delay and repeat, are cut
//! and healed, while users do everything to rooms and nodes are stopped and killed. At rest all must agree.
//!
//! All that happens is drawn from a seed: who does what when, what the network does to it, what the clocks show. Time
//! stands still until everybody waits, so neither the speed of the machine nor its load matters. Three things are
//! not drawn: where the work of the threads for computing meets that of others, the order in which tasks that wake at the same
//! moment run, and that of hash maps. So a seed that fails nearly always fails again, but a rare meeting may take a few
//! attempts.
//!
//! `KONTOR_SEEDS=5000` tries more seeds, `KONTOR_SEED=17` only this one, or several with
//! commas between (and tells all that happened), and
//! `KONTOR_TIMES=20` each of them so often. `KONTOR_LOG=1` shows what the nodes log.

// Futures of whole use cases on several nodes lie deep in each other.
#![recursion_limit = "256"]

#[path = "it/identity.rs"]
mod identity;
#[expect(dead_code, reason = "the tests of single endpoints need more of it")]
#[path = "it/room.rs"]
mod room;
#[expect(dead_code, reason = "the tests of single endpoints need more of it")]
#[path = "it/server.rs"]
mod server;
#[expect(dead_code, reason = "the tests of single endpoints need more of it")]
#[path = "it/several.rs"]
mod several;

#[path = "sim/deeds.rs"]
mod deeds;
#[path = "sim/follower.rs"]
mod follower;
#[path = "sim/quiet.rs"]
mod quiet;
#[path = "sim/rest.rs"]
mod rest;
#[path = "sim/truth.rs"]
mod truth;
#[path = "sim/world.rs"]
mod world;

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use tracing_subscriber::{
    filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};
use world::World;

/// How many seeds are tried when nothing else is said.
const SEEDS: u64 = 300;

/// A number from the environment.
fn asked(name: &str) -> Option<u64> {
    Some(number(name, &std::env::var(name).ok()?))
}

fn number(name: &str, text: &str) -> u64 {
    let number = text.parse();
    number.unwrap_or_else(|e| panic!("{name}: {text} is no number: {e}"))
}

/// Lives through one seed; false if something is wrong at its end, which has been told.
fn is_good(seed: u64) -> bool {
    let life = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .max_blocking_threads(1)
            .build()
            .expect("the system gives a runtime");
        runtime.block_on(async {
            let mut world = World::new(seed).await;
            world.live().await;
            world.rest().await;
            world.judge().await;
        });
    };
    let named = thread::Builder::new().name(format!("seed {seed}"));
    // Whole use cases of several nodes in a debug build lie deep.
    let thread = named.stack_size(16 << 20).spawn(life);
    thread.expect("the system gives a thread").join().is_ok()
}

#[test]
fn at_rest_all_agree() {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        // What is tried is not the disk; a store in memory opens faster.
        tempfile::env::override_temp_dir(memory).expect("nobody else has said where");
    }
    let seeds: Vec<u64> = match std::env::var("KONTOR_SEED") {
        Ok(seeds) => seeds
            .split(',')
            .map(|seed| number("KONTOR_SEED", seed))
            .collect(),
        Err(_) => (0..asked("KONTOR_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    if std::env::var_os("KONTOR_LOG").is_some() {
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let ours = Targets::new().with_target("kontor", tracing::Level::DEBUG);
        let log = tracing_subscriber::registry().with(layer.with_ansi(false).without_time());
        log.with(ours).init();
    }
    let times = asked("KONTOR_TIMES").unwrap_or(1);
    let seeds: Vec<u64> = (0..times).flat_map(|_| seeds.iter().copied()).collect();
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        // Most of the time is spent on opening stores, which wait for the disk.
        for _ in 0..3 * cores {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(seed) = usize::try_from(at).ok().and_then(|at| seeds.get(at)) else {
                        return;
                    };
                    if !is_good(*seed) {
                        failed.lock().expect("nobody panics here").push(*seed);
                    }
                }
            });
        }
    });
    let count = |rooms: &AtomicU64| rooms.load(Ordering::Relaxed);
    let (rooms, divided) = (count(&rest::ROOMS), count(&rest::DIVIDED));
    // Too many would mean that nothing is tested, or that rooms are divided without need.
    assert!(
        seeds.len() < 100 || divided * 10 <= rooms,
        "{divided} of {rooms} rooms are divided"
    );
    let mut failed = failed.into_inner().expect("nobody panics here");
    failed.sort_unstable();
    assert!(
        failed.is_empty(),
        "{} of {} seeds fail: {failed:?}; see one with KONTOR_SEED={} cargo test --test sim",
        failed.len(),
        seeds.len(),
        failed[0],
    );
}
