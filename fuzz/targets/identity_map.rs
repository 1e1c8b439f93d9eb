//! Identity maps as text of strangers, and external names as other strangers send them.

use identity::identity_map::IdentityMap;
use model::RoleName;

/// Runs the target on an input.
pub(crate) fn run(bytes: &[u8]) {
    // What stands before the first NUL is the map.
    let input = crate::text(bytes);
    let (text, external) = input.split_once('\0').unwrap_or((input, ""));
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
}
