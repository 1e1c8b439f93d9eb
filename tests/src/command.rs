//! Runs other programs with a deadline, so that a client that hangs fails its test instead of the whole run.

use std::io::{Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a finished program left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Finished {
    /// Returns the standard output, or panics with everything that the program said when it failed.
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{}\nstdout: {}\nstderr: {}", self.status, self.stdout, self.stderr);
        self.stdout
    }

    /// Returns what it said on both outputs, or panics when it succeeded.
    pub fn refused(self) -> String {
        assert!(!self.status.success(), "succeeded, but should have been refused\nstdout: {}", self.stdout);
        format!("{}{}", self.stdout, self.stderr)
    }

    /// The exit code; -1 when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

/// Runs curl, again while a rate limit refuses it, and returns the status code of the answer alone as its output.
///
/// For calls with a key that other tests use at the same time.
pub fn status_code(curl: &mut Command) -> Finished {
    // Not `-o /dev/null`: curl fails to empty what it wrote before it tries again.
    let mut finished = run(curl.args(["-sS", "--retry", "20", "--retry-delay", "1", "-w", "\n%{http_code}"]));
    finished.stdout = finished.stdout.lines().next_back().unwrap_or_default().to_string();
    finished
}

/// What a program says, while it says it.
struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Output {
    fn collect(mut from: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let kept = bytes.clone();
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 1 << 16];
            while let Ok(count @ 1..) = from.read(&mut piece) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&piece[..count]);
            }
        });
        Self { bytes, reader }
    }

    /// Everything, once the program has ended. One that it started and left behind may hold the pipe open for ever.
    fn text(self) -> String {
        let until = Instant::now() + Duration::from_secs(10);
        while !self.reader.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

/// Runs the command to its end, feeding it `input`; kills it and panics after `deadline`.
pub fn run_with(command: &mut Command, input: &[u8], deadline: Duration) -> Finished {
    let what = format!("{command:?}");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap_or_else(
            |error| panic!("could not start {what}: {error}; ./test installs what is missing"),
        );
    let stdout = Output::collect(child.stdout.take().expect("stdout is piped"));
    let stderr = Output::collect(child.stderr.take().expect("stderr is piped"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let until = Instant::now() + deadline;
    let status = loop {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            break status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "{what} did not end within {deadline:?}\nstdout: {}\nstderr: {}",
                stdout.text(),
                stderr.text()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    drop(feeder);
    Finished { status, stdout: stdout.text(), stderr: stderr.text() }
}

/// Runs the command to its end without input; a minute is the deadline.
pub fn run(command: &mut Command) -> Finished {
    run_with(command, b"", Duration::from_secs(60))
}

/// Asks `answer` until it gives a value; panics with `what` after `deadline`.
pub fn eventually<T>(what: &str, deadline: Duration, mut answer: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + deadline;
    loop {
        if let Some(value) = answer() {
            return value;
        }
        assert!(Instant::now() < until, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(25));
    }
}

/// Sets the flag when it is dropped, also by a panic, so that threads that wait for it always end.
pub struct SetAtEnd<'flag>(pub &'flag std::sync::atomic::AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
