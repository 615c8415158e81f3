"""The group of rows `mount`, for one tool: a bucket behind a slow network, looked at as a folder."""

import os

from benchlib import table
from benchlib.run import Sample

COMPARED_BYTES = 64 << 20  # of rand, after it was read twice


def mount(bench, tool):
    if not (tool.mounts and bench.bucket):
        return
    bench.peaks = []
    with bench.rows(tool, "mount-start", "mount-find", "mount-find-again"), bench.mounted(tool, "src") as (mount, root):
        bench.add("mount-start", tool, mount.started)
        with bench.rows(tool, "mount-find"):
            sample, out = bench.measure(mount, "find", root, "-type", "f")
            bench.expect("files found", out.count(b"\n"), bench.facts["files"])
            bench.add("mount-find", tool, sample)
        with bench.rows(tool, "mount-find-again"):
            sample, out = bench.measure(mount, "find", root, "-type", "f", "-printf", "%s\n")
            bench.expect("bytes found", sum(map(int, out.split())), bench.facts["bytes"])
            bench.add("mount-find-again", tool, sample)
    with bench.rows(tool, "mount-cp"), bench.mounted(tool, "src") as (mount, root):
        to = str(bench.work / f"{tool.name}-copied")
        os.mkdir(to)
        folders = bench.facts["copied"]["folders"]
        sample, _ = bench.measure(mount, "cp", "-r", *(f"{root}/{name}" for name in folders), to)
        for name in folders:
            bench.same("diff", "-r", f"{bench.paths['src']}/{name}", f"{to}/{name}")
        bench.add("mount-cp", tool, sample)
    with bench.rows(tool, "mount-cat", "mount-cat-again"), bench.mounted(tool, "rand") as (mount, root):
        for key in ("mount-cat", "mount-cat-again"):
            with bench.rows(tool, key):
                bench.add(key, tool, bench.measure(mount, "cat", f"{root}/random.bin", discard=True)[0])
        bench.same("cmp", "-n", str(COMPARED_BYTES), f"{root}/random.bin", f"{bench.paths['rand']}/random.bin")
    if bench.peaks:
        bench.add("mount-peak", tool, Sample(max(bench.peaks)))


def plain(bench):
    """The same bytes by a plain HTTP client: what no mount can be much faster than."""
    if not bench.bucket:
        return
    bench.transfer("put", bench.bucket.port)
    bench.proxy.requests()
    seconds = bench.transfer("get", bench.proxy.port)
    bench.results.add("mount-cat", table.FLOOR, Sample(seconds, requests=bench.proxy.requests()))
