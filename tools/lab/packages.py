"""What the lab's guests need, and how it comes here.

    CACHE/kernel/   Debian's cloud kernel 6.1, unpacked (boot/vmlinuz-*, lib/modules/*), modules.dep made by busybox
    CACHE/busybox/  busybox-static, unpacked
    CACHE/apt/      apt's lists and the sources they came from

CACHE is $XDG_CACHE_HOME/mover-lab (~/.cache/mover-lab). Kernel and busybox are downloaded and unpacked, never
installed, which needs no root. Only QEMU is installed, and only where there is none. On Debian 12 it comes from
the backports suite, together with qemu-utils: the plain qemu-system-x86 there would remove newer qemu-utils.

apt runs on lists and sources of its own below CACHE, so the machine's sources stay as they are. The archive's
address is the one that the machine's own sources name (deb822 `.sources` or one-line `.list`).
"""

import os
import pathlib
import re
import shutil
import subprocess

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mover-lab"
QEMU = "qemu-system-x86_64"
KERNEL_PACKAGE = re.compile(r"linux-image-6\.1\.\d+-\d+-cloud-amd64")
KERNEL_RELEASE = "bookworm"  # the Debian release whose kernel is 6.1, the oldest that mover supports


class Missing(Exception):
    """Something that a guest needs is not here; the text says what, and what to do."""


def kernel():
    """(vmlinuz, module directory) of the unpacked kernel, or None."""
    images = sorted(CACHE.glob("kernel/boot/vmlinuz-*"))
    if not images:
        return None
    modules = CACHE / "kernel/lib/modules" / images[-1].name.removeprefix("vmlinuz-")
    return (images[-1], modules) if (modules / "modules.dep").exists() else None


def busybox():
    places = [CACHE / "busybox" / place for place in ("bin/busybox", "usr/bin/busybox")]
    return next((path for path in places if path.exists()), None)


def missing():
    """One line for each thing that is not here; empty when guests can run."""
    found = {QEMU: shutil.which(QEMU), "Debian's cloud kernel 6.1": kernel(), "busybox-static": busybox()}
    return [name for name, where in found.items() if not where]


def prepare(kernel_deb=None, say=print):
    """Brings what is missing; does nothing, and asks for no network, when nothing is."""
    release = host_release()
    if not busybox():
        say("fetching busybox-static")
        fetch("busybox-static", CACHE / "busybox", release)
    if kernel_deb or not kernel():
        prepare_kernel(kernel_deb, release, say)
    if not shutil.which(QEMU):
        say("installing " + QEMU)
        install_qemu(release)
    if missing():
        raise Missing("still missing: " + ", ".join(missing()))


def prepare_kernel(kernel_deb, release, say):
    folder = CACHE / "kernel"
    if kernel_deb:
        unpack(kernel_deb, folder)
    elif release == KERNEL_RELEASE:
        depends = apt_cache(release, "depends", "linux-image-cloud-amd64")
        names = KERNEL_PACKAGE.findall(depends)
        if not names:
            raise Missing("linux-image-cloud-amd64 of this archive depends on no 6.1 kernel:\n" + depends)
        say("fetching " + names[0])
        fetch(names[0], folder, release)
    else:
        raise Missing(
            f"this host is Debian {release or '(unknown)'}; kernel 6.1 is in {KERNEL_RELEASE} only. Get the "
            "package linux-image-6.1.0-*-cloud-amd64 from there and run `guest prepare --kernel-deb FILE`"
        )
    version = next(folder.glob("lib/modules/*")).name
    # The package has no modules.dep; its own install script would make it on the machine.
    execute([busybox(), "depmod", "-b", folder, version])


