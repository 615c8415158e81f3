"""What is large about the group `scale`, the same everywhere: a seed decides every byte.

`files`  1,000,000 files of some 50 bytes, 100 in each of 10,000 folders
`wide`   100,000 such files in one folder
image    20 GB, almost all a hole: data in runs of 1 MiB; made anew for each program, since it is changed

The first two are made once and take 5 GB and 1.1 million inodes.

usage: scale_data.py FOLDER full|small      (makes `files` and `wide`, and prints how many of all there are)
"""

import json
import os
import random
import shutil
import sys
from pathlib import Path

SIZES = {
    "full": {"snapshots": 1000, "folders": 10_000, "wide": 100_000, "image_bytes": 20_000_000_000, "image_runs": 200},
    "small": {"snapshots": 30, "folders": 100, "wide": 2_000, "image_bytes": 1_000_000_000, "image_runs": 20},
}
FOLDER_FILES = 100
SEED = 20240711
FORMAT = 1  # raise it when the same seed gives other bytes: then the folder is made anew
RUN_BYTES = 1 << 20
CHANGE_BYTES = 64 << 10


def ensure(folder, size):
    mark = Path(folder) / "made.json"
    wanted = {"format": FORMAT, "seed": SEED, **SIZES[size]}
    if not mark.exists() or json.loads(mark.read_text()) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        rng = random.Random(SEED)
        for number in range(wanted["folders"]):
            make_files(rng, f"{folder}/files/{number // 100:03}/{number:05}", FOLDER_FILES)
        make_files(rng, f"{folder}/wide", wanted["wide"])
        mark.write_text(json.dumps(wanted))
    return {**wanted, "files": wanted["folders"] * FOLDER_FILES}


def make_files(rng, folder, count):
    os.makedirs(folder)
    for number in range(count):
        with open(f"{folder}/file-{number:06}.txt", "wb") as f:
            f.write(b"%d %s\n" % (number, rng.randbytes(rng.randrange(10, 30)).hex().encode()))


def make_image(path, sizes):
    rng = random.Random(SEED)
    with open(path, "wb") as f:
        f.truncate(sizes["image_bytes"])
        for at in image_runs(sizes):
            f.seek(at)
            f.write(rng.randbytes(RUN_BYTES))


def change_image(path, sizes):
    """Writes a hundredth of the data anew, as a running system does: here and there, 64 KiB at a time."""
    rng = random.Random(SEED + 1)
    runs = image_runs(sizes)
    with open(path, "r+b") as f:
        for _ in range(len(runs) * RUN_BYTES // CHANGE_BYTES // 100):
            f.seek(rng.choice(runs) + rng.randrange(RUN_BYTES // CHANGE_BYTES) * CHANGE_BYTES)
            f.write(rng.randbytes(CHANGE_BYTES))


def image_runs(sizes):
    """Where the data begins: at even distances, in whole blocks of any filesystem."""
    step = sizes["image_bytes"] // sizes["image_runs"]
    return [number * step // RUN_BYTES * RUN_BYTES for number in range(sizes["image_runs"])]


if __name__ == "__main__":
    print(json.dumps(ensure(sys.argv[1], sys.argv[2])))
