//! `chitin user`: create, list, password, delete.

use std::io::Read;

use api::{Cluster, Error, SecretText};

use crate::cloud::Cloud;
use crate::command::{UserCommand, UserPassword};
use crate::failure::{Failure, Kind};
use crate::output::{self, Printer, table};
use crate::{confirm, password, url};

/// Longest password that is read, as libpq and PostgreSQL's own SCRAM code bound it.
const PASSWORD_BYTES_MAX: usize = 1_024;

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: UserCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        UserCommand::Create(wanted) => {
            let cluster = cloud.cluster(&wanted.cluster).await?;
            let (password, is_ours) = password_for(&wanted)?;
            let made = cloud.api.create_sql_user(cluster.id, &wanted.user, password.clone()).await;
            made.map_err(|error| set_it_again(error, &wanted))?;
            show(cloud, &cluster, &wanted.user, &password, is_ours, printer).await
        }
        UserCommand::Password(wanted) => {
            let cluster = cloud.cluster(&wanted.cluster).await?;
            let (password, is_ours) = password_for(&wanted)?;
            let set = cloud.api.set_password(cluster.id, &wanted.user, password.clone()).await;
            set.map_err(|error| set_it_again(error, &wanted))?;
            show(cloud, &cluster, &wanted.user, &password, is_ours, printer).await
        }
        UserCommand::List(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let users = cloud.api.sql_users(cluster.id).await?;
            if users.is_empty() && !printer.is_json() {
                output::say(&format!(
                    "there is no user yet; create one: chitin user create {} NAME",
                    cluster.name
                ));
                return Ok(());
            }
            printer.result(&users, || {
                let rows = users.iter().map(|user| {
                    let state =
                        if user.is_deletion_unfinished { "deletion unfinished; delete it again" } else { "" };
                    [user.name.clone(), user.source.clone().unwrap_or_default(), state.to_owned()]
                });
                table(["USER", "MADE BY", "STATE"], rows)
            })
        }
        UserCommand::Delete { cluster, user, yes } => {
            let cluster = cloud.cluster(&cluster).await?;
            confirm::destruction("user", &user, yes)?;
            let deleted = cloud.api.delete_sql_user(cluster.id, &user).await?;
            printer.result(&deleted, || {
                format!("deleted {user}; what it owned belongs to {}", model::ADMIN_ROLE)
            })
        }
    }
}

/// A failure, with the way on where the user may have the password that nobody has been shown.
fn set_it_again(error: Error, wanted: &UserPassword) -> Failure {
    let is_refused = match &error {
        Error::NotFound { .. } => true,
        Error::Refused { status, .. } => *status < 500,
        // The answer may have been lost, and not the request.
        Error::Unreachable { .. } | Error::Stopping { .. } | Error::Unexpected(_) => false,
    };
    let failure = Failure::from(error);
    if is_refused || failure.what.contains("nothing was changed") {
        return failure;
    }
    let before = failure.next.as_ref().map(|next| format!("{next}; then, ")).unwrap_or_default();
    let again = format!("chitin user password {} {}", wanted.cluster, wanted.user);
    failure.next(format!("{before}since the password may have been set, set it once more: {again}"))
}

/// The password to set, and whether it was made here and must be shown.
fn password_for(wanted: &UserPassword) -> Result<(SecretText, bool), Failure> {
    if !wanted.password_stdin {
        return Ok((password::generate()?, true));
    }
    let mut text = String::new();
    let bytes_max = u64::try_from(PASSWORD_BYTES_MAX + 2).unwrap_or(u64::MAX);
    crate::text::private_input()?.take(bytes_max).read_to_string(&mut text)?;
    let line = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() || line.len() > PASSWORD_BYTES_MAX || line.contains('\n') {
        return Err(Failure::new(
            Kind::Usage,
            format!(
                "standard input must hold one line with the password, at most {PASSWORD_BYTES_MAX} bytes"
            ),
        ));
    }
    Ok((SecretText::new(line.to_owned()), false))
}

async fn show(
    cloud: &Cloud,
    cluster: &Cluster,
    user: &str,
    password: &SecretText,
    is_ours: bool,
    printer: Printer,
) -> Result<(), Failure> {
    if printer.is_json() {
        let shown = if is_ours {
            serde_json::json!({ "name": user, "password": password.expose() })
        } else {
            serde_json::json!({ "name": user })
        };
        return printer.result(&shown, String::new);
    }
    if is_ours {
        output::line(&format!("user      {user}\npassword  {}", password.expose()))?;
        output::say("note: the password is shown this once; nobody can read it again");
    } else {
        output::line(&format!("user      {user}"))?;
    }
    // The user exists; a connection string that cannot be had now is no reason to fail.
    if let Ok(url) = url::of(cloud, cluster, user, model::DEFAULT_DATABASE).await {
        output::say(&format!("next: psql \"{url}\""));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_may_have_been_set_and_was_not_shown_can_be_set_again() {
        let wanted =
            UserPassword { cluster: "shop".to_owned(), user: "maria".to_owned(), password_stdin: false };
        let refused = |status| Error::Refused { status, code: 14, message: "it took too long".to_owned() };
        let next = |error| set_it_again(error, &wanted).next.unwrap_or_default();
        let (text, url) = (|text: &str| text.to_owned(), "https://localhost".to_owned());
        for uncertain in [
            refused(503),
            Error::Unexpected(text("half an answer")),
            Error::Stopping { message: text("whether it was carried out is not known") },
            Error::Unreachable { url, reason: text("the answer broke off") },
        ] {
            assert!(next(uncertain).ends_with("chitin user password shop maria"));
        }
        assert_eq!(next(refused(400)), "");
        let sure = Error::Refused { status: 503, code: 14, message: text("nothing was changed: no room") };
        assert_eq!(next(sure), "");
    }
}
