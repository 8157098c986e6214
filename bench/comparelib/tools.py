"""The tools that are compared: one small entry each.

A command is a template, or several that run one after the other as one job. It is split into words first and filled in
afterwards, so a path may hold spaces. Placeholders: {src} {dst} {extents} {digest} {iolog_read} {iolog_write}, and the
programs that are built rather than installed: {mover} {tokio-uring} {floor}.

Every job ends with its target flushed, by an option of the tool or by a `sync` of the file that counts as part of it.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from typing import Callable, Optional

from . import ToolFailure

MOVER = "mover"
MOVER_ORIGIN = "cargo build --release, or $MOVER_BIN"


@dataclass(frozen=True)
class Tool:
    name: str
    # What has to be there: a program in the path, or one of the placeholders above.
    program: str
    # Names of scenarios, separated by spaces -> command, or several commands.
    commands: dict = field(default_factory=dict)
    # Where the program comes from, for the line that says why a tool did not run.
    origin: str = ""
    # What a user has today; only those stand for "the best peer".
    everyday: bool = False
    # False: it makes the same reads and writes but no copy, so there is nothing to check.
    copies: bool = True
    # Scenarios where it takes minutes: it runs in the first round only, and not at all with --quick.
    slow: tuple = ()
    # Wall seconds out of the steps' samples, where the clock around the process would be unfair.
    seconds: Optional[Callable] = None

    @property
    def is_peer(self):
        """A peer that fails is left out; mover must not fail."""
        return self.program != "{mover}"

    def command(self, scenario):
        for names, command in self.commands.items():
            if scenario in names.split():
                return (command,) if isinstance(command, str) else command
        return None

    def steps(self, scenario, places):
        def fill(word):
            return re.sub(r"\{([a-z_-]+)\}", lambda name: places[name.group(1)], word)

        return [[fill(word) for word in shlex.split(command)] for command in self.command(scenario)]


def fio_seconds(samples):
    """fio's own clock, as its start-up takes as long as a short copy, and the flush that follows."""
    text = samples[0].output
    try:
        jobs = json.loads(text[text.index("{\n") :])["jobs"]
        return max(job[way]["runtime"] for job in jobs for way in ("read", "write")) / 1000 + samples[1].wall_s
    except (ValueError, KeyError) as error:
        reason = f"fio's output is not understood ({error!r})"
        raise ToolFailure(f"{reason}:\n{text[-1000:]}", reason) from None


# fio replays the reads of the source and the writes of the target, as two jobs at the same time: the offsets are those a
# copy has, so holes cost it nothing either. Its buffers come from malloc, and the tunable asks for them in huge pages:
# a request of 1 MiB in 256 scattered pages took a virtio disk up to twice as long as one in a single piece, and a limit
# of the device must not be lower than what the device can do.
def fio(engine, depth):
    command = (
        "env GLIBC_TUNABLES=glibc.malloc.hugetlb=1"
        f" fio --output-format=json --thread --direct=1 --fallocate=none {engine} --iodepth={depth}"
        " --name=read --read_iolog={iolog_read} --name=write --read_iolog={iolog_write}"
    )
    return (command, "sync {dst}")


# Compression as each has it by default, or as the scenario says; secrets and caches in the scenario's own folder.
RESTIC = "env RESTIC_PASSWORD=compare restic -q -r {repo} --cache-dir {cache} "
BORG = "env BORG_BASE_DIR={cache} BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes borg "

