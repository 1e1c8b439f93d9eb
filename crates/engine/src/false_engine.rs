//! A false engine: a program of somebody who took one over. It speaks enough of the protocol to be asked, and answers
//! without end.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::Error;
use crate::administration::Administration;
use crate::connector::{Connector, SOCKET};

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Rows, one after another.
    Rows,
    /// One row that claims to be of a gigabyte, and comes.
    OneRow,
    /// Notices, which nobody asked.
    Notices,
    /// Settings that changed, before anybody asked anything.
    Parameters,
    /// A type that is of a type that is of a type.
    Types,
    /// Rows with fewer columns than it said.
    FewColumns,
    /// Nothing at all.
    Silence,
    /// That it has no process for the session.
    NoProcess,
}

/// The false engine, and what came of asking it.
struct Asked {
    outcome: Result<(), Error>,
    taken: Duration,
    /// What it got rid of: what we read, and what lies in the socket.
    sent_bytes: usize,
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag][..], &length, body].concat()
}

/// A column of this type.
fn description(columns: &[(&str, u32)]) -> Vec<u8> {
    let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
    for (name, kind) in columns {
        body.extend(name.as_bytes());
        body.extend([0; 7]);
        body.extend(kind.to_be_bytes());
        body.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 1]);
    }
    message(b'T', &body)
}

fn row(values: &[Option<&[u8]>]) -> Vec<u8> {
    let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
    for value in values {
        match value {
            Some(bytes) => {
                body.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
                body.extend(*bytes);
            }
            None => body.extend([0xff; 4]),
        }
    }
    message(b'D', &body)
}

/// What the driver asks of a type that it does not know.
const TYPE_COLUMNS: &[(&str, u32)] = &[
    ("typname", 19),
    ("typtype", 18),
    ("typelem", 26),
    ("rngsubtype", 26),
    ("typbasetype", 26),
    ("nspname", 19),
    ("typrelid", 26),
];

struct Line {
    stream: UnixStream,
    sent: Arc<AtomicUsize>,
}

impl Line {
    fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)?;
        self.sent.fetch_add(bytes.len(), Ordering::Relaxed);
        Ok(())
    }

    fn for_ever(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        loop {
            self.send(bytes)?;
        }
    }

    /// A message with its tag; the startup message has none.
    fn hear(&mut self, has_tag: bool) -> std::io::Result<(u8, Vec<u8>)> {
        let mut tag = [0];
        if has_tag {
            self.stream.read_exact(&mut tag)?;
        }
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap() - 4];
        self.stream.read_exact(&mut body)?;
        Ok((tag[0], body))
    }

    fn serve(&mut self, answer: Answer) -> std::io::Result<()> {
        self.hear(false)?;
        if answer == Answer::NoProcess {
            return self
                .send(b"Ecould not fork new process for connection: Resource temporarily unavailable\n\0");
        }
        if answer == Answer::Silence {
            let _ = self.stream.read(&mut [0]);
            return Ok(());
        }
        self.send(&message(b'R', &[0; 4]))?;
        if answer == Answer::Parameters {
            for number in 0_u64.. {
                self.send(&message(b'S', format!("p{number}\0v\0").as_bytes()))?;
            }
        }
        self.send(&message(b'Z', b"I"))?;
        let mut next_type = 100_000_u32;
        let mut asks_type = false;
        loop {
            let (tag, body) = self.hear(true)?;
            match tag {
                b'P' => {
                    asks_type = body.windows(7).any(|part| part == b"pg_type");
                    self.send(&message(b'1', b""))?;
                }
                b'D' if asks_type => {
                    self.send(&message(b't', &[0, 1, 0, 0, 0, 26]))?;
                    self.send(&description(TYPE_COLUMNS))?;
                }
                b'D' => {
                    let kind = if answer == Answer::Types { next_type } else { 25 };
                    self.send(&message(b't', &[0, 0]))?;
                    self.send(&description(&[("rolname", kind), ("is_leaving", 16)]))?;
                }
                b'B' => self.send(&message(b'2', b""))?,
                b'E' if answer == Answer::Types => {
                    next_type += 1;
                    let base = next_type.to_be_bytes();
                    let zero = [0; 4];
                    self.send(&row(&[
                        Some(b"t"),
                        Some(b"d"),
                        Some(&zero),
                        None,
                        Some(&base),
                        Some(b"n"),
                        Some(&zero),
                    ]))?;
                    self.send(&message(b'C', b"SELECT 1\0"))?;
                }
                b'E' => match answer {
                    Answer::Rows => self.for_ever(&row(&[Some(b"maria"), Some(&[1])]))?,
                    Answer::OneRow => {
                        self.send(&[b'D', 0x40, 0, 0, 0, 0, 2, 0x3f, 0xff, 0xff, 0x00])?;
                        self.for_ever(&[b'x'; 4_096])?;
                    }
                    Answer::Notices => {
                        self.for_ever(&message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0"))?;
                    }
                    Answer::FewColumns => self.send(&row(&[Some(b"maria")]))?,
                    Answer::Types | Answer::Parameters | Answer::Silence | Answer::NoProcess => {}
                },
                b'S' => self.send(&message(b'Z', b"I"))?,
                b'X' => return Ok(()),
                _ => {}
            }
        }
    }
}

/// Asks for the list of users.
async fn ask(answer: Answer) -> Asked {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    // It ends with the connection, or with the test.
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let mut line = Line { stream, sent: counted.clone() };
            let _ = line.serve(answer);
        }
    });
    let began = Instant::now();
    let asked = async {
        let administration =
            Administration::connect(&Arc::new(Connector::to_this_process(folder.path()))).await?;
        administration.users().await.map(drop)
    };
    let outcome = timeout(Duration::from_secs(100), asked).await.expect("it comes to an end");
    Asked { outcome, taken: began.elapsed(), sent_bytes: sent.load(Ordering::Relaxed) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_answers_without_end_is_heard_so_far_and_no_further() {
    for (answer, most_bytes) in [
        (Answer::Rows, 16 << 20),
        (Answer::OneRow, 16 << 20),
        (Answer::Notices, 16 << 20),
        (Answer::Parameters, 2 << 20),
        (Answer::Types, 2 << 20),
    ] {
        let asked = ask(answer).await;
        let refused = asked.outcome.expect_err("no such answer is taken");
        assert!(matches!(refused, Error::TooMuch { .. }), "{answer:?}: {refused:?}");
        assert!(asked.sent_bytes < most_bytes, "{answer:?}: {} bytes", asked.sent_bytes);
        println!("{answer:?}: {refused} after {} bytes, {:?}", asked.sent_bytes, asked.taken);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_answers_nonsense_or_nothing_is_an_error() {
    for answer in [Answer::FewColumns, Answer::Silence] {
        let asked = ask(answer).await;
        let refused = asked.outcome.expect_err("there is no answer");
        assert!(matches!(refused, Error::Unready(_)), "{answer:?}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_cannot_start_a_process_says_so_and_still_answers() {
    let refused = ask(Answer::NoProcess).await.outcome.expect_err("there is no session");
    assert!(
        matches!(&refused, Error::NoProcess { reason } if reason.starts_with("could not fork")),
        "{refused}"
    );
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let mut line = Line { stream, sent: Arc::default() };
            let _ = line.serve(Answer::NoProcess);
        }
    });
    // One that counted as silent would be ended with all its sessions.
    Administration::answers(&Connector::to_this_process(folder.path())).await.expect("that is an answer");
}
