"""Real guests for tests: a Debian 6.1 kernel under QEMU's TCG, with a busybox initramfs made for each run.

    with Guest("uname -r; mover copy /dev/vda /out/x", shares=[("target/debug/mover", "/bin/mover")],
               disks=["vm.raw,serial=system"], out="results") as guest:
        code = guest.wait(timeout_s=60)

How output stays clean: the kernel's console is the serial port, kept in a file. The command's stdout and
stderr, and a tar of the guest's /out, come over virtio ports of their own. The guest ends each stream with a
mark, NUL + a random token + a number; for stdout the number is the command's exit code. Only when every mark is
here is QEMU told to end: a guest that powers itself off could lose what its ports still hold. A stream that
ends without its mark means that the guest died.

How QEMU never survives us: it is started by `setpriv --pdeathsig KILL`, so even our own death by SIGKILL ends
it.
"""

import json
import os
import pathlib
import re
import secrets
import selectors
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time

import packages

HERE = pathlib.Path(__file__).resolve().parent
MODULES = ["virtio_pci", "virtio_blk", "virtio_console", "loop"]  # with what they depend on; nvme and ext4 are built in
KERNEL_ARGUMENTS = "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off"
# IOPOLL on NVMe needs queues without interrupts. The driver makes them only when asked, and not more than there are
# CPUs.
NVME_POLL_QUEUES = 2
STOP_S = 5  # after SIGTERM, for QEMU to flush its images; a kill follows


class LabError(Exception):
    """The guest could not be made, or died. Says nothing about the command in it."""


class GuestTimeout(LabError):
    pass


class Guest:
    """One run of one machine. `command` is shell text. The other arguments are what `guest run` documents; `ports` and
    `qmp` make unix sockets for tests that talk to the guest's agent or to QEMU while the command runs."""

    def __init__(self, command, shares=(), disks=(), nvmes=(), memory="512M", smp=2, append="", modules=(),
                 ports=None, qmp=None, qemu=(), out=None, console=None):
        if missing := packages.missing():
            raise packages.Missing(f"not here: {', '.join(missing)}; run `tools/lab/guest prepare`")
        ports = ports or {}
        self.out, self.process = out, None
        self.streams = ["lab.stdout", "lab.stderr"] + (["lab.out"] if out else [])
        self.token = secrets.token_hex(16)
        self.sockets = {}
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="mover-lab-"))
        self.console = pathlib.Path(console) if console else self.work / "console"
        try:
            drives, serials = drive_arguments(disks, nvmes)
            vmlinuz, tree = packages.kernel()
            arguments = f"{KERNEL_ARGUMENTS} nvme.poll_queues={min(NVME_POLL_QUEUES, smp)} {append}".strip()
            orders = {
                "modules": module_lines(tree, [*MODULES, *modules], arguments),
                "ports": [*self.streams, *ports],
                "serials": serials,
                "command": [command],
                "token": [self.token],
            }
            write_initramfs(self.work / "initramfs", tree, orders, shares)
            self.arguments = [
                packages.QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-m", memory, "-smp", str(smp),
                "-kernel", str(vmlinuz), "-initrd", str(self.work / "initramfs"), "-append", arguments,
                "-serial", f"file:{escape(self.console)}", "-device", "virtio-serial-pci", *drives,
                *(["-qmp", f"unix:{escape(qmp)},server=on,wait=off"] if qmp else []),
                *port_arguments({name: f"path={escape(path)},server=on,wait=off" for name, path in ports.items()}),
                *qemu,
            ]
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def start(self):
        theirs = {}
        for name in self.streams:
            self.sockets[name], theirs[name] = socket.socketpair()
        streams = port_arguments({name: f"fd={end.fileno()}" for name, end in theirs.items()})
        with open(self.work / "qemu", "wb") as messages:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.arguments, *streams],
                stdin=subprocess.DEVNULL, stdout=messages, stderr=messages,
                pass_fds=[end.fileno() for end in theirs.values()],
            )
        for end in theirs.values():
            end.close()

    def wait(self, timeout_s, stdout=None, stderr=None):
        """Passes the command's output on as it comes, and returns its exit code."""
        deadline = time.monotonic() + timeout_s
        stdout, stderr = stdout or sys.stdout.buffer, stderr or sys.stderr.buffer
        with open(self.work / "out.tar", "w+b") as archive, selectors.DefaultSelector() as selector:
            sinks = {"lab.stdout": stdout, "lab.stderr": stderr, "lab.out": archive}
            for name in self.streams:
                selector.register(self.sockets[name], selectors.EVENT_READ, MarkedStream(self.token, sinks[name]))
            streams = {key.fd: key.data for key in selector.get_map().values()}
            while selector.get_map():
                events = selector.select(max(0, deadline - time.monotonic()))
                if not events and time.monotonic() >= deadline:
                    raise GuestTimeout(f"the guest did not finish within {timeout_s:g} s{self.last_words()}")
                for key, _ in events:
                    data = receive(key.fileobj)
                    key.data.feed(data)
                    if key.data.value is not None:
                        selector.unregister(key.fileobj)
                    elif not data:
                        raise LabError(f"the guest died before its command ended{self.last_words()}")
            code = streams[self.sockets["lab.stdout"].fileno()].value
        if self.out:
            pathlib.Path(self.out).mkdir(parents=True, exist_ok=True)
            subprocess.run(["tar", "-xf", self.work / "out.tar", "--no-same-owner", "-C", self.out], check=True)
        return code

    def last_words(self, lines_max=25):
        """What QEMU and the console said last, for an error message."""
        text = ""
        for title, path in (("qemu", self.work / "qemu"), ("console", self.console)):
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            lines = [line for line in lines if line.strip()]
            # A panic is told by its first line and the trace after it, not by the trace's end.
            begin = next((i for i, line in enumerate(lines) if "Kernel panic" in line), max(0, len(lines) - lines_max))
            text += "".join(f"\n{title}: {line}" for line in lines[begin:begin + lines_max])
        return text

    def close(self):
        """Ends QEMU and removes what the run needed. SIGTERM lets QEMU flush its images first."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for end in self.sockets.values():
            end.close()
        shutil.rmtree(self.work, ignore_errors=True)


class MarkedStream:
    """Passes bytes on up to the mark; holds back only what may be the mark's beginning."""

    def __init__(self, token, sink):
        self.mark = b"\0" + token.encode() + b" "
        self.sink, self.held, self.value = sink, b"", None

    def feed(self, data):
        self.held += data
        begin = self.held.find(self.mark)
        if begin < 0:
            begin = len(self.held)
            # The mark has one NUL, at its start: only the last NUL can begin one that is not whole yet.
            last = self.held.rfind(b"\0", -len(self.mark))
            if last >= 0 and self.mark.startswith(self.held[last:]):
                begin = last
        elif self.held.endswith(b"\n"):
            self.value = int(self.held[begin + len(self.mark):])
        self.sink.write(self.held[:begin])
        self.sink.flush()
        self.held = self.held[begin:]


