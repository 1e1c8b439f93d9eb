//! `chitin key backup`, `recover` and `protect`: what the operator does with the root key, on its machine and without the
//! API.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use keys::{KeyFile, Protect, Protection, RootKey, SecretText};
use model::KeySpec;
use store::Store;

use super::{Unlock, open, open_file, passphrase, service};
use crate::paths::Paths;

/// What is done with keys.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyCommand {
    /// Write the root key to a file of its own, protected by a passphrase, and print how to recover with it
    #[command(
        after_help = "Example:  chitin key backup /mnt/stick/chitin-root-key\nKeep the file and the passphrase apart, and both apart from backups of the data directory."
    )]
    Backup(Backup),
    /// Put the root key back from a backup; the cloud must be stopped
    #[command(after_help = "Example:  chitin key recover /mnt/stick/chitin-root-key --data /var/lib/chitin")]
    Recover(Recover),
    /// Change how the file of the root key is protected; the cloud must be stopped
    #[command(
        after_help = "Example:  chitin key protect --with passphrase\nExample:  chitin key protect --with service --root-key-service vault.json --uri transit/keys/chitin"
    )]
    Protect(ProtectRoot),
}

/// Arguments of `chitin key backup`.
#[derive(Args, Clone, Debug)]
pub struct Backup {
    /// The file to write; there must be none
    file: PathBuf,
    /// A file (mode 0600) with the backup's passphrase, instead of being asked for it
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    unlock: Unlock,
}

/// Arguments of `chitin key recover`.
#[derive(Args, Clone, Debug)]
pub struct Recover {
    /// The backup
    file: PathBuf,
    #[command(flatten)]
    unlock: Unlock,
}

/// Arguments of `chitin key protect`.
#[derive(Args, Clone, Debug)]
pub struct ProtectRoot {
    /// How it is protected from now on
    #[arg(long, value_enum)]
    with: With,
    /// passphrase: a file (mode 0600) with the new one, instead of being asked for it
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// credential: where the text for the credential is written; there must be no such file
    #[arg(long, value_name = "FILE", required_if_eq("with", "credential"))]
    credential_file: Option<PathBuf>,
    /// service: the key's name there
    #[arg(long, value_name = "URI", required_if_eq("with", "service"))]
    uri: Option<String>,
    /// service: as whom the key is used there, if not as the credentials say
    #[arg(long, value_name = "PRINCIPAL")]
    auth_principal: Option<String>,
    #[command(flatten)]
    unlock: Unlock,
}

/// How the file of a root key can be protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum With {
    /// Its mode alone (0600)
    File,
    /// A passphrase (Argon2id, AES-256-GCM)
    Passphrase,
    /// A key that a key service keeps; needs --root-key-service and --uri
    Service,
    /// A credential of systemd's, which can be bound to the machine's TPM
    Credential,
}

/// Carries the command out. The text is for the operator.
pub async fn run(command: KeyCommand, data: &Path) -> Result<String, String> {
    match command {
        KeyCommand::Backup(backup) => backup.run(data).await,
        KeyCommand::Recover(recover) => recover.run(data).await,
        KeyCommand::Protect(protect) => protect.run(data).await,
    }
}

/// Prints what was done, or what was refused.
pub fn tell(done: Result<String, String>) -> bool {
    // Nobody may be reading; that is no reason to fail.
    match done {
        Ok(text) => {
            let _ = writeln!(std::io::stdout().lock(), "{text}");
            true
        }
        Err(text) => {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
            false
        }
    }
}

impl Backup {
    async fn run(mut self, data: &Path) -> Result<String, String> {
        refuse_existing(&self.file)?;
        let paths = existing(data)?;
        self.unlock.ask_if_needed(paths.data()).map_err(text)?;
        let root = open(&paths, &self.unlock).await.map_err(text)?;
        root.back_up(&self.file, &new_passphrase(self.new_passphrase_file.as_deref())?).map_err(text)?;
        let (file, data) = (self.file.display(), paths.data().display());
        Ok(format!(
            "The root key {id} (version {version}) is in {file}, protected by the passphrase that you chose.\n\n\
             How to recover with it:\n\
             \x20 1. Stop Chitin, if it runs.\n\
             \x20 2. Put the data directory back from your backup, to {data} or anywhere else.\n\
             \x20 3. If a damaged file `kek` lies in it, move that away.\n\
             \x20 4. Run: chitin key recover {file} --data {data}\n\
             \x20    It asks for the passphrase, and checks that the key opens the state before it writes anything.\n\
             \x20 5. Start Chitin. The key file is protected by this backup's passphrase then;\n\
             \x20    `chitin key protect --with file` (or another protection) changes that.\n\n\
             Keep the file and the passphrase in two places, both away from backups of the data directory.\n\
             A rotation of the root key makes this backup old: make a new one after each.",
            id = root.id(),
            version = root.version(),
        ))
    }
}

