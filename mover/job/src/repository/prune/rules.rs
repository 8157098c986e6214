//! Which restore points of a machine the rules keep.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::PruneOptions;

/// A restore point, as the rules see it.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    /// When it was begun: RFC 3339.
    pub started: String,
    /// Whether parts of it are not there or not whole.
    pub damaged: bool,
}

/// What the rules say of a restore point.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Whether it stays.
    pub keep: bool,
    /// The rules that keep it, or why none does.
    pub reasons: Vec<String>,
}

impl Verdict {
    fn keep(&mut self, reason: String) {
        self.keep = true;
        self.reasons.push(reason);
    }
}

/// Names the day, week, month or year of a date.
type NameOf = fn(Date) -> String;

/// Judges the restore points of a machine, in their order, the oldest first.
///
/// Damaged ones are passed over: they neither stay nor take the place of one that is whole, as long as there is one.
pub(super) fn judge(options: &PruneOptions, points: &[Candidate]) -> Vec<Verdict> {
    let mut verdicts = vec![Verdict::default(); points.len()];
    let whole = points.iter().any(|point| !point.damaged);
    let newest_first: Vec<usize> =
        (0..points.len()).rev().filter(|i| !whole || !points[*i].damaged).collect();
    if let Some(most) = options.keep_last {
        for (rank, index) in newest_first.iter().take(most as usize).enumerate() {
            verdicts[*index].keep(format!("last {}/{most}", rank + 1));
        }
    }
    let dates: Vec<Option<Date>> = points.iter().map(|point| date_of(&point.started)).collect();
    let periods: [(&str, Option<u32>, NameOf); 4] = [
        ("daily", options.keep_daily, |date| date.to_string()),
        ("weekly", options.keep_weekly, |date| {
            let week = date.iso_week_date();
            format!("{}-W{:02}", week.year(), week.week())
        }),
        ("monthly", options.keep_monthly, |date| format!("{}-{:02}", date.year(), date.month())),
        ("yearly", options.keep_yearly, |date| date.year().to_string()),
    ];
    for (rule, most, period) in periods {
        // A set and not the last one seen: order is by parent, and a clock that was set back may come to a day twice.
        let mut seen = BTreeSet::new();
        for index in &newest_first {
            let Some(date) = dates[*index] else { continue };
            let name = period(date);
            if (seen.len() as u64) < u64::from(most.unwrap_or(0)) && seen.insert(name.clone()) {
                verdicts[*index].keep(format!("{rule} {name}"));
            }
        }
    }
    for (index, verdict) in verdicts.iter_mut().enumerate() {
        if verdict.keep {
            continue;
        }
        if dates[index].is_none() {
            verdict.keep(format!("its time {:?} is none", points[index].started));
        } else if whole && points[index].damaged {
            verdict.reasons.push("damaged".into());
        } else {
            verdict.reasons.push("no rule keeps it".into());
        }
    }
    verdicts
}

fn date_of(started: &str) -> Option<Date> {
    Some(started.parse::<Timestamp>().ok()?.to_zoned(TimeZone::UTC).date())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(times: &[&str]) -> Vec<Candidate> {
        let point = |time: &&str| {
            let (started, damaged) = time.strip_suffix('!').map_or((*time, false), |time| (time, true));
            Candidate { started: format!("{started}Z"), damaged }
        };
        times.iter().map(point).collect()
    }

    fn kept(options: &PruneOptions, times: &[&str]) -> Vec<usize> {
        let verdicts = judge(options, &points(times));
        assert!(verdicts.iter().all(|verdict| !verdict.reasons.is_empty()));
        (0..times.len()).filter(|index| verdicts[*index].keep).collect()
    }

    fn rules(last: u32, daily: u32, weekly: u32, monthly: u32, yearly: u32) -> PruneOptions {
        PruneOptions {
            keep_last: Some(last),
            keep_daily: Some(daily),
            keep_weekly: Some(weekly),
            keep_monthly: Some(monthly),
            keep_yearly: Some(yearly),
            ..PruneOptions::default()
        }
    }

    const TIMES: [&str; 9] = [
        "2024-12-29T12:00:00", // Sunday of 2024-W52
        "2024-12-30T12:00:00", // Monday of 2025-W01
        "2025-01-05T12:00:00", // Sunday of 2025-W01
        "2025-01-31T23:59:59",
        "2025-02-01T00:00:00",
        "2025-02-01T08:00:00",
        "2025-02-01T23:59:59",
        "2025-02-03T00:00:00",
        "2025-02-03T01:00:00",
    ];

    #[test]
    fn each_rule_keeps_the_newest_of_its_last_periods_that_have_one() {
        assert_eq!(kept(&rules(3, 0, 0, 0, 0), &TIMES), [6, 7, 8]);
        assert_eq!(kept(&rules(0, 1, 0, 0, 0), &TIMES), [8]);
        assert_eq!(kept(&rules(0, 3, 0, 0, 0), &TIMES), [3, 6, 8]);
        assert_eq!(kept(&rules(0, 0, 3, 0, 0), &TIMES), [2, 6, 8]);
        assert_eq!(kept(&rules(0, 0, 4, 0, 0), &TIMES), [0, 2, 6, 8]);
        assert_eq!(kept(&rules(0, 0, 0, 2, 0), &TIMES), [3, 8]);
        assert_eq!(kept(&rules(0, 0, 0, 0, 5), &TIMES), [1, 8]);
        assert_eq!(kept(&rules(1, 2, 2, 2, 2), &TIMES), [1, 3, 6, 8]);
        assert_eq!(kept(&rules(100, 0, 0, 0, 0), &TIMES), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(kept(&rules(0, 0, 0, 0, 0), &TIMES), [0usize; 0]);
    }

    #[test]
    fn reasons_name_the_rules() {
        let verdicts = judge(&rules(7, 1, 1, 1, 1), &points(&["2026-11-20T19:30:00"]));
        let expected = ["last 1/7", "daily 2026-11-20", "weekly 2026-W47", "monthly 2026-11", "yearly 2026"];
        assert_eq!(verdicts[0].reasons, expected);
        assert_eq!(judge(&rules(0, 0, 0, 0, 0), &points(&TIMES))[0].reasons, ["no rule keeps it"]);
    }

    #[test]
    fn damaged_points_take_no_place_unless_nothing_else_is_there() {
        let times =
            ["2026-01-01T00:00:00", "2026-01-02T00:00:00", "2026-01-02T01:00:00!", "2026-01-03T00:00:00!"];
        assert_eq!(kept(&rules(1, 0, 0, 0, 0), &times), [1]);
        assert_eq!(kept(&rules(0, 2, 0, 0, 0), &times), [0, 1]);
        assert_eq!(judge(&rules(1, 0, 0, 0, 0), &points(&times))[3].reasons, ["damaged"]);
        assert_eq!(kept(&rules(1, 0, 0, 0, 0), &["2026-01-01T00:00:00!", "2026-01-02T00:00:00!"]), [1]);
    }

    #[test]
    fn order_is_by_parent_and_not_by_clock() {
        // The clock was set back before the last two.
        let times =
            ["2026-01-01T00:00:00", "2026-01-09T00:00:00", "2026-01-02T00:00:00", "2026-01-02T01:00:00"];
        assert_eq!(kept(&rules(1, 0, 0, 0, 0), &times), [3]);
        assert_eq!(kept(&rules(0, 2, 0, 0, 0), &times), [1, 3]);
        assert_eq!(kept(&rules(1, 0, 0, 0, 0), &["nonsense", "2026-01-01T00:00:00"]), [0, 1]);
    }
}
