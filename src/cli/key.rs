//! `key`: lists, adds, changes and removes what opens a kloset.

use clap::{Args, Subcommand};
use serde_json::json;
use zeroize::Zeroizing;

use super::args::Global;
use super::exit::{CliError, Exit, exit_of};
use super::kloset::slot_secret;
use super::names::safe;
use super::output::Output;
use super::paper::{ExportArgs, Sheet};
use super::process;
use super::repository::ResolvedRepository;
use super::secret::{Ask, NewSecretArgs};
use super::strength::StrengthArgs;
use crate::cpu::Cpu;
use crate::env::Env;
use crate::repo::RepoError;
use crate::repo::id::SlotId;
use crate::repo::keyslot::{ARGON2_RECOMMENDED, Kdf, KeySlot, NewSlot, SlotKind, SlotSecret};
use crate::repo::layout::timestamp;
use crate::repo::slots::OpenSlots;
use crate::store::StoreError;

/// What removing a slot does not do.
const KEPT: &str = "who kept a copy of the old key slot and knows its secret can open this kloset for ever: if a secret is \
                    in wrong hands, make a new kloset";

/// Lists, adds, changes and removes passphrases and key files.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Lists the key slots; `*` marks the one that was opened.
    Ls,
    /// Adds a passphrase or key file.
    Add(AddArgs),
    /// Changes the passphrase or key file that the kloset was opened with.
    Passwd(PasswdArgs),
    /// Exports a new key that opens everything, as a sheet of paper.
    Export(ExportArgs),
    /// Removes a key slot; not the one that the kloset was opened with.
    Rm {
        /// First characters of the slot's id.
        #[arg(value_name = "ID")]
        id: String,
    },
}

#[derive(Debug, Args)]
struct AddArgs {
    #[command(flatten)]
    new: NewSecretArgs,
    /// Whose it is.
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,
    /// Its holder can add backups and read nothing, not even those.
    #[arg(long)]
    write_only: bool,
    #[command(flatten)]
    strength: StrengthArgs,
}

#[derive(Debug, Args)]
struct PasswdArgs {
    #[command(flatten)]
    new: NewSecretArgs,
    /// Whose it is [the label before].
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    #[command(flatten)]
    strength: StrengthArgs,
}

/// Runs the command.
pub(crate) fn run(args: KeyArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    if let KeyCommand::Export(args) = &args.command {
        args.judge(out.is_json())?;
    }
    let resolved = ResolvedRepository::resolve(global)?;
    let store = resolved.open_store()?;
    let secret = slot_secret(resolved.unlock(global, Ask::Once)?.value)?;
    let (runtime, env) = (process::runtime()?, Env::system());
    let cpu = Cpu::new(env.parallelism);
    let explain = |error: RepoError| resolved.explain(error.into());
    let slots = runtime.block_on(OpenSlots::open(&store, &secret, &env, &cpu)).map_err(explain)?;
    match args.command {
        KeyCommand::Ls => list(&slots, out),
        KeyCommand::Add(args) => {
            let kind = if args.write_only { SlotKind::WriteOnly } else { SlotKind::Full };
            let new = new_secret((&args.new, args.strength), &resolved)?;
            let new = NewSlot { secret: &new, cost: ARGON2_RECOMMENDED, label: &args.label };
            let id = runtime.block_on(slots.add(kind, &new)).map_err(explain)?;
            tell("added", id, out)
        }
        KeyCommand::Passwd(args) => {
            let new = new_secret((&args.new, args.strength), &resolved)?;
            let label = args.label.unwrap_or_else(|| slots.own.label.clone());
            let new = NewSlot { secret: &new, cost: ARGON2_RECOMMENDED, label: &label };
            let (id, deleted) = runtime.block_on(slots.replace(&new)).map_err(explain)?;
            deleted.map_err(|error| resolved.explain(both_open(id, slots.own.id, &error)))?;
            out.note(KEPT);
            tell("changed", id, out)
        }
        KeyCommand::Export(args) => runtime.block_on(export(&args, &slots, (&resolved, &env), out)),
        KeyCommand::Rm { id } => {
            let id = runtime.block_on(slots.remove(&id)).map_err(explain)?;
            out.note(KEPT);
            tell("removed", id, out)
        }
    }
}

