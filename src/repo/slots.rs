//! The key slots of a kloset in its store: finding the one that a secret opens, adding, replacing and removing.
//!
//! Promises that at every moment some full slot is there whose secret was at hand: a new slot is put and read back before
//! an old one goes, and the slot that was opened is never the one that is removed. A slot that somebody kept a copy of
//! opens the kloset for ever: keys never change (`docs/format.md`, "Threat model"). It does not know who asks.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::crypto::Keys;
use super::header::Header;
use super::id::{KlosetId, SlotId};
use super::keyslot::{KeySlot, NewSlot, SLOT_BYTES_MAX, SlotError, SlotKind, SlotSecret};
use super::{RepoError, layout};
use crate::cpu::Cpu;
use crate::env::Env;
use crate::store::{Store, StoreError};

/// The most key slots that are tried.
const SLOTS_MAX: usize = 256;
/// How many are named where none opens.
const NAMED_MAX: usize = 4;
/// Slots fetched at once.
const FETCHES: usize = 16;

/// Objects below `keys/` by their names, as they are.
pub(super) type Fetched = Vec<(String, Bytes)>;

/// The key slots that there are.
#[derive(Debug, Default)]
pub struct Slots {
    /// Those that can be read, in the order of their ids.
    pub slots: Vec<KeySlot>,
    /// The others, and what is wrong with them.
    pub damaged: Vec<(SlotId, RepoError)>,
}

/// The slots of a kloset, opened by one of them that can read.
pub struct OpenSlots<'a> {
    store: &'a Store,
    env: &'a Env,
    cpu: &'a Cpu,
    secret: &'a SlotSecret,
    keys: Keys,
    /// All slots.
    pub all: Slots,
    /// The one that the secret opens.
    pub own: KeySlot,
}

/// Fetches every slot.
pub(super) async fn fetch(store: &Store) -> Result<Fetched, RepoError> {
    let names = store.list(layout::KEYS).await?.into_iter().map(|object| object.name);
    let names = names.filter(|name| layout::parse_slot(name).is_some()).take(SLOTS_MAX);
    let fetched =
        names.map(|name| async move { store.get(&name, SLOT_BYTES_MAX).await.map(|content| (name, content)) });
    Ok(futures::stream::iter(fetched).buffered(FETCHES).try_collect().await?)
}

/// Parses what was fetched.
pub(super) fn decode(fetched: &Fetched, kloset: KlosetId) -> Slots {
    let mut slots = Slots::default();
    for (name, content) in fetched {
        let Some(id) = layout::parse_slot(name) else { continue };
        match KeySlot::decode(content) {
            Ok(slot) if slot.kloset == kloset && slot.id == id => slots.slots.push(slot),
            Ok(_) => {
                let problem = "it is another kloset's or another slot's";
                slots.damaged.push((id, RepoError::damaged(name, problem)));
            }
            Err(error) => slots.damaged.push((id, RepoError::damaged(name, error))),
        }
    }
    slots
}

