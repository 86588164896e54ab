//! One line per check, and the sum at the end; and how anything is awaited.

use std::{
    fmt::Display,
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tokio::time::{sleep, timeout};

/// The longest that one thing may be awaited.
const LIMIT: Duration = Duration::from_secs(60);

/// The longest that a check may take which awaits several.
const CHECK_LIMIT: Duration = Duration::from_secs(180);

/// What has been checked so far.
#[derive(Default)]
pub struct Report {
    passed: usize,
    failed: usize,
}

impl Report {
    /// Does the work of one check and says how it went. `None` if it failed: what needs its outcome cannot go on.
    pub async fn check<T>(
        &mut self,
        name: impl Display,
        work: impl Future<Output = Result<T>>,
    ) -> Option<T> {
        let began = Instant::now();
        let outcome = match timeout(CHECK_LIMIT, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("not done in {} s", CHECK_LIMIT.as_secs())),
        };
        match outcome {
            Ok(value) => {
                self.passed += 1;
                println!("ok    {name} ({} ms)", began.elapsed().as_millis());
                Some(value)
            }
            Err(error) => {
                self.failed += 1;
                println!("FAIL  {name}\n      {error:#}");
                None
            }
        }
    }

    /// Says the sum; whether all went well, and not all of nothing.
    pub fn sum(&self) -> bool {
        println!("{} passed, {} failed", self.passed, self.failed);
        self.failed == 0 && self.passed > 0
    }
}

/// Looks again and again until there is something, and answers that. The last look says in an error what it saw.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<Looked<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        match look().await? {
            Ok(found) => return Ok(found),
            Err(instead) if began.elapsed() > LIMIT => {
                bail!(
                    "waited {} s for {what}; instead: {instead}",
                    LIMIT.as_secs()
                )
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// What was looked for, or what was there instead.
pub type Looked<T> = Result<T, String>;

/// For `until`, when there is only true and false.
pub fn so(holds: bool, instead: impl Display) -> Result<Looked<()>> {
    Ok(if holds {
        Ok(())
    } else {
        Err(instead.to_string())
    })
}
