//! The compression of a stream, ended only where the stream is whole.

use std::io::{self, Write};
use std::mem::ManuallyDrop;

use flate2::write::GzEncoder;

/// Zstd's and gzip's usual levels.
const ZSTD_LEVEL: i32 = 3;
const GZIP_LEVEL: flate2::Compression = flate2::Compression::new(6);

/// A stream on its way to be compressed.
pub(super) enum Packed<'a, W: Write + 'a> {
    Plain(W),
    /// Would end itself when it is dropped.
    Gzip(ManuallyDrop<GzEncoder<W>>),
    Zstd(zstd::stream::write::Encoder<'a, W>),
}

impl<W: Write> Packed<'_, W> {
    pub(super) fn plain(out: W) -> Self {
        Self::Plain(out)
    }

    pub(super) fn gzip(out: W) -> Self {
        Self::Gzip(ManuallyDrop::new(GzEncoder::new(out, GZIP_LEVEL)))
    }

    pub(super) fn zstd(out: W) -> io::Result<Self> {
        Ok(Self::Zstd(zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?))
    }

    /// Ends the stream.
    pub(super) fn finish(self) -> io::Result<()> {
        let mut out = match self {
            Self::Plain(out) => out,
            Self::Gzip(encoder) => ManuallyDrop::into_inner(encoder).finish()?,
            Self::Zstd(encoder) => encoder.finish()?,
        };
        out.flush()
    }
}

impl<W: Write> Write for Packed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}
