"""From samples to figures: medians, ratios paired by round, targets, the table and the JSON line."""

import json
import statistics
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Callable


class Figures:
    """The samples of one scenario, by tool, one for each round."""

    def __init__(self, data_bytes):
        self.data_bytes = data_bytes
        self.samples = {}

    def add(self, tool, sample):
        self.samples.setdefault(tool, []).append(sample)

    def remove(self, tool):
        self.samples.pop(tool, None)

    def has(self, tool):
        return tool in self.samples

    def values(self, tool, quantity):
        return [getattr(sample, quantity) for sample in self.samples[tool]]

    def median(self, tool, quantity):
        return statistics.median(self.values(tool, quantity))

    def cpu_s_per_gb(self, tool):
        return self.median(tool, "cpu_s") / (self.data_bytes / 1e9)

    def gb_per_s(self, tool):
        return self.data_bytes / 1e9 / self.median(tool, "wall_s")

    def ratio(self, tool, reference, quantity):
        """How many times more than `reference` the tool needs: the median of the ratios within each round.

        A slow tool has run in the first round only; zip() then takes the reference's first round too.
        """
        pairs = zip(self.values(tool, quantity), self.values(reference, quantity))
        # A job too short for the CPU clock counts as one tick of a millisecond.
        return statistics.median(max(one, 1e-3) / max(other, 1e-3) for one, other in pairs)

    def fastest(self, tools):
        present = [tool for tool in tools if self.has(tool)]
        return min(present, key=lambda tool: self.median(tool, "wall_s"), default=None)


# --- targets ---

@dataclass
class Verdict:
    text: str
    wanted: float
    found: float = None  # None: could not be measured
    reached: bool = None

    def line(self):
        if self.found is None:
            return f"  not measured  {self.text}"
        if self.reached:
            return f"  reached       {self.text}: {self.found:.3g}"
        return f"  not reached   {self.text}: {self.found:.3g} of {self.wanted:.3g}"


@dataclass
class Target:
    text: str
    wanted: float
    # (figures, reference tool) -> value, or None where a tool that it needs did not run
    measure: Callable
    at_least: bool = True

    def judge(self, figures, reference):
        found = self.measure(figures, reference)
        if found is None:
            return Verdict(self.text, self.wanted)
        reached = found >= self.wanted if self.at_least else found <= self.wanted
        return Verdict(self.text, self.wanted, found, reached)


def against(peers, quantity, times, text):
    """The fastest of `peers` needs at least `times` as much of `quantity` as the reference."""

    def measure(figures, reference):
        peer = figures.fastest([peer for peer in peers if peer != reference])
        return None if peer is None else figures.ratio(peer, reference, quantity)

    return Target(text, times, measure)


def faster_than(peers, times, text):
    return against(peers, "wall_s", times, text)


def cheaper_than(peers, times, text):
    return against(peers, "cpu_s", times, text)


def peak_at_most(mib):
    def measure(figures, reference):
        return max(figures.values(reference, "peak_bytes")) / 2**20

    return Target(f"peak memory at most {mib} MiB", mib, measure, at_least=False)


def seconds_at_most(seconds):
    def measure(figures, reference):
        return figures.median(reference, "wall_s")

    return Target(f"at most {seconds} s", seconds, measure, at_least=False)


def slower_at_most(tool, times, text):
    def measure(figures, reference):
        return figures.ratio(tool, reference, "wall_s") if figures.has(tool) else None

    return Target(text, times, measure, at_least=False)


def slower_at_most_than(tool, times, text):
    """The reference takes at most `times` as long as the tool."""

    def measure(figures, reference):
        return figures.ratio(reference, tool, "wall_s") if figures.has(tool) else None

    return Target(text, times, measure, at_least=False)


def stores_at_most(peers, times, text):
    """The reference's repository takes at most `times` as much as the smallest of the peers'."""

    def measure(figures, reference):
        sizes = [figures.median(peer, "stored_bytes") for peer in peers if figures.has(peer)]
        return figures.median(reference, "stored_bytes") / min(sizes) if sizes and min(sizes) else None

    return Target(text, times, measure, at_least=False)


def stored_at_most_kib(kib):
    def measure(figures, reference):
        return max(figures.values(reference, "stored_bytes")) / 1024

    return Target(f"at most {kib} KiB stored", kib, measure, at_least=False)


# --- what is shown ---

def size(count):
    for unit, name in ((2**40, "TiB"), (2**30, "GiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count / 2**20:.3g} MiB"


def table(figures, tools, reference):
    """One row a tool. The last columns say how many times more than the reference it needs."""
    head = ["tool", "wall s", "min..max", "GB/s", "CPU s/GB", "peak MiB", f"wall ×{reference}", f"CPU ×{reference}"]
    stores = any(figures.median(tool, "stored_bytes") for tool in tools)
    rows = [head + ["stored MiB"] * stores]
    for tool in tools:
        walls = figures.values(tool, "wall_s")
        rows.append([
            tool,
            f"{figures.median(tool, 'wall_s'):.3f}",
            f"{min(walls):.3f}..{max(walls):.3f}",
            f"{figures.gb_per_s(tool):.2f}",
            f"{figures.cpu_s_per_gb(tool):.3f}",
            f"{figures.median(tool, 'peak_bytes') / 2**20:.1f}",
            f"{figures.ratio(tool, reference, 'wall_s'):.2f}",
            f"{figures.ratio(tool, reference, 'cpu_s'):.2f}",
            *[f"{figures.median(tool, 'stored_bytes') / 2**20:.2f}"] * stores,
        ])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def show(row):
        cells = [cell.rjust(width) for cell, width in zip(row, widths)]
        return "  " + "  ".join([row[0].ljust(widths[0])] + cells[1:])

    return "\n".join(show(row) for row in rows)


def tool_record(figures, tool, reference, version):
    def spread(quantity, scale, digits):
        values = [value / scale for value in figures.values(tool, quantity)]
        three = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        return {name: round(value, digits) for name, value in three.items()}

    return {
        "version": version,
        "wall_s": spread("wall_s", 1, 4),
        "cpu_s": spread("cpu_s", 1, 4),
        "cpu_s_per_gb": round(figures.cpu_s_per_gb(tool), 4),
        "gb_per_s": round(figures.gb_per_s(tool), 3),
        "peak_mib": spread("peak_bytes", 2**20, 1),
        **({"stored_mib": spread("stored_bytes", 2**20, 3)} if figures.median(tool, "stored_bytes") else {}),
        "wall_ratio": round(figures.ratio(tool, reference, "wall_s"), 3),
        "cpu_ratio": round(figures.ratio(tool, reference, "cpu_s"), 3),
    }


def append_line(path, record):
    record = {"v": 1, "time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **record}
    with open(path, "a") as file:
        file.write(json.dumps(record, separators=(",", ":")) + "\n")


def verdict_record(verdict):
    found = None if verdict.found is None else round(verdict.found, 4)
    return {"target": verdict.text, "wanted": verdict.wanted, "found": found, "reached": verdict.reached}
