//! The plan of `--dry-run` as a table.

use mover_model::event::Plan;
use mover_model::units::format_size;

/// The plans, one below the other, each a table of names and values.
pub fn plan_table(plans: &[Plan]) -> String {
    let mut text = String::new();
    for plan in plans {
        if !text.is_empty() {
            text.push('\n');
        }
        for (name, value) in rows(plan) {
            text.push_str(&format!("{name:<10} {}\n", super::one_line(&value)));
        }
    }
    text
}

fn rows(plan: &Plan) -> Vec<(&'static str, String)> {
    let on_the_way = || "found on the way".to_owned();
    let size = |bytes: Option<u64>, otherwise: &dyn Fn() -> String| match bytes {
        Some(bytes) if bytes < 1024 => format_size(bytes),
        Some(bytes) => format!("{} ({bytes} bytes)", format_size(bytes)),
        None => otherwise(),
    };
    let from = match plan.extents_from.as_str() {
        "allocation" => "the source's allocation",
        "list" => "the list given",
        "whole" => "the whole source",
        "stream" => "a stream",
        other => other,
    };
    vec![
        ("source", format!("{} ({})", plan.source, plan.source_access)),
        ("target", format!("{} ({})", plan.target, plan.target_access)),
        ("size", size(plan.size, &|| "unknown".to_owned())),
        ("data", size(plan.data_bytes, &on_the_way)),
        ("zero", size(plan.zero_bytes, &on_the_way)),
        ("extents", format!("{}, from {from}", plan.extents.map_or_else(on_the_way, |n| n.to_string()))),
        ("by", plan.backend.clone()),
        (
            "requests",
            format!("up to {}, {} in flight", format_size(u64::from(plan.block_size)), plan.queue_depth),
        ),
        ("workers", format!("{} ({} of buffers in all)", plan.workers, format_size(plan.buffer_bytes))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_for_people() {
        let plan = Plan {
            pair: 0,
            source: "a\n.raw".into(),
            target: "b.raw".into(),
            size: Some(8 << 30),
            extents_from: "allocation".into(),
            data_bytes: Some(5 << 30),
            zero_bytes: None,
            extents: Some(12),
            backend: "io_uring".into(),
            source_access: "direct".into(),
            target_access: "buffered".into(),
            block_size: 1 << 20,
            queue_depth: 8,
            workers: 2,
            buffer_bytes: 16 << 20,
        };
        let expected = "\
source     a\\n.raw (direct)
target     b.raw (buffered)
size       8 GiB (8589934592 bytes)
data       5 GiB (5368709120 bytes)
zero       found on the way
extents    12, from the source's allocation
by         io_uring
requests   up to 1 MiB, 8 in flight
workers    2 (16 MiB of buffers in all)
";
        assert_eq!(plan_table(std::slice::from_ref(&plan)), expected);
        assert_eq!(plan_table(&[plan.clone(), plan]), format!("{expected}\n{expected}"));
    }
}
