//! Rules of who may sign in how, as text of strangers.

use identity::hba::{Client, Method, Rules};

/// Runs the target on an input.
pub(crate) fn run(bytes: &[u8]) {
    let text = crate::text(bytes);
    let rules = match Rules::parse(text) {
        Ok(rules) => rules,
        Err(mistake) => {
            // The place is one that the text has, or the end of it.
            let line = text.split('\n').nth(mistake.line as usize - 1).unwrap_or_default();
            assert!(mistake.column as usize <= line.chars().count() + 1, "{mistake}");
            assert!(!mistake.message.contains('\0'), "{mistake:?}");
            return;
        }
    };
    let roles = ["dba".to_owned()];
    for (user, address) in [("maria", [203, 0, 113, 7].into()), ("", std::net::Ipv6Addr::LOCALHOST.into())] {
        let client = Client { user, database: "shop", roles: &roles, address };
        let steps = rules.explain(&client, Some(Method::Password));
        let found = rules.find(&client);
        // The explanation and the decision agree, and it is the first match.
        let decided = steps.iter().position(|step| step.is_match);
        assert_eq!(decided.map(|at| steps[at].line), found.map(|rule| rule.line()));
        assert!(decided.is_none_or(|at| at + 1 == steps.len()));
        // A rule that reads as one reads as the same one again.
        if let Some(rule) = found.filter(|rule| !rule.text().ends_with('\\')) {
            let again = Rules::parse(rule.text()).expect("was read before");
            let again = again.find(&client).expect("matched before");
            assert_eq!((again.method(), again.options()), (rule.method(), rule.options()));
        }
    }
    let _ = rules.notes();
}
