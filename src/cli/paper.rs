//! `key export --paper`: a new key on a sheet that can be kept in a drawer, to be typed back or scanned.
//!
//! The sheet goes to a terminal or into a file of its own, and nowhere else.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use qrcode::{Color, EcLevel, QrCode};
use zeroize::Zeroizing;

use super::exit::CliError;
use super::names::{self, safe};
use crate::repo::id::{KlosetId, SlotId};
use crate::repo::paper;

/// Light modules around a code, as its standard says.
const QUIET: usize = 4;

/// What to export, and where to.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Adds a new key that opens everything and prints it as a sheet: text to be typed back, and a QR code.
    #[arg(long, required = true)]
    paper: bool,
    /// File to write the sheet into instead of the terminal: a web page if it ends in .html, a picture if in .svg, else
    /// text. It must not be there yet.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What a sheet says.
pub(super) struct Sheet {
    pub(super) kloset: KlosetId,
    pub(super) location: String,
    pub(super) slot: SlotId,
    pub(super) date: String,
    pub(super) key: Zeroizing<[u8; 32]>,
}

impl ExportArgs {
    /// Returns the file that the sheet goes into, if it goes into one.
    pub(super) fn file(&self) -> Option<&Path> {
        self.output.as_deref()
    }

    /// Refuses what would put the key where it does not belong, before there is one.
    pub(super) fn judge(&self, is_json: bool) -> Result<(), CliError> {
        match &self.output {
            None if is_json || !names::is_shown() => {
                Err(CliError::usage("a paper key is only shown on a terminal: give -o FILE to write it into one"))
            }
            Some(file) if std::fs::symlink_metadata(file).is_ok() => {
                Err(CliError::usage(format!("{file:?} is there already: choose another name")))
            }
            _ => Ok(()),
        }
    }

    /// Writes the sheet into a new file that only its owner may read, or returns it for the terminal.
    pub(super) fn write(&self, sheet: &Sheet) -> Result<Option<Zeroizing<String>>, CliError> {
        let Some(file) = &self.output else { return sheet.text(true).map(Some) };
        let end = file.extension().and_then(|end| end.to_str()).map(str::to_ascii_lowercase);
        let content = match end.as_deref() {
            Some("html" | "htm") => sheet.html()?,
            Some("svg") => sheet.svg()?,
            _ => sheet.text(false)?,
        };
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).and_then(|mut opened| {
            opened.write_all(content.as_bytes())?;
            opened.sync_all()
        });
        written.map_err(|error| CliError::failed(format!("{file:?}: {error}")))?;
        Ok(None)
    }
}

impl Sheet {
    /// Returns the lines above and below the key.
    fn around(&self) -> (String, String) {
        let (location, slot) = (safe(self.location.as_bytes()), self.slot.short());
        let above = format!(
            "kloset-mount paper key\n\nWho has this sheet can read every backup in the kloset. Keep it where you keep \
             money.\n\nkloset    {}\nlocation  {location}\nkey slot  {slot}, {}\n",
            self.kloset, self.date,
        );
        let below = format!(
            "To open the kloset with it, type the lines K1 to K4 into a file, or save this text as one, or what the code \
             says;\nthen:\n\n    kloset-mount ls -r {location} --key-file FILE\n\nIf the sheet is lost, remove its key \
             slot:\n\n    kloset-mount key rm {slot} -r {location}\n"
        );
        (above, below)
    }

    fn text(&self, is_terminal: bool) -> Result<Zeroizing<String>, CliError> {
        let (above, below) = self.around();
        let code = Code::of(&self.key)?;
        Ok(Zeroizing::new(format!("{above}\n{}\n{}\n{below}", *paper::lines(&self.key), *code.blocks(is_terminal))))
    }

    fn svg(&self) -> Result<Zeroizing<String>, CliError> {
        let code = Code::of(&self.key)?;
        let side = code.side * 8;
        let mut texts = Zeroizing::new(String::new());
        let (above, below) = self.around();
        let all = Zeroizing::new(format!("{above}\n{}\n{below}", *paper::lines(&self.key)));
        for (number, line) in all.lines().enumerate() {
            let y = side + 24 + number * 18;
            texts.push_str(&format!(
                "<text x=\"16\" y=\"{y}\" xml:space=\"preserve\" font-family=\"monospace\" font-size=\"14\">{}</text>\n",
                escaped(line)
            ));
        }
        let (width, height) = (1080, side + 48 + all.lines().count() * 18);
        Ok(Zeroizing::new(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\">\n<rect width=\"100%\" \
             height=\"100%\" fill=\"#fff\"/>\n<path transform=\"scale(8)\" d=\"{}\"/>\n{}</svg>\n",
            *code.path(),
            *texts
        )))
    }

    fn html(&self) -> Result<Zeroizing<String>, CliError> {
        let (above, below) = self.around();
        let code = Code::of(&self.key)?;
        let (side, path) = (code.side, code.path());
        Ok(Zeroizing::new(format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>kloset-mount paper key</title>\n\
             <pre>{}\n{}</pre>\n<svg viewBox=\"0 0 {side} {side}\" width=\"280\" height=\"280\"><path d=\"{}\"/></svg>\n\
             <pre>{}</pre>\n</html>\n",
            escaped(&above),
            *paper::lines(&self.key),
            *path,
            escaped(&below),
        )))
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A QR code of a key file.
struct Code {
    dark: Zeroizing<Vec<u8>>,
    side: usize,
}

impl Code {
    fn of(key: &[u8; 32]) -> Result<Self, CliError> {
        let digits = Zeroizing::new(crate::repo::id::to_hex(key));
        let code = QrCode::with_error_correction_level(digits.as_bytes(), EcLevel::M)
            .map_err(|error| CliError::failed(format!("making the QR code: {error}")))?;
        let (inner, side) = (code.width(), code.width() + 2 * QUIET);
        let mut dark = Zeroizing::new(vec![0; side * side]);
        for (at, color) in code.to_colors().into_iter().enumerate() {
            dark[(at / inner + QUIET) * side + at % inner + QUIET] = u8::from(color == Color::Dark);
        }
        Ok(Self { dark, side })
    }

    fn is_dark(&self, x: usize, y: usize) -> bool {
        self.dark.get(y * self.side + x).is_some_and(|dark| *dark > 0)
    }

    /// Draws two rows a line. Letters are dark on paper and, mostly, light on a terminal.
    fn blocks(&self, is_terminal: bool) -> Zeroizing<String> {
        let mut out = Zeroizing::new(String::with_capacity(self.side * self.side * 2));
        for y in (0..self.side).step_by(2) {
            for x in 0..self.side {
                let below = y + 1 < self.side && self.is_dark(x, y + 1) != is_terminal;
                out.push(match (self.is_dark(x, y) != is_terminal, below) {
                    (true, true) => '█',
                    (true, false) => '▀',
                    (false, true) => '▄',
                    (false, false) => ' ',
                });
            }
            out.push('\n');
        }
        out
    }

    fn path(&self) -> Zeroizing<String> {
        let mut out = Zeroizing::new(String::new());
        for y in 0..self.side {
            for x in (0..self.side).filter(|x| self.is_dark(*x, y)) {
                out.push_str(&format!("M{x} {y}h1v1h-1z"));
            }
        }
        out
    }
}
