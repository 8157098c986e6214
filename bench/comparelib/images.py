"""The input: images made, their extents, and the check that a copy equals its source."""

import hashlib
import json
import mmap
import os
import random
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

from . import Failure

ALIGNMENT = 4096
# Small, because our own peak memory hides that of a smaller tool (see measure.run_step).
READ_BYTES = 1 << 20
PIECE_BYTES = 64 << 20
ZEROS = bytes(READ_BYTES)
SEED = 20


# --- making ---

def build(path, make):
    """A half-made image never gets the name of a whole one."""
    partial = path + ".part"
    try:
        make(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.rename(partial, path)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


def make_filesystem(path, size, tree):
    """An ext4 image that holds the files of `tree`."""
    with open(path, "wb") as file:
        file.truncate(size)
    command = ["mkfs.ext4", "-q", "-F", "-d", tree, path]
    environment = dict(os.environ, PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        raise Failure("mkfs.ext4 is not installed (Debian: e2fsprogs); or give an image by --image full=PATH") from None
    if done.returncode != 0:
        raise Failure(
            f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-1000:]}\n"
            "choose another folder with --tree, or give an image by --image full=PATH"
        )


def make_small_tree(path, source_tree, limit_bytes):
    """Copies regular files, in a fixed order, until there are `limit_bytes` of them."""
    total = 0
    os.makedirs(path)
    for folder, folders, names in os.walk(source_tree):
        folders.sort()
        for name in sorted(names):
            source = os.path.join(folder, name)
            if os.path.islink(source) or not os.path.isfile(source) or not os.access(source, os.R_OK):
                continue
            size = os.path.getsize(source)
            if total + size > limit_bytes:
                continue
            shutil.copyfile(source, os.path.join(path, f"{total:012d}-{name}"))
            total += size
            if total > limit_bytes * 0.9:
                return
    if total == 0:
        raise Failure(f"no readable files in {source_tree}: choose another folder with --tree")


def make_scattered(path, size, stride, extent):
    """Random data of `extent` bytes at the start of every `stride`."""
    source = random.Random(SEED)
    try:
        with open(path, "wb", buffering=0) as file:
            file.truncate(size)
            for offset in range(0, size, stride):
                os.pwrite(file.fileno(), source.randbytes(extent), offset)
    except OSError as error:
        raise Failure(f"cannot make a sparse file of {size / 2**30:.0f} GiB here: {error.strerror}") from None


def fill_over(path, size):
    """Writes every byte of `path`, in place: every page is there, and none holds what a copy should bring."""
    block = b"\xa5" * READ_BYTES
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.truncate(descriptor, size)
        for offset in range(0, size, READ_BYTES):
            os.pwrite(descriptor, block[: min(READ_BYTES, size - offset)], offset)
    finally:
        os.close(descriptor)


# --- extents ---

