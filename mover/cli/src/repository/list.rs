//! `mover list`: machines, or the restore points of one.

use mover_job::repository::list::{self, ListDocument, ListOptions};
use mover_model::units::format_size;
use mover_model::{Name, Result};

use super::RepoArgs;
use crate::output;
use crate::people::{columns, figures, short_time, words};

/// Arguments of `mover list`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine whose restore points are listed [default: all machines, a line for each]
    #[arg(value_name = "NAME", value_parser = super::name)]
    vm: Option<Name>,

    #[command(flatten)]
    repository: RepoArgs,
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args, output: output::Options) -> u8 {
    match listed(args) {
        Ok(document) if output.json => output::document(&document),
        Ok(document) => output::text(&page(&document)),
        Err(error) => output::fail("list", &error, output),
    }
}

fn listed(args: Args) -> Result<ListDocument> {
    let options = ListOptions { repository: args.repository.options()?, vm: args.vm };
    list::run(&options, &super::tell)
}

fn page(document: &ListDocument) -> String {
    let mut text = String::new();
    if let Some(machines) = &document.machines {
        if machines.is_empty() {
            return format!("no restore points in {}\n", document.location);
        }
        let head = [
            words("NAME"),
            figures("POINTS"),
            words("LATEST"),
            words("TIME"),
            figures("DISKS"),
            figures("SIZE"),
            figures("STORED"),
            words("STATE"),
        ];
        let rows: Vec<Vec<String>> = machines
            .iter()
            .map(|machine| {
                vec![
                    machine.vm.clone(),
                    machine.points.to_string(),
                    machine.latest.clone().unwrap_or_else(|| "none".to_owned()),
                    machine.latest_time.as_deref().map(short_time).unwrap_or_default(),
                    machine.disks.to_string(),
                    format_size(machine.size),
                    format_size(machine.stored_bytes),
                    if machine.damaged > 0 { format!("{} damaged", machine.damaged) } else { String::new() },
                ]
            })
            .collect();
        text.push_str(&columns(&head, &rows));
    }
    if let Some(points) = &document.points {
        let head = [
            words("POINT"),
            words("TIME"),
            figures("DISKS"),
            figures("SIZE"),
            figures("NEW"),
            figures("STORED"),
            words("STATE"),
        ];
        let rows: Vec<Vec<String>> = points
            .iter()
            .map(|point| {
                let state = match (point.damaged, &point.verified_at) {
                    (true, _) => "damaged".to_owned(),
                    (false, Some(time)) => format!("verified {}", short_time(time)),
                    (false, None) => String::new(),
                };
                vec![
                    point.id.clone(),
                    short_time(&point.time),
                    point.disks.to_string(),
                    format_size(point.size),
                    format_size(point.new_bytes),
                    format_size(point.stored_bytes),
                    state,
                ]
            })
            .collect();
        text.push_str(&columns(&head, &rows));
    }
    for unreadable in &document.unreadable {
        text.push_str(&format!("cannot be read: {}: {}\n", unreadable.key, unreadable.reason));
    }
    text
}
