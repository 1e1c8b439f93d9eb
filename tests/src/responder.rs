//! An OCSP responder: `openssl ocsp` over the authority's books, behind an HTTP door that can be told to misbehave.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::authority::{Authority, Identity};
use crate::command::run;

/// How the responder answers.
#[derive(Clone, Debug)]
pub enum Mood {
    /// As it is.
    Honest,
    /// Closes the connection without an answer.
    Down,
    /// Says nothing for as long as the client waits.
    Hanging,
    /// Bytes that are no answer.
    Garbage,
    /// HTTP 503.
    Unavailable,
    /// An honest answer of three days ago.
    Expired,
    /// An honest answer of the day after tomorrow.
    Future,
    /// Signed by somebody whom the authority did not let sign answers.
    WrongSigner(Identity),
    /// The signature's last byte is another.
    BadSignature,
    /// An answer about another certificate.
    About(Identity),
    /// An honest answer to an earlier question, with that question's nonce.
    Replayed,
    /// A body of 16 MiB.
    Huge,
}

struct Inner {
    index: PathBuf,
    authority: PathBuf,
    signer: Identity,
    mood: Mutex<Mood>,
    questions: Mutex<Vec<Vec<u8>>>,
    minutes: AtomicUsize,
    is_over: AtomicBool,
    scratch: tempfile::TempDir,
}

/// A responder for one authority.
pub struct Responder {
    address: SocketAddr,
    inner: Arc<Inner>,
}

impl Responder {
    /// A responder whose answers the authority itself signs.
    pub fn of(authority: &Authority) -> Self {
        Self::signed_by(authority, authority.signer())
    }

