//! Station 10: bytes both ways. Frames are seen but not kept, so that the session can be ended between two of them.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use wire::backend::{Report, Severity};
use wire::frame::{Frames, Header};

use crate::dialogue::Dialogue;
use crate::directory::Engine;
use crate::listen::VANISHED_MAX;
use crate::stream::ClientStream;
use crate::{Cut, Settings};

/// Largest piece that is moved at once.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that one session may move before others have their turn.
const PIECES_PER_TURN: usize = 16;
/// From the last words to the client until the engine's session is let go.
const PARTING: Duration = Duration::from_millis(250);
/// For a client to take our last words.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// So much later than we do the kernel gives up on a client that takes nothing.
const AFTER_US: Duration = Duration::from_secs(5);

thread_local! {
    /// One buffer a thread, not two a session: an idle session holds none.
    static PIECE: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE_BYTES].into_boxed_slice());
}

/// How a session ended, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The client said goodbye or went away.
    ByClient,
    /// The client's machine no longer answers.
    Vanished,
    /// The client took nothing of what it had asked for, for too long.
    Unread,
    /// The engine ended it and said why.
    ByEngine,
    /// The engine broke off.
    EngineLost,
    /// The engine broke off, since its memory was used up.
    OutOfMemory,
    /// We ended it.
    Cut(Cut),
    /// It was the client's turn, and it did nothing for too long.
    Idle,
    /// The client's bytes do not follow the protocol.
    Protocol,
}

/// Relays until one side ends or the session is cut, then tells the client why if a frame boundary allows it. `interrupt`
/// makes the engine stop what it does for the session, and is asked for where it may be doing something as it is cut.
pub(crate) async fn relay(
    mut client: ClientStream,
    mut engine: UnixStream,
    mut cut: oneshot::Receiver<Cut>,
    settings: &Settings,
    engine_run: &dyn Engine,
    interrupt: impl AsyncFnOnce(),
) -> Ended {
    // The kernel ends a client that takes nothing, too, and also where all that is left fits into its buffers.
    limit_silence(&client, VANISHED_MAX.max(settings.unread_max + AFTER_US));
    let mut relay = Relay::new(settings);
    let mut ended = poll_fn(|cx| relay.poll(cx, &mut client, &mut engine, &mut cut)).await;
    if ended == Ended::EngineLost && engine_run.has_run_out_of_memory() {
        ended = Ended::OutOfMemory;
    }
    let is_cut = matches!(ended, Ended::Cut(reason) if reason != Cut::Stopping);
    // A thousand engines' processes that end at once would take the processors from us while clients still have to be told.
    let kept = is_cut.then_some(engine);
    let farewell = relay.farewell(ended);
    // An engine notices that its client is gone when it next has something to say to it; until then it would work on, hold its
    // locks, and commit, for somebody who may no longer be here.
    let is_given_up = matches!(ended, Ended::Cut(_) | Ended::Vanished | Ended::Unread | Ended::Idle);
    let is_working = is_given_up && relay.may_work();
    drop(relay);
    let say = timeout(FAREWELL_MAX, async {
        if let Some(farewell) = farewell {
            client.write_all(&farewell).await?;
        }
        client.shutdown().await
    });
    if is_working {
        // Boxed, so that the many who are never cut need no room for it.
        let _ = tokio::join!(say, Box::pin(interrupt()));
    } else {
        let _ = say.await;
    }
    if let Some(engine) = kept {
        drop(client);
        sleep(PARTING).await;
        drop(engine);
    }
    ended
}

struct Relay<'a> {
    settings: &'a Settings,
    up: Lane,
    down: Lane,
    dialogue: Dialogue,
    /// The session must end: why, since when this is known, and when patience is over.
    ending: Option<(Cut, Instant, Instant)>,
    last_moved: Instant,
    /// Since when the client takes nothing of what is there for it.
    unread_since: Option<Instant>,
    /// Runs only while something can become too late.
    timer: Option<Pin<Box<Sleep>>>,
    has_client_ended: bool,
}

