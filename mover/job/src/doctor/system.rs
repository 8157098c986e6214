//! What this host gives to every run.

use mover_engine::capability::{Capabilities, probe};
use mover_engine::sys::read_setting;
use mover_model::limits;
use mover_model::units::format_size;
use serde::Serialize;

use super::Advice;
use crate::resolve::parse_cpu_list;

/// Facts of the host.
#[derive(Debug, Clone, Serialize)]
pub struct System {
    /// Release of the kernel.
    pub kernel: String,
    /// `x86_64`, `aarch64`, …
    pub machine: String,
    /// How requests can reach the kernel.
    pub io_uring: IoUring,
    /// Whether buffers can be registered with a ring.
    pub registered_buffers: Fact,
    /// Limit on locked memory in bytes; absent: none.
    pub memlock_bytes: Option<u64>,
    /// Whether this process may lock memory past it (CAP_IPC_LOCK).
    pub memlock_exempt: bool,
    /// Pools of huge pages.
    pub huge_page_pools: Vec<HugePagePool>,
    /// The setting of transparent huge pages: `always`, `madvise`, `never`; `none`: not in this kernel.
    pub transparent_huge_pages: String,
    /// CPUs that this process may run on.
    pub cpus_available: usize,
    /// CPUs that are on line.
    pub cpus_online: usize,
    /// NUMA nodes.
    pub numa_nodes: Vec<NumaNode>,
}

/// Something that is there or not, and why not.
#[derive(Debug, Clone, Serialize)]
pub struct Fact {
    /// Whether it is there.
    pub usable: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Fact {
    fn of(result: &Result<(), String>) -> Self {
        Fact { usable: result.is_ok(), reason: result.as_ref().err().cloned() }
    }
}

/// io_uring as this process may use it.
#[derive(Debug, Clone, Serialize)]
pub struct IoUring {
    /// Whether it may be used at all.
    pub usable: bool,
    /// The flavour that will be used.
    pub flavour: Option<String>,
    /// Why it may not be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Every flavour, from the best to the plainest, then the polled ones.
    pub flavours: Vec<Flavour>,
}

/// A way to set up a ring.
#[derive(Debug, Clone, Serialize)]
pub struct Flavour {
    /// Its name in events.
    pub name: String,
    /// Whether the kernel sets it up.
    #[serde(flatten)]
    pub fact: Fact,
}

/// A pool of huge pages of one size.
#[derive(Debug, Clone, Serialize)]
pub struct HugePagePool {
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages in the pool.
    pub total: u64,
    /// Of these, free.
    pub free: u64,
}

/// A NUMA node.
#[derive(Debug, Clone, Serialize)]
pub struct NumaNode {
    /// Its number.
    pub node: u32,
    /// Its CPUs, as the kernel lists them.
    pub cpus: String,
    /// Its memory.
    pub memory_bytes: Option<u64>,
}

/// Looks at the host.
pub fn look() -> (System, Capabilities) {
    let found = probe();
    let flavours = found
        .flavours
        .iter()
        .map(|(flavour, result)| Flavour { name: flavour.name().to_owned(), fact: Fact::of(result) })
        .collect();
    let online = read_setting("/sys/devices/system/cpu/online").unwrap_or_default();
    let system = System {
        kernel: found.kernel.clone(),
        machine: std::env::consts::ARCH.to_owned(),
        io_uring: IoUring {
            usable: found.uring.is_ok(),
            flavour: found.uring.as_ref().ok().map(|flavour| flavour.name().to_owned()),
            reason: found.uring.as_ref().err().cloned(),
            flavours,
        },
        registered_buffers: Fact::of(&found.registered_buffers),
        memlock_bytes: found.memlock,
        memlock_exempt: mover_engine::capability::may_lock_memory(),
        huge_page_pools: pools(),
        transparent_huge_pages: chosen(&found.transparent_huge_pages).to_owned(),
        cpus_available: found.cpus,
        cpus_online: parse_cpu_list(&online).map_or(found.cpus, |cpus| cpus.len()),
        numa_nodes: nodes(),
    };
    (system, found)
}

/// The word in brackets of `always [madvise] never`; all of it where there is none.
pub(super) fn chosen(setting: &str) -> &str {
    match (setting.find('['), setting.find(']')) {
        (Some(from), Some(to)) if from < to => &setting[from + 1..to],
        _ => setting,
    }
}

fn numbered(folder: &str, prefix: &str, suffix: &str) -> Vec<(u64, std::path::PathBuf)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort();
    found
}

