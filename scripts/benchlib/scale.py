"""The group of rows `scale`, for one tool: much of something, which must cost neither memory nor the first look.

Mounts are looked at over the slow network, as in the group `mount`; backups are local.
"""

import subprocess
from pathlib import Path

from benchlib.bench import NETWORKS_MS, drop_caches, megabytes
from benchlib.run import Sample
from benchlib.scale_data import change_image, make_image

SIZES = ["-type", "f", "-printf", "%s\n"]
KINDS = ("base", "snapshots", "files", "wide")


def scale(bench, tool):
    bench.peaks = []
    many_files(bench, tool)
    image(bench, tool)
    if bench.peaks:
        bench.add("scale-backup-peak", tool, Sample(max(bench.peaks)))
    if not (tool.snapshots and bench.bucket):
        return
    bench.paths["base"] = bench.paths["src"]
    many_snapshots(bench, tool)
    for kind in KINDS:
        mounted(bench, tool, kind)


def many_files(bench, tool):
    with bench.rows(tool, "scale-files", "scale-files-again", "scale-files-more"):
        bench.add("scale-files", tool, bench.first_backup(tool, "files", s3=False))
        bench.add("scale-files-again", tool, second_backup(bench, tool, "files"))
        new = Path(bench.paths["files"], "new.txt")
        new.write_text(f"{tool.name} {bench.work}\n")  # what no backup has seen
        try:
            bench.add("scale-files-more", tool, second_backup(bench, tool, "files"))
        finally:
            new.unlink()


def image(bench, tool):
    """A disk image: mostly a hole, then a hundredth of its data is another."""
    with bench.rows(tool, "scale-image", "scale-image-again", "scale-image-stored"):
        sizes, folder = bench.facts["scale"], bench.work / "image"
        folder.mkdir(exist_ok=True)
        bench.paths["image"] = str(folder)
        make_image(folder / "disk.img", sizes)
        bench.add("scale-image", tool, bench.first_backup(tool, "image", s3=False))
        repo = bench.repo(tool, "image", s3=False)
        before = megabytes(repo.path)
        change_image(folder / "disk.img", sizes)
        bench.add("scale-image-again", tool, second_backup(bench, tool, "image"))
        bench.add("scale-image-stored", tool, Sample(megabytes(repo.path) - before))


def second_backup(bench, tool, what):
    repo = bench.repo(tool, what, s3=False)
    sample = bench.back_up(tool, repo, what)
    bench.peaks.append(sample.peak_mb)
    return sample


def many_snapshots(bench, tool):
    """Backs up a folder again and again, with one small file that is another each time."""
    with bench.rows(tool, "scale-first-snapshots"):
        folder = bench.work / f"{tool.name}-snapshots"
        folder.mkdir()
        bench.paths["snapshots"] = str(folder)
        count = bench.facts["scale"]["snapshots"]
        for number in range(count):
            (folder / "counted.txt").write_text(f"{number}\n")
            if number == 0:
                bench.first_backup(tool, "snapshots", s3=True)
                repo = bench.repo(tool, "snapshots", s3=True)
            else:
                subprocess.run(tool.backup(repo, str(folder)), env=tool.env(repo), check=True, capture_output=True)


def mounted(bench, tool, kind):
    """Start, two looks, and the memory that it took."""
    start, *looks, peak = (f"scale-{what}-{kind}" for what in ("start", "first", "second", "peak"))
    with bench.rows(tool, start, *looks, peak):
        bench.repo(tool, kind, s3=True)
        bench.peaks = []
        with bench.mounted(tool, kind, NETWORKS_MS[0]) as (mount, root):
            bench.add(start, tool, mount.started)
            for key, (argv, lines) in zip(looks, commands(bench, tool, kind, mount.folder, root), strict=True):
                with bench.rows(tool, key):
                    sample, out = bench.measure(mount, *argv)
                    bench.expect("lines", out.count(b"\n"), lines)
                    bench.add(key, tool, sample)
        bench.add(peak, tool, Sample(bench.peaks[0]))
        drop_caches()


def commands(bench, tool, kind, folder, root):
    """The two looks, each with the number of lines that it has to print."""
    counts = bench.facts["scale"]
    if kind == "base":
        return [(["find", root, *SIZES], bench.facts["files"])] * 2
    if kind == "files":
        return [(["find", root, *SIZES], counts["files"])] * 2
    if kind == "wide":
        return [(["ls", "-l", root], counts["wide"] + 1)] * 2
    top = f"{folder}/{tool.snapshots}"
    count = counts["snapshots"]
    return [(["find", top, "-mindepth", "1", "-maxdepth", "1", "-type", "d", "-printf", "%T@\n"], count), (["find", top, *SIZES], count)]
