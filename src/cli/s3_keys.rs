//! Where the keys of a bucket come from: one order, the first place that has something counts.
//!
//! systemd credentials and the repository's entry in the config, `KLOSET_...` variables, `AWS_...` variables, then what
//! the machine has for AWS (profiles and what follows them). Promises that the last is not even looked at where a place
//! before it has keys, and that each place is named. It does not know what keys open.

use std::sync::Arc;

use crate::store::{Ambient, KeyPair, ReadAgain, S3Options, Secret, StoreLocation};

use super::args::GlobalArgs;
use super::exit::CliError;
use super::secret::{Found, Places};

/// The three parts of a key, as the config calls them, and the variables that hold them.
const PARTS: [(&str, &str, &str); 3] = [
    ("access_key", "KLOSET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
    ("secret_access_key", "KLOSET_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"),
    ("session_token", "KLOSET_SESSION_TOKEN", "AWS_SESSION_TOKEN"),
];

type Part = Option<Found<Secret>>;

impl Places<'_> {
    /// Finds the keys of a bucket and puts them into its options; says where they were found, if they were.
    pub(crate) fn add_s3_keys(
        &self,
        location: &StoreLocation,
        options: &mut S3Options,
    ) -> Result<Vec<String>, CliError> {
        let [access_key, secret, token] = self.said()?;
        if access_key.is_none() && secret.is_none() {
            options.ambient = Some(self.ambient(location));
            return Ok(Vec::new());
        }
        let parts = [&access_key, &secret, &token].into_iter().flatten();
        let from: Vec<String> = parts.map(|found| found.from.clone()).collect();
        if let Some(found) = access_key {
            options.access_key = Some(text(&found)?);
        }
        options.secret_access_key = secret.map(|found| found.value);
        options.session_token = token.map(|found| found.value);
        options.read_again = from.iter().any(|from| changes(from)).then(|| self.read_again());
        Ok(from)
    }

    /// Where the keys are said, without a look at them: nothing is read and no command is run.
    pub(crate) fn s3_keys_from(&self) -> Vec<String> {
        let variable = |name: &str| self.env.secret(name).map(|_| name.to_owned());
        let (ours, aws) = (PARTS.map(|(_, ours, _)| variable(ours)), PARTS.map(|(.., aws)| variable(aws)));
        let chosen = self.choose(PARTS.map(|(key, ..)| self.origin_of(key)), ours, aws);
        // A token alone is none.
        let has_key = chosen[0].is_some() || chosen[1].is_some();
        chosen.into_iter().flatten().filter(|_| has_key).collect()
    }

    /// The parts that are said somewhere.
    fn said(&self) -> Result<[Part; 3], CliError> {
        let variable = |name: &str| {
            let found = |value| Found { value, from: name.to_owned() };
            self.env.secret(name).map(found)
        };
        let [access_key, secret, token] = PARTS.map(|(key, ..)| self.own(key));
        let (ours, aws) = (PARTS.map(|(_, ours, _)| variable(ours)), PARTS.map(|(.., aws)| variable(aws)));
        Ok(self.choose([access_key?, secret?, token?], ours, aws))
    }

    /// Chooses among the parts of our own places, of our variables and of AWS's: those of the first two together, or all
    /// of the third; none where a profile is named instead.
    fn choose<T>(&self, own: [Option<T>; 3], ours: [Option<T>; 3], aws: [Option<T>; 3]) -> [Option<T>; 3] {
        let [access_key, secret, token] = own;
        if access_key.is_none() && secret.is_none() && self.profile().is_some() {
            return [None, None, None];
        }
        let [our_key, our_secret, our_token] = ours;
        // A token is of no use but with the secret that it came with.
        let token = if secret.is_some() { token } else { our_token };
        match (access_key.or(our_key), secret.or(our_secret)) {
            (None, None) => aws,
            (access_key, secret) => [access_key, secret, token],
        }
    }

    fn profile(&self) -> Option<String> {
        self.entry?.text("profile").map(str::to_owned)
    }

    fn ambient(&self, location: &StoreLocation) -> Ambient {
        let is_off = self.env.text("AWS_EC2_METADATA_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let is_near = location.is_aws() || self.env.text("AWS_EC2_METADATA_SERVICE_ENDPOINT").is_some();
        let region = self.env.text("AWS_REGION").or_else(|| self.env.text("AWS_DEFAULT_REGION"));
        Ambient {
            profile: self.profile(),
            profile_default: self.env.text("AWS_PROFILE").map(str::to_owned),
            region: region.map(str::to_owned),
            asks_instance: is_near && !is_off,
            looked_before: match self.profile() {
                Some(_) => Vec::new(),
                None => {
                    ["access_key of the config", "KLOSET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"].map(str::to_owned).into()
                }
            },
        }
    }

    fn read_again(&self) -> ReadAgain {
        let (env, entry) = (self.env.clone(), self.entry.cloned());
        ReadAgain(Arc::new(move || {
            let flags = GlobalArgs::default();
            let places = Places { flags: &flags, env: &env, entry: entry.as_ref(), other: None };
            let [access_key, secret, token] = places.said().map_err(|error| error.message)?;
            let missing = || "the keys are not there any more".to_owned();
            Ok(KeyPair {
                access_key: text(&access_key.ok_or_else(missing)?).map_err(|error| error.message)?,
                secret_access_key: secret.ok_or_else(missing)?.value,
                session_token: token.map(|found| found.value),
            })
        }))
    }
}

/// Files and commands give other keys when these have run out; values and variables do not.
fn changes(from: &str) -> bool {
    from.starts_with("systemd credential") || from.ends_with("_file") || from.ends_with("_command")
}

fn text(found: &Found<Secret>) -> Result<String, CliError> {
    let not_text = || CliError::usage(format!("{}: the access_key is not text", found.from));
    Ok(found.value.text().ok_or_else(not_text)?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::config::RepositoryEntry;
    use super::super::env::Environment;
    use super::*;

    struct Case {
        env: Vec<(&'static str, String)>,
        entry: RepositoryEntry,
        folder: tempfile::TempDir,
    }

    /// Every place has keys that say where they are; tests take places away.
    fn full() -> Case {
        let folder = tempfile::tempdir().unwrap();
        let folder_text = folder.path().display().to_string();
        let env = [
            ("CREDENTIALS_DIRECTORY", folder_text.as_str()),
            ("KLOSET_ACCESS_KEY", "ours"),
            ("KLOSET_SECRET_ACCESS_KEY", "ours secret"),
            ("KLOSET_SESSION_TOKEN", "ours token"),
            ("AWS_ACCESS_KEY_ID", "aws"),
            ("AWS_SECRET_ACCESS_KEY", "aws secret"),
            ("AWS_SESSION_TOKEN", "aws token"),
            ("AWS_PROFILE", "work"),
        ];
        let env = env.map(|(name, value)| (name, value.to_owned())).into();
        fs::write(folder.path().join("s3.access_key"), "credential\n").unwrap();
        fs::write(folder.path().join("s3.secret_access_key"), "credential secret\n").unwrap();
        let values = [
            ("access_key", "config"),
            ("secret_access_key_command", "echo config secret"),
            ("session_token", "config token"),
            ("profile", "named"),
        ];
        let values = values.map(|(key, text)| (key.to_owned(), Secret::from(text)));
        let entry = RepositoryEntry { name: "s3".into(), file: folder.path().join("c.toml"), values: values.into() };
        Case { env, entry, folder }
    }

    impl Case {
        /// The parts of the key, and where they were found.
        fn found(&self) -> (S3Options, Vec<String>) {
            let env = Environment::of(self.env.iter().map(|(name, value)| (*name, value.as_str())));
            let flags = GlobalArgs::default();
            let places = Places { flags: &flags, env: &env, entry: Some(&self.entry), other: None };
            let mut options = S3Options::default();
            let location = "s3://s3.fr-par.scw.cloud/b".parse().unwrap();
            let from = places.add_s3_keys(&location, &mut options).unwrap();
            assert_eq!(from, places.s3_keys_from(), "what is said to be found is what is found");
            (options, from)
        }

        #[track_caller]
        fn check(&self, expected: [&str; 3]) {
            let (options, _) = self.found();
            let secret = |secret: Option<Secret>| secret.map(|secret| secret.text().unwrap().to_owned());
            let parts = [options.access_key, secret(options.secret_access_key), secret(options.session_token)];
            assert_eq!(parts.map(Option::unwrap_or_default), expected);
            assert!(options.ambient.is_none());
        }

        fn without_variables(&mut self, start: &str) {
            self.env.retain(|(name, _)| !name.starts_with(start));
        }
    }

    #[test]
    fn the_first_place_that_has_keys_wins() {
        let mut case = full();
        case.check(["credential", "credential secret", "config token"]);
        case.without_variables("CREDENTIALS");
        case.check(["config", "config secret", "config token"]);
        assert!(case.found().0.read_again.is_some());
        let profile = case.entry.values.remove("profile").unwrap();
        case.entry.values.remove("secret_access_key_command");
        case.check(["config", "ours secret", "ours token"]);
        case.entry.values.remove("access_key");
        case.check(["ours", "ours secret", "ours token"]);
        assert!(case.found().0.read_again.is_none());
        case.without_variables("KLOSET");
        case.check(["aws", "aws secret", "aws token"]);
        case.entry.values.insert("profile".to_owned(), profile);
        let ambient = case.found().0.ambient.unwrap();
        assert_eq!((ambient.profile.as_deref(), ambient.looked_before.len()), (Some("named"), 0));
        case.entry.values.remove("profile");
        case.without_variables("AWS_ACCESS");
        case.without_variables("AWS_SECRET");
        let ambient = case.found().0.ambient.unwrap();
        assert_eq!((ambient.profile, ambient.profile_default.as_deref()), (None, Some("work")));
        assert!(!ambient.asks_instance, "only AWS and who says so");
    }

    #[test]
    fn keys_of_commands_and_files_are_read_again() {
        let mut case = full();
        case.without_variables("CREDENTIALS");
        fs::write(case.folder.path().join("key"), "first").unwrap();
        case.entry.values.remove("access_key");
        case.entry.values.insert("access_key_file".to_owned(), "key".into());
        let (options, _) = case.found();
        assert_eq!(options.access_key.as_deref(), Some("first"));
        fs::write(case.folder.path().join("key"), "second\n").unwrap();
        assert_eq!(options.read_again.unwrap().0().unwrap().access_key, "second");
    }

    #[test]
    fn instances_are_asked_on_aws_unless_that_is_off() {
        let flags = GlobalArgs::default();
        let asks = |location: &str, variables: &[(&'static str, &'static str)]| {
            let env = Environment::of(variables.iter().copied());
            Places { flags: &flags, env: &env, entry: None, other: None }
                .ambient(&location.parse().unwrap())
                .asks_instance
        };
        let (aws, own) = ("s3://s3.eu-west-3.amazonaws.com/b", "s3://minio.example.com/b");
        assert!(asks(aws, &[]) && !asks(own, &[]));
        assert!(!asks(aws, &[("AWS_EC2_METADATA_DISABLED", "true")]));
        assert!(asks(own, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")]));
    }
}
