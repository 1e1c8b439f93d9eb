//! Logs for people, on stderr. Audit lines always pass; what could print a secret never does.

mod fields;
mod repeated;

use std::io::IsTerminal;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt, FilterFn, LevelFilter, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use fields::Unforgeable;
use repeated::Repeated;

/// Events of this target are an audit trail: no setting hides them.
pub const AUDIT: &str = "audit";

/// Libraries that print statements, keys or whole messages below INFO.
const TALKATIVE: &[&str] =
    &["tokio_postgres", "postgres_protocol", "rustls", "tokio_rustls", "h2", "hyper", "hyper_util"];

/// The log, while the program runs.
#[derive(Debug)]
#[must_use]
pub struct Log(Repeated);

impl Log {
    /// From now on equal warnings are counted. That takes a thread.
    pub fn count_equal_warnings(&self) {
        self.0.begin();
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// Starts logging. `RUST_LOG` chooses what is shown, within those bounds.
pub fn start() -> Log {
    let repeated = Repeated::default();
    let wanted = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let is_terminal = std::io::stderr().is_terminal();
    let layer = tracing_subscriber::fmt::layer()
        .fmt_fields(Unforgeable)
        .compact()
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal && std::env::var_os("NO_COLOR").is_none());
    // A second subscriber is nobody's intention; the first one stays.
    let _ = tracing_subscriber::registry().with(bounded(layer, wanted, repeated.clone())).try_init();
    Log(repeated)
}

fn bounded<S, L>(layer: L, wanted: EnvFilter, repeated: Repeated) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    L: Layer<S>,
{
    let discreet: FilterFn = filter_fn(is_discreet);
    let audit: FilterFn = filter_fn(|event| event.target() == AUDIT);
    layer.with_filter(wanted.and(discreet).or(audit).and(repeated))
}

fn is_discreet(event: &Metadata<'_>) -> bool {
    let library = event.target().split("::").next().unwrap_or_default();
    *event.level() <= Level::INFO || !TALKATIVE.contains(&library)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(wanted: &str, work: impl FnOnce()) -> String {
        let repeated = Repeated::default();
        repeated.begin();
        let page = Page::default();
        let writer = page.clone();
        let layer = tracing_subscriber::fmt::layer()
            .fmt_fields(Unforgeable)
            .compact()
            .with_ansi(false)
            .with_writer(move || writer.clone());
        let subscriber =
            tracing_subscriber::registry().with(bounded(layer, EnvFilter::new(wanted), repeated.clone()));
        tracing::subscriber::with_default(subscriber, || {
            work();
            repeated.finish();
        });
        String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn libraries_that_print_secrets_stay_quiet_even_at_trace() {
        let text = written("trace", || {
            tracing::trace!(target: "tokio_postgres::query", "SECRET statement");
            tracing::debug!(target: "rustls::client::hs", "SECRET message");
            tracing::debug!(target: "h2", "SECRET header");
            tracing::warn!(target: "rustls::server", "a warning");
            tracing::trace!(target: "gateway::journey", "our own");
        });
        assert!(!text.contains("SECRET"), "{text}");
        assert!(text.contains("a warning") && text.contains("our own"), "{text}");
    }

    #[test]
    fn a_user_s_name_forges_neither_a_field_nor_a_line() {
        let text = written("info", || {
            let (user, from) = ("bob from=203.0.113.9 method=cert ok", "192.0.2.1");
            tracing::info!(cluster = "my-shop-2", %user, %from, method = "jwt", "signed in");
            let cause = "no role \u{202e}x\n2026-11-30 INFO chitin: signed in user=root";
            tracing::warn!(?cause, "{cause}");
        });
        let lines: Vec<&str> = text.lines().collect();
        let [signed_in, refused] = lines[..] else { panic!("{text}") };
        assert!(
            signed_in.ends_with(
                r#"signed in cluster=my-shop-2 user="bob from=203.0.113.9 method=cert ok" from=192.0.2.1 method=jwt"#
            ),
            "{signed_in}"
        );
        assert!(
            refused.contains(r#""no role \u{202e}x\n2026-11-30 INFO chitin: signed in user=root" cause="#),
            "{refused}"
        );
    }

    #[test]
    fn equal_warnings_are_counted_and_not_repeated() {
        let text = written("info", || {
            for number in 0..1_000 {
                tracing::warn!(cause = "Too many open files", "a connection could not be accepted");
                tracing::info!("what is no warning is logged each time");
                tracing::warn!(target: AUDIT, "so is the audit trail");
                if number % 500 == 0 {
                    tracing::warn!(number, "another");
                }
            }
        });
        let count = |part: &str| text.lines().filter(|line| line.contains(part)).count();
        assert_eq!(count("could not be accepted"), 2, "{text}");
        assert_eq!(count("999 more in 1 seconds: a connection could not be accepted"), 1, "{text}");
        assert_eq!([count("no warning"), count("audit trail"), count("another")], [1_000, 1_000, 2]);
    }

    #[test]
    fn no_setting_hides_the_audit_trail() {
        let text = written("off", || {
            tracing::info!(target: AUDIT, "somebody deleted a cluster");
            tracing::error!(target: "gateway", "hidden");
        });
        assert!(text.contains("somebody deleted a cluster") && !text.contains("hidden"), "{text}");
    }
}