fn pools() -> Vec<HugePagePool> {
    let number =
        |path: std::path::PathBuf| read_setting(path).and_then(|text| text.parse().ok()).unwrap_or(0);
    numbered("/sys/kernel/mm/hugepages", "hugepages-", "kB")
        .into_iter()
        .map(|(kib, path)| HugePagePool {
            page_bytes: kib << 10,
            total: number(path.join("nr_hugepages")),
            free: number(path.join("free_hugepages")),
        })
        .collect()
}

fn nodes() -> Vec<NumaNode> {
    numbered("/sys/devices/system/node", "node", "")
        .into_iter()
        .map(|(node, path)| NumaNode {
            node: node as u32,
            cpus: read_setting(path.join("cpulist")).unwrap_or_default(),
            memory_bytes: read_setting(path.join("meminfo")).as_deref().and_then(memory_of),
        })
        .collect()
}

/// Bytes of `Node 0 MemTotal:  24576 kB`.
fn memory_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.contains("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().rev().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// What would make the host better, and how.
pub fn advice(system: &System) -> Vec<Advice> {
    let mut list = Vec::new();
    if let Some(reason) = &system.io_uring.reason {
        let how = if reason.contains("io_uring_disabled") {
            "sysctl kernel.io_uring_disabled=0".to_owned()
        } else if reason.contains("seccomp") || reason.contains("security module") {
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile"
                .to_owned()
        } else if reason.contains("ulimit") {
            "ulimit -l unlimited".to_owned()
        } else {
            "a kernel of 5.19 or later with CONFIG_IO_URING".to_owned()
        };
        list.push(Advice::new("io_uring", &format!("system calls: {reason}"), "io_uring", how));
    } else if let Some(flavour) =
        system.io_uring.flavour.as_deref().filter(|flavour| !flavour.starts_with("defer"))
    {
        let better = "completions handled by the worker itself (DEFER_TASKRUN)";
        list.push(Advice::new("io_uring", flavour, better, "a kernel of 6.1 or later".to_owned()));
    }
    // Two workers of the default size, their blocks of zeros and rings.
    let needed = limits::BUFFER_BYTES_DEFAULT + (1 << 20);
    let too_low = system.memlock_bytes.filter(|&limit| limit < needed && !system.memlock_exempt);
    if system.io_uring.usable && (!system.registered_buffers.usable || too_low.is_some()) {
        let reason = system.registered_buffers.reason.clone();
        let reason = reason.unwrap_or_else(|| "the limit on locked memory is too low for two workers".into());
        let needed = format_size(needed);
        let how = format!(
            "ulimit -l unlimited (at least {needed}), or LimitMEMLOCK=infinity in the service's unit, \
             or memlock in /etc/security/limits.conf"
        );
        list.push(Advice::new(
            "registered_buffers",
            &format!("plain buffers: {reason}"),
            "registered buffers",
            how,
        ));
    }
    if system.transparent_huge_pages == "never" {
        let how = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled".to_owned();
        list.push(Advice::new("huge_pages", "ordinary pages", "transparent huge pages for buffers", how));
    }
    if let Some(pool) = system.huge_page_pools.iter().find(|pool| pool.page_bytes == 2 << 20) {
        let needed = (limits::BUFFER_BYTES_DEFAULT >> 21) + 2;
        if pool.free < needed {
            let now = format!("{} free pages of 2 MiB", pool.free);
            let how = format!(
                "sysctl vm.nr_hugepages={}, then --hugepages required",
                pool.total - pool.free + needed
            );
            list.push(Advice::new("huge_pages", &now, "buffers in the hugetlb pool (optional)", how));
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_in_brackets() {
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(chosen("none"), "none");
        assert_eq!(memory_of("\nNode 0 MemTotal:       1024 kB\nNode 0 MemFree: 1 kB"), Some(1 << 20));
    }

    #[test]
    fn what_is_missing_comes_with_a_command() {
        let (mut system, _) = look();
        system.io_uring.usable = false;
        system.io_uring.reason = Some("forbidden by the sysctl kernel.io_uring_disabled=2".into());
        let list = advice(&system);
        assert!(list.iter().any(|a| a.about == "io_uring" && a.how == "sysctl kernel.io_uring_disabled=0"));
        system.io_uring.usable = true;
        system.io_uring.reason = None;
        (system.memlock_bytes, system.memlock_exempt) = (Some(8 << 20), false);
        system.registered_buffers = Fact { usable: true, reason: None };
        assert!(advice(&system).iter().any(|a| a.how.contains("ulimit -l")));
        system.memlock_exempt = true;
        assert!(!advice(&system).iter().any(|a| a.how.contains("ulimit -l")));
    }
}
