//! Of sessions that exclude each other, exactly one goes on.
//!
//! Times of objects cannot decide it: two of them may be equal, and a put may be held up after its time was taken, so that
//! it shows up before another that has long looked and gone on. So they stand in line, as at Lamport's bakery:
//!
//! 1. `sessions/ID/0` is put: from here on others wait until this one stands in line or has left.
//! 2. All are listed. Somebody stands in line already: we leave, with `Busy`. Else `sessions/ID/turn` is put.
//! 3. All are listed again, until no other living one is before its step 2's end. Somebody of a lower id stands in line:
//!    we leave. Nobody: we stay.
//!
//! Why two cannot stay: say A and B do. If B's `0` was not in A's last list, it was put after A's `turn`, and B's list at 2
//! had A in line: B left. So each was in the other's last list, in line, and one of the two has the lower id: the
//! other left. Why one stays: whoever leaves has seen somebody in line, and of those in line the lowest id sees nobody
//! before it. Only one that hangs between 1 and 2 for longer than [`super::TURN_WAIT`] may send others away and then not
//! stay itself.

use std::time::{Duration, Instant};

use mover_model::{Error, ErrorKind, Result};

use super::survey::{Found, Records, end, survey};
use super::{Seen, Session, put};

/// The object by which a session stands in line.
pub(super) const TURN: &str = "turn";

/// Time between two looks at one that is about to stand in line.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits for the turn of a session that excludes others.
///
/// # Errors
/// `Busy`, naming the other; the store's.
pub(super) fn take(session: &Session) -> Result<()> {
    let repository = &*session.repository;
    let mut records = Records::new();
    // Whoever stands in line may still leave, but only for another one.
    if let Some(first) = rivals(session, &mut records)?.iter().find(|other| other.is_in_line) {
        return Err(busy(session, &first.seen));
    }
    put(repository, TURN, &session.record)?;
    let deadline = Instant::now() + session.pace.turn_wait;
    loop {
        let rivals = rivals(session, &mut records)?;
        let is_before = |other: &&Found| other.is_in_line && other.seen.record.id < session.record.id;
        if let Some(first) = rivals.iter().find(is_before) {
            return Err(busy(session, &first.seen));
        }
        match rivals.iter().find(|other| !other.is_in_line) {
            None => return Ok(()),
            Some(slow) if Instant::now() >= deadline => return Err(busy(session, &slow.seen)),
            Some(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Living sessions that exclude this one. Dead ones are ended.
fn rivals(session: &Session, records: &mut Records) -> Result<Vec<Found>> {
    let own = &session.record;
    let mut rivals = survey(&session.repository, Some(&own.id), session.pace, records)?;
    rivals.retain(|other| own.purpose.excludes(&other.seen.record.purpose));
    for dead in rivals.iter().filter(|other| !other.seen.alive) {
        end(&session.repository, &dead.seen)?;
    }
    rivals.retain(|other| other.seen.alive);
    Ok(rivals)
}

fn busy(session: &Session, other: &Seen) -> Error {
    let record = &other.record;
    let what = record.purpose.describe();
    let message =
        format!("{what} is running: process {} on {}, since {}", record.pid, record.host, record.started);
    Error::new(ErrorKind::Busy, message)
        .at(session.repository.store().label())
        .hint("wait until it has ended, or end that process")
}