TOOLS = [
    Tool(
        MOVER,
        "{mover}",
        {
            "full scattered sparse8t digest mix": "{mover} copy {src} {dst}",
            "scattered-extents": "{mover} copy {src} {dst} --extents {extents}",
            "tmpfs": "{mover} copy {src} {dst} --force",
            "backup backup-zstd": "{mover} backup vm --disk vda={src} --repo {repo} --state {cache}",
            "backup-changed backup-unchanged":
                "{mover} backup vm --disk vda={src} --extents vda={extents} --since vm@latest --repo {repo} --state {cache}",
            "restore": "{mover} restore vm --disk vda={dst} --repo {repo} --state {cache}",
            "verify": "{mover} verify --repo {repo} --state {cache}",
        },
        origin=MOVER_ORIGIN,
    ),
    Tool(
        "mover-raw",
        "{mover}",
        {
            "backup-changed": "{mover} copy {src} {dst} --extents {extents} --force",
            "restore": "{mover} copy {src} {dst}",
            "verify": "{mover} copy {src} null:",
        },
        origin=MOVER_ORIGIN,
        copies=False,
    ),
    Tool(
        "restic",
        "restic",
        {
            "backup backup-zstd backup-changed": (RESTIC + "backup {src}", "sync -f {repo}"),
            "restore": (RESTIC + "restore latest --target {out}", "sync -f {out}"),
            "verify": RESTIC + "check --read-data",
        },
        origin="Debian: restic",
        everyday=True,
    ),
    Tool(
        "borg",
        "borg",
        {
            "backup backup-changed": (BORG + "create --compression lz4 {repo}::{archive} {src}", "sync -f {repo}"),
            "restore": ("env -C {out} " + BORG.removeprefix("env ") + "extract --sparse {repo}::base", "sync -f {out}"),
            "verify": BORG + "check --verify-data {repo}",
        },
        origin="Debian: borgbackup",
        everyday=True,
    ),
    Tool(
        "mover-digest",
        "{mover}",
        {"digest": "{mover} copy {src} {dst} --digest-out {digest}"},
        origin=MOVER_ORIGIN,
    ),
    Tool(
        "floor",
        "{floor}",
        {"full scattered scattered-extents tmpfs sparse8t mix": "{floor} {src} {dst} 1048576 8 1"},
        origin="--floor PATH",
    ),
    Tool(
        "tokio-uring",
        "{tokio-uring}",
        {"full scattered scattered-extents tmpfs sparse8t mix": "{tokio-uring} {src} {dst} 1048576 8"},
        origin="cargo build --release -p mover-bench-tokio-uring-copy, or $TOKIO_URING_COPY_BIN",
    ),
    Tool(
        "fio",
        "fio",
        # 4 reads and 4 writes: as many in flight as a copy 8 deep has, and the fastest of the three here.
        {"full scattered mix": fio("--ioengine=io_uring --fixedbufs", depth=4)},
        origin="Debian: fio",
        copies=False,
        seconds=fio_seconds,
    ),
    Tool(
        "fio-deep",
        "fio",
        {"mix": fio("--ioengine=io_uring --fixedbufs", depth=8)},
        origin="Debian: fio",
        copies=False,
        seconds=fio_seconds,
    ),
    Tool(
        "fio-libaio",
        "fio",
        {"mix": fio("--ioengine=libaio", depth=8)},
        origin="Debian: fio",
        copies=False,
        seconds=fio_seconds,
    ),
    Tool(
        "dd",
        "dd",
        {
            "full": "dd if={src} of={dst} bs=1M iflag=direct oflag=direct conv=sparse,fsync status=none",
            "tmpfs": "dd if={src} of={dst} bs=1M conv=notrunc,fsync status=none",
        },
        everyday=True,
    ),
    Tool(
        "dd-plain",
        "dd",
        {"full": "dd if={src} of={dst} bs=1M iflag=direct oflag=direct conv=fsync status=none"},
        everyday=True,
    ),
    Tool(
        "cp",
        "cp",
        {"full scattered scattered-extents tmpfs sparse8t": ("cp --sparse=auto {src} {dst}", "sync {dst}")},
        everyday=True,
    ),
    Tool(
        "qemu-img",
        "qemu-img",
        {
            "full scattered scattered-extents sparse8t":
                "qemu-img convert -f raw -O raw -t none -T none -W -m 16 {src} {dst}",
            "tmpfs": "qemu-img convert -n -f raw -O raw -t none -T none -W -m 16 {src} {dst}",
        },
        origin="Debian: qemu-utils",
        everyday=True,
    ),
    Tool(
        "nbdcopy",
        "nbdcopy",
        {"full scattered scattered-extents tmpfs sparse8t": "nbdcopy --flush {src} {dst}"},
        origin="Debian: libnbd-bin",
        everyday=True,
        slow=("sparse8t",),
    ),
]

TOOL_NAMES = [tool.name for tool in TOOLS]
EVERYDAY_NAMES = [tool.name for tool in TOOLS if tool.everyday]


def find_programs(repository, floor):
    """Paths of the programs that are built, by placeholder; None where there is none."""
    folder = os.path.join(os.environ.get("CARGO_TARGET_DIR") or os.path.join(repository, "target"), "release")

    def built(variable, name):
        path = os.environ.get(variable) or os.path.join(folder, name)
        return os.path.abspath(path) if os.access(path, os.X_OK) else None

    return {
        "mover": built("MOVER_BIN", "mover"),
        "tokio-uring": built("TOKIO_URING_COPY_BIN", "mover-bench-tokio-uring-copy"),
        "floor": os.path.abspath(floor) if floor else None,
    }


def missing(tool, programs):
    """Why a tool cannot run here, or None."""
    if tool.program.startswith("{"):
        return None if programs[tool.program.strip("{}")] else f"not there ({tool.origin})"
    if shutil.which(tool.program):
        return None
    return f"not installed ({tool.origin})" if tool.origin else "not installed"


def version(tool, programs):
    """First line of the tool's own version, or an empty string."""
    if tool.program in ("{floor}", "{tokio-uring}"):
        return ""
    program = programs[tool.program.strip("{}")] if tool.program.startswith("{") else tool.program
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout.splitlines() or [""])[0].strip() if done.returncode == 0 else ""
