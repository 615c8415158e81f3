"""Runs programs and says what they cost: seconds, CPU seconds, peak memory, requests, bytes fetched.

A program that fails raises `Failed` with the log file to read; one that takes too long raises `TooSlow`.
Neither is ever taken for a result.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
MEMORY_BYTES = min(3 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)  # more than any step takes
MARK = "KLOSET_BENCH_MOUNT"  # in the environment of a mount, so that one that went into the background is found
marks = itertools.count()


@dataclass
class Sample:
    value: float  # seconds, or in the rows that say so megabytes, milliseconds, GB/s
    cpu_seconds: float | None = None
    peak_mb: float | None = None
    requests: int | None = None
    fetched_mb: float | None = None


class Failed(Exception):
    """A program ended with an error, or with a result that is not right."""


class TooSlow(Exception):
    """A program was ended because it took longer than it may."""

    def __init__(self, seconds):
        super().__init__(f"ended after {seconds:g} s")
        self.seconds = seconds


def run(argv, env, log, seconds_max, stdout=None):
    """Runs a program to its end; its output and errors are appended to `log`, or its output goes to `stdout`."""
    settle()
    with open(log, "ab") as out:
        out.write(f"\n$ {' '.join(argv)}\n".encode())
        out.flush()
        start = time.monotonic()
        process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=stdout or out, stderr=out, start_new_session=True)
        late = threading.Event()
        timer = threading.Timer(seconds_max, lambda: (late.set(), kill_group(process.pid)))
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            kill_group(process.pid)
            raise
        finally:
            timer.cancel()
        seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if late.is_set():
        raise TooSlow(seconds_max)
    if process.returncode != 0:
        raise Failed(f"{argv[0]}: exit status {process.returncode}; see {log}")
    return Sample(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def settle():
    """Takes away what is no program's cost: what the one before it left to write, and the memory of a virtual machine
    that its host has not given yet. That comes at the first touch, with 1 to 3 seconds a GiB, charged to whoever copies
    something there: here a process touches more than any step takes, and leaves it to the next one."""
    os.sync()
    touch = f"import mmap; mmap.mmap(-1, {MEMORY_BYTES}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)"
    subprocess.run([sys.executable, "-c", touch], check=True)


def kill_group(pid):
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


class Mount:
    """A mounted folder and the processes that serve it, in the foreground or in the background."""

    def __init__(self, argv, env, folder, probe, log, seconds_max):
        """Starts the program and waits until `probe()` finds something to list; `started` has what that took."""
        self.folder, self.log, self.seconds_max = folder, log, seconds_max
        os.makedirs(folder)
        settle()
        mark = f"{os.getpid()}.{next(marks)}"
        self.mark = f"{MARK}={mark}".encode()
        with open(log, "ab") as out:
            out.write(f"\n$ {' '.join(argv)}\n".encode())
            out.flush()
            start = time.monotonic()
            self.process = subprocess.Popen(argv, env={**env, MARK: mark}, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        with self.deadline() as late:
            while not listable(probe):
                if self.process.poll() not in (None, 0) or late.is_set():
                    self.stop()
                    if late.is_set():
                        raise TooSlow(seconds_max)
                    raise Failed(f"{argv[0]}: did not mount; see {log}")
                time.sleep(0.004)
        self.started = Sample(time.monotonic() - start, self.cpu_seconds(), self.peak_mb())

    def pids(self):
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if self.mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(int(pid))
            except OSError:
                pass
        return found

    def cpu_seconds(self):
        ticks = 0
        for pid in self.pids():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
            except OSError:
                pass
        return ticks / TICKS

    def peak_mb(self):
        peaks = [0]
        for pid in self.pids():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                peaks.append(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
            except (OSError, IndexError):
                pass
        return max(peaks)

    def measure(self, argv, env, stdout=None):
        """Runs a program on the mounted folder; its sample holds the CPU time of the mount, not its own."""
        before = self.cpu_seconds()
        sample = run(argv, env, self.log, self.seconds_max, stdout)
        return Sample(sample.value, self.cpu_seconds() - before, self.peak_mb())

    def deadline(self):
        return Deadline(self.seconds_max, self.kill)

    def kill(self):
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def stop(self, umount=None):
        """Unmounts by the program's own command or by fusermount3, and waits until nobody serves it any more."""
        with open(self.log, "ab") as out:
            if umount is None or subprocess.run(umount[0], env=umount[1], stdout=out, stderr=out, timeout=30).returncode != 0:
                if os.path.ismount(self.folder):
                    subprocess.run(["fusermount3", "-u", "-z", self.folder], stdout=out, stderr=out, timeout=30)
        until = time.monotonic() + 10
        while self.pids() and time.monotonic() < until:
            self.process.poll()
            time.sleep(0.02)
        self.kill()
        self.process.wait()


class Deadline:
    """`with Deadline(seconds, act) as late`: acts, and sets `late`, if the block is not done by then."""

    def __init__(self, seconds, act):
        self.late = threading.Event()
        self.timer = threading.Timer(seconds, lambda: (self.late.set(), act()))

    def __enter__(self):
        self.timer.start()
        return self.late

    def __exit__(self, *_):
        self.timer.cancel()


def listable(probe):
    try:
        folder = probe()
        return folder is not None and len(os.listdir(folder)) > 0
    except OSError:
        return False


class Proxy:
    """The network between the programs and the bucket: scripts/latency_proxy.py, and its counts."""

    def __init__(self, target_port, one_way_ms):
        script = Path(__file__).parents[1] / "latency_proxy.py"
        argv = [sys.executable, str(script), str(target_port), str(one_way_ms), "--exit-with-stdin"]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        _, port, _, counts_port = self.process.stdout.readline().split()
        self.port, self.counts_port = int(port), int(counts_port)

    def counts(self):
        """What passed since the last call."""
        with socket.create_connection(("127.0.0.1", self.counts_port)) as s, s.makefile() as f:
            return json.loads(f.readline())

    def stop(self):
        self.process.stdin.close()
        self.process.wait()
