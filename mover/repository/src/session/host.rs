//! Who and when we are.

use std::time::Duration;

use mover_engine::sys::read_setting;
use mover_model::{Error, ErrorKind, Result};
use nix::time::{ClockId, clock_gettime};

/// The host's name.
pub(super) fn name() -> String {
    read_setting("/proc/sys/kernel/hostname").unwrap_or_else(|| "unknown".to_owned())
}

/// A hash of the machine's id and of this boot's, for no other use: the machine's id itself is not for others to see.
/// Equal on two processes, it means one kernel, which alone knows the locks of both. Empty where there is no boot id.
pub(super) fn id() -> String {
    let Some(boot) = read_setting("/proc/sys/kernel/random/boot_id").filter(|id| !id.is_empty()) else {
        return String::new();
    };
    // Containers often have none; they share the kernel, and its boot id, all the same.
    let machine = read_setting("/etc/machine-id").unwrap_or_default();
    let hash = blake3::derive_key("mover 1 session host", format!("{machine}\n{boot}").as_bytes());
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Time since this host was started, its sleep included: other hosts do not sleep with us.
pub(super) fn uptime() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(|errno| {
        Error::new(ErrorKind::Internal, format!("the kernel's clock CLOCK_BOOTTIME: {}", errno.desc()))
            .hint("mover needs it to know how old its session is")
    })?;
    Ok(time.into())
}
