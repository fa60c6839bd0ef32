//! Exit codes: one for each kind of failure that a script or a service manager treats differently.

use std::process::ExitCode;

/// Why the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Something failed that no other code names.
    Failed = 1,
    /// Arguments, environment, configuration file or input files.
    Configuration = 2,
    /// The compute path asked for does not exist on this machine, or failed its conformance check.
    NoDevice = 3,
    /// The other side is not who it should be, or turned us away.
    Authentication = 5,
    /// A second signal cut a drain short; assignments were given back.
    DrainForced = 6,
    /// A receipt, package or backend was checked, and is wrong.
    Refuted = 7,
}

/// An error with the code to leave with.
#[derive(Debug)]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// What to tell the person.
    pub error: anyhow::Error,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { exit: Exit::Failed, error: error.into() }
    }
}

/// What a command returns.
pub type Outcome = Result<(), Failure>;

/// Gives an error its exit code.
pub trait OrExit<T> {
    /// Replaces the code that `?` would give.
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure { exit, error: error.into() })
    }
}
