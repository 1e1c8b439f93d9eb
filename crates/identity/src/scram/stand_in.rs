//! What is shown for somebody who has no verifier: one that nothing fits and that looks like those of the cluster's users.
//!
//! Iterations and the length of the salt are sent to whoever names a user. PostgreSQL takes both from the role
//! (`scram_iterations` since version 16, or a verifier that was made elsewhere), so a stand-in with a form of its own would
//! tell who exists.

use std::collections::BTreeMap;

use super::{ITERATIONS_DEFAULT, ITERATIONS_MAX, SALT_BYTES, SALT_BYTES_MAX, Verifier, mac};

/// Forms of one cluster that stand-ins take, the most frequent first.
const FORMS_MAX: usize = 64;

/// What a client sees of a verifier before it has proven anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Form {
    /// How often a client must hash its password.
    pub iterations: u32,
    /// Length of the salt.
    pub salt_bytes: usize,
}

impl Default for Form {
    /// Of the verifiers that PostgreSQL and we make.
    fn default() -> Self {
        Self { iterations: ITERATIONS_DEFAULT, salt_bytes: SALT_BYTES }
    }
}

impl Verifier {
    /// What a client sees of it.
    pub fn form(&self) -> Form {
        Form { iterations: self.iterations, salt_bytes: self.salt.len() }
    }

    /// A verifier for somebody who has none, of this form. The same seed and form give the same salt, so asking twice reveals
    /// nothing; another form gives another salt, as a new password does. No password fits it.
    pub fn stand_in(seed: &[u8; 32], form: Form) -> Self {
        let Form { iterations, salt_bytes } = form;
        let part = |label: &str| {
            let label = if form == Form::default() { label.to_owned() } else { format!("{label} {form:?}") };
            mac(seed, label.as_bytes())
        };
        let mut salt = [part("salt"), part("more salt")].concat();
        salt.truncate(salt_bytes.clamp(1, SALT_BYTES_MAX));
        Self { iterations, salt, stored_key: part("stored key"), server_key: part("server key") }
    }

    /// A stand-in that costs no more to check than this: one with more iterations than may be checked is like others.
    #[must_use]
    pub fn at_most(mut self, iterations_max: u32) -> Self {
        if self.iterations > iterations_max {
            self.iterations = ITERATIONS_DEFAULT;
        }
        self
    }
}

/// The forms of the verifiers of one cluster, with how many users have each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forms(Vec<(Form, u32)>);

impl Forms {
    /// The forms of these verifiers. What cannot be read is nobody's: its owner gets a stand-in too.
    pub fn of<'a>(verifiers: impl IntoIterator<Item = &'a str>) -> Self {
        let mut counts: BTreeMap<Form, u32> = BTreeMap::new();
        for verifier in verifiers.into_iter().filter_map(|text| Verifier::parse(text).ok()) {
            *counts.entry(verifier.form()).or_default() += 1;
        }
        Self::counted(counts)
    }

    /// These forms, each with how many users have it. One that no verifier can have counts for nothing.
    pub fn counted(counts: impl IntoIterator<Item = (Form, u32)>) -> Self {
        let can_be = |(form, count): &(Form, u32)| {
            (1..=ITERATIONS_MAX).contains(&form.iterations)
                && (1..=SALT_BYTES_MAX).contains(&form.salt_bytes)
                && *count > 0
        };
        let mut forms: Vec<(Form, u32)> = counts.into_iter().filter(can_be).collect();
        forms.sort_by_key(|(form, count)| (std::cmp::Reverse(*count), *form));
        forms.truncate(FORMS_MAX);
        Self(forms)
    }

    /// The form for a name: each as often as users have it, and always the same for the same seed. When a user comes or goes,
    /// only as many names change as users did (weighted rendezvous hashing).
    pub fn choose(&self, seed: &[u8; 32]) -> Form {
        let score = |(form, count): &(Form, u32)| {
            let hash = mac(seed, format!("form {} {}", form.iterations, form.salt_bytes).as_bytes());
            let [a, b, c, d, ..] = hash;
            let drawn = (f64::from(u32::from_be_bytes([a, b, c, d])) + 1.0) / (f64::from(u32::MAX) + 2.0);
            -drawn.ln() / f64::from(*count)
        };
        let best = self.0.iter().min_by(|one, other| score(one).total_cmp(&score(other)));
        best.map(|(form, _)| *form).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use keys::SecretText;

    use super::*;

    fn seed(number: u32) -> [u8; 32] {
        mac(&[5; 32], &number.to_be_bytes())
    }

    fn forms(of: &[(u32, usize, u32)]) -> Forms {
        let verifiers: Vec<String> = of
            .iter()
            .flat_map(|&(iterations, salt_bytes, count)| {
                let verifier = Verifier::stand_in(&[1; 32], Form { iterations, salt_bytes }).to_string();
                std::iter::repeat_n(verifier, count as usize)
            })
            .collect();
        Forms::of(verifiers.iter().map(String::as_str))
    }

    #[test]
    fn a_stand_in_is_stable_and_its_own() {
        let of = |seed: u8| Verifier::stand_in(&[seed; 32], Form::default());
        assert_eq!(of(1), of(1));
        assert_ne!(of(1).salt, of(2).salt);
        assert_eq!(format!("{:?}", of(1)), "Verifier");
        assert!(!of(1).fits(&SecretText::new("pencil".into())));
        for salt_bytes in [1, 16, 32, 33, 64] {
            let form = Form { iterations: 100_000, salt_bytes };
            let other = Verifier::stand_in(&[1; 32], form);
            assert_eq!(other.form(), form);
            assert_ne!(other.salt[..1.max(salt_bytes / 2)], of(1).salt[..], "a new form is a new password");
        }
    }

    #[test]
    fn t31_made_up_names_have_the_forms_that_users_have_and_as_often() {
        assert_eq!(Forms::of([]).choose(&seed(1)), Form::default());
        assert_eq!(Forms::of(["md5abc", ""]).choose(&seed(1)), Form::default());
        let alone = forms(&[(20_000, 16, 1)]);
        let mixed = forms(&[(4_096, 16, 60), (100_000, 16, 30), (4_096, 32, 10)]);
        let mut seen: BTreeMap<Form, u32> = BTreeMap::new();
        for number in 0..10_000 {
            assert_eq!(alone.choose(&seed(number)), Form { iterations: 20_000, salt_bytes: 16 });
            *seen.entry(mixed.choose(&seed(number))).or_default() += 1;
        }
        let counts: Vec<u32> = seen.values().copied().collect();
        for (count, share) in counts.into_iter().zip([6_000_u32, 1_000, 3_000]) {
            assert!(count.abs_diff(share) < 300, "{seen:?}");
        }
    }

    #[test]
    fn t31_one_user_more_changes_few_names() {
        let before = forms(&[(4_096, 16, 50), (100_000, 16, 50)]);
        let after = forms(&[(4_096, 16, 50), (100_000, 16, 51)]);
        let changed = (0..10_000).filter(|&n| before.choose(&seed(n)) != after.choose(&seed(n))).count();
        assert!(changed < 150, "{changed} of 10,000 names changed");
        let same = forms(&[(4_096, 16, 3)]);
        let more = forms(&[(4_096, 16, 4)]);
        assert!((0..1_000).all(|n| same.choose(&seed(n)) == more.choose(&seed(n))));
    }
}