    /// A responder whose answers somebody else signs.
    pub fn signed_by(authority: &Authority, signer: Identity) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let inner = Arc::new(Inner {
            index: authority.index(),
            authority: authority.certificate(),
            signer,
            mood: Mutex::new(Mood::Honest),
            questions: Mutex::default(),
            minutes: AtomicUsize::new(5),
            is_over: AtomicBool::new(false),
            scratch: tempfile::tempdir().expect("a scratch directory"),
        });
        let shared = inner.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let (shared, stream) = (shared.clone(), stream.expect("a connection"));
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { address, inner }
    }

    /// Where certificates say that it is.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Changes how it answers.
    pub fn set(&self, mood: Mood) {
        *self.inner.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
    }

    /// For how many minutes its answers are good.
    pub fn set_minutes(&self, minutes: usize) {
        self.inner.minutes.store(minutes, Ordering::Relaxed);
    }

    /// What `openssl ocsp` as a client hears about a certificate of this authority.
    pub fn tells(&self, authority: &Authority, identity: &Identity) -> String {
        let mut command = Command::new("openssl");
        command.args(["ocsp", "-timeout", "2", "-issuer"]).arg(authority.certificate());
        command.arg("-cert").arg(&identity.certificate).arg("-CAfile").arg(authority.certificate());
        let finished = run(command.args(["-url", &self.url()]));
        format!("{}{}", finished.stdout, finished.stderr)
    }

    /// How often it was asked, about whichever certificate: also about one on which a session stood that ended a moment
    /// ago.
    pub fn asked(&self) -> usize {
        self.inner.questions().len()
    }

    /// How often it was asked about one certificate.
    pub fn asked_about(&self, identity: &Identity) -> usize {
        let serial = identity.serial();
        let is_about = |question: &&Vec<u8>| question.windows(serial.len()).any(|bytes| bytes == serial);
        self.inner.questions().iter().filter(is_about).count()
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.inner.is_over.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl Inner {
    fn questions(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut stream: TcpStream) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
        let Some(question) = read_post(&mut stream) else { return };
        let number = {
            let mut questions = self.questions();
            questions.push(question.clone());
            questions.len() - 1
        };
        let mood = self.mood.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let minutes = self.minutes.load(Ordering::Relaxed).to_string();
        let body = match &mood {
            Mood::Down => return,
            Mood::Hanging => {
                // Until the client hangs up; a read that times out lets it look whether the test is over.
                while !self.is_over.load(Ordering::Relaxed) {
                    match stream.read(&mut [0; 64]) {
                        Ok(0) => break,
                        Ok(_) => {}
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(_) => break,
                    }
                }
                return;
            }
            Mood::Unavailable => {
                let _ = stream
                    .write_all(b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                return;
            }
            Mood::Garbage => b"\x30\x82\xff\xff this is no answer".to_vec(),
            Mood::Huge => vec![0x30; 16 << 20],
            Mood::Honest => self.answer(number, &question, &[], &["-nmin", &minutes], &self.signer),
            Mood::Expired => {
                self.answer(number, &question, &["faketime", "-3 days"], &["-nmin", &minutes], &self.signer)
            }
            Mood::Future => {
                self.answer(number, &question, &["faketime", "+2 days"], &["-nmin", &minutes], &self.signer)
            }
            Mood::WrongSigner(other) => self.answer(number, &question, &[], &["-nmin", &minutes], other),
            Mood::BadSignature => {
                self.answer(number, &question, &[], &["-nmin", &minutes, "-badsig"], &self.signer)
            }
            Mood::About(other) => {
                let question = self.question(number, other);
                self.answer(number, &question, &[], &["-nmin", &minutes], &self.signer)
            }
            Mood::Replayed => {
                let kept = self.scratch.path().join("replayed.der");
                if !kept.exists() {
                    // The first answer is the one that is played again to everybody who asks later.
                    let first = self.answer(number, &question, &[], &["-nmin", &minutes], &self.signer);
                    std::fs::write(&kept, first).expect("a scratch file");
                }
                std::fs::read(&kept).expect("a scratch file")
            }
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/ocsp-response\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&body);
    }

    fn file(&self, number: usize, ending: &str) -> PathBuf {
        self.scratch.path().join(format!("{number}.{ending}"))
    }

    /// A question about another certificate than the one that was asked about, without a nonce that could give it away.
    fn question(&self, number: usize, about: &Identity) -> Vec<u8> {
        let file = self.file(number, "other.der");
        let mut command = Command::new("openssl");
        command.args(["ocsp", "-issuer"]).arg(&self.authority).arg("-cert").arg(&about.certificate);
        command.args(["-no_nonce", "-reqout"]).arg(&file);
        run(&mut command).ok();
        std::fs::read(&file).expect("openssl wrote the question")
    }

    /// What `openssl ocsp` answers, seen through `clock` (a prefix such as `faketime`), with these options.
    fn answer(
        &self,
        number: usize,
        question: &[u8],
        clock: &[&str],
        more: &[&str],
        signer: &Identity,
    ) -> Vec<u8> {
        let (asked, answered) = (self.file(number, "question.der"), self.file(number, "answer.der"));
        std::fs::write(&asked, question).expect("a scratch file");
        let words: Vec<&str> = clock.iter().copied().chain(["openssl", "ocsp"]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let pairs: [(&str, &Path); 6] = [
            ("-index", &self.index),
            ("-CA", &self.authority),
            ("-rsigner", &signer.certificate),
            ("-rkey", &signer.key),
            ("-reqin", &asked),
            ("-respout", &answered),
        ];
        for (option, path) in pairs {
            command.arg(option).arg(path);
        }
        run(command.args(more)).ok();
        std::fs::read(&answered).expect("openssl wrote the answer")
    }
}

/// The body of a POST with a length.
fn read_post(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"))?;
            let length: usize = length.trim().parse().ok()?;
            if bytes.len() >= end + 4 + length {
                return Some(bytes[end + 4..end + 4 + length].to_vec());
            }
        }
        match stream.read(&mut piece) {
            Ok(1..) if bytes.len() > 1 << 20 => return None,
            Ok(count @ 1..) => bytes.extend(&piece[..count]),
            _ => return None,
        }
    }
}
