//! Station 10: bytes both ways. Frames are seen but not kept, so that the session can be ended between two of them.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use wire::backend::{Report, Severity};
use wire::frame::{Frames, Header};

use crate::directory::Engine;
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

thread_local! {
    /// One buffer a thread, not two a session: an idle session holds none.
    static PIECE: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE_BYTES].into_boxed_slice());
}

/// How a session ended, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The client said goodbye or went away.
    ByClient,
    /// The engine ended it and said why.
    ByEngine,
    /// The engine broke off.
    EngineLost,
    /// The engine broke off, since its memory was used up.
    OutOfMemory,
    /// We ended it.
    Cut(Cut),
    /// Nobody said anything for too long.
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
    let mut relay = Relay::new(settings);
    let mut ended = poll_fn(|cx| relay.poll(cx, &mut client, &mut engine, &mut cut)).await;
    if ended == Ended::EngineLost && engine_run.has_run_out_of_memory() {
        ended = Ended::OutOfMemory;
    }
    let is_cut = matches!(ended, Ended::Cut(reason) if reason != Cut::Stopping);
    // A thousand engines' processes that end at once would take the processors from us while clients still have to be told.
    let kept = is_cut.then_some(engine);
    let farewell = relay.farewell(ended);
    // An engine notices that its client is gone when it next has something to say to it; until then it would work on, and
    // commit, for somebody who may no longer be here.
    let is_working = matches!(ended, Ended::Cut(_)) && relay.may_work();
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
    /// Why the session must end, once somebody said so.
    ending: Option<Cut>,
    last_moved: Instant,
    /// Runs while the session is ending, or while there is an idle limit.
    timer: Option<Pin<Box<Sleep>>>,
    has_client_ended: bool,
}

/// One direction.
#[derive(Default)]
struct Lane {
    frames: Frames,
    /// The type of the last frame that began.
    last_tag: u8,
    /// Frames that ask for a `ReadyForQuery`: Query, FunctionCall, Sync.
    asked: u64,
    /// Frames that are one.
    answered: u64,
    /// What was read and could not be written yet.
    waiting: Vec<u8>,
    written: usize,
    has_unflushed: bool,
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
    Source,
    Target,
    Protocol,
}

impl<'a> Relay<'a> {
    fn new(settings: &'a Settings) -> Self {
        Self {
            settings,
            up: Lane::default(),
            down: Lane::default(),
            ending: None,
            last_moved: Instant::now(),
            timer: settings.idle_max.map(|idle_max| Box::pin(sleep_until(Instant::now() + idle_max))),
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
            self.ending = Some(reason);
            let patience =
                if reason == Cut::Stopping { self.settings.drain_max } else { self.settings.cut_max };
            self.timer = Some(Box::pin(sleep_until(Instant::now() + patience)));
        }
        let mut has_moved = false;
        for _ in 0..PIECES_PER_TURN {
            if let Some(reason) = self.ending
                && self.is_quiet(reason)
            {
                return Poll::Ready(Ended::Cut(reason));
            }
            let up = match self.up.pump(cx, client, engine, PIECE_BYTES) {
                Ok(step) => step,
                Err(Broken::Protocol) => return Poll::Ready(Ended::Protocol),
                Err(Broken::Source) => return Poll::Ready(Ended::ByClient),
                // The engine closed its side first; its last words, if any, are still in the other lane.
                Err(Broken::Target) => {
                    self.up.is_closed = true;
                    Step::SourceEnded
                }
            };
            // While ending, read to the end of the present frame and no further.
            let piece = match self.ending {
                Some(reason) if reason != Cut::Stopping => {
                    self.down.frames.bytes_left().clamp(1, PIECE_BYTES)
                }
                _ => PIECE_BYTES,
            };
            let down = match self.down.pump(cx, engine, client, piece) {
                Ok(step) => step,
                Err(Broken::Source | Broken::Protocol) => return Poll::Ready(Ended::EngineLost),
                Err(Broken::Target) => return Poll::Ready(Ended::ByClient),
            };
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
        let is_idle = !self.is_busy() && self.up.frames.is_at_boundary() && self.up.waiting.is_empty();
        is_between && (reason != Cut::Stopping || is_idle)
    }

    /// Whether the client waits for an answer.
    fn is_busy(&self) -> bool {
        self.up.asked != self.down.answered
    }

    /// Whether the engine may be at work for the client: also for messages that ask for no `ReadyForQuery`.
    fn may_work(&self) -> bool {
        self.is_busy() || !matches!(self.up.last_tag, 0 | b'Q' | b'F' | b'S')
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, has_moved: bool) -> Poll<Ended> {
        if has_moved {
            self.last_moved = Instant::now();
        }
        let is_busy = self.is_busy();
        while let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
            if let Some(reason) = self.ending {
                return Poll::Ready(Ended::Cut(reason));
            }
            let Some(idle_max) = self.settings.idle_max else {
                self.timer = None;
                break;
            };
            if is_busy {
                // A long statement is no idleness: the client waits for it, and it may take as long as it takes.
                self.last_moved = Instant::now();
            } else if self.last_moved.elapsed() >= idle_max {
                return Poll::Ready(Ended::Idle);
            }
            timer.as_mut().reset(self.last_moved + idle_max);
        }
        Poll::Pending
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
            Ended::ByClient | Ended::ByEngine => return None,
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
            Ended::Idle => fatal("57P05", "terminating connection due to idle-session timeout", None),
            Ended::Protocol => fatal("08P01", "invalid message length", None),
        };
        Some(report.to_error())
    }
}

impl Lane {
    fn pump<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut R,
        target: &mut W,
        piece_bytes: usize,
    ) -> Result<Step, Broken>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if !self.waiting.is_empty() {
            match Pin::new(&mut *target).poll_write(cx, &self.waiting[self.written..]) {
                Poll::Pending => return Ok(Step::Blocked),
                Poll::Ready(Ok(0) | Err(_)) => return Err(Broken::Target),
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
                Poll::Pending => return Ok(Step::Blocked),
                Poll::Ready(Err(_)) => return Err(Broken::Target),
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
                Poll::Ready(Err(_)) => return Err(Broken::Source),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Ok(Step::SourceEnded),
                Poll::Ready(Ok(())) => {}
            }
            let bytes = buffer.filled();
            let Self { frames, last_tag, asked, answered, .. } = self;
            let begin = |header: Header| {
                *last_tag = header.tag;
                // Each counter has a meaning in one direction only: `S` is Sync going up, ParameterStatus coming down.
                *asked += u64::from(matches!(header.tag, b'Q' | b'F' | b'S'));
                *answered += u64::from(header.tag == b'Z');
            };
            frames.follow(bytes, begin).map_err(|_| Broken::Protocol)?;
            let written = match Pin::new(&mut *target).poll_write(cx, bytes) {
                Poll::Pending => 0,
                Poll::Ready(Ok(0) | Err(_)) => return Err(Broken::Target),
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
