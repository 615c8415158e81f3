"""The table of the benchmark: what each row is, what we promised for it, and how the results are printed."""

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    most: float | None = None  # ours must not be above this, in the row's unit
    least: float | None = None  # nor below this; then more is better
    most_of_floor: float | None = None  # nor above this many times the plain transfer
    most_requests: int | None = None
    most_of_peers: float | None = None  # nor above this part of the best peer's, in the row's unit
    most_of_peers_requests: float | None = None  # the same of the requests
    unit: str = "s"

    def target(self):
        parts = []
        if self.most is not None:
            parts.append(f"<= {self.most:g} {self.unit}")
        if self.least is not None:
            parts.append(f">= {self.least:g} {self.unit}")
        if self.most_of_floor is not None:
            parts.append(f"<= {self.most_of_floor:g} x plain")
        if self.most_requests is not None:
            parts.append("no request" if self.most_requests == 0 else f"<= {self.most_requests} requests")
        if self.most_of_peers is not None:
            parts.append(f"<= {self.most_of_peers:g} x the best peer")
        if self.most_of_peers_requests is not None:
            parts.append(f"<= {self.most_of_peers_requests:g} x its requests")
        return ", ".join(parts)


def mount_rows(ms):
    """The rows that are measured over more than one network; "again" is what a program does that was there before."""
    return [
        Row(f"mount-start-{ms}", f"mount, {ms} ms: start to first listing", most=0.5),
        Row(f"mount-find-{ms}", f"`find` over src, cold, {ms} ms", most=0.8),
        Row(f"mount-find-again-{ms}", f"`find -printf %s` again, {ms} ms", most=0.3),
        Row(f"mount-cp-{ms}", f"`cp -r` of 20 folders, cold, {ms} ms", most=1.0, most_requests=20),
        Row(f"mount-cat-{ms}", f"`cat` of rand, cold, {ms} ms", most_of_floor=1.25),
        Row(f"mount-cat-again-{ms}", f"`cat` of rand again, {ms} ms", most_requests=0),
    ]


def scale_rows():
    """The rows of the mounts in `scale`: two looks at each kloset. How many is many, the heading of the report says."""
    looks = {
        "base": ("src", "`find -printf %s`", "again"),
        "snapshots": ("many snapshots", "`find` of all their folders", "`find` of all their files"),
        "files": ("many files", "`find -printf %s`", "again"),
        "wide": ("one wide folder", "`ls -l`", "again"),
    }
    for kind, (what, first, second) in looks.items():
        yield Row(f"scale-start-{kind}", f"mount of {what}, 30 ms: start to first listing", most=0.5)
        yield Row(f"scale-first-{kind}", f"{what}: {first}")
        yield Row(f"scale-second-{kind}", f"{what}: {second}")
        yield Row(f"scale-peak-{kind}", f"{what}: peak memory of the mount", most=200, unit="MB")


# The limits are those of docs/architecture.md, for the full size on two cores.
ROWS = [
    Row("backup-src", "first backup of src, local", most=1.5),
    Row("backup-again", "second backup, nothing changed", most=0.25),
    Row("backup-rand", "first backup of rand, local", most=1.3),
    Row("stored", "stored size of src", most=95, unit="MB"),
    Row("s3-src", "first backup of src to S3", most=2.5),
    Row("s3-rand", "rand to S3", most_of_floor=1.1),
    Row("backup-peak", "peak memory of a backup", most=150, unit="MB"),
    Row("restore-src", "restore of src, local", most=1.5),
    *mount_rows(30),
    Row("mount-random-p50", "4 KiB of rand at random, cold, 30 ms: median", unit="ms"),
    Row("mount-random-p99", "the same: 99 of 100", unit="ms"),
    Row("mount-warm", "16 MiB of rand, opened, from the mount's memory", least=1.5, most_requests=0, unit="GB/s"),
    *mount_rows(0),
    Row("mount-peak", "peak memory of a mount", most=200, unit="MB"),
    Row("scale-files", "first backup of many files, local"),
    Row("scale-files-again", "second backup of many files, nothing changed"),
    Row("scale-files-more", "third backup of many files, one is new"),
    Row("scale-image", "first backup of a sparse image, local"),
    Row("scale-image-again", "second backup of it, 1 % of its data changed"),
    Row("scale-image-stored", "what the second backup of it stored", unit="MB"),
    Row("scale-backup-peak", "peak memory of a backup of many files, of a sparse image", most=150, unit="MB"),
    *scale_rows(),
    Row("life-find", "`find` of a name over many snapshots, cold, 30 ms", most_of_peers=0.1),
    Row("life-versions", "versions of a file over many snapshots, cold, 30 ms", most_of_peers=0.1),
    Row("life-forget-prune", "forget most of many snapshots, and prune, cold, 30 ms", most_of_peers=1, most_of_peers_requests=0.5),
    Row("life-stored", "what is stored then", unit="MB"),
]
FLOOR = "plain"
OURS = "ours"