/// One direction.
#[derive(Default)]
struct Lane {
    frames: Frames,
    /// The type of the last frame that began.
    last_tag: u8,
    /// The last byte that was read.
    last_byte: u8,
    /// What was read and could not be written yet.
    waiting: Vec<u8>,
    written: usize,
    has_unflushed: bool,
    /// The writing side takes nothing at the moment.
    is_stuck: bool,
    /// The reading side has ended and the writing side was told.
    is_closed: bool,
}

/// What a lane did.
enum Step {
    Moved,
    Blocked,
    /// The source has nothing more.
    SourceEnded,
}

/// Which side of a lane failed.
enum Broken {
    Source(io::ErrorKind),
    Target(io::ErrorKind),
    Protocol,
}

impl<'a> Relay<'a> {
    fn new(settings: &'a Settings) -> Self {
        Self {
            settings,
            up: Lane::default(),
            down: Lane::default(),
            dialogue: Dialogue::default(),
            ending: None,
            last_moved: Instant::now(),
            unread_since: None,
            timer: None,
            has_client_ended: false,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut ClientStream,
        engine: &mut UnixStream,
        cut: &mut oneshot::Receiver<Cut>,
    ) -> Poll<Ended> {
        if self.ending.is_none()
            && let Poll::Ready(Ok(reason)) = Pin::new(cut).poll(cx)
        {
            let patience =
                if reason == Cut::Stopping { self.settings.drain_max } else { self.settings.cut_max };
            let now = Instant::now();
            self.ending = Some((reason, now, now + patience));
        }
        let mut has_moved = false;
        for _ in 0..PIECES_PER_TURN {
            if let Some((reason, ..)) = self.ending
                && self.is_quiet(reason)
            {
                return Poll::Ready(Ended::Cut(reason));
            }
            let up = match self.up.pump(cx, client, engine, PIECE_BYTES, |tag| self.dialogue.sent(tag)) {
                Ok(step) => step,
                Err(Broken::Protocol) => return Poll::Ready(Ended::Protocol),
                Err(Broken::Source(kind)) => return Poll::Ready(lost(kind)),
                // The engine closed its side first; its last words, if any, are still in the other lane.
                Err(Broken::Target(_)) => {
                    self.up.is_closed = true;
                    Step::SourceEnded
                }
            };
            // While ending, read to the end of the present frame and no further.
            let piece = match self.ending {
                Some((reason, ..)) if reason != Cut::Stopping => {
                    self.down.frames.bytes_left().clamp(1, PIECE_BYTES)
                }
                _ => PIECE_BYTES,
            };
            let down = match self.down.pump(cx, engine, client, piece, |tag| self.dialogue.came(tag)) {
                Ok(step) => step,
                Err(Broken::Source(_) | Broken::Protocol) => return Poll::Ready(Ended::EngineLost),
                Err(Broken::Target(kind)) => return Poll::Ready(lost(kind)),
            };
            self.note_unread();
            if matches!(down, Step::SourceEnded) {
                return Poll::Ready(match self.down.last_tag {
                    _ if self.up.last_tag == b'X' || self.has_client_ended => Ended::ByClient,
                    b'E' => Ended::ByEngine,
                    _ => Ended::EngineLost,
                });
            }
            if matches!(up, Step::SourceEnded) && !self.up.is_closed {
                // The engine ends its session when it reads this; what it still has to say comes down first.
                self.up.is_closed = true;
                self.has_client_ended = true;
                if Pin::new(&mut *engine).poll_shutdown(cx).is_ready_and_failed() {
                    return Poll::Ready(Ended::ByClient);
                }
            }
            if !matches!((&up, &down), (Step::Moved, _) | (_, Step::Moved)) {
                return self.poll_timer(cx, has_moved);
            }
            has_moved = true;
        }
        self.last_moved = Instant::now();
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether our last words may come now: between two frames, and when stopping not in the middle of a query.
    fn is_quiet(&self, reason: Cut) -> bool {
        let is_between = self.down.frames.is_at_boundary() && self.down.waiting.is_empty();
        let is_idle = !self.dialogue.is_anything_open()
            && self.up.frames.is_at_boundary()
            && self.up.waiting.is_empty();
        is_between && (reason != Cut::Stopping || is_idle)
    }

    /// Whether the client has to move next: the engine does nothing, or nobody takes what it says.
    fn is_clients_turn(&self) -> bool {
        if self.down.is_stuck {
            return true;
        }
        // What the engine does not take is the engine's affair.
        let is_last_whole = !self.up.frames.is_in_body();
        self.up.waiting.is_empty() && !self.dialogue.is_engine_working(is_last_whole, self.up.last_tag)
    }

    /// Whether the engine may be at work for the client: also for messages that ask for no `ReadyForQuery`.
    fn may_work(&self) -> bool {
        self.dialogue.is_anything_open() || !matches!(self.up.last_tag, 0 | b'Q' | b'F' | b'S')
    }

    fn note_unread(&mut self) {
        if self.down.is_stuck {
            self.unread_since.get_or_insert_with(Instant::now);
        } else {
            self.unread_since = None;
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, has_moved: bool) -> Poll<Ended> {
        if has_moved {
            self.last_moved = Instant::now();
        }
        loop {
            if let Some(ended) = self.judge() {
                return Poll::Ready(ended);
            }
            let Some(next) = self.next_look() else {
                self.timer = None;
                return Poll::Pending;
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
            // One that ends too early is looked at then, so that moving bytes does not move timers.
            if timer.deadline() > next || timer.is_elapsed() {
                timer.as_mut().reset(next);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Whether something has taken too long.
    fn judge(&mut self) -> Option<Ended> {
        if self.ending.is_none() && self.unread_since.is_none() && self.settings.idle_max.is_none() {
            return None;
        }
        let now = Instant::now();
        let is_clients_turn = self.is_clients_turn();
        if let Some((reason, _, until)) = self.ending {
            let is_held_up = is_clients_turn && self.held_up_at().is_some_and(|at| now >= at);
            return (now >= until || is_held_up).then_some(Ended::Cut(reason));
        }
        if self.unread_since.is_some_and(|since| now >= since + self.settings.unread_max) {
            return Some(Ended::Unread);
        }
        if let Some(idle_max) = self.settings.idle_max {
            if !is_clients_turn {
                // A long statement is no idleness: the client waits for it, and it may take as long as it takes.
                self.last_moved = now;
            } else if now >= self.unread_since.unwrap_or(self.last_moved) + idle_max {
                return Some(Ended::Idle);
            }
        }
        None
    }

    /// When something may next have taken too long; always later than now.
    fn next_look(&self) -> Option<Instant> {
        if let Some((_, _, until)) = self.ending {
            let held_up = self.held_up_at().filter(|_| self.is_clients_turn());
            return Some(held_up.map_or(until, |at| at.min(until)));
        }
        let unread = self.unread_since.map(|since| since + self.settings.unread_max);
        let idle =
            self.settings.idle_max.map(|idle_max| self.unread_since.unwrap_or(self.last_moved) + idle_max);
        [unread, idle].into_iter().flatten().min()
    }

    /// When a client that lets us wait for it has held up our stopping for long enough.
    fn held_up_at(&self) -> Option<Instant> {
        let (reason, since, _) = self.ending?;
        let silent = self.unread_since.unwrap_or(self.last_moved);
        (reason == Cut::Stopping).then(|| since.max(silent) + self.settings.cut_max)
    }

    /// Our last words; none inside a frame, where a client would read them as data.
    fn farewell(&self, ended: Ended) -> Option<Vec<u8>> {
        if !self.down.frames.is_at_boundary() || !self.down.waiting.is_empty() {
            return None;
        }
        let fatal = |code, message: &str, hint: Option<&str>| Report {
            severity: Severity::Fatal,
            code,
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
        };
        let report = match ended {
            Ended::ByClient | Ended::ByEngine | Ended::Vanished => return None,
            Ended::Unread => fatal(
                "08006",
                "terminating connection: nobody takes the result",
                Some(
                    "Read results as they come. The operator sets for how long: chitin start --unread-timeout",
                ),
            ),
            Ended::EngineLost => fatal(
                "57P01",
                "terminating connection: the cluster's engine ended",
                Some("What was committed is safe; connect again."),
            ),
            Ended::OutOfMemory => fatal(
                "53200",
                "terminating connection: the cluster's memory is used up",
                Some(
                    "What was committed is safe; connect again. Lower work_mem or the number of sessions, or ask the cluster's \
                     operator for more.",
                ),
            ),
            Ended::Cut(reason) => reason.report(),
            Ended::Idle if self.is_in_transaction() => {
                fatal("25P03", "terminating connection due to idle-in-transaction timeout", None)
            }
            Ended::Idle => fatal("57P05", "terminating connection due to idle-session timeout", None),
            Ended::Protocol => fatal("08P01", "invalid message length", None),
        };
        Some(report.to_error())
    }

    /// Whether the engine's last word was that it waits inside a transaction (`ReadyForQuery`, whose body is one byte).
    fn is_in_transaction(&self) -> bool {
        self.down.last_tag == b'Z' && matches!(self.down.last_byte, b'T' | b'E')
    }
}

/// How a session ended whose client's side failed.
fn lost(kind: io::ErrorKind) -> Ended {
    match kind {
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Ended::Vanished
        }
        _ => Ended::ByClient,
    }
}

/// Sets how long the kernel waits for a peer that acknowledges nothing.
fn limit_silence(client: &ClientStream, most: Duration) {
    // Best effort: a socket without it works, only longer.
    let _ = SockRef::from(client.get_ref().0.socket()).set_tcp_user_timeout(Some(most));
}

impl Lane {
    fn pump<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut R,
        target: &mut W,
        piece_bytes: usize,
        mut begin: impl FnMut(u8),
    ) -> Result<Step, Broken>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        self.is_stuck = false;
        if !self.waiting.is_empty() {
            match Pin::new(&mut *target).poll_write(cx, &self.waiting[self.written..]) {
                Poll::Pending => {
                    self.is_stuck = true;
                    return Ok(Step::Blocked);
                }
                Poll::Ready(Ok(0)) => return Err(Broken::Target(io::ErrorKind::WriteZero)),
                Poll::Ready(Err(cause)) => return Err(Broken::Target(cause.kind())),
                Poll::Ready(Ok(count)) => self.written += count,
            }
            self.has_unflushed = true;
            if self.written == self.waiting.len() {
                // Given back, not kept: most sessions are idle most of the time.
                self.waiting = Vec::new();
                self.written = 0;
            }
            return Ok(Step::Moved);
        }
        if self.has_unflushed {
            match Pin::new(&mut *target).poll_flush(cx) {
                Poll::Pending => {
                    self.is_stuck = true;
                    return Ok(Step::Blocked);
                }
                Poll::Ready(Err(cause)) => return Err(Broken::Target(cause.kind())),
                Poll::Ready(Ok(())) => self.has_unflushed = false,
            }
        }
        if self.is_closed {
            return Ok(Step::Blocked);
        }
        PIECE.with_borrow_mut(|piece| {
            let mut buffer = ReadBuf::new(&mut piece[..piece_bytes.min(PIECE_BYTES)]);
            match Pin::new(source).poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(Step::Blocked),
                Poll::Ready(Err(cause)) => return Err(Broken::Source(cause.kind())),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Ok(Step::SourceEnded),
                Poll::Ready(Ok(())) => {}
            }
            let bytes = buffer.filled();
            let Self { frames, last_tag, last_byte, .. } = self;
            let begin = |header: Header| {
                *last_tag = header.tag;
                begin(header.tag);
            };
            frames.follow(bytes, begin).map_err(|_| Broken::Protocol)?;
            *last_byte = bytes.last().copied().unwrap_or_default();
            let written = match Pin::new(&mut *target).poll_write(cx, bytes) {
                Poll::Pending => 0,
                Poll::Ready(Ok(0)) => return Err(Broken::Target(io::ErrorKind::WriteZero)),
                Poll::Ready(Err(cause)) => return Err(Broken::Target(cause.kind())),
                Poll::Ready(Ok(count)) => count,
            };
            if written < bytes.len() {
                self.waiting = bytes[written..].to_vec();
                self.written = 0;
            }
            self.has_unflushed = true;
            Ok(Step::Moved)
        })
    }
}

trait ReadyAndFailed {
    fn is_ready_and_failed(&self) -> bool;
}

impl ReadyAndFailed for Poll<io::Result<()>> {
    fn is_ready_and_failed(&self) -> bool {
        matches!(self, Self::Ready(Err(_)))
    }
}