def receive(connection):
    try:
        return connection.recv(1 << 16)
    except ConnectionResetError:
        return b""


# QEMU's arguments.


def escape(path):
    """A comma in a path is doubled for QEMU."""
    return str(path).replace(",", ",,")


def port_arguments(backends):
    arguments = []
    for name, backend in backends.items():
        arguments += ["-chardev", f"socket,id=chardev.{name},{backend}"]
        arguments += ["-device", f"virtserialport,chardev=chardev.{name},name={name}"]
    return arguments


def drive_arguments(disks, nvmes):
    """QEMU's arguments for `FILE[,option=value…]` specifications, and the serial numbers to wait for in the guest.

    The node is named disk0, disk1, … and nvme0, nvme1, …; so is the serial number unless one is given. `format`,
    `readonly` and `direct` are the image's; every other option goes to the device (serial, logical_block_size, …)."""
    arguments, serials = [], []
    named = [(f"disk{i}", "virtio-blk-pci", text) for i, text in enumerate(disks)]
    named += [(f"nvme{i}", "nvme", text) for i, text in enumerate(nvmes)]
    for name, device, text in named:
        path, *words = [word.replace("\0", ",") for word in text.replace(",,", "\0").split(",")]
        if not os.path.exists(path):
            raise LabError(f"disk {path}: no such file")
        options = dict(word.partition("=")[::2] for word in words)
        kind = "host_device" if stat.S_ISBLK(os.stat(path).st_mode) else "file"
        node = {
            "driver": options.pop("format", "raw"), "node-name": name, "discard": "unmap",
            "read-only": options.pop("readonly", "off") == "on",
            "cache": {"direct": options.pop("direct", "off") == "on"},
            "file": {"driver": kind, "filename": os.path.abspath(path)},
        }
        # Every layer has a cache flag of its own; only the file's opens with O_DIRECT.
        node["file"]["cache"] = node["cache"]
        options.setdefault("serial", name)
        serials.append(options["serial"])
        extra = "".join(f",{key}={escape(value)}" for key, value in options.items())
        arguments += ["-blockdev", json.dumps(node), "-device", f"{device},drive={name}{extra}"]
    return arguments, serials


