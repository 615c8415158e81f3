//! `config repository ...`, also called `store ...`: reads and changes the config.
//!
//! Secrets are masked when shown. A value of `-` is read from standard input, so that a secret
//! need not be on a command line.

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::store::{Addressing, ENCRYPTION_KINDS, S3Options, StoreLocation};

use super::args::Global;
use super::config::{self, Config, RepositoryEntry};
use super::config_file::change;
use super::doctor;
use super::exit::{CliError, Exit};
use super::output::Output;
use super::process::runtime;
use super::repository::{Located, ResolvedRepository};
use super::s3_options;
use super::secret::Places;
use super::store_policy::{self, Circumstances, Job};

/// Reads and changes the config.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Reads and changes the repositories of the config.
    Repository(RepositoryArgs),
}

/// Reads and changes the repositories of the config.
#[derive(Debug, Args)]
pub(crate) struct RepositoryArgs {
    #[command(subcommand)]
    command: RepositoryCommand,
}

#[derive(Debug, Subcommand)]
enum RepositoryCommand {
    /// Adds a repository.
    #[command(visible_alias = "add")]
    Create {
        /// Its name; commands take it as @NAME.
        name: String,
        /// A location, and KEY=VALUE pairs.
        words: Vec<String>,
    },
    /// Sets values of a repository: KEY VALUE, or KEY=VALUE pairs; `-` reads standard input.
    Set {
        /// Name of the repository.
        name: String,
        /// KEY VALUE, or KEY=VALUE pairs.
        #[arg(required = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Takes values of a repository away.
    Unset {
        /// Name of the repository.
        name: String,
        /// Keys.
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// Shows what is set; secrets are masked.
    Show {
        /// Name of the repository; all without it.
        name: Option<String>,
        /// Shows secrets as well.
        #[arg(long)]
        secrets: bool,
    },
    /// Lists names and locations.
    Ls,
    /// Takes a repository out of the config; the kloset itself stays.
    Rm {
        /// Name of the repository.
        name: String,
    },
    /// Shows or sets the repository that is used when none is named.
    Default {
        /// Name of the repository.
        name: Option<String>,
    },
    /// Prints the least rights that a key needs, as a policy in the words of AWS.
    Policy {
        /// What the key is for.
        #[arg(long = "for", value_name = "JOB")]
        job: Job,
        /// Whom the policy of a bucket is for, as an ARN; without, it is a policy to attach to a user or role.
        #[arg(long, value_name = "ARN")]
        principal: Option<String>,
        /// Name of the repository.
        name: Option<String>,
    },
    /// Tries what the store can do: about 25 requests below a name of its own, 21 MiB up and 16 MiB down.
    Doctor {
        /// Name of the repository.
        name: Option<String>,
        /// Writes the region, addressing and TLS that were found to work into the config.
        #[arg(long)]
        write: bool,
    },
    /// Lists a folder of the store to see that it answers.
    Ping {
        /// Name of the repository.
        name: Option<String>,
    },
}

/// Runs `config`.
pub(crate) fn run(args: ConfigArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let ConfigCommand::Repository(args) = args.command;
    run_repository(args, global, out)
}

/// Runs `config repository` and `store`.
pub(crate) fn run_repository(args: RepositoryArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    match args.command {
        RepositoryCommand::Create { name, words } => create(plain(&name), &words, global, out)?,
        RepositoryCommand::Set { name, words } => set(plain(&name), &words, global, out)?,
        RepositoryCommand::Unset { name, keys } => unset(plain(&name), &keys, global, out)?,
        RepositoryCommand::Show { name, secrets } => show(name.as_deref(), secrets, global, out)?,
        RepositoryCommand::Ls => list(global, out)?,
        RepositoryCommand::Rm { name } => remove(plain(&name), global, out)?,
        RepositoryCommand::Default { name } => default(name.as_deref(), global, out)?,
        RepositoryCommand::Policy { job, principal, name } => {
            let location = ResolvedRepository::location_of(name.as_deref().map(plain), global)?;
            policy(job, principal.as_deref(), &location, out)?;
        }
        RepositoryCommand::Doctor { name, write } => {
            return doctor::run(name.as_deref().map(plain), write, global, out);
        }
        RepositoryCommand::Ping { name } => ping(name.as_deref(), global, out)?,
    }
    Ok(Exit::Done)
}

/// People write `@name` where `name` is meant.
fn plain(name: &str) -> &str {
    name.strip_prefix('@').unwrap_or(name)
}

fn create(name: &str, words: &[String], global: &Global, out: &mut Output) -> Result<(), CliError> {
    let location_first = |word: &String| match word.split_once('=') {
        Some((key, _)) if config::KEYS.contains(&key) => word.clone(),
        _ if word.contains(['/', '.']) => format!("location={word}"),
        _ => word.clone(),
    };
    let words: Vec<String> = words.iter().map(location_first).collect();
    let pairs = read_pairs(&pairs(&words)?)?;
    let path = config::file_to_change(global);
    change(&path, |file| {
        file.add(name)?;
        pairs.iter().try_for_each(|(key, value)| file.set(name, key, value))
    })?;
    changed("created", name, path, out)
}

fn set(name: &str, words: &[String], global: &Global, out: &mut Output) -> Result<(), CliError> {
    let pairs = match words {
        [key, value] if !key.contains('=') => vec![(key.clone(), value.clone())],
        words => pairs(words)?,
    };
    let pairs = read_pairs(&pairs)?;
    let path = config::file_to_change(global);
    change(&path, |file| pairs.iter().try_for_each(|(key, value)| file.set(name, key, value)))?;
    changed("set", name, path, out)
}

fn unset(name: &str, keys: &[String], global: &Global, out: &mut Output) -> Result<(), CliError> {
    let path = config::file_to_change(global);
    change(&path, |file| keys.iter().try_for_each(|key| file.unset(name, key)))?;
    changed("unset", name, path, out)
}

fn remove(name: &str, global: &Global, out: &mut Output) -> Result<(), CliError> {
    let path = config::file_to_change(global);
    change(&path, |file| file.remove(name))?;
    changed("removed", name, path, out)
}

fn default(name: Option<&str>, global: &Global, out: &mut Output) -> Result<(), CliError> {
    if let Some(name) = name.map(plain) {
        let path = config::file_to_change(global);
        change(&path, |file| file.set_default(name))?;
        return changed("default", name, path, out);
    }
    let config = Config::load(global)?;
    let name = config.default_name();
    match (out.is_json(), name) {
        (true, name) => out.json(&json!({"default": name})),
        (false, Some(name)) => out.line(name),
        (false, None) => {
            out.note("no repository is the default");
            Ok(())
        }
    }
}

/// What changed is a result with `--json` and silence without, as in other tools.
fn changed(what: &str, name: &str, file: PathBuf, out: &mut Output) -> Result<(), CliError> {
    if out.is_json() {
        out.json(&json!({"message_type": what, "name": name, "file": file.to_string_lossy()}))?;
    }
    Ok(())
}

fn show(name: Option<&str>, secrets: bool, global: &Global, out: &mut Output) -> Result<(), CliError> {
    let config = Config::load(global)?;
    let entries = match name.map(plain) {
        Some(name) => vec![config.find(name)?],
        None => config.entries(),
    };
    for (index, entry) in entries.iter().enumerate() {
        let keys_from = keys_from(entry, name.is_some(), global)?;
        if out.is_json() {
            out.json(&as_json(entry, secrets, keys_from))?;
            continue;
        }
        let space = if index > 0 { "\n" } else { "" };
        out.line(format_args!("{space}[repositories.{}]", entry.name))?;
        for key in config::KEYS {
            if entry.secret(key).is_some() {
                out.line(format_args!("{key} = {}", shown(entry, key, secrets)))?;
            }
        }
        if let Some(from) = keys_from {
            out.line(format_args!("# keys from: {from}"))?;
        }
    }
    Ok(())
}

/// Where the keys of a bucket come from; of one that is named, the machine's own are looked for as well.
fn keys_from(entry: &RepositoryEntry, looks: bool, global: &Global) -> Result<Option<String>, CliError> {
    let Ok(location @ StoreLocation::S3 { .. }) = entry.location() else { return Ok(None) };
    if entry.flag("allow_anonymous")? == Some(true) {
        return Ok(Some("nowhere, requests are not signed".to_owned()));
    }
    let places = Places { flags: &global.args, env: &global.env, entry: Some(entry), other: None };
    let from = places.s3_keys_from();
    if !from.is_empty() {
        return Ok(Some(from.join(", ")));
    }
    if !looks {
        return Ok(Some("the machine, see `show NAME`".to_owned()));
    }
    let mut s3 = S3Options::default();
    s3_options::follow(&places, &location, &mut s3)?;
    places.add_s3_keys(&location, &mut s3)?;
    let found = runtime()?.block_on(crate::store::ambient_keys_from(&location, &s3));
    Ok(Some(found.unwrap_or_else(|problem| problem)))
}

fn as_json(entry: &RepositoryEntry, secrets: bool, keys_from: Option<String>) -> Value {
    let mut fields = Map::new();
    fields.insert("name".to_owned(), json!(entry.name));
    for key in config::KEYS {
        if entry.secret(key).is_some() {
            fields.insert(key.to_owned(), shown(entry, key, secrets));
        }
    }
    if let Some(from) = keys_from {
        fields.insert("keys_from".to_owned(), json!(from));
    }
    Value::Object(fields)
}

fn shown(entry: &RepositoryEntry, key: &str, secrets: bool) -> Value {
    let text = entry.text(key).unwrap_or("");
    match text {
        _ if config::is_secret(key) && !secrets => json!("***"),
        // A password for the proxy.
        text if key == "proxy" && text.contains('@') && !secrets => json!("***"),
        "true" | "false" if config::is_flag(key) => json!(text == "true"),
        text => json!(text),
    }
}

fn list(global: &Global, out: &mut Output) -> Result<(), CliError> {
    let config = Config::load(global)?;
    let entries = config.entries();
    let width = entries.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    for entry in entries {
        let is_default = config.default_name() == Some(entry.name.as_str());
        let location = entry.text("location");
        if out.is_json() {
            out.json(&json!({"name": entry.name, "location": location, "default": is_default}))?;
        } else {
            let mark = if is_default { "*" } else { " " };
            let location = location.unwrap_or("(no location)");
            out.line(format_args!("{mark} {:width$}  {location}", entry.name))?;
        }
    }
    Ok(())
}

fn policy(job: Job, principal: Option<&str>, located: &Located, out: &mut Output) -> Result<(), CliError> {
    let circumstances = Circumstances { principal, kms_key: located.kms_key.as_deref() };
    let is_folder =
        || CliError::usage(format!("{} is a folder: its owner and mode say who may what", located.location));
    let policy = store_policy::least(job, &located.location, circumstances).ok_or_else(is_folder)?;
    if out.is_json() {
        return out.json(&policy);
    }
    let text = serde_json::to_string_pretty(&policy);
    out.line(text.map_err(|error| CliError::failed(format!("writing JSON: {error}")))?)
}

fn ping(name: Option<&str>, global: &Global, out: &mut Output) -> Result<(), CliError> {
    let repository = match name {
        Some(name) => ResolvedRepository::named(&format!("@{}", plain(name)), global)?,
        None => ResolvedRepository::resolve(global)?,
    };
    let store = repository.open_store()?;
    // The key slots: a handful of objects in any kloset.
    let slots = runtime()?.block_on(store.list("keys"));
    let slots = slots.map_err(|error| repository.explain(error.into()))?;
    repository.remember_region(store.learned_region());
    let has_kloset = !slots.is_empty();
    if out.is_json() {
        let location = repository.location.to_string();
        return out.json(&json!({"location": location, "reachable": true, "kloset": has_kloset}));
    }
    let what = if has_kloset { "a kloset is there" } else { "no kloset is there yet" };
    out.line(format_args!("{} is reachable: {what}", repository.label()))
}

fn pairs(words: &[String]) -> Result<Vec<(String, String)>, CliError> {
    let pair = |word: &String| {
        let (key, value) = word.split_once('=').ok_or_else(|| {
            CliError::usage(format!("{word:?} is not KEY=VALUE: keys are {}", config::KEYS.join(", ")))
        })?;
        Ok((key.to_owned(), value.to_owned()))
    };
    words.iter().map(pair).collect()
}

/// Reads values that are `-`, and checks all of them.
fn read_pairs(pairs: &[(String, String)]) -> Result<Vec<(String, String)>, CliError> {
    if pairs.iter().filter(|(_, value)| value == "-").count() > 1 {
        return Err(CliError::usage("only one value can be - for standard input"));
    }
    let read = |(key, value): &(String, String)| {
        let value = if value == "-" { read_stdin()? } else { value.clone() };
        Ok((key.clone(), checked(key, value)?))
    };
    pairs.iter().map(read).collect()
}

fn read_stdin() -> Result<String, CliError> {
    const VALUE_BYTES_MAX: u64 = 64 << 10; // as for every secret
    let mut text = String::new();
    let read = std::io::stdin().take(VALUE_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| CliError::failed(format!("reading standard input: {error}")))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// A value in the form in which it is stored.
fn checked(key: &str, value: String) -> Result<String, CliError> {
    if value.is_empty() {
        return Err(CliError::usage(format!("the value of {key} is empty: take it away with `unset`")));
    }
    let absolute = |path: &str| {
        let path = std::path::absolute(path).map_err(|error| CliError::usage(format!("{key} {value:?}: {error}")))?;
        path.to_str().map(str::to_owned).ok_or_else(|| CliError::usage(format!("{key} {value:?} is not UTF-8")))
    };
    let of_key = |what: String| CliError::usage(format!("{key}: {what}"));
    match key {
        "location" => match value.parse::<StoreLocation>()? {
            StoreLocation::Folder(folder) => absolute(&folder.to_string_lossy()),
            bucket => Ok(bucket.to_string()),
        },
        "addressing" => match value.parse::<Addressing>() {
            Ok(_) => Ok(value),
            Err(message) => Err(CliError::usage(message)),
        },
        "sse" if !ENCRYPTION_KINDS.contains(&value.as_str()) => {
            Err(CliError::usage(format!("sse {value:?} is not one of: {}", ENCRYPTION_KINDS.join(", "))))
        }
        "endpoint_path" => s3_options::endpoint_path(&value).map_err(of_key),
        "storage_class" => s3_options::storage_class(&value).map_err(of_key),
        "proxy" => s3_options::proxy(&value).map_err(of_key),
        key if config::is_flag(key) => match value.as_str() {
            "true" | "false" => Ok(value),
            _ => Err(CliError::usage(format!("{key} is true or false, not {value:?}"))),
        },
        key if key.ends_with("_file") => absolute(&value),
        _ => Ok(value),
    }
}
