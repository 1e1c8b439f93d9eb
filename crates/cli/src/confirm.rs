//! Asks before something is destroyed.

use std::io::{BufRead, IsTerminal, Write};

use crate::failure::{Failure, Kind};

/// Asks a person to type the name of what will be gone; without a terminal there is nobody to ask.
pub fn destruction(what: &str, name: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(Failure::new(
            Kind::Usage,
            format!("{what} {name} would be deleted, and nobody is there to confirm it"),
        )
        .next("repeat the command with --yes"));
    }
    write!(std::io::stderr(), "This deletes {what} {name} for ever. Type {name} to go on: ")?;
    std::io::stderr().flush()?;
    let mut typed = String::new();
    input.lock().read_line(&mut typed)?;
    if typed.trim() == name {
        Ok(())
    } else {
        Err(Failure::new(Kind::Failed, format!("that was not `{name}`; nothing was deleted")))
    }
}
