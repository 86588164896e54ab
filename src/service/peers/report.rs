//! What was looked at between two nodes and what came of it, for whoever sits at a terminal and shall mend it.

use ruma::OwnedServerName;
use serde::{Deserialize, Serialize};

use crate::remote;

/// What was looked at, up to the first thing that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The other node, if the code says which.
    pub server: Option<OwnedServerName>,
    /// One after the other.
    pub steps: Vec<Step>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// It is as it should be.
    Good(String),
    /// It works, but somebody should look at it.
    Doubt(String),
    /// It is not, and nothing was changed.
    Failed {
        /// What is wrong.
        problem: String,
        /// Where to look next; may be empty.
        advice: String,
    },
}

impl Report {
    pub(super) fn about(server: OwnedServerName) -> Self {
        Self {
            server: Some(server),
            steps: Vec::new(),
        }
    }

    pub(super) fn good(&mut self, what: impl Into<String>) {
        self.steps.push(Step::Good(what.into()));
    }

    pub(super) fn doubt(&mut self, what: impl Into<String>) {
        self.steps.push(Step::Doubt(what.into()));
    }

    /// Ends with something that failed.
    pub(super) fn failed(mut self, problem: impl Into<String>, advice: impl Into<String>) -> Self {
        self.steps.push(Step::Failed {
            problem: problem.into(),
            advice: advice.into(),
        });
        self
    }

    /// Ends with a request that failed.
    pub(super) fn unreached(self, error: &remote::Error) -> Self {
        self.failed(error.to_string(), error.kind.advice())
    }

    /// Whether everything was as it should be.
    pub fn is_good(&self) -> bool {
        let failed = |step: &Step| matches!(step, Step::Failed { .. });
        !self.steps.iter().any(failed)
    }
}
