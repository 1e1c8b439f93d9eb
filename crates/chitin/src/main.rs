//! Chitin: one machine becomes a secure SQL cloud.

mod administration;
mod admission;
mod certificates;
mod clock;
mod cloud;
mod config;
mod descriptors;
mod desk;
mod directory;
mod doors;
mod examiner;
#[cfg(test)]
#[path = "../../../tests/folder.rs"]
mod folder;
mod front_doors;
mod http;
mod knocks;
#[cfg(test)]
#[path = "../../../tests/launcher.rs"]
mod launcher;
mod lines;
mod logging;
mod memory;
mod operator;
mod outlets;
mod pages;
mod paths;
mod perimeter;
mod policy;
mod presence;
mod revoked;
mod ring;
mod root_key;
#[cfg(test)]
#[path = "../../../tests/skipped.rs"]
mod skipped;
mod staple;
mod start;
mod storage;
#[cfg(test)]
mod testing;
mod threads;
mod trial;
mod versions;
mod volume_record;
mod waker;
mod watch;

use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::StartOptions;
use crate::root_key::command::{self, KeyCommand};

/// The hard shell around SQL: one machine becomes a secure PostgreSQL cloud
#[derive(Debug, Parser)]
#[command(name = "chitin", version, propagate_version = true)]
struct CommandLine {
    #[command(flatten)]
    global: cli::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the cloud on this machine and keep it in the foreground
    #[command(
        after_help = "Example:  chitin start --data /var/lib/chitin\nNext:     chitin cluster create my-shop"
    )]
    Start(Box<StartOptions>),
    /// Manage keys: what encrypts clusters at rest, who keeps it, and the root key
    #[command(subcommand, after_help = "Begin with:  chitin key list")]
    Key(KeyCommands),
    #[command(flatten)]
    Client(cli::Command),
}

/// Keys that need a running cloud, and the root key, which needs its files.
#[derive(Debug, Subcommand)]
enum KeyCommands {
    #[command(flatten)]
    Cloud(cli::KeyCommand),
    #[command(flatten)]
    Local(KeyCommand),
}

fn main() -> ExitCode {
    // In an engine's sandbox.
    if let Some(code) = engine::launch_if_asked() {
        return code;
    }
    let CommandLine { global, command } = CommandLine::parse();
    match command {
        Command::Start(options) => start(*options),
        Command::Key(KeyCommands::Cloud(command)) => {
            cli::run(cli::Command::Key(command), &global, CommandLine::command())
        }
        Command::Key(KeyCommands::Local(command)) => key(command, &global),
        Command::Client(command) => cli::run(command, &global, CommandLine::command()),
    }
}

fn start(mut options: StartOptions) -> ExitCode {
    let log = logging::start();
    // Before there are threads, so that Ctrl-C at the question ends the program.
    if let Err(cause) = options.unlock.ask_if_needed(&options.data) {
        tracing::error!("{cause}");
        return ExitCode::FAILURE;
    }
    if cfg!(feature = "failpoints") {
        stop_at_the_step();
    }
    // Opened before the mounts are our own: names that `ip netns` gives later are seen through it only.
    let root = match std::fs::File::open("/") {
        Ok(root) => root,
        Err(cause) => {
            tracing::error!(%cause, "the root directory could not be opened");
            return ExitCode::FAILURE;
        }
    };
    // Before there is a second thread: the new namespace must hold for all of them.
    if let Err(cause) = engine::isolate_mounts() {
        tracing::error!(%cause, "the program could not get a mount namespace of its own");
        return ExitCode::FAILURE;
    }
    memory::keep_in();
    memory::protect();
    descriptors::raise();
    log.count_equal_warnings();
    let runtime = match threads::runtime() {
        Ok(runtime) => runtime,
        Err(cause) => {
            tracing::error!("{cause}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(start::run(&options, root)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            tracing::error!("{cause}");
            ExitCode::FAILURE
        }
    }
}

/// Lets the thread that comes to the step which a test named stand still for good, and says so: the test kills us then.
fn stop_at_the_step() {
    let Ok(step) = std::env::var("CHITIN_STOP_AT") else { return };
    let stop = {
        let step = step.clone();
        move || {
            tracing::warn!("stopped at the step {step}");
            loop {
                std::thread::park();
            }
        }
    };
    fail::cfg_callback(step, stop).expect("a callback needs no parsing");
}

/// What is done with the root key on this machine.
fn key(command: KeyCommand, global: &cli::Global) -> ExitCode {
    memory::keep_in();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => {
            command::tell(Err(format!("the program could not start: {cause}")));
            return ExitCode::FAILURE;
        }
    };
    let done = runtime
        .block_on(command::run(command, global.data.as_deref().unwrap_or(Path::new(cli::DEFAULT_DATA))));
    if command::tell(done) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of a line as a shell reads them, up to a comment or another program.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut quote) = (vec![String::new()], None);
        for letter in line.chars() {
            match (letter, quote) {
                ('#' | '|' | '>' | '&' | ';', None) => break,
                ('\'' | '"', None) => quote = Some(letter),
                (end, Some(begun)) if end == begun => quote = None,
                (' ', None) => words.push(String::new()),
                (letter, _) => words.last_mut().expect("one").push(letter),
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn every_command_that_documents_show_is_one_that_there_is() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let in_docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
        let mut count = 0;
        for document in in_docs.chain([root.join("README.md"), root.join("SECURITY.md")]) {
            // There they are patterns.
            if document.ends_with("commands.md") || document.extension().is_none_or(|end| end != "md") {
                continue;
            }
            let text = std::fs::read_to_string(&document).unwrap();
            for line in text.lines().filter_map(|line| line.strip_prefix("    ")) {
                let line = line.trim().trim_start_matches("$ ").trim_start_matches("sudo ");
                if !line.starts_with("chitin ") || line.contains('…') || line.contains("...") {
                    continue;
                }
                count += 1;
                match CommandLine::try_parse_from(words(line)) {
                    Ok(_) => {}
                    Err(error) if error.kind() == clap::error::ErrorKind::DisplayHelp => {}
                    Err(error) => panic!("{}: {line}\n{error}", document.display()),
                }
            }
        }
        assert!(count > 50, "only {count} were found");
    }
}
