"""The scenarios that move one image from one place to another.

A scenario is an object with `name`, `about`, `image`, `targets`, and `needed_bytes`, `prepare`, `before_run`, `check`,
`facts`, `clean`. Another kind (NBD servers, repositories, the latency of a guest) is another module with its own list
SCENARIOS, added in bench/compare, and its entries in tools.py.
"""

import os
import tempfile

from . import images, machine, report
from .tools import EVERYDAY_NAMES

MIB = 1 << 20
GIB = 1 << 30
FIO_LIMITS = ["fio", "fio-deep", "fio-libaio"]
# "Within 10 % of fio": mover takes at most 1.1 times as long.
FIO_TIMES = 1 / 1.1
FIO_REQUEST_BYTES = MIB
# What stands beside the images for the tools of one scenario; "link" is the source under a name that fio can bear.
SIDE_FILES = ["extents", "digest", "iolog_read", "iolog_write", "link"]


class Image:
    """An input that several scenarios may share; made once, kept for the next run with --keep."""

    def __init__(self, name, make, full, quick):
        self.name = name
        self.make = make
        self.sizes = {False: full, True: quick}  # by --quick: (size, room that the data needs, room for a copy)

    def path(self, bench):
        given = bench.options.image.get(self.name)
        size = self.sizes[bench.options.quick][0]
        return given or os.path.join(bench.folder, f"{self.name}-{size // MIB}m.raw")

    def needed_bytes(self, bench):
        _, data, copy = self.sizes[bench.options.quick]
        return copy, 0 if os.path.exists(self.path(bench)) else data

    def reference(self, bench):
        """The image, made if it is not there, with the digests that every copy is held against."""
        if self.name not in bench.references:
            path = self.path(bench)
            if not os.path.exists(path):
                bench.say(f"making the image '{self.name}'")
                images.build(path, lambda partial: self.make(bench, partial, self.sizes[bench.options.quick][0]))
                bench.made.append(path)
            bench.references[self.name] = images.Reference(path)
        return bench.references[self.name]