class Results:
    """What was measured: for each row and tool the samples of all runs, or what went wrong in the last."""

    def __init__(self):
        self.samples = {}
        self.troubles = {}

    def add(self, key, tool, sample):
        self.samples.setdefault((key, tool), []).append(sample)

    def add_trouble(self, key, tool, text):
        self.troubles[key, tool] = text

    def count(self, key, tool):
        return len(self.samples.get((key, tool), [])) + ((key, tool) in self.troubles)

    def median(self, key, tool, what="value"):
        if (key, tool) in self.troubles:
            return None
        values = [getattr(s, what) for s in self.samples.get((key, tool), [])]
        values = [v for v in values if v is not None]
        return statistics.median(values) if values else None

    def cell(self, key, tool, what="value"):
        if (key, tool) in self.troubles:
            return self.troubles[key, tool]
        return number(self.median(key, tool, what))

    def has(self, key, what):
        return any(getattr(s, what) is not None for (of, _), samples in self.samples.items() if of == key for s in samples)

    def known(self):
        return {key for key, _ in [*self.samples, *self.troubles]}


def number(value):
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def report(results, tools, with_targets):
    """All tables, as Markdown."""
    rows = [row for row in ROWS if row.key in results.known()]
    parts = [main_table(results, rows, tools, with_targets)]
    for title, what in (
        ("CPU seconds (of the mount, in its rows)", "cpu_seconds"),
        ("Peak memory, MB", "peak_mb"),
        ("Requests to S3", "requests"),
        ("MB from S3", "fetched_mb"),
    ):
        cells = {row.title: [results.cell(row.key, tool, what) for tool in tools] for row in rows if results.has(row.key, what)}
        if cells:
            parts.append(f"{title}:\n\n" + markdown(["work", *tools], [[work, *found] for work, found in cells.items()]))
    return "\n\n".join(parts)


def main_table(results, rows, tools, with_targets):
    body = []
    for row in rows:
        ours = results.median(row.key, OURS)
        best = (max if row.least else min)(peers(results, row), default=0)
        ratio = f"{ours / best:.2f}" if ours is not None and best > 0 else "-"
        cells = [results.cell(row.key, tool) for tool in tools]
        body.append([f"{row.title}, {row.unit}", *cells, ratio, row.target(), verdict(results, row) if with_targets else "-"])
    return markdown(["work", *tools, "ours / best peer", "target", "held"], body)


def verdict(results, row):
    """Whether our result is within every limit of the row; "-" if there is nothing to judge."""
    ours = results.median(row.key, OURS)
    if not row.target():
        return "-"
    if ours is None:
        return "**no**" if (row.key, OURS) in results.troubles else "-"
    floor = results.median(row.key, FLOOR)
    requests = results.median(row.key, OURS, "requests")
    held = [
        row.most is None or ours <= row.most,
        row.least is None or ours >= row.least,
        row.most_of_floor is None or (floor is not None and ours <= row.most_of_floor * floor),
        row.most_requests is None or (requests is not None and requests <= row.most_requests),
        row.most_of_peers is None or within(ours, row.most_of_peers, peers(results, row)),
        row.most_of_peers_requests is None or within(requests, row.most_of_peers_requests, peers(results, row, "requests")),
    ]
    return "yes" if all(held) else "**no**"


def peers(results, row, what="value"):
    """What the other programs have in a row; none if that went wrong."""
    names = {tool for key, tool in results.samples if key == row.key} - {OURS, FLOOR}
    return [value for tool in sorted(names) if (value := results.median(row.key, tool, what)) is not None]


def within(value, part, others):
    """Tells whether a value is at most a part of the least of others; without others there is nothing to hold."""
    return value is not None and (not others or value <= part * min(others))


def markdown(head, body):
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
