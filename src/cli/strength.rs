//! How well a new passphrase resists guessing.
//!
//! Who has a copy of a key slot can try passphrases without end, at Argon2id's price; so what zxcvbn counts among the
//! guessable is refused unless that is said to be meant. Key files are random and not judged. It does not know what the
//! passphrase is for.

use clap::Args;
use zxcvbn::{Score, zxcvbn};

use super::exit::CliError;
use crate::repo::keyslot::SlotSecret;

/// Words that a guesser of ours tries first.
const OUR_WORDS: [&str; 3] = ["kloset", "kloset-mount", "backup"];

/// What may be said about a new passphrase.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct StrengthArgs {
    /// Takes a new passphrase that is easy to guess.
    #[arg(long)]
    pub(crate) allow_weak_passphrase: bool,
}

impl StrengthArgs {
    /// Refuses a passphrase that can be guessed in fewer than about 10^8 attempts.
    pub(crate) fn judge(self, secret: &SlotSecret) -> Result<(), CliError> {
        let SlotSecret::Passphrase(passphrase) = secret else { return Ok(()) };
        let estimate = zxcvbn(passphrase, &OUR_WORDS);
        if self.allow_weak_passphrase || estimate.score() >= Score::Three {
            return Ok(());
        }
        Err(CliError::usage(
            "the new passphrase is easy to guess, and who copies the kloset can try without end: nothing was done; take \
             a longer one, of several words that have nothing to do with each other, or say --allow-weak-passphrase",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_easily_guessed_is_refused_unless_it_is_meant() {
        let judge = |text: &str, allow_weak_passphrase| {
            let secret = SlotSecret::Passphrase(text.to_owned().into());
            StrengthArgs { allow_weak_passphrase }.judge(&secret).is_ok()
        };
        for weak in ["", "x", "secret", "password1234", "kloset-mount", "20261122"] {
            assert!(!judge(weak, false) && judge(weak, true), "{weak}");
        }
        for good in ["correct-horse-battery-staple", "Zürich regnet kaum dienstags", "0a1b2c3d4e5f6071"] {
            assert!(judge(good, false), "{good}");
        }
        let key_file = SlotSecret::parse_key_file(&"00".repeat(32)).unwrap();
        assert!(StrengthArgs::default().judge(&key_file).is_ok());
    }
}
