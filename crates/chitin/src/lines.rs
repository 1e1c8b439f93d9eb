//! Questions to running engines about who may sign in: one open session for each engine, and one question at a time, by
//! which everybody is looked up who came while the last one was under way. So however many sign in at once, each waits for
//! two questions at the most, and nobody learns from the time that an engine had to be asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::{Administration, Host, RoleNow};
use futures::future::BoxFuture;
use identity::scram::{Form, Forms};
use model::{ClusterId, RoleName};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

/// For a running engine to answer one question.
const READ_MAX: Duration = Duration::from_secs(2);
/// Before a question, so that it is asked for everybody who comes at the same time, and that its work does not delay those who come
/// a little later. It costs nobody anything, since no answer goes out before [`gateway::Settings::lookup_levelled`].
const GATHERED: Duration = Duration::from_millis(5);
/// Users that one question looks up at the most.
const USERS_MAX: usize = 2_048;
/// How old the forms of verifiers may be that stand-ins take. It bounds for how long a new form stands out.
const FORMS_EVERY: Duration = Duration::from_secs(5);

/// What an engine says to one question.
pub(crate) type Answer<T> = BoxFuture<'static, Result<T, engine::Error>>;

/// Why an engine told nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// It took too long. Whoever waits longer would wait for nothing.
    TooSlow,
    /// It does not run, starts, stops, or refuses.
    Unreachable,
}

/// The lines to all running engines.
pub(crate) struct Lines {
    host: Arc<Host>,
    by_cluster: Mutex<HashMap<ClusterId, Arc<Line>>>,
    /// On which nobody is asked.
    of_nobody: Arc<Line>,
}

/// The line to one engine.
#[derive(Default)]
struct Line {
    /// The session, once it is open. It may have died with an earlier run.
    session: tokio::sync::Mutex<Option<Arc<Administration>>>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    waiting: Vec<Waiting>,
    /// Whether somebody asks for those who wait.
    is_asking: bool,
    forms: Option<(Instant, Arc<Forms>)>,
}

/// Somebody who is to be looked up.
struct Waiting {
    user: RoleName,
    named: Vec<String>,
    answer: oneshot::Sender<Result<Option<RoleNow>, Unanswered>>,
}

impl Lines {
    /// No line is open yet.
    pub(crate) fn new(host: Arc<Host>) -> Arc<Self> {
        Arc::new(Self { host, by_cluster: Mutex::default(), of_nobody: Arc::default() })
    }

    /// Closes the lines to engines that no longer run.
    pub(crate) fn tidy(&self) {
        self.all().retain(|id, _| self.host.is_running(*id));
    }

    /// The role of this name as the engine has it now, with those of the named roles that it is a member of.
    pub(crate) async fn role(
        self: &Arc<Self>,
        cluster: ClusterId,
        user: &RoleName,
        named: &[String],
    ) -> Result<Option<RoleNow>, Unanswered> {
        if !self.host.is_running(cluster) {
            return Err(Unanswered::Unreachable);
        }
        self.wait_on(self.line(cluster), Some(cluster), user, named).await
    }

    /// Takes the steps of [`Self::role`] and asks nobody: for a user of what does not run or is not there. Without it a running
    /// cluster shows, when many ask at once, by the work that each of them makes before those after it are heard.
    pub(crate) async fn nobody(self: &Arc<Self>, user: &RoleName, named: &[String]) {
        // Nobody can say.
        let _ = self.wait_on(self.of_nobody.clone(), None, user, named).await;
    }

    async fn wait_on(
        self: &Arc<Self>,
        line: Arc<Line>,
        cluster: Option<ClusterId>,
        user: &RoleName,
        named: &[String],
    ) -> Result<Option<RoleNow>, Unanswered> {
        let (answer, answered) = oneshot::channel();
        let begins = {
            let mut inner = line.lock();
            inner.waiting.push(Waiting { user: user.clone(), named: named.to_vec(), answer });
            !std::mem::replace(&mut inner.is_asking, true)
        };
        if begins {
            // By itself, so that it goes on for the others when the client that began it leaves.
            tokio::spawn(self.clone().look_up(cluster, line));
        }
        answered.await.unwrap_or(Err(Unanswered::Unreachable))
    }

    /// The forms of the engine's verifiers as they were a moment ago; `None` where nobody was looked up since it runs.
    pub(crate) fn forms(&self, cluster: ClusterId) -> Option<Arc<Forms>> {
        let line = self.all().get(&cluster).cloned()?;
        let inner = line.lock();
        inner.forms.as_ref().map(|(_, forms)| forms.clone())
    }

