"""The groups of rows `backup` and `restore`, each for one tool."""

import shutil

from benchlib import table
from benchlib.bench import megabytes
from benchlib.run import Sample


def backup(bench, tool):
    bench.peaks = []
    with bench.rows(tool, "backup-src", "stored"):
        sample = bench.first_backup(tool, "src", s3=False)
        bench.add("backup-src", tool, sample)
        bench.add("stored", tool, Sample(megabytes(bench.made[tool.name, "src", False].path)))
    with bench.rows(tool, "backup-again"):
        repo = bench.repo(tool, "src", s3=False)
        bench.add("backup-again", tool, bench.back_up(tool, repo, "src"))
    with bench.rows(tool, "backup-rand"):
        bench.add("backup-rand", tool, bench.first_backup(tool, "rand", s3=False))
    if tool.s3 and bench.bucket:
        for what in ("src", "rand"):
            with bench.rows(tool, f"s3-{what}"):
                bench.add(f"s3-{what}", tool, bench.first_backup(tool, what, s3=True))
    if bench.peaks:
        bench.add("backup-peak", tool, Sample(max(bench.peaks)))


def restore(bench, tool):
    with bench.rows(tool, "restore-src"):
        repo = bench.repo(tool, "src", s3=False)
        to = str(bench.work / f"{tool.name}-restored")
        bench.add("restore-src", tool, bench.run(tool, repo, tool.restore(repo, to)))
        bench.same("diff", "-rq", "--no-dereference", bench.paths["src"], str(tool.restored(to, bench.paths["src"])))
        shutil.rmtree(to)


def plain(bench):
    """The same bytes by a plain HTTP client: what no backup program can be much faster than."""
    if bench.bucket:
        bench.results.add("s3-rand", table.FLOOR, Sample(bench.transfer("put", bench.bucket.port)))
