"""The programs under comparison: how each is told to do the same work, with its own defaults.

A tool says what to type; it runs nothing itself. Secrets go through the environment. Everything a tool
keeps for itself (configuration, caches) lies in the home folder of its `Repo`, so that a new home is a
cold cache.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from benchlib.bucket import Bucket

PASSPHRASE = "correct-horse-battery-staple"
PROJECT = Path(__file__).parents[2]


def target_dir():
    return Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target"))


@dataclass(frozen=True)
class Repo:
    """Where a tool keeps its backups, and where it lives meanwhile."""

    path: str  # a folder, or a prefix in the bucket
    home: Path
    bucket: Bucket | None = None

    @classmethod
    def in_folder(cls, folder):
        """One in a folder of its own, with a home beside it."""
        home = folder / "home"
        home.mkdir()
        return cls(str(folder / "repo"), home)

    def at(self, home, port):
        """The same repository seen from another home, through another port."""
        return replace(self, home=home, bucket=replace(self.bucket, port=port))


class Tool:
    """What all have in common. Commands are lists of words; None is: this tool cannot."""

    name = program = ""
    s3 = False
    mounts = False
    prunes = False  # searches and prunes what lies in a bucket
    snapshots = None  # the folder of a mount that holds all snapshots, each a folder

    def find(self):
        return shutil.which(self.program)

    def env(self, repo):
        env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(repo.home)}
        for kind in ("CONFIG", "CACHE", "DATA", "STATE"):
            env[f"XDG_{kind}_HOME"] = str(repo.home / kind.lower())
        return env | (repo.bucket.env() if repo.bucket else {})

    def configure(self, repo):
        """Commands that tell a new home about the repository, after files that do."""
        return []

    def restored(self, to, path):
        """Where `path` lies in what was restored to the folder `to`."""
        return Path(f"{to}{path}")

    def umount(self, repo, folder):
        return None  # fusermount3 does

    def version_line(self, path):
        """What stands in each line of what `versions` says."""
        return path.rpartition("/")[2]


class Ours(Tool):
    name = "ours"
    s3 = mounts = prunes = True
    snapshots = "snapshots"
    store = "bench"

    def find(self):
        self.program = os.environ.get("KLOSET_MOUNT", str(target_dir() / "release/kloset-mount"))
        return shutil.which(self.program)

    def env(self, repo):
        return super().env(repo) | {"KLOSET_PASSPHRASE": PASSPHRASE}

    def configure(self, repo):
        if not repo.bucket:
            return []
        location = f"s3://127.0.0.1:{repo.bucket.port}/{repo.bucket.name}/{repo.path}"
        return [[self.program, "config", "repository", "create", self.store, f"location={location}", "use_tls=false"]]

    def command(self, repo, *words):
        return [self.program, words[0], "-r", f"@{self.store}" if repo.bucket else repo.path, *words[1:]]

    def init(self, repo):
        return [self.command(repo, "create")]

    def backup(self, repo, path):
        return self.command(repo, "backup", path)

    def restore(self, repo, to):
        return self.command(repo, "restore", "latest", "--to", to)

    def search(self, repo, name):
        return self.command(repo, "find", name)

    def versions(self, repo, path):
        return self.command(repo, "versions", path)

    def version_line(self, path):
        return "-rw-r--r--"  # its lines do not repeat the path

    def forget_and_prune(self, repo, kept):
        # The first prune marks, the second deletes. In life a day is between them: a peer's doing without is as daring.
        prune = self.command(repo, "prune", "--apply", "--grace", "0s", "--allow-short-grace")
        return [self.command(repo, "forget", "--keep-last", str(kept), "--apply"), prune, prune]

    def mount(self, repo, folder):
        return self.command(repo, "mount", folder)

    def umount(self, repo, folder):
        return [self.program, "umount", folder]

    def mounted(self, folder):
        return f"{folder}/latest"


class Restic(Tool):
    name = program = "restic"
    s3 = mounts = prunes = True
    snapshots = "snapshots"

    def env(self, repo):
        where = f"s3:http://127.0.0.1:{repo.bucket.port}/{repo.bucket.name}/{repo.path}" if repo.bucket else repo.path
        return super().env(repo) | {"RESTIC_PASSWORD": PASSPHRASE, "RESTIC_REPOSITORY": where}

    def init(self, repo):
        return [["restic", "init"]]

    def backup(self, repo, path):
        return ["restic", "backup", path]

    def restore(self, repo, to):
        return ["restic", "restore", "latest", "--target", to]

    def search(self, repo, name):
        return ["restic", "find", name]

    def versions(self, repo, path):
        return ["restic", "find", "--long", path]

    def forget_and_prune(self, repo, kept):
        return [["restic", "forget", "--keep-last", str(kept), "--prune"]]

    def mount(self, repo, folder):
        return ["restic", "mount", folder]

    def mounted(self, folder):
        return f"{folder}/snapshots/latest"


class Rustic(Tool):
    name = program = "rustic"
    s3 = prunes = True

    def find(self):
        found = super().find()
        # The mount is a feature of the build: cargo install rustic-rs --features mount
        self.mounts = bool(found) and subprocess.run([found, "mount", "--help"], capture_output=True).returncode == 0
        return found

    def env(self, repo):
        return super().env(repo) | {"RUSTIC_PASSWORD": PASSPHRASE}

    def configure(self, repo):
        lines = ["[repository]", f'repository = "{"opendal:s3" if repo.bucket else repo.path}"']
        if repo.bucket:
            options = {
                "endpoint": f"http://127.0.0.1:{repo.bucket.port}",
                "region": repo.bucket.region,
                "bucket": repo.bucket.name,
                "root": f"/{repo.path}",
                "access_key_id": repo.bucket.access_key,
                "secret_access_key": repo.bucket.secret_key,
            }
            lines += ["[repository.options]", *(f'{name} = "{value}"' for name, value in options.items())]
        folder = repo.home / "config/rustic"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rustic.toml").write_text("\n".join(lines) + "\n")
        return []

    def init(self, repo):
        return [["rustic", "init"]]

    def backup(self, repo, path):
        return ["rustic", "backup", path]

    def restore(self, repo, to):
        return ["rustic", "restore", "latest", to]

    def search(self, repo, name):
        return ["rustic", "find", "--glob", name]

    def versions(self, repo, path):
        return ["rustic", "find", "--path", path]

    def forget_and_prune(self, repo, kept):
        return [["rustic", "forget", "--keep-last", str(kept), "--prune", "--instant-delete"]]

    def mount(self, repo, folder):
        return ["rustic", "mount", folder]

    def mounted(self, folder):
        # [host]/[label]/time, with a link `latest` beside the times
        return next((str(p) for p in Path(folder).glob("*/*/latest")), None)


class Borg(Tool):
    name = program = "borg"

    def env(self, repo):
        return super().env(repo) | {"BORG_PASSPHRASE": PASSPHRASE, "BORG_REPO": repo.path, "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}

    def init(self, repo):
        return [["borg", "init", "--encryption=repokey-blake2"]]

    def backup(self, repo, path):
        # Borg's default is lz4. The others store with zstd, and both time and size would tell nothing.
        return ["borg", "create", "--compression=zstd,3", "::{now:%Y-%m-%dT%H:%M:%S.%f}", path]

    def restore(self, repo, to):
        # Borg extracts into the current folder, and wants the name of the archive.
        last = "borg extract ::$(borg list --last 1 --short)"
        return ["sh", "-c", f'mkdir "$1" && cd "$1" && {last}', "restore", to]


class Bupstash(Tool):
    name = program = "bupstash"

    def env(self, repo):
        return super().env(repo) | {"BUPSTASH_REPOSITORY": repo.path, "BUPSTASH_KEY": str(repo.home / "bupstash.key")}

    def init(self, repo):
        return [["bupstash", "new-key", "-o", str(repo.home / "bupstash.key")], ["bupstash", "init"]]

    def backup(self, repo, path):
        return ["bupstash", "put", "name=bench", path]

    def restore(self, repo, to):
        # It wants an empty folder, and the id of what to restore.
        last = "bupstash list --query-encrypted --format=jsonl1 'id=*' | tail -n 1 | sed 's/.*\"id\":\"\\([0-9a-f]*\\)\".*/\\1/'"
        return ["sh", "-c", f'mkdir "$1" && bupstash restore --into "$1" "id=$({last})"', "restore", to]

    def restored(self, to, path):
        return Path(to)


ALL = [Ours(), Restic(), Rustic(), Borg(), Bupstash()]
