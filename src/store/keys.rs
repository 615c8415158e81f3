//! The keys that requests are signed with: said once, or looked for and renewed in time.
//!
//! Promises that keys are looked for when the first request needs them and not before, by one request at a time; that
//! temporary ones are replaced before they run out; and that keys which a store calls stale are looked for again. It does
//! not know where they are looked for (`ambient`), nor how requests are signed.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AwsCredential;
use tokio::sync::Mutex;

use super::ambient::{Ambient, AmbientKeys};
use super::client::ClientOptions;
use super::secret::Secret;
use crate::env::Clock;

/// Temporary keys are replaced so long before their end: AWS gives new ones from then on.
const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// Keys that cannot be replaced yet are looked for again after so long.
const RENEW_AGAIN: Duration = Duration::from_secs(30);

/// Why requests cannot be signed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct KeysError(pub(crate) String);

/// A key of a bucket.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// Its name.
    pub access_key: String,
    /// Its secret.
    pub secret_access_key: Secret,
    /// Third part of temporary keys.
    pub session_token: Option<Secret>,
}

/// Reads keys again from where they were found: files and commands whose content changes.
#[derive(Clone)]
pub struct ReadAgain(pub Arc<dyn Fn() -> Result<KeyPair, String> + Send + Sync>);

impl std::fmt::Debug for ReadAgain {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("ReadAgain")
    }
}

/// Where keys come from.
#[derive(Debug)]
pub(crate) enum Keys {
    /// Requests are not signed.
    Anonymous,
    /// These, or what is read when they are stale.
    Said(Mutex<Arc<AwsCredential>>, Option<ReadAgain>),
    /// What the machine has.
    Found(Box<Finder>),
}

/// Looks for the machine's keys and keeps them.
#[derive(Debug)]
pub(crate) struct Finder {
    ambient: Ambient,
    client: ClientOptions,
    clock: Clock,
    /// A lock of tokio's: who waits for it wants the very keys that are being looked for.
    held: Mutex<Option<Held>>,
}

#[derive(Clone, Debug)]
struct Held {
    key: Arc<AwsCredential>,
    /// Looked for again from then on.
    renew_unix_ms: i64,
    ends_unix_ms: i64,
}

impl Keys {
    /// Takes keys that were said.
    pub(crate) fn said(pair: &KeyPair, again: Option<ReadAgain>) -> Result<Keys, String> {
        Ok(Keys::Said(Mutex::new(credential(pair)?.into()), again))
    }

    /// Will look for the machine's keys; `client` is for whom it asks.
    pub(crate) fn found(ambient: Ambient, client: ClientOptions) -> Keys {
        let (clock, held) = (Clock::System, Mutex::new(None));
        Keys::Found(Box::new(Finder { ambient, client, clock, held }))
    }

    /// Returns the key to sign with; `None`: requests are not signed.
    pub(crate) async fn get(&self) -> Result<Option<Arc<AwsCredential>>, KeysError> {
        match self {
            Keys::Anonymous => Ok(None),
            Keys::Said(key, _) => Ok(Some(key.lock().await.clone())),
            Keys::Found(finder) => finder.get().await.map(Some),
        }
    }

    /// Looks again, after a store called a key stale; `false` if there is no other.
    pub(crate) async fn renew(&self, stale: &AwsCredential) -> Result<bool, KeysError> {
        match self {
            Keys::Anonymous | Keys::Said(_, None) => Ok(false),
            Keys::Said(key, Some(again)) => {
                let mut key = key.lock().await;
                if **key == *stale {
                    let read = again.clone();
                    let pair = tokio::task::spawn_blocking(move || read.0()).await;
                    let pair = pair.map_err(|error| KeysError(error.to_string()))?.map_err(KeysError)?;
                    *key = credential(&pair).map_err(KeysError)?.into();
                }
                Ok(**key != *stale)
            }
            Keys::Found(finder) => finder.renew(stale).await,
        }
    }
}

impl Finder {
    async fn get(&self) -> Result<Arc<AwsCredential>, KeysError> {
        let mut held = self.held.lock().await;
        let now = self.clock.unix_ms();
        match &mut *held {
            Some(held) if now < held.renew_unix_ms => Ok(held.key.clone()),
            Some(old) => match self.look().await {
                Ok(new) => {
                    *old = new;
                    Ok(old.key.clone())
                }
                // They still are good for a while, and whoever gives new ones may be back by then.
                Err(error) if now < old.ends_unix_ms => {
                    tracing::warn!("keys are not renewed: {error}");
                    old.renew_unix_ms = now + millis(RENEW_AGAIN);
                    Ok(old.key.clone())
                }
                Err(error) => Err(error),
            },
            None => Ok(held.insert(self.look().await?).key.clone()),
        }
    }

    async fn renew(&self, stale: &AwsCredential) -> Result<bool, KeysError> {
        let mut held = self.held.lock().await;
        if held.as_ref().is_none_or(|held| *held.key == *stale) {
            *held = Some(self.look().await?);
        }
        Ok(held.as_ref().is_some_and(|held| *held.key != *stale))
    }

    async fn look(&self) -> Result<Held, KeysError> {
        let AmbientKeys { pair, ends_unix_ms, from } = self.ambient.look(&self.client).await?;
        tracing::debug!("keys from {from}");
        let key = Arc::new(credential(&pair).map_err(KeysError)?);
        let ends_unix_ms = ends_unix_ms.unwrap_or(i64::MAX);
        let renew_unix_ms = (ends_unix_ms - millis(RENEW_BEFORE)).max(self.clock.unix_ms() + millis(RENEW_AGAIN));
        Ok(Held { key, renew_unix_ms, ends_unix_ms })
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn credential(pair: &KeyPair) -> Result<AwsCredential, String> {
    let text = |secret: &Secret, what: &str| {
        let text = secret.text().filter(|text| text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        text.map(str::to_owned).ok_or_else(|| format!("the {what} is not text that can stand in a header"))
    };
    Ok(AwsCredential {
        key_id: text(&pair.access_key.as_str().into(), "access_key")?,
        secret_key: text(&pair.secret_access_key, "secret_access_key")?,
        token: pair.session_token.as_ref().map(|token| text(token, "session_token")).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(access_key: &str) -> KeyPair {
        KeyPair { access_key: access_key.to_owned(), secret_access_key: "S".into(), session_token: None }
    }

    #[tokio::test]
    async fn stale_keys_are_read_again_once_for_all_who_found_them_stale() {
        let reads = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = reads.clone();
        let again = ReadAgain(Arc::new(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(pair("new"))
        }));
        let keys = Keys::said(&pair("old"), Some(again)).unwrap();
        let old = keys.get().await.unwrap().unwrap();
        assert!(keys.renew(&old).await.unwrap());
        assert!(keys.renew(&old).await.unwrap());
        assert_eq!(reads.load(std::sync::atomic::Ordering::Relaxed), 1);
        assert_eq!(keys.get().await.unwrap().unwrap().key_id, "new");
        assert!(!Keys::said(&pair("old"), None).unwrap().renew(&old).await.unwrap());
    }

    #[test]
    fn what_no_header_can_hold_is_refused_and_not_shown() {
        let pair = KeyPair { secret_access_key: "HID\nDEN".into(), ..pair("K") };
        let told = Keys::said(&pair, None).unwrap_err();
        assert!(told.contains("secret_access_key") && !told.contains("DEN"), "{told}");
    }
}