def make_full(bench, path, size):
    if not bench.options.quick:
        images.make_filesystem(path, size, bench.options.tree)
        return
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        tree = os.path.join(folder, "tree")
        images.make_small_tree(tree, bench.options.tree, size // 4)
        images.make_filesystem(path, size, tree)


def make_scattered(bench, path, size):
    images.make_scattered(path, size, stride=MIB, extent=64 << 10)


def make_dense(bench, path, size):
    images.make_scattered(path, size, stride=MIB, extent=MIB)


def make_huge(bench, path, size):
    count = 10 if bench.options.quick else 100
    images.make_scattered(path, size, stride=-(-size // count // MIB) * MIB, extent=MIB)


# A copy of "full" by plain dd has no holes, hence room for all of it.
FULL = Image("full", make_full, (8 * GIB, 6 * GIB, 8 * GIB), (256 * MIB, 96 * MIB, 256 * MIB))
SCATTERED = Image("scattered", make_scattered, (16 * GIB, 2 * GIB, 2 * GIB), (512 * MIB, 64 * MIB, 64 * MIB))
TMPFS = Image("tmpfs", make_dense, (3 * GIB, 3 * GIB, 3 * GIB), (64 * MIB, 64 * MIB, 64 * MIB))
# Eight TiB is as quick to make as one: only the data counts.
SPARSE8T = Image("sparse8t", make_huge, (8 << 40, 256 * MIB, 256 * MIB), (8 << 40, 64 * MIB, 64 * MIB))


class Copy:
    def __init__(self, name, about, image, targets, cold=True):
        self.name = name
        self.about = about
        self.image = image
        self.targets = targets
        self.cold = cold
        self.reference = None
        self.target = None
        self.places = {}

    def folder(self, bench):
        return bench.folder

    def needed_bytes(self, bench):
        """(room for a copy, room for the image)"""
        return self.image.needed_bytes(bench)

    def prepare(self, bench, tools):
        self.reference = self.image.reference(bench)
        self.target = os.path.join(self.folder(bench), "target.raw")
        self.places = dict(bench.programs, src=self.source(bench), dst=self.target)
        for name in SIDE_FILES:
            self.places[name] = os.path.join(bench.folder, f"{self.name}.{name}")
        if any("{extents}" in command for tool in tools for command in tool.command(self.name)):
            images.write_map(self.places["extents"], self.reference.extents, self.reference.size)
        if any(not tool.copies for tool in tools):
            self.write_iologs(bench)

    def source(self, bench):
        return self.reference.path

    def write_iologs(self, bench):
        """The requests of a copy, as fio replays them. Its file names may hold no spaces, so they are relative."""
        link = self.places["link"]
        if os.path.lexists(link):
            os.unlink(link)
        os.symlink(self.reference.path, link)
        os.chdir(bench.folder)
        for way, path in (("read", link), ("write", self.target)):
            name = os.path.basename(path)
            with open(self.places[f"iolog_{way}"], "w") as log:
                log.write(f"fio version 2 iolog\n{name} add\n{name} open\n")
                for start, end in self.reference.extents:
                    for offset in range(start, end, FIO_REQUEST_BYTES):
                        log.write(f"{name} {way} {offset} {min(FIO_REQUEST_BYTES, end - offset)}\n")
                log.write(f"{name} close\n")

    def before_run(self, bench, tool):
        for path in (self.target, self.places["digest"]):
            if os.path.exists(path):
                os.unlink(path)
        if not tool.copies:
            with open(self.target, "wb") as file:
                file.truncate(self.reference.size)
        bench.cold_cache.empty([self.places["src"]])

    def after_run(self, tool, sample):
        """Nothing but the copy to look at."""

    def check(self, tool):
        if tool.copies:
            self.reference.check(self.target, tool.name)

    def facts(self, bench):
        return {
            "size_bytes": self.reference.size,
            "data_bytes": self.reference.data_bytes,
            "data_extents": len(self.reference.extents),
            "image": "given" if self.image.name in bench.options.image else "made",
            "fs": machine.filesystem_type(self.folder(bench)),
            "source_fs": machine.filesystem_type(self.source(bench)),
            "cache": bench.cold_cache.method if self.cold else "warm",
        }

    def clean(self, bench):
        names = [f"{self.name}.{name}" for name in SIDE_FILES]
        for path in [self.target, *(os.path.join(bench.folder, name) for name in names)]:
            if path and os.path.lexists(path):
                os.unlink(path)


class MemoryCopy(Copy):
    """Source and target on a tmpfs; the target's pages are all there before each run and hold something else."""

    def folder(self, bench):
        return bench.memory_folder()

    def needed_bytes(self, bench):
        _, data, copy = self.image.sizes[bench.options.quick]
        machine.require_memory(data + copy, f"scenario {self.name}")
        return 0, 0

    def prepare(self, bench, tools):
        path = os.path.join(self.folder(bench), "source.raw")
        if not os.path.exists(path):
            bench.say(f"making the image '{self.image.name}'")
            images.build(path, lambda part: self.image.make(bench, part, self.image.sizes[bench.options.quick][0]))
        bench.references[self.image.name] = images.Reference(path)
        super().prepare(bench, tools)

    def before_run(self, bench, tool):
        images.fill_over(self.target, self.reference.size)

    def clean(self, bench):
        super().clean(bench)
        bench.leave_memory_folder()


SCENARIOS = [
    Copy(
        "full",
        "an ext4 image of real files",
        FULL,
        [
            report.faster_than(["dd"], 1.9, "1.9 × dd in time"),
            report.faster_than(["qemu-img"], 2.0, "2 × qemu-img in time"),
            report.cheaper_than(["dd"], 4.0, "a quarter of dd's CPU per GB (times cheaper)"),
            report.faster_than(["fio"], FIO_TIMES, "within 10 % of fio for the same reads and writes"),
            report.peak_at_most(32),
        ],
    ),
    Copy(
        "scattered",
        "64 KiB of data in every MiB",
        SCATTERED,
        [
            report.faster_than(EVERYDAY_NAMES, 2.4, "2.4 × the best peer in time"),
            report.cheaper_than(EVERYDAY_NAMES, 4.0, "a quarter of the best peer's CPU (times cheaper)"),
            report.peak_at_most(32),
        ],
    ),
    Copy(
        "scattered-extents",
        "the same, mover being told the extents",
        SCATTERED,
        [
            report.faster_than(EVERYDAY_NAMES, 2.4, "2.4 × the best peer in time"),
            report.cheaper_than(EVERYDAY_NAMES, 4.0, "a quarter of the best peer's CPU (times cheaper)"),
            report.peak_at_most(32),
        ],
    ),
    MemoryCopy(
        "tmpfs",
        "tmpfs to tmpfs, over an existing target",
        TMPFS,
        [report.faster_than(["dd"], 1.0, "not slower than dd"), report.peak_at_most(32)],
        cold=False,
    ),
    Copy(
        "sparse8t",
        "8 TiB with next to nothing in it",
        SPARSE8T,
        [report.seconds_at_most(1.0), report.peak_at_most(32)],
    ),
    Copy(
        "digest",
        "with and without a digest of every extent",
        FULL,
        [report.slower_at_most("mover-digest", 1.05, "the digest costs less than 5 % of time")],
    ),
    Copy(
        "mix",
        "against what fio gets out of the device by the same reads and writes",
        FULL,
        [report.faster_than(FIO_LIMITS, FIO_TIMES, "within 10 % of the best fio")],
    ),
]