    /// Asks for those who wait, until nobody does.
    async fn look_up(self: Arc<Self>, cluster: Option<ClusterId>, line: Arc<Line>) {
        loop {
            sleep(GATHERED).await;
            let (asked_for, are_forms_old) = {
                let mut inner = line.lock();
                inner.waiting.retain(|one| !one.answer.is_closed());
                if inner.waiting.is_empty() {
                    inner.is_asking = false;
                    return;
                }
                let count = inner.waiting.len().min(USERS_MAX);
                let is_old = inner.forms.as_ref().is_none_or(|(at, _)| at.elapsed() >= FORMS_EVERY);
                (inner.waiting.drain(..count).collect::<Vec<_>>(), is_old)
            };
            if are_forms_old && let Some(cluster) = cluster {
                // In the way of this look-up, and in that of nobody who must not wait: it is as quick.
                self.read_forms(cluster, &line).await;
            }
            let users: Vec<RoleName> = asked_for.iter().map(|one| one.user.clone()).collect();
            let mut named: Vec<String> = asked_for.iter().flat_map(|one| one.named.clone()).collect();
            named.sort();
            named.dedup();
            let named: Arc<[String]> = named.into();
            let question = |engine: Arc<Administration>| -> Answer<Vec<RoleNow>> {
                let (users, named) = (users.clone(), named.clone());
                Box::pin(async move { engine.roles_named(&users, &named).await })
            };
            let found = match cluster {
                Some(cluster) => self.ask(cluster, &question).await,
                None => Err(Unanswered::Unreachable),
            };
            for Waiting { user, named: _, answer } in asked_for {
                let role = found
                    .as_ref()
                    .map_err(|why| *why)
                    .map(|found| found.iter().find(|now| now.role.name == user.as_str()).cloned());
                // Whoever asked may be gone.
                let _ = answer.send(role);
            }
        }
    }

    async fn read_forms(&self, cluster: ClusterId, line: &Line) {
        let question = |engine: Arc<Administration>| -> Answer<Forms> {
            Box::pin(async move {
                let counted = engine.verifier_forms().await?;
                Ok(Forms::counted(counted.into_iter().map(|form| {
                    (Form { iterations: form.iterations, salt_bytes: form.salt_bytes }, form.users)
                })))
            })
        };
        // Where it cannot be asked, older ones are better than none.
        if let Ok(forms) = self.ask(cluster, &question).await {
            line.lock().forms = Some((Instant::now(), Arc::new(forms)));
        }
    }

    /// Asks the engine, on the open line to it.
    pub(crate) async fn ask<T>(
        &self,
        cluster: ClusterId,
        question: &(impl Fn(Arc<Administration>) -> Answer<T> + Sync),
    ) -> Result<T, Unanswered> {
        if !self.host.is_running(cluster) {
            return Err(Unanswered::Unreachable);
        }
        let line = self.line(cluster);
        // A line that was open may have died with an earlier engine: one more try with a new one.
        for _ in 0..2 {
            let mut used = None;
            let asked = async {
                let open = {
                    let mut session = line.session.lock().await;
                    match &*session {
                        Some(open) => open.clone(),
                        None => session.insert(Arc::new(self.host.administration(cluster).await?)).clone(),
                    }
                };
                used = Some(open.clone());
                question(open).await
            };
            let answer = timeout(READ_MAX, asked).await;
            if let Ok(Ok(answer)) = answer {
                return Ok(answer);
            }
            line.close(used).await;
            match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(cause @ engine::Error::NoProcess { .. })) => {
                    tracing::warn!(%cluster, %cause, "the engine cannot be asked who may sign in");
                    return Err(Unanswered::Unreachable);
                }
                Ok(Err(cause)) => tracing::debug!(%cluster, %cause, "the line to the engine is opened anew"),
                Err(_) => {
                    tracing::warn!(%cluster, "the engine was too slow to tell a role");
                    return Err(Unanswered::TooSlow);
                }
            }
        }
        Err(Unanswered::Unreachable)
    }

    fn line(&self, cluster: ClusterId) -> Arc<Line> {
        self.all().entry(cluster).or_default().clone()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<ClusterId, Arc<Line>>> {
        // Single inserts and removals.
        self.by_cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No step in between can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the session that failed, unless somebody has opened another since.
    async fn close(&self, failed: Option<Arc<Administration>>) {
        let Some(failed) = failed else { return };
        let mut session = self.session.lock().await;
        session.take_if(|open| Arc::ptr_eq(open, &failed));
    }
}