# The initramfs.


def write_initramfs(path, tree, orders, shares):
    files = Archive()
    files.add_file(packages.busybox(), "/bin/busybox")
    files.add_bytes((HERE / "init.sh").read_bytes(), "/init", 0o755)
    for name, lines in orders.items():
        files.add_bytes("".join(line + "\n" for line in lines).encode(), "/lab/" + name, 0o644)
    for line in orders["modules"]:
        module = line.split()[0]
        files.add_file(tree / module.removeprefix("/lib/modules/"), module)
    libraries = set()
    for source, target in shares:
        if not target.startswith("/"):
            raise LabError(f"{target}: a path in the guest begins with /")
        for inner, name in files_below(pathlib.Path(source), target):
            files.add_file(inner, name)
            libraries |= libraries_of(inner)
    for library in sorted(libraries):
        files.add_file(library, library)
    if libraries and os.path.exists("/etc/ld.so.cache"):  # for libraries outside the loader's own folders
        files.add_file("/etc/ld.so.cache", "/etc/ld.so.cache")
    path.write_bytes(files.finish())


def files_below(source, target):
    if not source.exists():
        raise LabError(f"{source}: no such file")
    if not source.is_dir():
        return [(source, target)]
    inners = [inner for inner in sorted(source.rglob("*")) if inner.is_file()]
    return [(inner, f"{target}/{inner.relative_to(source)}") for inner in inners]


def libraries_of(path):
    """The shared libraries, and the loader, that ldd names for a dynamic ELF file."""
    with open(path, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return set()
    answer = subprocess.run(["ldd", path], capture_output=True, text=True)
    if absent := re.findall(r"^\s*(\S+) => not found", answer.stdout, re.MULTILINE):
        raise LabError(f"{path} needs {', '.join(absent)}, not found here")
    return set(re.findall(r"^\s*(?:\S+ => )?(/\S+) \(0x", answer.stdout, re.MULTILINE))  # none for a static file


def module_lines(tree, names, arguments):
    """`/lib/modules/FILE PARAMETER=VALUE…` for each module, after what it depends on. What is built in is left out."""
    table = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        module, _, needs = line.partition(":")
        table[module_name(module)] = (module, needs.split())
    builtin = {module_name(line) for line in (tree / "modules.builtin").read_text().splitlines()}
    lines = {}

    def add(name):
        name = module_name(name)
        if name in builtin or name in lines:
            return
        if name not in table:
            raise LabError(f"this kernel has no module {name}")
        module, needs = table[name]
        for need in needs:
            add(need)
        # insmod does not read the kernel's command line, so `module.parameter=value` there is handed over here.
        words = [word.partition(".") for word in arguments.split()]
        parameters = [parameter for owner, _, parameter in words if module_name(owner) == name]
        lines[name] = " ".join(["/lib/modules/" + module, *parameters])

    for name in names:
        add(name)
    return list(lines.values())


def module_name(path):
    return os.path.basename(path).partition(".ko")[0].replace("-", "_")


class Archive:
    """A cpio archive in the `newc` format, which the kernel unpacks as its first file tree."""

    def __init__(self):
        self.entries = {}  # path without its first slash: (mode, bytes)

    def add_file(self, source, target):
        mode = 0o755 if os.access(source, os.X_OK) else 0o644
        self.add_bytes(pathlib.Path(source).read_bytes(), str(target), mode)

    def add_bytes(self, data, target, mode):
        name = os.path.normpath(target).strip("/")
        for parent in reversed(pathlib.PurePosixPath(name).parents[:-1]):
            self.entries.setdefault(str(parent), (stat.S_IFDIR | 0o755, b""))
        self.entries[name] = (stat.S_IFREG | mode, data)

    def finish(self):
        pieces, now = [], int(time.time())
        for inode, (name, (mode, data)) in enumerate([*self.entries.items(), ("TRAILER!!!", (0, b""))], 1):
            name = name.encode() + b"\0"
            # inode, mode, uid, gid, links, mtime, size, device × 2, special device × 2, name's length, checksum
            fields = [inode, mode, 0, 0, 1, now, len(data), 0, 0, 0, 0, len(name), 0]
            head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
            pieces += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]
        return b"".join(pieces)


def raise_on_signals():
    """Turns signals that would end us into an exception, so that the guest is closed on the way out."""
    def leave(number, _):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, leave)
