//! Identity maps as text of strangers, and external names as other strangers send them.
#![no_main]

use identity::identity_map::IdentityMap;
use libfuzzer_sys::fuzz_target;
use model::RoleName;

fuzz_target!(|input: (&str, &str)| {
    let (text, external) = input;
    let Ok(map) = IdentityMap::parse(text) else { return };
    let name = text.split_whitespace().next().unwrap_or_default();
    for name in [name, "m"] {
        let users = map.users(name, external);
        assert!(map.has(name) || users.is_empty());
        for user in users {
            // Nobody becomes what is not a user.
            assert!(user.parse::<RoleName>().is_ok_and(|role| !role.is_reserved()), "{user:?}");
            assert!(map.permits(name, external, &user));
        }
        for reserved in ["root", "chitin", "postgres", "admin", "pg_monitor", "node", ""] {
            assert!(!map.permits(name, external, reserved));
        }
    }
});
