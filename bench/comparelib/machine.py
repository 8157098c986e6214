"""Facts about this computer, and its page cache."""

import os
import platform
import shutil

from . import Failure

# What a filesystem keeps free beside the images, so that a benchmark does not fill a disk that others live on.
SPACE_RESERVE_BYTES = 1 << 30


def read_text(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def cpu_model():
    for line in read_text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model"):
            return value.strip()
    return platform.machine()


def memory_value(key):
    for line in read_text("/proc/meminfo").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def facts():
    """What a reader needs to judge the figures. No names of hosts, no paths."""
    return {
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_value("MemTotal") / 2**30, 1),
        "load1": round(os.getloadavg()[0], 2),
    }


def filesystem_type(path):
    """Type of the filesystem that holds `path`: the longest mount point that is a prefix of it."""
    path = os.path.realpath(path)
    best, kind = "", "unknown"
    for line in read_text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].encode().decode("unicode_escape")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def require_space(directory, needed_bytes, what):
    free = shutil.disk_usage(directory).free
    if free < needed_bytes + SPACE_RESERVE_BYTES:
        raise Failure(
            f"{what} needs {needed_bytes / 2**30:.1f} GiB (and leaves 1 GiB free), but there are {free / 2**30:.1f} GiB"
            f" in {directory}: choose another place with --dir, fewer scenarios with --scenario, or --quick"
        )


def require_memory(needed_bytes, what):
    available = memory_value("MemAvailable")
    if available < needed_bytes + SPACE_RESERVE_BYTES:
        raise Failure(
            f"{what} needs {needed_bytes / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are available:"
            " choose other scenarios with --scenario, or --quick"
        )


class ColdCache:
    """Empties the page cache before a run, by the best means this user has, and says which."""

    CONTROL = "/proc/sys/vm/drop_caches"

    def __init__(self):
        self.method = "drop_caches" if os.access(self.CONTROL, os.W_OK) else "fadvise"
        if self.method == "drop_caches":
            try:
                self._drop()
            except OSError:  # writable by its mode, refused by the kernel: a container
                self.method = "fadvise"

    def empty(self, paths):
        if self.method == "drop_caches":
            os.sync()
            self._drop()
            return
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # only clean pages can be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

    def _drop(self):
        with open(self.CONTROL, "w") as control:
            control.write("3")
