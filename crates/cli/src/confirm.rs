//! Asks before something is destroyed.

use std::io::{BufRead, IsTerminal, Write};

use crate::failure::{Failure, Kind};

/// Asks a person to type the name of what will be gone; without a terminal there is nobody to ask.
pub fn destruction(what: &str, name: &str, yes: bool) -> Result<(), Failure> {
    consequence(&format!("This deletes {what} {name} for ever."), name, yes)
}

/// Says what will happen, and asks a person to type the name of what it happens to.
pub fn consequence(what: &str, name: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(Failure::new(Kind::Usage, format!("{what} Nobody is there to confirm it"))
            .next("repeat the command with --yes"));
    }
    write!(std::io::stderr(), "{what} Type {name} to go on: ")?;
    std::io::stderr().flush()?;
    let mut typed = String::new();
    input.lock().read_line(&mut typed)?;
    if typed.trim() == name {
        Ok(())
    } else {
        Err(Failure::new(Kind::Failed, format!("that was not `{name}`; nothing was done")))
    }
}
