//! Who may sign in is asked of the engine, or read in a copy that is whole; nobody is let in by what may be old.

use house::cloud::PATIENCE;
use house::command::eventually;
use house::machine::Process;
use house::{Cloud, Cluster};
use rustix::process::{Pid, Signal, kill_process};

/// The processes of the engine of the only cluster, which stand still as long as this lives.
struct Still(Vec<Process>);

impl Still {
    fn of(cloud: &Cloud) -> Self {
        let mut engine = cloud.processes();
        engine.retain(|process| process.command_line().contains("postgres"));
        assert!(!engine.is_empty(), "there is an engine");
        let still = Self(engine);
        still.signal(Signal::STOP);
        still
    }

    fn signal(&self, signal: Signal) {
        for process in &self.0 {
            // One of a session may have ended meanwhile.
            let _ = kill_process(Pid::from_raw(process.pid.cast_signed()).expect("not zero"), signal);
        }
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
    }
}

fn refused(one: &Cluster<'_>, what: &str) -> (String, String) {
    let refusal = one.try_sign_in().err().unwrap_or_else(|| panic!("{what} was let in"));
    (refusal.code, refusal.message)
}

pub fn an_engine_that_cannot_be_asked_lets_nobody_in_and_tells_nobody_apart() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("silent-one", &[]);
    one.sign_in().query("create role retired nologin").unwrap();
    let still = Still::of(&cloud);
    let asked = refused(&one, "who knows the password");
    assert_eq!(asked.0, "57P03", "{asked:?}");
    for (name, password) in [("maria", "wrong"), ("nobody_here", "x"), ("retired", "x")] {
        assert_eq!(refused(&one.with_user(name, password), name), asked, "{name}");
    }
    assert!(cloud.log().contains("nobody signs in now"), "the operator hears of it");
    // It is not put to sleep on what may be old.
    let said = cloud.chitin(["cluster", "sleep", "silent-one"]).refused();
    assert!(said.contains("roles of its engine could not be kept"), "{said}");
    let alerts = cloud.chitin(["status"]).ok();
    assert!(alerts.contains("silent-one") && alerts.contains("not put to sleep"), "{alerts}");
    drop(still);
    eventually("it can be asked again", PATIENCE, || one.try_sign_in().ok());
    assert_eq!(refused(&one.with_user("maria", "wrong"), "a wrong password").0, "28P01");
    // What was wished for comes true by itself, and by a copy that is whole.
    one.sleep();
    assert_eq!(one.sign_in().value("select 1"), "1");
}

pub fn after_a_crash_nobody_signs_in_by_a_password_from_before() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("crashed-one", &[]);
    let person = one.with_new_user("renewed");
    // Asleep once: there is a copy with the old password.
    one.sleep();
    let mut own = person.sign_in();
    own.query("alter role renewed password 'second-Password-9'").unwrap();
    cloud.kill();
    drop(own);
    cloud.boot();
    let renewed = person.with_user("renewed", "second-Password-9");
    eventually("the new password is known", PATIENCE, || {
        let old = person.try_sign_in().err().expect("the old password was let in");
        assert!(["28P01", "57P03", "closed"].contains(&old.code.as_str()), "{old:?}");
        renewed.try_sign_in().ok()
    });
    assert_eq!(refused(&person, "the old password").0, "28P01");
    // An orderly end keeps what the engine had: the copy decides while the engine starts.
    renewed.sign_in().query("alter role renewed password 'third-Password-10'").unwrap();
    cloud.stop();
    cloud.boot();
    assert_eq!(refused(&renewed, "the second password").0, "28P01");
    let third = person.with_user("renewed", "third-Password-10");
    assert_eq!(third.sign_in().value("select session_user"), "renewed");
}