def data_extents(path):
    """Data as the filesystem sees it, as (start, end), rounded outwards to 4 KiB, in order and disjoint."""
    extents = []
    with open(path, "rb", buffering=0) as file:
        size, position = os.fstat(file.fileno()).st_size, 0
        while position < size:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                break
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            start = start // ALIGNMENT * ALIGNMENT
            end = min(size, -(-position // ALIGNMENT) * ALIGNMENT)
            if extents and start <= extents[-1][1]:
                extents[-1] = (extents[-1][0], end)
            else:
                extents.append((start, end))
    return extents


def subtract(extents, others):
    """What of `extents` lies in none of `others`; both in order and disjoint."""
    result, index = [], 0
    for start, end in extents:
        while index < len(others) and others[index][1] <= start:
            index += 1
        at = index
        while at < len(others) and others[at][0] < end:
            if others[at][0] > start:
                result.append((start, others[at][0]))
            start = max(start, others[at][1])
            at += 1
        if start < end:
            result.append((start, end))
    return result


def write_map(path, extents, size):
    """The extents in the form that `qemu-img map --output=json` gives them."""
    entries, position = [], 0

    def entry(start, end, data):
        place = {"offset": start} if data else {}
        head = {"start": start, "length": end - start, "depth": 0, "present": data, "zero": not data, "data": data}
        entries.append(dict(head, **place))

    for start, end in extents:
        if start > position:
            entry(position, start, False)
        entry(start, end, True)
        position = end
    if position < size:
        entry(position, size, False)
    with open(path, "w") as file:
        file.write("[" + ",\n".join(json.dumps(one) for one in entries) + "]\n")


# --- checking ---

class Reader:
    """Reads past the page cache where that is possible, one buffer, one thread."""

    def __init__(self, path):
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError:
            self.descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.descriptor).st_size
        self.memory = memoryview(mmap.mmap(-1, READ_BYTES))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.descriptor)

    def chunks(self, extents):
        """Yields (offset, bytes-like view) over the extents; the view holds until the next step."""
        for start, end in extents:
            while start < end:
                length = min(READ_BYTES, end - start)
                rounded = -(-length // ALIGNMENT) * ALIGNMENT
                got = min(length, os.preadv(self.descriptor, [self.memory[:rounded]], start))
                if got <= 0:
                    raise Failure(f"the file ends at {start}, before its data does")
                yield start, self.memory[:got]
                start += got


class Reference:
    """What a right copy of `path` looks like: its size, its data extents, and a digest of each piece of them."""

    THREADS = 2

    def __init__(self, path):
        self.path = path
        self.size = os.path.getsize(path)
        self.extents = data_extents(path)
        self.data_bytes = sum(end - start for start, end in self.extents)
        self.pieces = list(cut_pieces(self.extents))
        self.digests = self._map(lambda piece: digest(path, piece), self.pieces)

    def check(self, copy, tool):
        """Raises unless `copy` has the source's size and content: its data equal, everything else zeros."""
        size = os.path.getsize(copy)
        if size != self.size:
            raise Failure(f"{tool}: the copy has {size} bytes, the source {self.size}")
        digests = self._map(lambda piece: digest(copy, piece), self.pieces)
        for piece, wanted, found in zip(self.pieces, self.digests, digests):
            if wanted != found:
                raise Failure(f"{tool}: the copy differs from the source at {self._first_difference(copy, piece)}")
        outside = list(cut_pieces(subtract(data_extents(copy), self.extents)))
        for offset in self._map(lambda piece: first_non_zero(copy, piece), outside):
            if offset is not None:
                raise Failure(f"{tool}: the copy holds data near {offset}, where the source has a hole")

    def _map(self, function, pieces):
        with ThreadPoolExecutor(self.THREADS) as pool:
            return list(pool.map(function, pieces))

    def _first_difference(self, copy, piece):
        with Reader(self.path) as source, Reader(copy) as target:
            for (offset, left), (_, right) in zip(source.chunks(piece), target.chunks(piece)):
                if bytes(left) != bytes(right):
                    return offset + next(i for i, (a, b) in enumerate(zip(left, right)) if a != b)
        return f"an offset in {piece[0][0]}..{piece[-1][1]} (equal when read again)"


def cut_pieces(extents):
    """Groups extents into pieces of PIECE_BYTES, so that threads can share them."""
    piece, room = [], PIECE_BYTES
    for start, end in extents:
        while start < end:
            length = min(room, end - start)
            piece.append((start, start + length))
            start, room = start + length, room - length
            if room == 0:
                yield piece
                piece, room = [], PIECE_BYTES
    if piece:
        yield piece


def digest(path, piece):
    state = hashlib.sha256()
    with Reader(path) as reader:
        for _, view in reader.chunks(piece):
            state.update(view)
    return state.digest()


def first_non_zero(path, piece):
    with Reader(path) as reader:
        for offset, view in reader.chunks(piece):
            if bytes(view) != ZEROS[: len(view)]:
                return offset
    return None
