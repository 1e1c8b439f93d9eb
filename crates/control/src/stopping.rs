//! Requests while the program stops: what was begun is answered, and what is new is refused in words.
//!
//! A connection that is simply cut tells a client nothing: not whether its request was carried out, nor that what it asked for
//! goes on at the next start, where it is on record as a wish.

use std::sync::Arc;

use api::{Code, ErrorBody};
use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::{Cluster, ClusterId, Power, Wish};
use tokio::sync::watch;

use crate::State;

/// What a client is told to wait before it asks again. Nobody knows when the program is started again.
const RETRY_AFTER_SECONDS: u64 = 10;

/// Whether the program stops, and how many requests are not answered yet. Every clone means the same program.
#[derive(Clone, Debug)]
pub struct Stopping(Arc<watch::Sender<Standing>>);

#[derive(Clone, Copy, Debug)]
struct Standing {
    stage: Stage,
    under_way: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    /// What is new is refused, and what was begun may finish.
    Finishing,
    /// What was begun is answered as it is.
    Over,
}

/// A request that is not answered yet.
pub(crate) struct UnderWay(Arc<watch::Sender<Standing>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|standing| standing.under_way -= 1);
    }
}

impl Default for Stopping {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Standing { stage: Stage::Serving, under_way: 0 })))
    }
}

impl Stopping {
    /// Refuses requests from now on, and lets those that were begun finish.
    pub fn refuse_new(&self) {
        self.come_to(Stage::Finishing);
    }

    /// Has those that were begun answered now, with what is known of them.
    pub fn give_up(&self) {
        self.come_to(Stage::Over);
    }

    fn come_to(&self, stage: Stage) {
        self.0.send_modify(|standing| standing.stage = standing.stage.max(stage));
    }

    /// Returns when every request that was begun is answered.
    pub async fn idle(&self) {
        // The sender lives as long as we do.
        let _ = self.0.subscribe().wait_for(|standing| standing.under_way == 0).await;
    }

    /// None for a request that comes too late.
    pub(crate) fn begin(&self) -> Option<UnderWay> {
        let is_begun = self.0.send_if_modified(|standing| {
            let is_begun = standing.stage == Stage::Serving;
            standing.under_way += usize::from(is_begun);
            is_begun
        });
        is_begun.then(|| UnderWay(self.0.clone()))
    }

    /// Returns when those that were begun are to be answered.
    pub(crate) async fn given_up(&self) {
        let _ = self.0.subscribe().wait_for(|standing| standing.stage == Stage::Over).await;
    }
}

/// What a request hears that comes too late.
pub(crate) fn refused() -> Response {
    answered(
        "Chitin is stopping: this request was refused and nothing was changed; ask again when it runs again",
    )
}

/// What a request hears that was begun and is not finished.
pub(crate) fn unfinished(state: &State, method: &Method, path: &str) -> Response {
    answered(&format!(
        "Chitin is stopping and did not finish this request: {}",
        what_goes_on(state, method, path)
    ))
}

/// What is on record, and where to look before the request is repeated.
fn what_goes_on(state: &State, method: &Method, path: &str) -> String {
    if matches!(*method, Method::GET | Method::HEAD) {
        return "nothing was changed; ask again when it runs again".to_owned();
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').skip(2).collect();
    let look = |command: &str| format!("look, when it runs again, before you repeat it: {command}");
    match parts.as_slice() {
        ["clusters"] => {
            format!(
                "if the cluster is on record, it is made at the next start; {}",
                look("chitin cluster list")
            )
        }
        ["clusters", id] if *method == Method::DELETE => {
            wished(state, id, "the deletion", |cluster| cluster.wish == Wish::Deleted)
        }
        ["chitin", "clusters", id, "sleep"] => wished(state, id, "that the cluster is to sleep", |cluster| {
            cluster.wish == Wish::Exists(Power::Asleep)
        }),
        ["chitin", "clusters", id, "wake"] => wished(state, id, "that the cluster is to run", |cluster| {
            cluster.wish == Wish::Exists(Power::Running)
        }),
        ["clusters", id, "sql-users", ..] => unknown(state, id, &look, "user list"),
        ["clusters", id, "databases", ..] => unknown(state, id, &look, "database list"),
        ["chitin", "root-key", ..] => {
            format!("a rotation that was begun goes on at the next start; {}", look("chitin key list"))
        }
        _ => format!("whether it was carried out is not known; {}", look("chitin status")),
    }
}

/// Whether a wish got on record.
fn wished(state: &State, id: &str, what: &str, is_wished: impl Fn(&Cluster) -> bool) -> String {
    let snapshot = state.store.snapshot();
    let id = id.parse::<ClusterId>().ok();
    // One that is gone has been deleted.
    let is_on_record = id.is_none_or(|id| snapshot.get(&id).is_none_or(|entry| is_wished(&entry.cluster)));
    if is_on_record {
        format!("{what} is on record and goes on at the next start; then look with: chitin cluster list")
    } else {
        format!("{what} is not on record yet, so nothing was changed; ask again when it runs again")
    }
}

fn unknown(state: &State, id: &str, look: &impl Fn(&str) -> String, list: &str) -> String {
    let snapshot = state.store.snapshot();
    let name = id.parse::<ClusterId>().ok().and_then(|id| Some(snapshot.get(&id)?.cluster.name.to_string()));
    let command = format!("chitin {list} {}", name.as_deref().unwrap_or("CLUSTER"));
    format!("whether it was carried out is not known; {}", look(&command))
}

fn answered(message: &str) -> Response {
    let body = ErrorBody::with_reason(Code::Unavailable, message, api::STOPPING);
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
    wait(&mut response);
    response
}

/// Says how long to wait.
pub(crate) fn wait(response: &mut Response) {
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
}
