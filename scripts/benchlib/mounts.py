"""The group of rows `mount`, for one tool: a bucket behind a network, looked at as a folder."""

import json
import os
import statistics
import sys
from dataclasses import replace

from benchlib import table
from benchlib.bench import LIB, NETWORKS_MS
from benchlib.run import Sample

COMPARED_BYTES = 64 << 20  # of rand, after it was read twice
RANDOM_READS = 200
WARM_BYTES = 16 << 20  # every mount keeps that much opened: ours a quarter of its --memory-limit
WARM_PASSES = 15


def mount(bench, tool):
    if not (tool.mounts and bench.bucket):
        return
    bench.peaks = []
    for ms in NETWORKS_MS:
        names(bench, tool, ms)
        copies(bench, tool, ms)
        content(bench, tool, ms)
    reads(bench, tool)
    if bench.peaks:
        bench.add("mount-peak", tool, Sample(max(bench.peaks)))


def names(bench, tool, ms):
    """Start, and a walk over all names; then another one that wants the sizes."""
    start, find, again = (f"mount-{what}-{ms}" for what in ("start", "find", "find-again"))
    with bench.rows(tool, start, find, again), bench.mounted(tool, "src", ms) as (mounted, root):
        bench.add(start, tool, mounted.started)
        with bench.rows(tool, find):
            sample, out = bench.measure(mounted, "find", root, "-type", "f")
            bench.expect("files found", out.count(b"\n"), bench.facts["files"])
            bench.add(find, tool, sample)
        with bench.rows(tool, again):
            sample, out = bench.measure(mounted, "find", root, "-type", "f", "-printf", "%s\n")
            bench.expect("bytes found", sum(map(int, out.split())), bench.facts["bytes"])
            bench.add(again, tool, sample)


def copies(bench, tool, ms):
    """Twenty folders, as one drags them out of a file manager."""
    key = f"mount-cp-{ms}"
    with bench.rows(tool, key), bench.mounted(tool, "src", ms) as (mounted, root):
        to = str(bench.work / f"{tool.name}-copied-{ms}")
        os.mkdir(to)
        folders = bench.facts["copied"]["folders"]
        sample, _ = bench.measure(mounted, "cp", "-r", *(f"{root}/{name}" for name in folders), to)
        for name in folders:
            bench.same("diff", "-r", f"{bench.paths['src']}/{name}", f"{to}/{name}")
        bench.add(key, tool, sample)


def content(bench, tool, ms):
    """One large file from end to end, twice."""
    keys = [f"mount-cat-{ms}", f"mount-cat-again-{ms}"]
    with bench.rows(tool, *keys), bench.mounted(tool, "rand", ms) as (mounted, root):
        for key in keys:
            with bench.rows(tool, key):
                bench.add(key, tool, bench.measure(mounted, "cat", f"{root}/random.bin", discard=True)[0])
        bench.same("cmp", "-n", str(COMPARED_BYTES), f"{root}/random.bin", f"{bench.paths['rand']}/random.bin")


def reads(bench, tool):
    """One large file here and there; then the start of it as it lies in the mount's memory and not in the kernel's."""
    keys = ["mount-random-p50", "mount-random-p99", "mount-warm"]
    with bench.rows(tool, *keys), bench.mounted(tool, "rand", NETWORKS_MS[0]) as (mounted, root):

        def read(how, *numbers):
            argv = [sys.executable, str(LIB / "reads.py"), how, f"{root}/random.bin", f"{bench.paths['rand']}/random.bin"]
            sample, out = bench.measure(mounted, *argv, *map(str, numbers))
            return sample, json.loads(out)

        with bench.rows(tool, *keys[:2]):
            sample, ms = read("random", RANDOM_READS)
            bench.add(keys[0], tool, replace(sample, value=statistics.median(ms)))
            bench.add(keys[1], tool, Sample(ms[len(ms) * 99 // 100]))
        with bench.rows(tool, keys[2]):
            read("sequential", WARM_BYTES, 1)
            sample, seconds = read("sequential", WARM_BYTES, WARM_PASSES)
            bench.add(keys[2], tool, replace(sample, value=WARM_BYTES / statistics.median(seconds) / 1e9))


def plain(bench):
    """The same bytes by a plain HTTP client: what no mount can be much faster than."""
    if not bench.bucket:
        return
    bench.transfer("put", bench.bucket.port)
    for ms in NETWORKS_MS:
        bench.traffic()
        sample = Sample(bench.transfer("get", bench.networks[ms].port))
        bench.results.add(f"mount-cat-{ms}", table.FLOOR, replace(sample, **bench.traffic()))
