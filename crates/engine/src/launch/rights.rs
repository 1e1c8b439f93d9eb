//! Landlock: what the sandbox's files may be used for, by whoever is inside (Linux 5.13 and newer).

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    Scope, path_beneath_rules,
};

/// The newest version that is known here; an older kernel enforces what it knows, and one without Landlock nothing.
const KNOWN: ABI = ABI::V6;

/// With `says_share` a session may say there that it goes first in a shortage of memory. Whose files these are the kernel looks at as
/// ever.
pub(super) fn restrict(executable: &[PathBuf], writable: &[PathBuf], says_share: bool) -> Result<(), String> {
    let failed = |cause: &dyn std::fmt::Display| format!("Landlock: {cause}");
    let all = AccessFs::from_all(KNOWN);
    let shares: &[&Path] = if says_share { &[Path::new("/proc")] } else { &[] };
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .and_then(|rules| rules.scope(Scope::from_all(KNOWN)))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.add_rules(path_beneath_rules([Path::new("/")], reading)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(shares, AccessFs::WriteFile)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(executable, reading | AccessFs::Execute)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(writable, all & !AccessFs::Execute)))
        .and_then(RulesetCreated::restrict_self)
        .map(drop)
        .map_err(|cause| failed(&cause))
}
