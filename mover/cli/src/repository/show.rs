//! `mover show`: one restore point.

use mover_job::repository::show::{self, ShowDisk, ShowDocument, ShowOptions};
use mover_model::manifest::Method;
use mover_model::units::format_size;
use mover_model::{PointArg, Result};
use mover_repository::notes::PointNote;

use super::RepoArgs;
use crate::output;
use crate::people::{Fields, short_time};

/// Arguments of `mover show`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine, and which of its restore points
    #[arg(value_name = "NAME[@POINT]", value_parser = super::point)]
    point: PointArg,

    #[command(flatten)]
    repository: RepoArgs,
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args, output: output::Options) -> u8 {
    match shown(args) {
        Ok(document) if output.json => output::document(&document),
        Ok(document) => output::text(&page(&document)),
        Err(error) => output::fail("show", &error, output),
    }
}

fn shown(args: Args) -> Result<ShowDocument> {
    let repository = args.repository.options()?;
    let (vm, point) = args.point.or_latest();
    show::run(&ShowOptions { repository, vm, point }, &super::tell)
}

fn page(document: &ShowDocument) -> String {
    let mut page = Fields::default();
    page.head(&format!("{}@{}", document.vm, document.id));
    page.line("repository", format!("{} at {}", document.repository, document.location));
    page.maybe("uuid", document.vm_uuid.as_ref());
    let after = document.parent.as_ref().map_or(String::new(), |parent| format!(", after {parent}"));
    page.line("number", format!("{}{after}", document.sequence));
    page.line("begun", short_time(&document.started));
    page.line(
        "committed",
        format!("{} by {}, mover {}", short_time(&document.finished), document.host, document.mover),
    );
    page.maybe("run key", document.run_key.as_ref());
    for (key, value) in &document.labels {
        page.line("label", format!("{key}={value}"));
    }
    page.line(
        "added",
        format!(
            "{} new, {} stored",
            format_size(document.stored.new_bytes),
            format_size(document.stored.stored_bytes)
        ),
    );
    let state = match (document.damaged, &document.verified_at) {
        (true, _) => "damaged: it is not `latest`".to_owned(),
        (false, Some(time)) => format!("whole when it was verified, {}", short_time(time)),
        (false, None) => "never verified".to_owned(),
    };
    page.line("state", state);
    for note in &document.notes {
        if let PointNote::Damaged { time, extents } = note {
            let touched = extents.iter().map(|(disk, start, length)| format!("{disk} {start}+{length}"));
            let touched = touched.collect::<Vec<_>>().join(", ");
            page.line("damage", format!("seen {}: {touched}", short_time(time)));
        }
    }
    for (name, bytes) in &document.documents {
        page.line("document", format!("{name}, {}", format_size(*bytes)));
    }
    for disk in &document.disks {
        one_disk(&mut page, disk);
    }
    page.text()
}

fn one_disk(page: &mut Fields, disk: &ShowDisk) {
    page.head(&format!("disk {}", disk.id));
    page.line(
        "size",
        format!("{} ({} bytes), {} of data", format_size(disk.size), disk.size, format_size(disk.data_bytes)),
    );
    let how = match disk.method {
        Method::Full => "read whole, the first time",
        Method::Scan => "read whole",
        Method::Changed => "only what had changed was read",
        Method::Common => "neither read nor stored: known already",
    };
    let base = disk.base.as_ref().map_or(String::new(), |base| format!(" since {base}"));
    let reason = disk.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    page.line("backup", format!("{how}{base}{reason}"));
    page.line(
        "added",
        format!(
            "{} read, {} new, {} stored",
            format_size(disk.read_bytes),
            format_size(disk.stored.new_bytes),
            format_size(disk.stored.stored_bytes)
        ),
    );
    page.line("from", disk.path.as_ref().unwrap_or(&disk.source));
    page.line("content", &disk.root);
    page.line("checkpoint", &disk.checkpoint);
    if let Some(common) = &disk.common {
        page.line(
            "common",
            format!("{} at {}; machines: {}", common.id, common.location, common.vms.join(", ")),
        );
    }
    if let Some(pointer) = &disk.pointer {
        page.line(
            "pointer",
            format!("{} says {}, which was {}", pointer.holder, pointer.value, pointer.resolved),
        );
    }
    for (start, length) in &disk.bad_extents {
        page.line("not read", format!("{} at offset {start}", format_size(*length)));
    }
}
