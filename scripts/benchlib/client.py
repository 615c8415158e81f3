"""Our program as the scripts beside it use it: with a home of its own, a bucket, and a key file instead of a passphrase."""

import os
import subprocess
import sys
from pathlib import Path

from benchlib.tools import target_dir

NAME = "it"  # of the bucket in the config


class Client:
    """A machine that knows one bucket. Commands that fail end the script, with what they said."""

    def __init__(self, home, bucket, use_path=True):
        self.home = Path(home)
        self.home.mkdir(parents=True, exist_ok=True)
        self.program = os.environ.get("KLOSET_MOUNT", str(target_dir() / "release/kloset-mount"))
        (self.home / "key").write_text("ab" * 32)
        self.env = {"PATH": os.environ["PATH"], "HOME": str(home), "KLOSET_KEY_FILE": str(self.home / "key"), **bucket.env()}
        config = self.home / ".config/kloset-mount/config.toml"
        config.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        location = f"s3://127.0.0.1:{bucket.port}/{bucket.name}"
        config.write_text(f'default = "{NAME}"\n[repositories.{NAME}]\nlocation = "{location}"\nuse_tls = false\nregion = "{bucket.region}"\n')

    def begin(self, *words):
        """Starts a command."""
        return subprocess.Popen([self.program, *map(str, words)], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *words, code=0):
        """Runs a command to its end, which must be the exit code that is named; returns what it printed."""
        return finish(self.begin(*words), code)

    def mount(self, folder, *options):
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.run("mount", folder, *options)

    def umount(self, folder):
        self.run("umount", folder)


def finish(process, code=0):
    """Waits for a command, which must end with the exit code that is named; returns what it printed."""
    out, err = process.communicate()
    if process.returncode != code:
        sys.exit(f"{Path(sys.argv[0]).name}: {' '.join(process.args)}: exit code {process.returncode}, not {code}: {err}")
    return out


def same(source, copy):
    """Tells whether rsync, by checksum and with all metadata, would change nothing."""
    argv = ["rsync", "-naHAX", "--delete", "--checksum", "--itemize-changes", f"{source}/", f"{copy}/"]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0 or done.stdout:
        sys.exit(f"{Path(sys.argv[0]).name}: not the same: {source}, {copy}:\n{done.stdout[:2000]}{done.stderr}")
