//! Why a command failed, in three parts for people: what, why, and the next step; and as an exit code for scripts.

use std::fmt;
use std::process::ExitCode;

/// The exit codes that scripts can rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 1: it was refused or failed.
    Failed,
    /// 2: the command line cannot be carried out.
    Usage,
    /// 3: the cloud cannot be reached.
    Unreachable,
    /// 4: what was named does not exist.
    NotFound,
}

impl Kind {
    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::NotFound => 4,
        }
    }
}

/// A failed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind.
    pub kind: Kind,
    /// What could not be done, and why.
    pub what: String,
    /// What to do next.
    pub next: Option<String>,
}

impl Failure {
    /// A failure without a next step.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), next: None }
    }

    /// With the step that leads on.
    pub fn next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }

    /// The same with another next step, where what is missing is listed by a command of its own.
    pub fn listed_by(self, command: &str) -> Self {
        match self.kind {
            Kind::NotFound => self.next(command),
            Kind::Failed | Kind::Usage | Kind::Unreachable => self,
        }
    }

    /// The exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind.code())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A line break in a name would make a line of ours of what follows it.
        write!(f, "error: {}", model::escaped(&self.what))?;
        match &self.next {
            Some(next) => write!(f, "\n  next: {}", model::escaped(next)),
            None => Ok(()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Kind::Failed, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_and_the_next_step_and_cannot_steer_the_terminal() {
        let failure = Failure::new(Kind::NotFound, "there is no user \x1b[2Jx\n  next: forged")
            .next("chitin user list");
        assert_eq!(
            failure.to_string(),
            "error: there is no user \\u{1b}[2Jx\\n  next: forged\n  next: chitin user list"
        );
    }

    #[test]
    fn exit_codes_are_those_of_the_manual() {
        let codes = [Kind::Failed, Kind::Usage, Kind::Unreachable, Kind::NotFound].map(Kind::code);
        assert_eq!(codes, [1, 2, 3, 4]);
    }
}
