"""The repositories of the group `lifecycle`: many snapshots of a folder in which something changes each time.

20,000 files of some 2 kB, 40 in each of 500 folders. Before each snapshot 20 of them are another, two are new and two
are gone; a seed decides every byte, and each program sees the same. A repository is made once, as a folder, and kept:
a run copies it into the bucket as it is, which for every program here is what it would have put there itself.
"""

import json
import random
import shutil
import subprocess
from pathlib import Path

from benchlib.tools import Repo

SIZES = {
    "full": {"snapshots": 1000, "kept": 100, "folders": 500},
    "small": {"snapshots": 30, "kept": 5, "folders": 50},
}
FOLDER_FILES = 40
CHANGED, ADDED = 20, 2  # of a folder's files before each snapshot; as many go as are added
SEED = 20250302
FORMAT = 1  # raise it when the same seed gives other bytes: then the repositories are made anew
WATCHED = "folder-001/file-007.txt"  # is another in every 50th snapshot
WATCHED_EVERY = 50


def ensure(base, size, tool):
    """Makes the repository of a tool unless it is there; returns its folder and what is in it."""
    folder, sizes = base / f"data-lifecycle-{size}" / tool.name, SIZES[size]
    mark, wanted = folder / "made.json", {"format": FORMAT, "seed": SEED, **sizes}
    tree = base / f"data-lifecycle-{size}" / "tree"
    if not mark.exists() or json.loads(mark.read_text()) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        repo = Repo.in_folder(folder)
        for argv in [*tool.configure(repo), *tool.init(repo)]:
            subprocess.run(argv, env=tool.env(repo), check=True, capture_output=True)
        for _ in states(tree, sizes):
            subprocess.run(tool.backup(repo, str(tree)), env=tool.env(repo), check=True, capture_output=True)
        mark.write_text(json.dumps(wanted))
    return folder / "repo", {**wanted, "tree": str(tree), "versions": -(-sizes["snapshots"] // WATCHED_EVERY)}


def final_tree(base, size):
    """The folder as the last snapshot of every program has it."""
    tree = base / f"data-lifecycle-{size}" / "tree"
    for _ in states(tree, SIZES[size]):
        pass
    return tree


def states(tree, sizes):
    """Brings the folder into the state of each snapshot, one after another."""
    rng = random.Random(SEED)
    shutil.rmtree(tree, ignore_errors=True)
    files = []
    for folder in range(sizes["folders"]):
        (tree / f"folder-{folder:03}").mkdir(parents=True)
        files += [tree / f"folder-{folder:03}" / f"file-{number:03}.txt" for number in range(FOLDER_FILES)]
    for path in files:
        write(rng, path)
    files.remove(tree / WATCHED)
    for number in range(sizes["snapshots"]):
        if number % WATCHED_EVERY == 0:
            write(rng, tree / WATCHED)
        if number > 0:
            change(rng, tree, files, number, sizes)
        yield number


def change(rng, tree, files, number, sizes):
    rng.shuffle(files)
    for path in files[:CHANGED]:
        write(rng, path)
    for _ in range(ADDED):
        files.pop().unlink()
    for added in range(ADDED):
        path = tree / f"folder-{rng.randrange(sizes['folders']):03}" / f"new-{number:04}-{added}.txt"
        write(rng, path)
        files.append(path)


def write(rng, path):
    """About 2 kB of text that compresses about as source code does."""
    words = [rng.randbytes(4).hex() for _ in range(20)]
    path.write_text(" ".join(rng.choices(words, k=rng.randrange(100, 350))) + "\n")


def copy_into(bucket, folder, prefix):
    """Puts every file of a folder into a bucket, as an object of the same name below a prefix."""
    connection = bucket.connect()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder)}"
            status, _ = bucket.request(connection, "PUT", key, path.read_bytes())
            if status != 200:
                raise subprocess.SubprocessError(f"PUT {key}: status {status}")