/// Tries every slot on the secret, off the async threads: a passphrase takes about 100 ms a slot.
pub(super) async fn open(slots: &Slots, secret: &SlotSecret, cpu: &Cpu) -> Result<(KeySlot, Keys), RepoError> {
    let mut problem = slots.damaged.last().map(|(_, error)| error.clone());
    let mut tried = Vec::new();
    for slot in &slots.slots {
        let (secret, tried_slot) = (secret.clone(), slot.clone());
        match cpu.run(move || tried_slot.open(&secret)).await {
            Ok(keys) => return Ok((slot.clone(), keys)),
            Err(SlotError::WrongSecret | SlotError::OtherKind(_)) => tried.push(layout::slot_name(slot.id)),
            Err(error) => problem = Some(RepoError::damaged(layout::slot_name(slot.id), error)),
        }
    }
    match problem {
        Some(problem) if tried.is_empty() => Err(problem),
        None if tried.is_empty() => Err(RepoError::damaged("keys/", "there is no key slot")),
        problem => {
            let more = tried.len().saturating_sub(NAMED_MAX);
            tried.truncate(NAMED_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let problem = problem.map(|problem| format!("; {problem}")).unwrap_or_default();
            Err(RepoError::WrongSecret { slots: format!("{}{more}{problem}", tried.join(", ")) })
        }
    }
}

impl<'a> OpenSlots<'a> {
    /// Opens the slots of a kloset with the secret of one of them, which may be write-only.
    ///
    /// # Errors
    /// As [`super::Repo::open`].
    pub async fn open(
        store: &'a Store,
        secret: &'a SlotSecret,
        env: &'a Env,
        cpu: &'a Cpu,
    ) -> Result<OpenSlots<'a>, RepoError> {
        let (header, fetched) = super::header_and_slots(store).await?;
        let all = decode(&fetched, header.id);
        let (own, keys) = open(&all, secret, cpu).await?;
        Header::verify(&header, &keys)?;
        Ok(Self { store, env, cpu, secret, keys, all, own })
    }

    /// Adds a slot and returns its id.
    ///
    /// # Errors
    /// [`RepoError::WriteOnly`], [`RepoError::Slot`], or what the store says.
    pub async fn add(&self, kind: SlotKind, new: &NewSlot<'_>) -> Result<SlotId, RepoError> {
        if !self.keys.can_read() {
            return Err(RepoError::WriteOnly);
        }
        let slot = self.make(kind, new).await?;
        self.put(&slot, new.secret).await?;
        Ok(slot.id)
    }

    /// Puts a slot of the same kind under a new secret in the place of the one that was opened. A crash in between leaves
    /// both, and so does a store that does not delete, which is told beside the new slot's id.
    ///
    /// # Errors
    /// As [`OpenSlots::add`]; a write-only slot can be replaced by its own holder.
    pub async fn replace(&self, new: &NewSlot<'_>) -> Result<(SlotId, Result<(), StoreError>), RepoError> {
        let slot = self.make(self.own.kind, new).await?;
        self.put(&slot, new.secret).await?;
        let deleted = self.store.delete(&layout::slot_name(self.own.id)).await;
        Ok((slot.id, deleted))
    }

    /// Removes the slot whose id begins so, be it damaged; not the one that was opened. Two who remove each other's at
    /// once both see it and put back what they took.
    ///
    /// # Errors
    /// [`RepoError::WriteOnly`], [`RepoError::KeySlot`], or what the store says.
    pub async fn remove(&self, spec: &str) -> Result<SlotId, RepoError> {
        if !self.keys.can_read() {
            return Err(RepoError::WriteOnly);
        }
        let id = self.find(spec)?;
        let refuse = |problem: &str| RepoError::KeySlot { slot: id.to_string(), problem: problem.to_owned() };
        if id == self.own.id {
            let full = self.all.slots.iter().filter(|slot| slot.kind == SlotKind::Full).count();
            return Err(refuse(match full {
                1 => "it is the last one that can read: add another first, or change it with `key passwd`",
                _ => "it is the one that you opened the kloset with: use the secret of another one to remove it",
            }));
        }
        let (name, own) = (layout::slot_name(id), layout::slot_name(self.own.id));
        let content = self.store.get(&name, SLOT_BYTES_MAX).await?;
        self.store.delete(&name).await?;
        if self.store.list(layout::KEYS).await?.iter().all(|object| object.name != own) {
            self.store.put_new(&name, content).await?;
            return Err(refuse("your own slot was removed meanwhile: nothing was removed"));
        }
        Ok(id)
    }

    /// Removes a slot that was just added.
    ///
    /// # Errors
    /// What the store says.
    pub async fn remove_new(&self, id: SlotId) -> Result<(), RepoError> {
        Ok(self.store.delete(&layout::slot_name(id)).await?)
    }

    fn find(&self, spec: &str) -> Result<SlotId, RepoError> {
        let refuse = |problem: &str| RepoError::KeySlot { slot: spec.to_owned(), problem: problem.to_owned() };
        let ids = self.all.slots.iter().map(|slot| slot.id).chain(self.all.damaged.iter().map(|(id, _)| *id));
        let mut fitting = ids.filter(|id| !spec.is_empty() && id.to_string().starts_with(spec));
        match (fitting.next(), fitting.next()) {
            (Some(id), None) => Ok(id),
            (Some(_), Some(_)) => Err(refuse("several begin so: give more characters")),
            (None, _) => Err(refuse("there is none: `kloset-mount key ls` lists them")),
        }
    }

    async fn make(&self, kind: SlotKind, new: &NewSlot<'_>) -> Result<KeySlot, RepoError> {
        let kloset = self.own.kloset;
        if kind == SlotKind::WriteOnly {
            return Ok(KeySlot::write_only(kloset, self.keys.write_keys(), new, self.env)?);
        }
        let (own, secret) = (self.own.clone(), self.secret.clone());
        let master = self.cpu.run(move || own.open_master(&secret)).await?;
        Ok(KeySlot::full(kloset, &master, new, self.env)?)
    }

    /// Puts a slot and opens what stands there then: nobody is to be locked out by a store that lost it.
    async fn put(&self, slot: &KeySlot, secret: &SlotSecret) -> Result<(), RepoError> {
        let name = layout::slot_name(slot.id);
        self.store.put_new(&name, slot.encode().into()).await?;
        let standing = KeySlot::decode(&self.store.get(&name, SLOT_BYTES_MAX).await?)?;
        let secret = secret.clone();
        let opened = self.cpu.run(move || standing.open(&secret)).await.map_err(|e| RepoError::damaged(&name, e))?;
        match opened.can_read() == (slot.kind == SlotKind::Full) {
            true => Ok(()),
            false => Err(RepoError::damaged(&name, "it is not the slot that was put")),
        }
    }
}
