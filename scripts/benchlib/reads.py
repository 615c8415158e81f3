"""Reads a mounted file as programs do, tells how fast that was, and checks what came against the source.

usage: reads.py random FILE SOURCE COUNT       4 KiB at a time, COUNT times, at places that a seed decides;
                                               prints the milliseconds of each, sorted
       reads.py sequential FILE SOURCE BYTES PASSES
                                               BYTES from the start, PASSES times, each after the kernel was told
                                               to drop its pages of the file; prints the seconds of each, sorted
"""

import json
import os
import random
import sys
import time

SEED = 20240711
READ_BYTES = 4096
BUFFER_BYTES = 1 << 20


def at_random(file, source, count):
    rng = random.Random(SEED)
    places = os.fstat(file).st_size // READ_BYTES
    milliseconds = []
    for at in (rng.randrange(places) * READ_BYTES for _ in range(count)):
        start = time.monotonic()
        found = os.pread(file, READ_BYTES, at)
        milliseconds.append((time.monotonic() - start) * 1000)
        assert found == os.pread(source, READ_BYTES, at), f"what is at {at} is not what was backed up"
    return milliseconds


def in_sequence(file, source, length, passes):
    wanted = os.pread(source, length, 0)
    buffer = bytearray(len(wanted))
    views = [memoryview(buffer)[at : at + BUFFER_BYTES] for at in range(0, len(buffer), BUFFER_BYTES)]
    seconds = []
    for _ in range(passes):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(file, 0, os.SEEK_SET)
        start = time.monotonic()
        for view in views:
            assert os.readv(file, [view]) == len(view), "a short read"
        seconds.append(time.monotonic() - start)
        assert buffer == wanted, "what was read is not what was backed up"
    return seconds


if __name__ == "__main__":
    how, *paths = sys.argv[1:4]
    opened = [os.open(path, os.O_RDONLY) for path in paths]
    print(json.dumps(sorted({"random": at_random, "sequential": in_sequence}[how](*opened, *map(int, sys.argv[4:])))))
