//! The product from outside: the real program over a real PostgreSQL, with real clients and real attacks.
//!
//! All in one binary, so that it is linked once, and so that the tests of one subject run while those of another wait.

mod clients;
mod faults;
mod keys;
mod life;
mod network;
mod private;
mod sign_in;
mod wire;

use house::runner::{Shares, run};

fn main() -> std::process::ExitCode {
    house::machine::raise_descriptor_limit();
    run(
        vec![
            keys::suite(),
            private::suite(),
            sign_in::suite(),
            network::suite(),
            life::suite(),
            faults::suite(),
            clients::suite(),
            wire::suite(),
        ],
        vec![
            Shares { suites: &["wire", "clients", "life"], stop: house::shared::stop },
            Shares { suites: &["sign_in"], stop: sign_in::stop },
            Shares { suites: &["network"], stop: network::stop },
            Shares { suites: &["private"], stop: private::stop },
            Shares { suites: &["keys"], stop: keys::stop },
            // After those that have clouds on hosts.
            Shares { suites: &["network", "private"], stop: house::hosts::remove_all },
        ],
    )
}
