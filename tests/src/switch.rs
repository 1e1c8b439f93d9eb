//! A door on loopback that leads to a service, and can be shut as if the service were down.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use crate::ports::free_port;

/// For one read of a connection that nobody uses any more.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A door.
pub struct Switch {
    address: SocketAddr,
    inside: Arc<Inside>,
}

struct Inside {
    behind: SocketAddr,
    is_open: AtomicBool,
    is_over: AtomicBool,
    passed: AtomicU64,
    /// Connections, as long as something goes through them: a suite's clouds ask all the time.
    lines: Mutex<Vec<Weak<TcpStream>>>,
}

impl Switch {
    /// An open door to the address.
    pub fn to(behind: SocketAddr) -> Self {
        let address = free_port();
        let listener = TcpListener::bind(address).expect("a free port");
        let inside = Arc::new(Inside {
            behind,
            is_open: AtomicBool::new(true),
            is_over: AtomicBool::new(false),
            passed: AtomicU64::new(0),
            lines: Mutex::default(),
        });
        let served = inside.clone();
        thread::spawn(move || serve(&listener, &served));
        Self { address, inside }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections went through.
    pub fn passed(&self) -> u64 {
        self.inside.passed.load(Ordering::SeqCst)
    }

    /// Shuts the door and ends what goes through it.
    pub fn shut(&self) {
        self.inside.is_open.store(false, Ordering::SeqCst);
        for line in self
            .inside
            .lines
            .lock()
            .expect("no test panicked here")
            .drain(..)
            .filter_map(|line| line.upgrade())
        {
            let _ = line.shutdown(Shutdown::Both);
        }
    }

    /// Opens it again.
    pub fn open(&self) {
        self.inside.is_open.store(true, Ordering::SeqCst);
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shut();
        self.inside.is_over.store(true, Ordering::SeqCst);
        // So that the thread that waits for the next connection sees it.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(listener: &TcpListener, inside: &Arc<Inside>) {
    for client in listener.incoming() {
        if inside.is_over.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        if !inside.is_open.load(Ordering::SeqCst) {
            continue;
        }
        let Ok(server) = TcpStream::connect(inside.behind) else { continue };
        inside.passed.fetch_add(1, Ordering::SeqCst);
        let (client, server) = (Arc::new(client), Arc::new(server));
        let mut lines = inside.lines.lock().expect("no test panicked here");
        lines.retain(|line| line.strong_count() > 0);
        for (from, to) in [(&client, &server), (&server, &client)] {
            lines.push(Arc::downgrade(from));
            let (from, to) = (from.clone(), to.clone());
            thread::spawn(move || carry(&from, &to));
        }
    }
}

fn carry(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = from.set_read_timeout(Some(SILENCE_MAX));
    let mut bytes = [0; 16 * 1024];
    while let Ok(count) = from.read(&mut bytes) {
        if count == 0 || to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