def install_qemu(release):
    if os.geteuid() != 0:
        raise Missing(f"no {QEMU} here, and only root can install it (package qemu-system-x86)")
    command = ["apt-get", *apt_options(release), "install", "-y", "--no-install-recommends"]
    if release == KERNEL_RELEASE:
        command += ["-t", release + "-backports"]
    execute([*command, "qemu-system-x86", "qemu-utils"], env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


def fetch(package, folder, release):
    """Downloads a package and unpacks it to `folder`, without installing it. Packages it depends on are not looked at."""
    downloads = CACHE / "downloads"
    shutil.rmtree(downloads, ignore_errors=True)
    downloads.mkdir(parents=True)
    execute(["apt-get", *apt_options(release), "download", package], cwd=downloads)
    unpack(next(downloads.glob("*.deb")), folder)
    shutil.rmtree(downloads)


def unpack(deb, folder):
    """Unpacks beside `folder` and renames, so that a folder that exists is a whole one."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    execute(["dpkg", "-x", deb, fresh])
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def host_release():
    text = pathlib.Path("/etc/os-release").read_text()
    match = re.search(r'^VERSION_CODENAME="?([\w-]+)', text, re.MULTILINE)
    return match.group(1) if match else ""


def apt_cache(release, *arguments):
    return execute(["apt-cache", *apt_options(release), *arguments], stdout=subprocess.PIPE).stdout


def apt_options(release):
    """Options that give apt the machine's sources plus backports, with lists below CACHE; updated once per run."""
    base = CACHE / "apt"
    options = [
        f"-oDir::Etc::SourceParts={base}/sources",
        f"-oDir::State::Lists={base}/lists",
        f"-oDir::Cache={base}/cache",
        # apt's own user cannot write below root's home.
        "-oAPT::Sandbox::User=root",
    ]
    if base not in updated:
        shutil.rmtree(base / "sources", ignore_errors=True)
        for folder in ("sources", "lists/partial", "cache/archives/partial"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        write_sources(base / "sources", release)
        execute(["apt-get", *options, "update", "-q"])
        updated.add(base)
    return options


updated = set()


def write_sources(folder, release, etc=pathlib.Path("/etc/apt")):
    """Copies the machine's source files; on Debian 12 a second copy of its entry names the backports suite."""
    backports = None
    for path in [etc / "sources.list", *sorted(etc.glob("sources.list.d/*"))]:
        if path.suffix not in (".list", ".sources") or not path.exists():
            continue
        text = path.read_text()
        if path.parent != etc:  # sources.list itself is read in any case
            (folder / path.name).write_text(text)
        find = backports_deb822 if path.suffix == ".sources" else backports_one_line
        if not backports and (entry := find(text, release)):
            backports = folder / ("mover-lab-backports" + path.suffix), entry
    if release == KERNEL_RELEASE:
        if not backports:
            raise Missing(f"no entry for {release} in this machine's apt sources: the archive's address is not known")
        backports[0].write_text(backports[1])


def backports_deb822(text, release):
    for stanza in re.split(r"\n\s*\n", text):
        # A field goes on in the lines that start with a blank (an inline key does).
        fields = dict(re.findall(r"^([\w-]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE))
        lower = {name.lower(): value for name, value in fields.items()}
        if "deb" not in lower.get("types", "").split() or lower.get("enabled", "yes").strip() == "no":
            continue
        if release in lower.get("suites", "").split():
            changed = {"types": "deb", "suites": release + "-backports"}
            return "".join(f"{name}: {changed.get(name.lower(), value)}\n" for name, value in fields.items())
    return None


def backports_one_line(text, release):
    match = re.search(rf"^(deb\s+(?:\[[^\]]*\]\s+)?\S+\s+){release}(\s.*)$", text, re.MULTILINE)
    return f"{match.group(1)}{release}-backports{match.group(2)}\n" if match else None


def execute(command, **options):
    """Runs a program with its own chatter on our stderr; its failure is our `Missing`."""
    options.setdefault("stdout", 2)
    try:
        return subprocess.run([str(word) for word in command], check=True, text=True, **options)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Missing(f"{command[0]} failed: {error}") from error