/// Adds a key and puts it on a sheet; the slot goes again where the sheet cannot be made.
async fn export(
    args: &ExportArgs,
    slots: &OpenSlots<'_>,
    (resolved, env): (&ResolvedRepository, &Env),
    out: &mut Output,
) -> Result<Exit, CliError> {
    let date = timestamp(env.clock.unix_ms()).strftime("%Y-%m-%d").to_string();
    let secret =
        SlotSecret::parse_key_file(&SlotSecret::new_key_file(env)).map_err(|e| CliError::failed(e.to_string()))?;
    let SlotSecret::KeyFile(key) = &secret else { return Err(CliError::failed("no key file was made")) };
    let new = NewSlot { secret: &secret, cost: ARGON2_RECOMMENDED, label: &format!("paper {date}") };
    let slot = slots.add(SlotKind::Full, &new).await.map_err(|error| resolved.explain(error.into()))?;
    let location = resolved.location.to_string();
    let sheet = Sheet { kloset: slots.own.kloset, location, slot, date, key: Zeroizing::new(*key.bytes()) };
    let told = args.write(&sheet).and_then(|text| match (text, args.file()) {
        (Some(text), _) => out.line(&*text),
        (None, Some(file)) if out.is_json() => {
            out.json(&json!({"message_type": "key_exported", "id": slot, "file": file}))
        }
        (None, file) => {
            let file = file.map(|file| file.display().to_string()).unwrap_or_default();
            out.line(format_args!("added key slot {}, the sheet is \"{}\"", slot.short(), safe(file.as_bytes())))
        }
    });
    match told {
        Ok(()) => Ok(Exit::Done),
        Err(error) => {
            let short = slot.short();
            let removed = slots.remove_new(slot).await;
            let kept = |e: RepoError| format!("{error}; key slot {short} is left: `key rm {short}` later: {e}");
            Err(CliError::new(error.exit, removed.err().map_or_else(|| error.to_string(), kept)))
        }
    }
}

fn new_secret(
    (new, strength): (&NewSecretArgs, StrengthArgs),
    resolved: &ResolvedRepository,
) -> Result<SlotSecret, CliError> {
    let secret = slot_secret(new.find(&resolved.label())?.value)?;
    strength.judge(&secret)?;
    Ok(secret)
}

fn both_open(new: SlotId, old: SlotId, error: &StoreError) -> CliError {
    let (new, old) = (new.short(), old.short());
    CliError::new(
        exit_of(error),
        format!(
            "key slot {new} is there, but {old} is not deleted, and both open the kloset: `key rm {old}` later: {error}"
        ),
    )
}

fn tell(what: &str, id: SlotId, out: &mut Output) -> Result<Exit, CliError> {
    match out.is_json() {
        true => out.json(&json!({"message_type": format!("key_{what}"), "id": id}))?,
        false => out.line(format_args!("{what} key slot {}", id.short()))?,
    }
    Ok(Exit::Done)
}

fn list(slots: &OpenSlots<'_>, out: &mut Output) -> Result<Exit, CliError> {
    for (_, error) in &slots.all.damaged {
        out.warn(error);
    }
    if out.is_json() {
        let all: Vec<_> = slots.all.slots.iter().map(|slot| slot_json(slot, slots.own.id)).collect();
        out.json(&all)?;
    } else {
        out.line(format_args!("  {:8}  {:10}  {:10}  {:24}  label", "id", "kind", "opened by", "created"))?;
        for slot in &slots.all.slots {
            let (mark, created) = (if slot.id == slots.own.id { '*' } else { ' ' }, safe(slot.created.as_bytes()));
            let (kind, by, label) = (slot.kind.name(), opened_by(slot), safe(slot.label.as_bytes()));
            out.line(format_args!("{mark} {:8}  {kind:10}  {by:10}  {created:24}  {label}", slot.id.short()))?;
        }
    }
    Ok(if slots.all.damaged.is_empty() { Exit::Done } else { Exit::Damaged })
}

fn opened_by(slot: &KeySlot) -> &'static str {
    match slot.kdf {
        Kdf::Argon2id { .. } => "passphrase",
        Kdf::KeyFile => "key file",
    }
}

fn slot_json(slot: &KeySlot, own: SlotId) -> serde_json::Value {
    json!({
        "id": slot.id,
        "kind": slot.kind.name(),
        "opened_by": opened_by(slot),
        "created": slot.created,
        "label": slot.label,
        "current": slot.id == own,
    })
}
