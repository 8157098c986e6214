"""The scenarios that back an image up and bring it back: mover beside restic and borg.

Every tool has a repository of its own. It is made, and given an earlier backup where the scenario needs one, outside the
clock. What a repository takes on disk afterwards is measured too.
"""

import json
import os
import random
import shutil
import subprocess

from . import Failure, images, machine, report
from .copies import FULL, GIB, MIB, Image

PEERS = ["restic", "borg"]
# The repositories of one run, the largest case: three tools that store 5 GiB of real files, and a raw copy of them.
ROOM = {False: 24 * GIB, True: 2 * GIB}


def make_incompressible(bench, path, size):
    images.make_scattered(path, size, stride=MIB, extent=MIB)


INCOMPRESSIBLE = Image("incompressible", make_incompressible, (3 * GIB, 3 * GIB, 3 * GIB), (64 * MIB, 64 * MIB, 64 * MIB))


def quietly(command, **more_environment):
    done = subprocess.run(command, env=dict(os.environ, **more_environment), capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def disk_bytes(folder):
    """What a folder takes on disk."""
    total = 0
    for place, _, names in os.walk(folder):
        total += sum(os.lstat(os.path.join(place, name)).st_blocks * 512 for name in names)
    return total


class Backup:
    """A first backup of an image into an empty repository."""

    cold = True

    def __init__(self, name, about, image, targets, compression="lz4"):
        self.name = name
        self.about = about
        self.image = image
        self.targets = targets
        self.compression = compression
        self.reference = None
        self.places = {}

    def needed_bytes(self, bench):
        return ROOM[bench.options.quick], self.image.needed_bytes(bench)[1]

    def prepare(self, bench, tools):
        self.bench = bench
        self.reference = self.image.reference(bench)
        self.work = os.path.join(bench.folder, f"{self.name}.work")
        shutil.rmtree(self.work, ignore_errors=True)
        os.makedirs(self.work)
        self.places = dict(
            bench.programs,
            src=self.reference.path,
            dst=os.path.join(self.work, "target.raw"),
            extents=os.path.join(self.work, "extents.json"),
            out=os.path.join(self.work, "out"),
        )

    def repository(self, tool):
        return os.path.join(self.work, f"repository-{tool.name}")

    def use(self, tool):
        self.places["repo"] = self.repository(tool)
        # Secrets and caches of all tools lie in the work folder, so that nothing of the user's is touched.
        self.places["cache"] = os.path.join(self.work, f"cache-{tool.name}")
        self.archives = getattr(self, "archives", 0) + 1
        self.places["archive"] = f"run-{self.archives}"

    def init(self, tool):
        self.use(tool)
        repository, cache = self.places["repo"], self.places["cache"]
        for folder in (repository, cache):
            shutil.rmtree(folder, ignore_errors=True)
        if tool.program == "restic":
            quietly(["restic", "-q", "-r", repository, "--cache-dir", cache, "init"], RESTIC_PASSWORD="compare")
        elif tool.program == "borg":
            quietly(["borg", "init", "-e", "none", repository], BORG_BASE_DIR=cache)
        elif tool.program == "{mover}" and "{repo}" in " ".join(tool.command(self.name)):
            quietly([self.bench.programs["mover"], "init", repository, "--compression", self.compression,
                     "--state", cache])

    def store(self, tool):
        """A backup outside the clock."""
        self.use(tool)
        repository, cache, source = self.places["repo"], self.places["cache"], self.places["src"]
        if tool.program == "restic":
            command = ["restic", "-q", "-r", repository, "--cache-dir", cache, "backup", source]
            quietly(command, RESTIC_PASSWORD="compare")
        elif tool.program == "borg":
            quietly(["borg", "create", "--compression", "lz4", f"{repository}::base", source],
                    **borg_environment(cache))
        elif "{repo}" in " ".join(tool.command(self.name)):
            quietly([self.bench.programs["mover"], "backup", "vm", "--disk", f"vda={source}", "--repo", repository,
                     "--state", cache])

    def before_run(self, bench, tool):
        self.init(tool)
        bench.cold_cache.empty([self.places["src"]])

    def check(self, tool):
        pass

    def after_run(self, tool, sample):
        """Fills in what only the scenario knows."""
        if os.path.isdir(self.repository(tool)):
            sample.stored_bytes = disk_bytes(self.repository(tool))
        self.check_restore(tool)
        shutil.rmtree(self.repository(tool), ignore_errors=True)

    def check_restore(self, tool):
        """mover's backup is restored and compared; the peers are trusted."""
        if tool.program == "{mover}" and os.path.isdir(self.repository(tool)):
            quietly([self.bench.programs["mover"], "restore", "vm", "--disk", f"vda={self.places['dst']}", "--force",
                     "--repo", self.repository(tool), "--state", self.places["cache"]])
            self.reference.check(self.places["dst"], tool.name)
            os.unlink(self.places["dst"])

    def facts(self, bench):
        return {
            "size_bytes": self.reference.size,
            "data_bytes": self.reference.data_bytes,
            "data_extents": len(self.reference.extents),
            "image": "given" if self.image.name in bench.options.image else "made",
            "fs": machine.filesystem_type(bench.folder),
            "source_fs": machine.filesystem_type(self.reference.path),
            "cache": bench.cold_cache.method,
        }

    def clean(self, bench):
        if getattr(self, "work", None):
            shutil.rmtree(self.work, ignore_errors=True)


def borg_environment(cache):
    return {"BORG_BASE_DIR": cache, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}


class Changed:
    """What `data_bytes` of a scenario with few changes counts."""

    def __init__(self, data_bytes):
        self.data_bytes = data_bytes


class SecondBackup(Backup):
    """2 % of the image's data changes before each round; all tools back the same state up, mover being told the extents."""

    def prepare(self, bench, tools):
        super().prepare(bench, tools)
        original = self.reference
        self.places["src"] = os.path.join(self.work, "source.raw")
        quietly([bench.programs["mover"], "copy", original.path, self.places["src"]])
        quietly([bench.programs["mover"], "copy", original.path, self.places["dst"]])
        self.size, self.state = original.size, 0
        self.rounds = {tool.name: 0 for tool in tools}
        self.pieces = self.pick(original, random.Random(images.SEED))
        self.reference = Changed(sum(end - start for start, end in self.pieces))
        self.whole, self.source = original, random.Random(images.SEED)
        # Before the first change: every repository holds the image as it was.
        for tool in tools:
            self.init(tool)
            self.store(tool)

    def pick(self, original, chance):
        """Extents of 64 KiB to 1 MiB on the grid of 64 KiB that a hypervisor's bitmap has, 2 % of the data."""
        grain, pieces, total = 64 << 10, set(), 0
        while total < original.data_bytes * 0.02:
            start, end = chance.choice(original.extents)
            if end - start < 2 * MIB:
                continue
            first = chance.randrange(start, end - MIB) // grain
            for block in range(first, first + chance.randrange(1, 17)):
                if block not in pieces:
                    pieces.add(block)
                    total += grain
        extents = []
        for block in sorted(pieces):
            if extents and extents[-1][1] == block * grain:
                extents[-1] = (extents[-1][0], (block + 1) * grain)
            else:
                extents.append((block * grain, (block + 1) * grain))
        return extents

    def change(self):
        with open(self.places["src"], "rb+", buffering=0) as file:
            for start, end in self.pieces:
                os.pwrite(file.fileno(), self.source.randbytes(end - start), start)
            os.fsync(file.fileno())
        document = {
            "format": "mover-extents", "version": 1, "size": self.size,
            "extents": [{"start": start, "length": end - start, "kind": "data"} for start, end in self.pieces],
        }
        with open(self.places["extents"], "w") as file:
            json.dump(document, file)

    def before_run(self, bench, tool):
        if self.rounds[tool.name] == self.state:
            self.state += 1
            self.change()
        self.rounds[tool.name] += 1
        self.use(tool)
        bench.cold_cache.empty([self.places["src"]])

    def after_run(self, tool, sample):
        if os.path.isdir(self.repository(tool)):
            if tool.program == "{mover}":
                quietly([self.bench.programs["mover"], "restore", "vm", "--disk", f"vda={self.places['out']}",
                         "--force", "--repo", self.repository(tool), "--state", self.places["cache"]])
                images.Reference(self.places["src"]).check(self.places["out"], tool.name)
                os.unlink(self.places["out"])

    def facts(self, bench):
        changed, self.reference = self.reference, self.whole
        facts = super().facts(bench)
        self.reference = changed
        return {**facts, "data_bytes": changed.data_bytes, "data_extents": len(self.pieces)}


class Unchanged(Backup):
    """Nothing has changed in a sparse disk of 1 TiB whose tree covers all of it: a list of no extents is given."""

    def prepare(self, bench, tools):
        super().prepare(bench, tools)
        with open(self.places["extents"], "w") as file:
            json.dump({"format": "mover-extents", "version": 1, "size": self.reference.size, "extents": []}, file)
        for tool in tools:
            self.init(tool)
            self.store(tool)
            self.bytes_before = disk_bytes(self.repository(tool))

    def before_run(self, bench, tool):
        self.use(tool)
        bench.cold_cache.empty([self.places["src"]])

    def after_run(self, tool, sample):
        after = disk_bytes(self.repository(tool))
        sample.stored_bytes, self.bytes_before = after - self.bytes_before, after


class Restore(Backup):
    """The image is in every tool's repository; it is brought back as a new file."""

    def prepare(self, bench, tools):
        super().prepare(bench, tools)
        for tool in tools:
            self.init(tool)
            self.store(tool)

    def before_run(self, bench, tool):
        self.use(tool)
        shutil.rmtree(self.places["out"], ignore_errors=True)
        os.makedirs(self.places["out"])
        if os.path.exists(self.places["dst"]):
            os.unlink(self.places["dst"])
        bench.cold_cache.empty([self.places["src"], *files_below(self.places["repo"])])

    def after_run(self, tool, sample):
        found = [path for path in [self.places["dst"], *files_below(self.places["out"])] if os.path.exists(path)]
        if len(found) != 1:
            raise Failure(f"{tool.name}: {len(found)} files came back")
        self.reference.check(found[0], tool.name)


class Verify(Restore):
    """Every stored byte is read and compared with its name."""

    def after_run(self, tool, sample):
        pass


def files_below(folder):
    return [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]


def make_repeating(bench, path, size):
    """Data everywhere and little of it different, as a tree of a full disk needs: one MiB in reflinks would need a
    filesystem that has them, so it is a sparse disk with a MiB in every GiB."""
    images.make_scattered(path, size, stride=GIB if not bench.options.quick else 64 * GIB, extent=MIB)


TERABYTE = Image("terabyte", make_repeating, (1 << 40, 2 * GIB, 2 * GIB), (1 << 40, 64 * MIB, 64 * MIB))

SCENARIOS = [
    Backup(
        "backup",
        "the first backup of an ext4 image of real files",
        FULL,
        [
            report.faster_than(["restic"], 6.0, "6 × restic in time"),
            report.faster_than(["borg"], 3.0, "3 × borg in time"),
            report.cheaper_than(["restic"], 3.0, "a third of restic's CPU (times cheaper)"),
            report.cheaper_than(["borg"], 2.0, "half of borg's CPU (times cheaper)"),
            report.stores_at_most(["borg"], 1.0, "stored size against borg's with lz4"),
            report.peak_at_most(256),
        ],
    ),
    Backup(
        "backup-zstd",
        "the same with zstd",
        FULL,
        [
            report.faster_than(["restic"], 2.0, "2 × restic in time"),
            report.stores_at_most(["restic"], 1.05, "stored size against restic's"),
            report.peak_at_most(256),
        ],
        compression="zstd",
    ),
    SecondBackup(
        "backup-changed",
        "a second backup after 2 % have changed, mover being told the extents",
        FULL,
        [
            report.slower_at_most_than("mover-raw", 1.2, "time against moving the same extents raw"),
            report.faster_than(PEERS, 2.0, "2 × the best peer in time"),
        ],
    ),
    Unchanged(
        "backup-unchanged",
        "a backup of a sparse 1 TiB disk of which nothing has changed, the empty list being given",
        TERABYTE,
        [report.seconds_at_most(0.2), report.stored_at_most_kib(64)],
    ),
    Restore(
        "restore",
        "an image that does not compress comes back",
        INCOMPRESSIBLE,
        [
            report.slower_at_most_than("mover-raw", 1 / 0.9, "time against a raw copy of the same image (0.9 × its speed)"),
            report.faster_than(PEERS, 2.0, "2 × the best peer in time"),
        ],
    ),
    Verify(
        "verify",
        "every stored byte is read and checked",
        INCOMPRESSIBLE,
        [
            report.slower_at_most_than("mover-raw", 1.1, "time against reading the same bytes"),
            report.faster_than(PEERS, 2.0, "2 × the best peer in time"),
        ],
    ),
]
