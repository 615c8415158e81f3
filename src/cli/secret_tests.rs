//! The order in which secrets are found; the environment is a value here.

use std::fs;

use super::*;

struct Case {
    flags: GlobalArgs,
    env: Vec<(String, String)>,
    entry: RepositoryEntry,
    folder: tempfile::TempDir,
}

/// Every place has a passphrase that says where it is; tests take places away.
fn full() -> Case {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name)
    };
    let flags = GlobalArgs {
        passphrase_file: Some(file("flag", "flag file\n")),
        passphrase_command: Some("echo flag command".to_owned()),
        key_file: Some(file("flag.key", "flag key\n")),
        ..GlobalArgs::default()
    };
    file("s3.passphrase", "own credential\n");
    file("kloset-mount.passphrase", "shared credential\r\n");
    file("config.pass", "config file\n");
    file("config.key", "config key\n");
    let env = [
        ("KLOSET_PASSPHRASE", "variable".to_owned()),
        ("KLOSET_PASSPHRASE_FILE", file("env", "variable file").display().to_string()),
        ("KLOSET_PASSPHRASE_COMMAND", "printf 'variable command'".to_owned()),
        ("KLOSET_KEY_FILE", file("env.key", "variable key").display().to_string()),
        ("CREDENTIALS_DIRECTORY", folder.path().display().to_string()),
    ];
    let values = [
        ("passphrase", "config"),
        ("passphrase_file", "config.pass"),
        ("passphrase_command", "echo config command"),
        ("key_file", "config.key"),
    ];
    let own = |(key, text): (&str, &str)| (key.to_owned(), Secret::from(text));
    let entry = RepositoryEntry {
        name: "s3".to_owned(),
        file: folder.path().join("config.toml"),
        values: values.into_iter().map(own).collect(),
    };
    let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Case { flags, env, entry, folder }
}

impl Case {
    fn environment(&self) -> Environment {
        Environment::of(self.env.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }

    fn unlock(&self) -> Result<Found<Unlock>, CliError> {
        let env = self.environment();
        let places = Places { flags: &self.flags, env: &env, entry: Some(&self.entry), other: None };
        places.unlock("@s3", Ask::Never)
    }

    #[track_caller]
    fn check(&self, expected: &str) {
        let (Unlock::Passphrase(secret) | Unlock::KeyFile(secret)) = self.unlock().unwrap().value;
        assert_eq!(secret.text(), Some(expected));
    }

    fn without_variable(&mut self, name: &str) {
        self.env.retain(|(known, _)| known != name);
    }
}

#[test]
fn the_first_place_wins() {
    let mut case = full();
    case.check("flag file");
    case.flags.passphrase_file = None;
    case.check("flag command");
    case.flags.passphrase_command = None;
    case.check("flag key\n");
    case.flags.key_file = None;
    case.check("variable");
    case.without_variable("KLOSET_PASSPHRASE");
    case.check("variable file");
    case.without_variable("KLOSET_PASSPHRASE_FILE");
    case.check("variable command");
    case.without_variable("KLOSET_PASSPHRASE_COMMAND");
    case.check("variable key");
    case.without_variable("KLOSET_KEY_FILE");
    case.check("own credential");
    fs::remove_file(case.folder.path().join("s3.passphrase")).unwrap();
    case.check("shared credential");
    case.without_variable("CREDENTIALS_DIRECTORY");
    case.check("config");
    case.entry.values.remove("passphrase");
    case.check("config file");
    case.entry.values.remove("passphrase_file");
    case.check("config command");
    case.entry.values.remove("passphrase_command");
    case.check("config key\n");
    case.entry.values.remove("key_file");
    let error = case.unlock().unwrap_err();
    assert_eq!(error.exit, Exit::WrongPassphrase);
    assert!(error.message.contains("@s3"), "{error}");
}

#[test]
fn it_is_said_where_a_secret_was_found() {
    let mut case = full();
    assert_eq!(case.unlock().unwrap().from, "--passphrase-file");
    case.flags = GlobalArgs::default();
    case.env.clear();
    assert!(case.unlock().unwrap().from.ends_with("[repositories.s3]: passphrase"));
}

#[test]
fn what_is_no_secret_is_refused_and_named() {
    let mut case = full();
    let big = case.folder.path().join("flag");
    fs::write(&big, vec![b'x'; 65_537]).unwrap();
    assert!(case.unlock().unwrap_err().message.contains("--passphrase-file: it is longer"));
    fs::write(&big, "\n").unwrap();
    assert!(case.unlock().unwrap_err().message.contains("is empty"));
    fs::remove_file(&big).unwrap();
    assert!(case.unlock().unwrap_err().message.contains("No such file"));
    case.flags.passphrase_file = None;
    case.flags.passphrase_command = Some("exit 4".to_owned());
    assert!(case.unlock().unwrap_err().message.contains("\"exit 4\" failed: exit status: 4"));
}

#[test]
fn the_other_repository_has_places_of_its_own() {
    let mut case = full();
    let other = OtherSecretArgs { other_key_file: case.flags.key_file.clone(), ..OtherSecretArgs::default() };
    let unlock = |case: &Case, other: &OtherSecretArgs| {
        let env = case.environment();
        let places = Places { flags: &case.flags, env: &env, entry: Some(&case.entry), other: Some(other) };
        places.unlock("@s3", Ask::Never).map(|found| found.from)
    };
    assert_eq!(unlock(&case, &other).unwrap(), "--other-key-file");
    let none = OtherSecretArgs::default();
    assert!(unlock(&case, &none).unwrap().contains("s3.passphrase"), "what is named for it, not KLOSET_PASSPHRASE");
    case.env.push(("KLOSET_OTHER_PASSPHRASE".to_owned(), "x".to_owned()));
    assert_eq!(unlock(&case, &none).unwrap(), "KLOSET_OTHER_PASSPHRASE");
    (case.env, case.entry.values) = (Vec::new(), std::collections::BTreeMap::new());
    let error = unlock(&case, &none).unwrap_err();
    assert!(error.message.contains("--other-passphrase-file, KLOSET_OTHER_PASSPHRASE"), "{error}");
}
