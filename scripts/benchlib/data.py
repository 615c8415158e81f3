"""The data sets of the benchmark, made once and the same everywhere: a seed decides every byte.

`src`   50,000 source-like files, about 600 MB, in some 1,800 package folders
`rand`  one file of 1 GiB that does not compress

`src` is not real source code, and is measured against what real code does: words follow Zipf's law, a
package repeats its own lines more than others', some files are copies. Compressed by zstd 3 file by file
it shrinks about 5 times, in frames of 1 MiB about 6.6 times, as a folder of real crates does.

usage: data.py FOLDER full|small      (as a program, so that its memory is not the caller's)
"""

import itertools
import json
import os
import random
import shutil
import sys
from pathlib import Path

SIZES = {
    "full": {"files": 50_000, "rand_bytes": 1 << 30},
    "small": {"files": 2_000, "rand_bytes": 64 << 20},
}
SEED = 20240711
FORMAT = 1  # raise it when the same seed gives other bytes: then the folder is made anew
COPIED_FOLDERS = 20
COPIED_FILES = 536
WORDS = 30_000
COMMON_LINES = 4_000
NEW_LINES = 0.145  # the part of a file's lines that stands nowhere else
SHARED_LINES = 0.12  # the part that other packages have, too
COPIES = 0.04  # the part of the files that are a copy of an earlier one

FOLDERS = ["src", "src", "src", "src/de", "src/ser", "src/imp", "src/util", "tests", "tests/ui", "benches", "examples", "docs", "."]
SHAPES = [
    "    let {} = {}.{}({});", "    {}.{}({}, {});", "pub fn {}(&self, {}: &{}) -> {} {{", "    if {}.{}() {{", "}}", "", "    }}",
    "        return Err({}::{}({}));", "    /// {} {} {} {} {} {}.", "// {} {} {} {} {}", "use {}::{}::{};", "        {}: {},",
    "    #[{}({} = \"{}\")]", "        Some({}) => {}.{}({}),", "    assert_eq!({}.{}(), {});", "impl {} for {}<{}> {{", "    pub {}: {}<{}>,",
    "            {} += {}[{}].{}();", "    for {} in {}.{}() {{", "{}, {}, {}, {}, {}, {}, {}, {},", "    {} | {} => {},", "    const {}: {} = {};",
]


def ensure(folder, size):
    """Makes the data sets in `folder` unless they are there; returns what `describe` says of them."""
    mark = Path(folder) / "made.json"
    wanted = {"format": FORMAT, "seed": SEED, **SIZES[size]}
    if not mark.exists() or json.loads(mark.read_text())["wanted"] != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        make_src(Path(folder) / "src", SIZES[size]["files"])
        make_rand(Path(folder) / "rand", SIZES[size]["rand_bytes"])
        mark.write_text(json.dumps({"wanted": wanted, **describe(Path(folder) / "src")}))
    return json.loads(mark.read_text())


def make_rand(folder, size):
    rng = random.Random(SEED)
    folder.mkdir(parents=True)
    with open(folder / "random.bin", "wb") as f:
        for _ in range(size >> 20):
            f.write(rng.randbytes(1 << 20))


def make_src(folder, files):
    rng = random.Random(SEED)
    words = Zipf([make_word(rng) for _ in range(WORDS)], 1.05)
    common = Zipf([make_line(rng, words) for _ in range(COMMON_LINES)], 0.8)
    made = 0
    written = []
    for number in itertools.count():
        if made >= files:
            break
        package = folder / f"{make_word(rng)}-{make_word(rng)}-{rng.randrange(9)}.{rng.randrange(40)}.{number % 10}"
        count = min(files - made, 1 + int(rng.lognormvariate(2.6, 1.15)))
        make_package(rng, package, count, words, common, written)
        made += count


def make_package(rng, package, count, words, common, written):
    """One folder of a package: its lines come from a pool of its own, which is what makes neighbours alike."""
    # A package talks about few things: its words are a slice of the language, with ranks of their own.
    own_words = Zipf(words.draw(rng, 60 + 12 * count), 0.9)
    own = Zipf([make_line(rng, own_words) for _ in range(150 + 25 * count)], 0.6)
    folders = [package / name for name in rng.choices(FOLDERS, k=1 + count // 8)]
    for number in range(count):
        path = rng.choice(folders) / f"{make_word(rng)}_{number}.{rng.choice(['rs', 'rs', 'rs', 'rs', 'md', 'toml', 'json'])}"
        if written and rng.random() < COPIES:
            text = rng.choice(written).read_bytes()
        else:
            text = make_text(rng, own_words, own, common)
            written.append(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
        os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))


def make_text(rng, own_words, own, common):
    """A file: most are a few kB, a few are hundreds; the mean is about 12 kB."""
    lines = max(1, min(60_000, int(rng.lognormvariate(4.62, 1.45))))
    new = int(lines * NEW_LINES * rng.uniform(0.5, 1.5))
    shared = int(lines * SHARED_LINES * rng.uniform(0.5, 1.5))
    # A file says few of its package's lines, and says them often.
    habits = Zipf(own.draw(rng, 10 + lines // 8), 0.5)
    text = [make_line(rng, own_words) for _ in range(new)] + common.draw(rng, shared) + habits.draw(rng, max(0, lines - new - shared))
    rng.shuffle(text)
    return "\n".join(text).encode()


def make_line(rng, words):
    shape = rng.choice(SHAPES)
    return shape.format(*words.draw(rng, shape.count("{}")))


def make_word(rng):
    parts = ("".join(rng.choices("aeiou", k=2)[i % 2] if i % 2 else rng.choice("bcdfghklmnprstvwx") for i in range(rng.randint(2, 5))) for _ in range(rng.choice((1, 1, 2, 2, 3))))
    return "_".join(parts)


class Zipf:
    """A list to draw from, the nth item with a weight of 1 / n ** exponent."""

    def __init__(self, items, exponent):
        self.items = items
        self.weights = list(itertools.accumulate(1 / (n + 1) ** exponent for n in range(len(items))))

    def draw(self, rng, count):
        return rng.choices(self.items, cum_weights=self.weights, k=count)


def describe(src):
    """What the rows of the benchmark need to know: totals, and the folders that the copy row takes."""
    per_package = []
    for package in sorted(os.listdir(src)):
        sizes = [os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(src / package) for name in names]
        per_package.append((package, len(sizes), sum(sizes)))
    return {
        "files": sum(files for _, files, _ in per_package),
        "bytes": sum(size for _, _, size in per_package),
        "copied": pick_copied(per_package),
    }


def pick_copied(per_package):
    """Neighbours by name, as one picks them in a file manager: the run that is nearest to the wanted number of files."""
    starts = range(max(1, len(per_package) - COPIED_FOLDERS + 1))
    window = min((per_package[s : s + COPIED_FOLDERS] for s in starts), key=lambda w: abs(sum(files for _, files, _ in w) - COPIED_FILES))
    return {"folders": [name for name, _, _ in window], "files": sum(f for _, f, _ in window), "bytes": sum(b for _, _, b in window)}


if __name__ == "__main__":
    print(json.dumps(ensure(sys.argv[1], sys.argv[2])))
