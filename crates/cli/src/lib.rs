//! The operator's tool: every client command, over the HTTPS API only, and `chitin verify`, which attacks from outside.

mod allowlist;
mod client_ca;
mod cloud;
mod clusters;
mod command;
mod confirm;
mod crls;
mod data_directory;
mod databases;
mod discovery;
mod egress;
mod endpoints;
mod failure;
#[cfg(test)]
mod fixtures;
mod hba;
mod identity_map;
mod key_services;
mod keys;
mod ocsp;
mod output;
mod password;
mod peerings;
mod providers;
mod secret;
mod sql;
mod status;
mod text;
mod throttle;
mod url;
mod users;
mod verify;
mod visibility;

use std::process::ExitCode;

use cloud::Cloud;
use failure::{Failure, Kind};
use output::Printer;

pub use command::{CertCommand, Command, Global, KeyCommand};
pub use data_directory::DEFAULT_DATA;
pub use secret::Silence;

/// Carries out a client command and returns its exit code: 0 done, 1 failed or refused, 2 wrong usage, 3 no cloud
/// answers, 4 not found. `program` is the whole command line, for completions. Must not be called inside a runtime.
pub fn run(command: Command, global: &Global, program: clap::Command) -> ExitCode {
    let printer = Printer::new(global.output);
    match carry_out(command, global, program, printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::say(&failure.to_string());
            failure.exit_code()
        }
    }
}

fn carry_out(
    command: Command,
    global: &Global,
    mut program: clap::Command,
    printer: Printer,
) -> Result<(), Failure> {
    if let Command::Completions { shell } = command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut program, "chitin", &mut script);
        return output::line(String::from_utf8_lossy(&script).trim_end());
    }
    let cloud = Cloud::find(global)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(
            |error| Failure::new(Kind::Failed, format!("the program could not start its threads: {error}")),
        )?;
    runtime.block_on(async {
        match command {
            Command::Cluster(command) => clusters::run(&cloud, command, printer).await,
            Command::User(command) => users::run(&cloud, command, printer).await,
            Command::Database(command) => databases::run(&cloud, command, printer).await,
            Command::Allowlist(command) => allowlist::run(&cloud, command, printer).await,
            Command::Egress(command) => egress::run(&cloud, command, printer).await,
            Command::Peering(command) => peerings::run(&cloud, command, printer).await,
            Command::Endpoint(command) => endpoints::run(&cloud, command, printer).await,
            Command::Hba(command) => hba::run(&cloud, command, printer).await,
            Command::IdentityMap(command) => identity_map::run(&cloud, command, printer).await,
            Command::ClientCa(command) => client_ca::run(&cloud, command, printer).await,
            Command::Ocsp(command) => ocsp::run(&cloud, command, printer).await,
            Command::Crl(command) => crls::run(&cloud, command, printer).await,
            Command::Provider(command) => providers::run(&cloud, command, printer).await,
            Command::Key(command) => keys::run(&cloud, command, printer).await,
            Command::Throttle(command) => throttle::run(&cloud, command, printer).await,
            Command::Sql(sql) => Err(sql::become_psql(sql::prepare(&cloud, sql).await?)),
            Command::Status => status::run(&cloud, printer).await,
            Command::Verify(verify) => verify::run(&cloud, &verify.cluster, printer).await,
            Command::Cert(CertCommand::Ca) => {
                let authority = cloud.api.authority().await?;
                printer.result(&authority, || authority.pem.trim_end().to_owned())
            }
            Command::Completions { .. } => Ok(()),
        }
    })
}
