"""Runs one tool and measures it: wall time, CPU time, peak memory."""

import os
import resource
import select
import signal
import time
from dataclasses import dataclass

from . import ToolFailure

# Between two looks at a running tool's peak memory: a tenth of the time it has run, within these bounds. A look costs
# some 30 µs.
SAMPLE_INTERVAL_MIN_MS = 1
SAMPLE_INTERVAL_MAX_MS = 20


@dataclass
class Sample:
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    output: str = ""
    # What a repository takes on disk afterwards; filled in by scenarios that have one.
    stored_bytes: int = 0


def run_steps(steps, log_path, limit_s):
    return [run_step(argv, log_path, limit_s) for argv in steps]


def total(samples):
    """Steps of one job follow each other: their times add up, their peaks do not."""
    return Sample(
        sum(sample.wall_s for sample in samples),
        sum(sample.cpu_s for sample in samples),
        max(sample.peak_bytes for sample in samples),
    )


def run_step(argv, log_path, limit_s):
    """The tool's stdout is the sample's output. Its stderr is apart, at log_path.errors: it says why a tool failed."""
    errors_path = log_path + ".errors"
    try:
        return run_logged(argv, log_path, errors_path, limit_s)
    finally:
        for path in (log_path, errors_path):
            if os.path.exists(path):
                os.unlink(path)


def run_logged(argv, log_path, errors_path, limit_s):
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log_path, flags, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, errors_path, flags, 0o600),
    ]
    environment = dict(os.environ, LC_ALL="C")
    own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    try:
        pid = os.posix_spawnp(argv[0], argv, environment, file_actions=actions)
    except OSError as error:
        raise ToolFailure(f"{argv[0]} cannot be started: {error.strerror}", error.strerror) from None
    sampled_peak = 0
    try:
        sampled_peak = watch(argv, pid, started, limit_s)
        _, status, usage = os.wait4(pid, 0)
    except BaseException:  # an interrupt, or out of time: never leave a tool running behind us
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    wall_s = time.monotonic() - started
    output = read_log(log_path)
    if status != 0:
        code = os.waitstatus_to_exitcode(status)
        # fio says why on stdout too, ahead of pages of JSON.
        said = read_log(errors_path).strip() or output.partition("{\n")[0].strip()
        reason = said.partition("\n")[0].strip() or f"ended with {code}"
        raise ToolFailure(f"{' '.join(argv)}\nended with {code}\n{said[-2000:]}".rstrip(), reason[:200])
    # rusage starts a child at the peak of whoever spawned it, so below our own peak it says nothing about the tool.
    peak = usage.ru_maxrss if usage.ru_maxrss > own_peak else sampled_peak
    return Sample(wall_s, usage.ru_utime + usage.ru_stime, peak * 1024, output)


def watch(argv, pid, started, limit_s):
    """Waits until the process has ended, without reaping it; returns the largest VmHWM seen on the way, in KiB."""
    handle = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        peak = 0
        while True:
            peak = max(peak, peak_kib(pid))
            elapsed_s = time.monotonic() - started
            if elapsed_s > limit_s:
                reason = f"ran for more than {limit_s} s (see --limit) and was killed"
                raise ToolFailure(f"{' '.join(argv)}\n{reason}", reason)
            if poll.poll(min(max(elapsed_s * 100, SAMPLE_INTERVAL_MIN_MS), SAMPLE_INTERVAL_MAX_MS)):
                return peak
    finally:
        os.close(handle)


def read_log(path):
    with open(path, errors="replace") as log:
        return log.read()


def peak_kib(pid):
    with open(f"/proc/{pid}/status", "rb") as status:
        for line in status:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1])
    return 0  # already a zombie
