"""The group of rows `lifecycle`, for one tool: a repository of many snapshots is searched, and all but the newest go.

The repository lies in the bucket, behind the slow network; each command comes to it with a cold cache. What is counted
is the whole of what it takes to have the space back, also where that is more than one command.
"""

import shutil
from dataclasses import replace

from benchlib import lifecycle_data
from benchlib.bench import NETWORKS_MS, SECONDS_MAX
from benchlib.run import Failed, Sample, run
from benchlib.tools import Repo

FOUND = "new-0010-0.txt"  # a file that was added before the eleventh snapshot


def lifecycle(bench, tool):
    if not (tool.prunes and bench.bucket):
        return
    keys = ("life-find", "life-versions", "life-forget-prune", "life-stored")
    with bench.rows(tool, *keys):
        folder, facts = lifecycle_data.ensure(bench.base, bench.size, tool)
        name = f"{tool.name}-lifecycle"
        lifecycle_data.copy_into(bench.bucket, folder, name)
        repo = Repo(name, bench.new_home(), bench.bucket)
        with bench.rows(tool, "life-find"):
            bench.add("life-find", tool, searched(bench, tool, repo, lambda repo: [tool.search(repo, FOUND)], FOUND))
        with bench.rows(tool, "life-versions"):
            path = f"{facts['tree']}/{lifecycle_data.WATCHED}"
            bench.add("life-versions", tool, searched(bench, tool, repo, lambda repo: [tool.versions(repo, path)], tool.version_line(path)))
        with bench.rows(tool, "life-forget-prune"):
            sample, _ = cold(bench, tool, repo, lambda repo: tool.forget_and_prune(repo, facts["kept"]))
            held(bench, tool, repo)
            bench.add("life-forget-prune", tool, sample)
            bench.add("life-stored", tool, Sample(sum(size for _, size in bench.bucket.list(f"{name}/")) / 1e6))


def cold(bench, tool, repo, commands):
    """Runs commands one after another from a new home over the slow network; returns what all cost, and what they said."""
    repo = repo.at(bench.new_home(), bench.networks[NETWORKS_MS[0]].port)
    for argv in tool.configure(repo):
        bench.run(tool, repo, argv)
    bench.traffic()
    total, said = None, b""
    for argv in commands(repo):
        with open(bench.work / "output", "w+b") as out:
            sample = run(argv, tool.env(repo), bench.log(tool), SECONDS_MAX, stdout=out)
            out.seek(0)
            said += out.read()
        total = sample if total is None else added(total, sample)
    return replace(total, **bench.traffic()), said


def added(one, other):
    return replace(one, value=one.value + other.value, cpu_seconds=one.cpu_seconds + other.cpu_seconds, peak_mb=max(one.peak_mb, other.peak_mb))


def searched(bench, tool, repo, commands, name):
    sample, said = cold(bench, tool, repo, commands)
    if name.encode() not in said:
        raise Failed(f"{name} was not found")
    return sample


def held(bench, tool, repo):
    """The newest snapshot is whole afterwards: nothing wrong counts as fast."""
    here = repo.at(bench.new_home(), bench.bucket.port)
    for argv in tool.configure(here):
        bench.run(tool, here, argv)
    tree = lifecycle_data.final_tree(bench.base, bench.size)
    to = str(bench.work / f"{tool.name}-lifecycle-restored")
    bench.run(tool, here, tool.restore(here, to))
    bench.same("diff", "-rq", "--no-dereference", str(tree), str(tool.restored(to, str(tree))))
    shutil.rmtree(to)
