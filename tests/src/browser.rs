//! A person at a browser: headless Chromium, driven step by step, that trusts the cloud's certificate.

use std::path::Path;
use std::process::Command;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::pin;
use crate::cloud::Cloud;
use crate::command::run_with;

/// What a person does.
#[derive(Default)]
pub struct Person {
    steps: Vec<Value>,
}

/// A page as the person sees it.
#[derive(Clone, Debug)]
pub struct Page {
    /// Its address.
    pub url: String,
    /// The HTTP status.
    pub status: u64,
    /// What can be read on it.
    pub text: String,
    /// Its source.
    pub html: String,
    /// The answer's headers.
    pub headers: Value,
}

/// What came of it.
#[derive(Debug)]
pub struct Visit {
    /// The last page.
    pub last: Page,
    /// Pages that were looked at by name on the way.
    pub seen: Value,
    /// Every address that was navigated to.
    pub visited: Vec<String>,
    /// Errors in the browser's console.
    pub complaints: Vec<String>,
    /// All cookies in the end.
    pub cookies: Value,
    /// Which step could not be done, and why.
    pub error: Option<String>,
}

impl Page {
    fn of(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Self {
            url: text("url"),
            status: value["status"].as_u64().unwrap_or(0),
            text: text("text"),
            html: text("html"),
            headers: value["headers"].clone(),
        }
    }
}

impl Visit {
    /// A page that was looked at on the way.
    pub fn page(&self, name: &str) -> Page {
        assert!(self.seen[name].is_object(), "no page {name}: {:?}", self.error);
        Page::of(&self.seen[name])
    }

    /// Panics when a step could not be done.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.error.is_none(), "{:?}\non {}:\n{}", self.error, self.last.url, self.last.text);
        self
    }
}

/// How many browsers run beside each other: with more of them each takes so long that what it has to do lapses meanwhile.
const BROWSERS_MAX: usize = 2;
static BROWSERS: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// A browser that runs.
struct Running;

impl Running {
    fn begin() -> Self {
        let (count, ended) = (BROWSERS.0.lock().expect("nobody panics with it"), &BROWSERS.1);
        *ended.wait_while(count, |count| *count >= BROWSERS_MAX).expect("nobody panics with it") += 1;
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(mut count) = BROWSERS.0.lock() {
            *count -= 1;
        }
        BROWSERS.1.notify_one();
    }
}

impl Person {
    /// Goes to an address.
    #[must_use]
    pub fn goes_to(self, url: &str) -> Self {
        self.does(json!({ "goto": url }))
    }

    /// Types into a field.
    #[must_use]
    pub fn types(self, selector: &str, text: &str) -> Self {
        self.does(json!({ "fill": selector, "with": text }))
    }

    /// Clicks.
    #[must_use]
    pub fn clicks(self, selector: &str) -> Self {
        self.does(json!({ "click": selector }))
    }

    /// Waits until the page shows a text.
    #[must_use]
    pub fn reads(self, text: &str) -> Self {
        self.does(json!({ "wait": text }))
    }

    /// Remembers the page under a name.
    #[must_use]
    pub fn looks(self, name: &str) -> Self {
        self.does(json!({ "see": name }))
    }

    /// Signs in at the provider's plain form.
    #[must_use]
    pub fn signs_in_as(self, name: &str) -> Self {
        self.types("input[name=login]", name)
            .types("input[name=password]", "any")
            .clicks("button[type=submit]")
    }

    fn does(mut self, step: Value) -> Self {
        self.steps.push(step);
        self
    }

    /// Does all of it in a new browser.
    pub fn at(self, cloud: &Cloud) -> Visit {
        self.with_pin(&pin(cloud))
    }

    /// Does all of it in a new browser that trusts a server with this public key.
    pub fn with_pin(self, pin: &str) -> Visit {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/browser/browse.js");
        let input = json!({ "pin": pin, "steps": self.steps }).to_string();
        let running = Running::begin();
        let finished =
            run_with(Command::new("node").arg(&script), input.as_bytes(), Duration::from_secs(300));
        drop(running);
        let said: Value = serde_json::from_str(&finished.ok()).expect("the script prints JSON");
        let list = |name: &str| -> Vec<String> {
            let all = said[name].as_array().into_iter().flatten();
            all.filter_map(|text| text.as_str().map(str::to_owned)).collect()
        };
        Visit {
            last: Page::of(&said),
            seen: said["seen"].clone(),
            visited: list("visited"),
            complaints: list("complaints"),
            cookies: said["cookies"].clone(),
            error: said["error"].as_str().map(str::to_owned),
        }
    }
}