impl Recover {
    async fn run(mut self, data: &Path) -> Result<String, String> {
        let paths = Paths::prepare(data).map_err(text)?;
        let _claim = paths.claim().map_err(text)?;
        let backup = KeyFile::read(&self.file).map_err(text)?;
        let backup = backup.ok_or_else(|| format!("there is no file {}", self.file.display()))?;
        if matches!(backup.protection(), Protection::Passphrase(_))
            && self.unlock.passphrase_file.is_none()
            && passphrase::is_somebody_there()
        {
            self.unlock.typed = Some(passphrase::ask("Passphrase of the backup: ")?);
        }
        // What systemd hands over belongs to the key file, not to the backup.
        let unlock = Unlock { credentials: None, ..self.unlock };
        let root = open_file(backup, &unlock).await.map_err(text)?;
        let path = paths.key_encryption_key();
        if path.exists() {
            let present = KeyFile::read(&path).map_err(text)?.map(KeyFile::open);
            let is_same = matches!(&present, Some(Ok(present)) if present.ids() == root.ids());
            if !is_same {
                return Err(format!(
                    "there is a key file {} already, and it is not this root key, or cannot be compared with it; nothing was changed. Move it away if you are certain that it is of no use, and run this again",
                    path.display()
                ));
            }
            return Ok(format!("{} holds this root key already; nothing was changed", path.display()));
        }
        let checked = check(&paths, &root)?;
        root.move_to(&path).map_err(text)?;
        Ok(format!(
            "The root key {} (version {}) is back in {}; {checked}.\nIt is protected as the backup was ({}); to change that: chitin key protect --with file --data {}",
            root.id(),
            root.version(),
            path.display(),
            root.protection().as_str(),
            paths.data().display()
        ))
    }
}

/// Whether the root key opens what is there.
fn check(paths: &Paths, root: &RootKey) -> Result<&'static str, String> {
    if !paths.state().exists() {
        return Ok("there is no state.redb to try it on, so put that back too");
    }
    let sealer = root.sealer("state").map_err(text)?;
    match Store::open(&paths.state(), sealer) {
        Ok(_) => Ok("it opens the state"),
        Err(cause) => Err(format!(
            "this backup does not open the state: {cause}. Nothing was changed. It holds version {} of root key {}; a backup from before the last rotation is too old",
            root.version(),
            root.id()
        )),
    }
}

impl ProtectRoot {
    async fn run(mut self, data: &Path) -> Result<String, String> {
        let paths = existing(data)?;
        let _claim = paths.claim().map_err(text)?;
        self.unlock.ask_if_needed(paths.data()).map_err(text)?;
        let root = open(&paths, &self.unlock).await.map_err(text)?;
        let before = root.protection();
        match self.with {
            With::File => root.protect(&Protect::File).map_err(text)?,
            With::Passphrase => {
                let passphrase = new_passphrase(self.new_passphrase_file.as_deref())?;
                root.protect(&Protect::Passphrase(&passphrase)).map_err(text)?;
            }
            With::Credential => {
                let file = self.credential_file.as_deref().ok_or("name a file with --credential-file")?;
                refuse_existing(file)?;
                root.protect(&Protect::Credential(file)).map_err(text)?;
            }
            With::Service => self.by_service(&root).await?,
        }
        Ok(format!(
            "The root key {} was protected by: {}. It is protected by: {}.\n{}",
            root.id(),
            before.as_str(),
            root.protection().as_str(),
            self.next_step()
        ))
    }

    async fn by_service(&self, root: &RootKey) -> Result<(), String> {
        let file = self.unlock.root_key_service.as_deref();
        let file = file.ok_or("name the file that says how to reach the service with --root-key-service")?;
        let written = keys::read_private(file).map_err(text)?;
        let written = written.ok_or_else(|| format!("there is no file {}", file.display()))?;
        let spec = KeySpec {
            kind: service::read(&written).map_err(text)?.kind,
            uri: self.uri.clone().ok_or("name the key with --uri")?,
            auth_principal: self.auth_principal.clone().unwrap_or_default(),
            service: Some(service::name().map_err(text)?),
        };
        let key = service::open(&written, &spec).map_err(text)?;
        root.protect_by_service(&*key).await.map_err(text)
    }

    fn next_step(&self) -> String {
        let old = "Copies of the file as it was before still open with what protected it: destroy them.";
        match self.with {
            With::File => {
                "Start Chitin as usual; where systemd handed a credential over, take it out of the unit."
                    .to_owned()
            }
            With::Passphrase => format!("{old}\nStart with --passphrase-file FILE, or on a terminal."),
            With::Service => format!("{old}\nStart with the same --root-key-service."),
            With::Credential => {
                let file = self.credential_file.as_deref().unwrap_or(Path::new("FILE")).display();
                format!(
                    "{old}\nNext: systemd-creds encrypt --name=chitin-kek {file} /etc/credstore.encrypted/chitin-kek\n\
                     then: shred -u {file}\n\
                     and put LoadCredentialEncrypted=chitin-kek into the unit."
                )
            }
        }
    }
}

/// The data directory of a cloud that exists: looking for a key must not make a new one.
fn existing(data: &Path) -> Result<Paths, String> {
    if !data.join("kek").exists() {
        return Err(format!(
            "there is no root key in {}; name the cloud's data directory with --data",
            data.display()
        ));
    }
    Paths::prepare(data).map_err(text)
}

fn refuse_existing(file: &Path) -> Result<(), String> {
    if file.symlink_metadata().is_ok() {
        return Err(format!(
            "{} exists already; choose another name, so that nothing is lost",
            file.display()
        ));
    }
    Ok(())
}

fn new_passphrase(file: Option<&Path>) -> Result<SecretText, String> {
    match file {
        Some(file) => passphrase::read(file).map_err(text),
        None if passphrase::is_somebody_there() => passphrase::ask_twice(),
        None => {
            Err("a new passphrase is needed; name a file that holds it with --new-passphrase-file".to_owned())
        }
    }
}

fn text(cause: impl std::fmt::Display) -> String {
    cause.to_string()
}
