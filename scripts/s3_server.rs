//! `s3-server`: a real S3 server on loopback for demonstrations and work by hand.
//!
//! Prints one line `listening http://127.0.0.1:PORT` once it accepts connections, and runs until
//! SIGTERM, SIGINT, or, with `--exit-with-stdin`, the end of standard input. Not for production:
//! no TLS, one key, nothing synced to disk.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::mpsc;

use clap::Parser;

#[path = "../tests/it/support/s3.rs"]
mod s3;

/// Serves the folders below a folder as S3 buckets on 127.0.0.1.
#[derive(Parser)]
#[command(name = "s3-server")]
struct Args {
    /// Folder that holds one folder a bucket.
    #[arg(long)]
    dir: PathBuf,
    /// Bucket to make if absent.
    #[arg(long)]
    bucket: String,
    /// The one key that is known.
    #[arg(long)]
    access_key: String,
    /// Its secret.
    #[arg(long)]
    secret_key: String,
    /// Port; 0 for any free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Ends when standard input ends.
    #[arg(long)]
    exit_with_stdin: bool,
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.dir)?;
    let server = s3::S3Server::start(&s3::S3ServerOptions {
        folder: &args.dir,
        bucket: &args.bucket,
        access_key: &args.access_key,
        secret_key: &args.secret_key,
        port: args.port,
    })?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "listening http://127.0.0.1:{}", server.port)?;
    stdout.flush()?;

    let (end, ended) = mpsc::channel();
    let on_signal = end.clone();
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])?;
    std::thread::spawn(move || {
        let _ = signals.forever().next();
        let _ = on_signal.send(());
    });
    if args.exit_with_stdin {
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            let _ = end.send(());
        });
    }
    let _ = ended.recv();
    drop(server);
    Ok(())
}
