//! The catalog in SQLite: WAL, so that readers never wait for a writer, and FULL, so that what was said to be known is
//! known after a power cut.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use mover_model::manifest::Manifest;
use mover_model::{ChunkId, Error, ErrorKind, Name, Operation, Result};
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
};

use super::{Catalog, CommonDisk, CommonKey, KnownRepository, MachineChange, MachineSummary, PointSummary};

/// `MVCT`: a database of another program is left alone.
const APPLICATION_ID: i32 = 0x4d56_4354;
/// Version of the tables.
const VERSION: i32 = 1;
/// How long another process's transaction is waited for: the longest takes in a few thousand restore points.
const BUSY: Duration = Duration::from_secs(10);

const TABLES: &str = "
CREATE TABLE repositories (
    id INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, seen TEXT NOT NULL, damage_stamp TEXT
);
CREATE TABLE places (
    place TEXT PRIMARY KEY, repository INTEGER NOT NULL REFERENCES repositories(id), seen TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE machines (
    id INTEGER PRIMARY KEY, repository INTEGER NOT NULL REFERENCES repositories(id), name TEXT NOT NULL, stamp TEXT,
    points INTEGER NOT NULL DEFAULT 0, damaged INTEGER NOT NULL DEFAULT 0, latest TEXT, latest_time TEXT,
    disks INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL DEFAULT 0, stored_bytes INTEGER NOT NULL DEFAULT 0,
    UNIQUE (repository, name)
);
-- aborted: 1 where the key was taken by an aborted record; found_damaged: by a note.
CREATE TABLE points (
    id INTEGER PRIMARY KEY, machine INTEGER NOT NULL REFERENCES machines(id), name TEXT NOT NULL,
    aborted INTEGER NOT NULL DEFAULT 0, parent TEXT, sequence INTEGER NOT NULL DEFAULT 0, started TEXT,
    disks INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL DEFAULT 0, new_bytes INTEGER NOT NULL DEFAULT 0,
    stored_bytes INTEGER NOT NULL DEFAULT 0, damaged INTEGER NOT NULL DEFAULT 0,
    found_damaged INTEGER NOT NULL DEFAULT 0,
    UNIQUE (machine, name)
);
CREATE INDEX points_found_damaged ON points (found_damaged) WHERE found_damaged = 1;
CREATE TABLE disks (
    point INTEGER NOT NULL REFERENCES points(id), name TEXT NOT NULL, size INTEGER NOT NULL, root BLOB NOT NULL,
    common TEXT, device TEXT, inode INTEGER,
    PRIMARY KEY (point, name)
) WITHOUT ROWID;
CREATE INDEX disks_common ON disks (common, point) WHERE common IS NOT NULL;
CREATE INDEX disks_root ON disks (root, point) WHERE common IS NOT NULL;
CREATE INDEX disks_file ON disks (inode, device, point) WHERE common IS NOT NULL;
-- Which machines have which common disk: one row where `disks` may have thousands.
CREATE TABLE common_machines (
    machine INTEGER NOT NULL REFERENCES machines(id), common TEXT NOT NULL, root BLOB NOT NULL,
    PRIMARY KEY (machine, common, root)
) WITHOUT ROWID;
CREATE INDEX common_machines_common ON common_machines (common);
CREATE INDEX common_machines_root ON common_machines (root);
";

/// What a machine's row says of its points. `latest` is `@latest`; disks and size are those of the newest point.
const SUMMARY: &str = "
UPDATE machines SET (points, damaged, stored_bytes) =
  (SELECT count(*), coalesce(sum(damaged OR found_damaged), 0), coalesce(sum(stored_bytes), 0)
   FROM points WHERE machine = ?1 AND aborted = 0),
 (latest, latest_time) = (SELECT max(name), max(started) FROM (SELECT name, started FROM points
   WHERE machine = ?1 AND aborted = 0 AND damaged = 0
   ORDER BY sequence DESC, name DESC LIMIT 1)),
 (disks, size) = (SELECT coalesce(sum(disks), 0), coalesce(sum(size), 0) FROM (SELECT disks, size FROM points
   WHERE machine = ?1 AND aborted = 0 ORDER BY sequence DESC, name DESC LIMIT 1))
WHERE id = ?1";

/// The catalog in SQLite.
pub struct SqliteCatalog {
    connection: Connection,
    label: String,
}

impl SqliteCatalog {
    /// Opens a file, empty or one of ours.
    ///
    /// # Errors
    /// `Corruption` where it is damaged, `Unsupported` where it is of another version or another program's, `Busy`,
    /// `Full`, `Io`.
    pub fn open(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = Connection::open_with_flags(path, flags).map_err(|error| map(&label, &error))?;
        SqliteCatalog { connection, label }.prepare(true)
    }

    /// Opens a file that is there; nothing is made.
    ///
    /// # Errors
    /// As for [`SqliteCatalog::open`].
    pub fn open_existing(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(|error| map(&label, &error))?;
        SqliteCatalog { connection, label }.prepare(true)
    }

    /// One that lives as long as this process.
    ///
    /// # Errors
    /// `Internal` when there is no memory.
    pub fn in_memory() -> Result<Self> {
        let connection = Connection::open_in_memory()
            .map_err(|error| Error::new(ErrorKind::Internal, format!("a catalog in memory: {error}")))?;
        SqliteCatalog { connection, label: "catalog in memory".into() }.prepare(false)
    }

    fn prepare(mut self, file: bool) -> Result<Self> {
        let made = (|| {
            self.connection.busy_timeout(BUSY)?;
            self.connection.set_prepared_statement_cache_capacity(64);
            if file {
                // Answers `wal`; a filesystem that cannot do it leaves what there was, which is right too, only slower.
                self.connection.pragma_update(None, "journal_mode", "wal")?;
                self.connection.pragma_update(None, "synchronous", "full")?;
                self.connection.pragma_update(None, "trusted_schema", "off")?;
            }
            let pragma = |connection: &Connection, name: &str| {
                connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0))
            };
            let look = |connection: &Connection| -> rusqlite::Result<(i32, i32, i64)> {
                let tables =
                    connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))?;
                Ok((pragma(connection, "application_id")?, pragma(connection, "user_version")?, tables))
            };
            let mut found = look(&self.connection)?;
            if found == (0, 0, 0) {
                // Another process may be making them too: the second one finds them made.
                let transaction =
                    self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                if look(&transaction)? == (0, 0, 0) {
                    transaction.execute_batch(TABLES)?;
                    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
                    transaction.pragma_update(None, "user_version", VERSION)?;
                }
                transaction.commit()?;
                found = look(&self.connection)?;
            }
            Ok(found)
        })()
        .map_err(|error| map(&self.label, &error))?;
        match made {
            (APPLICATION_ID, VERSION, _) => Ok(self),
            (APPLICATION_ID, version, _) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("the catalog has version {version}, and this mover knows version {VERSION}"),
            )
            .at(&self.label)
            .hint("use the mover that made it, or another state folder (--state DIR)")),
            _ => Err(Error::new(ErrorKind::Unsupported, "it is a database of another program")
                .at(&self.label)
                .hint("name another state folder with --state DIR")),
        }
    }

    /// Reads all of it and checks its structure.
    ///
    /// # Errors
    /// `Corruption`, `Io`.
    pub fn check(&self) -> Result<()> {
        let answer: String = self
            .connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|error| map(&self.label, &error))?;
        if answer == "ok" {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Corruption, answer).at(&self.label))
    }

    fn ask<T>(&self, what: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        what(&self.connection).map_err(|error| map(&self.label, &error))
    }

    fn change<T>(&mut self, what: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        let run = || {
            // Immediate: a transaction that reads first and writes then would find itself outdated.
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = what(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run().map_err(|error| map(&self.label, &error))
    }
}

/// An error of SQLite by what has to be done about it.
fn map(label: &str, error: &rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ErrorKind::Corruption,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => ErrorKind::Busy,
        Some(ErrorCode::DiskFull) => ErrorKind::Full,
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            ErrorKind::Unreachable
        }
        Some(_) => ErrorKind::Io,
        // What stands in the file is not what we wrote there: a name that is none, a root of another length.
        None => ErrorKind::Corruption,
    };
    let mut mapped = Error::new(kind, error.to_string()).at(label);
    if kind == ErrorKind::Unreachable {
        mapped = mapped.during(Operation::Open);
    }
    mapped
}

/// A column that holds a name.
fn name(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Name> {
    let text: String = row.get(column)?;
    parse_name(&text, column)
}

fn maybe_name(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Option<Name>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| parse_name(&text, column)).transpose()
}

fn parse_name(text: &str, column: usize) -> rusqlite::Result<Name> {
    text.parse().map_err(|error: Error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

/// SQLite's integers are signed: sums of bytes that do not fit are of no disk that can exist.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn unsigned(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.max(0) as u64)
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

fn repository_row(transaction: &Connection, repository: &str) -> rusqlite::Result<i64> {
    transaction
        .prepare_cached(
            "INSERT INTO repositories (uuid, seen) VALUES (?1, ?2) ON CONFLICT (uuid) DO NOTHING",
        )?
        .execute(params![repository, now()])?;
    transaction
        .prepare_cached("SELECT id FROM repositories WHERE uuid = ?1")?
        .query_row([repository], |row| row.get(0))
}

fn delete_point(transaction: &Connection, machine: i64, point: &Name) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "DELETE FROM disks WHERE point = (SELECT id FROM points WHERE machine = ?1 AND name = ?2)",
        )?
        .execute(params![machine, point.as_str()])?;
    transaction
        .prepare_cached("DELETE FROM points WHERE machine = ?1 AND name = ?2")?
        .execute(params![machine, point.as_str()])?;
    Ok(())
}

fn insert_aborted(transaction: &Connection, machine: i64, point: &Name) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO points (machine, name, aborted) VALUES (?1, ?2, 1) ON CONFLICT (machine, name) DO NOTHING",
        )?
        .execute(params![machine, point.as_str()])?;
    Ok(())
}

fn insert_point(transaction: &Connection, machine: i64, manifest: &Manifest) -> rusqlite::Result<()> {
    let size = manifest.disks.iter().fold(0u64, |sum, disk| sum.saturating_add(disk.size));
    let inserted = transaction
        .prepare_cached(
            "INSERT INTO points (machine, name, parent, sequence, started, disks, size, new_bytes, stored_bytes, damaged)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT (machine, name) DO NOTHING",
        )?
        .execute(params![
            machine,
            manifest.point.as_str(),
            manifest.parent.as_ref().map(Name::as_str),
            signed(manifest.sequence),
            manifest.started,
            manifest.disks.len() as i64,
            signed(size),
            signed(manifest.stored.new_bytes),
            signed(manifest.stored.stored_bytes),
            manifest.damaged,
        ])?;
    // Manifests never change: what another process has taken in is what this one would.
    if inserted == 0 {
        return Ok(());
    }
    let point = transaction.last_insert_rowid();
    let mut insert = transaction.prepare_cached(
        "INSERT OR IGNORE INTO disks (point, name, size, root, common, device, inode) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for disk in &manifest.disks {
        let identity = disk.identity.as_ref();
        insert.execute(params![
            point,
            disk.id.as_str(),
            signed(disk.size),
            &disk.root.0[..],
            disk.common.as_ref().map(|common| &common.id),
            identity.map(|identity| &identity.device),
            // All 64 bits are kept; only equality is asked for.
            identity.map(|identity| identity.inode as i64),
        ])?;
    }
    Ok(())
}

fn summarize(transaction: &Connection, machine: i64) -> rusqlite::Result<()> {
    transaction.prepare_cached(SUMMARY)?.execute([machine])?;
    transaction.prepare_cached("DELETE FROM common_machines WHERE machine = ?1")?.execute([machine])?;
    transaction
        .prepare_cached(
            "INSERT INTO common_machines SELECT DISTINCT ?1, d.common, d.root FROM points p JOIN disks d ON d.point = p.id
             WHERE p.machine = ?1 AND d.common IS NOT NULL",
        )?
        .execute([machine])?;
    Ok(())
}

fn delete_machine(transaction: &Connection, machine: i64) -> rusqlite::Result<()> {
    for sql in [
        "DELETE FROM disks WHERE point IN (SELECT id FROM points WHERE machine = ?1)",
        "DELETE FROM points WHERE machine = ?1",
        "DELETE FROM common_machines WHERE machine = ?1",
        "DELETE FROM machines WHERE id = ?1",
    ] {
        transaction.prepare_cached(sql)?.execute([machine])?;
    }
    Ok(())
}

impl Catalog for SqliteCatalog {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn saw(&mut self, repository: &str, place: &str) -> Result<()> {
        self.change(|transaction| {
            let now = now();
            let id = repository_row(transaction, repository)?;
            transaction.execute("UPDATE repositories SET seen = ?2 WHERE id = ?1", params![id, now])?;
            transaction.execute(
                "INSERT INTO places (place, repository, seen) VALUES (?1, ?2, ?3)
                 ON CONFLICT (place) DO UPDATE SET repository = excluded.repository, seen = excluded.seen",
                params![place, id, now],
            )?;
            Ok(())
        })
    }

    fn repository_at(&self, place: &str) -> Result<Option<String>> {
        self.ask(|connection| {
            connection
                .query_row(
                    "SELECT r.uuid FROM places p JOIN repositories r ON r.id = p.repository WHERE p.place = ?1",
                    [place],
                    |row| row.get(0),
                )
                .optional()
        })
    }

    fn repositories(&self) -> Result<Vec<KnownRepository>> {
        self.ask(|connection| {
            let mut places = connection.prepare("SELECT place FROM places WHERE repository = ?1 ORDER BY seen DESC, place")?;
            let mut select = connection.prepare(
                "SELECT r.id, r.uuid, r.seen, count(m.id), coalesce(sum(m.points), 0)
                 FROM repositories r LEFT JOIN machines m ON m.repository = r.id GROUP BY r.id ORDER BY r.seen DESC",
            )?;
            let rows = select.query_map([], |row| {
                let id: i64 = row.get(0)?;
                Ok(KnownRepository {
                    id: row.get(1)?,
                    places: places.query_map([id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?,
                    seen: row.get(2)?,
                    machines: unsigned(row, 3)?,
                    points: unsigned(row, 4)?,
                })
            })?;
            rows.collect()
        })
    }

    fn stamps(&self, repository: &str) -> Result<HashMap<Name, Option<String>>> {
        self.ask(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT m.name, m.stamp FROM machines m JOIN repositories r ON r.id = m.repository WHERE r.uuid = ?1",
            )?;
            select.query_map([repository], |row| Ok((name(row, 0)?, row.get(1)?)))?.collect()
        })
    }

    fn known(&self, repository: &str, vm: &Name) -> Result<HashSet<Name>> {
        self.ask(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT p.name FROM points p JOIN machines m ON m.id = p.machine JOIN repositories r ON r.id = m.repository
                 WHERE r.uuid = ?1 AND m.name = ?2",
            )?;
            select.query_map([repository, vm.as_str()], |row| name(row, 0))?.collect()
        })
    }

    fn apply(&mut self, repository: &str, changes: &[MachineChange]) -> Result<()> {
        self.change(|transaction| {
            let repository = repository_row(transaction, repository)?;
            for change in changes {
                transaction
                    .prepare_cached(
                        "INSERT INTO machines (repository, name, stamp) VALUES (?1, ?2, ?3)
                         ON CONFLICT (repository, name) DO UPDATE SET stamp = excluded.stamp",
                    )?
                    .execute(params![repository, change.vm.as_str(), change.stamp])?;
                let machine = transaction
                    .prepare_cached("SELECT id FROM machines WHERE repository = ?1 AND name = ?2")?
                    .query_row(params![repository, change.vm.as_str()], |row| row.get(0))?;
                if change.gone {
                    delete_machine(transaction, machine)?;
                    continue;
                }
                change.removed.iter().try_for_each(|point| delete_point(transaction, machine, point))?;
                change.aborted.iter().try_for_each(|point| insert_aborted(transaction, machine, point))?;
                change.added.iter().try_for_each(|manifest| insert_point(transaction, machine, manifest))?;
                summarize(transaction, machine)?;
            }
            Ok(())
        })
    }

    fn forget(&mut self, repository: &str) -> Result<()> {
        self.change(|transaction| {
            let repository = repository_row(transaction, repository)?;
            let mut select = transaction.prepare("SELECT id FROM machines WHERE repository = ?1")?;
            let machines: Vec<i64> =
                select.query_map([repository], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            machines.into_iter().try_for_each(|machine| delete_machine(transaction, machine))?;
            transaction.execute("UPDATE repositories SET damage_stamp = NULL WHERE id = ?1", [repository])?;
            Ok(())
        })
    }

    fn machines(&self, repository: &str) -> Result<Vec<MachineSummary>> {
        self.ask(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT m.name, m.points, m.damaged, m.latest, m.latest_time, m.disks, m.size, m.stored_bytes
                 FROM machines m JOIN repositories r ON r.id = m.repository
                 WHERE r.uuid = ?1 AND m.points > 0 ORDER BY m.name",
            )?;
            let rows = select.query_map([repository], |row| {
                Ok(MachineSummary {
                    vm: name(row, 0)?,
                    points: unsigned(row, 1)?,
                    damaged: unsigned(row, 2)?,
                    latest: maybe_name(row, 3)?,
                    latest_time: row.get(4)?,
                    disks: unsigned(row, 5)?,
                    size: unsigned(row, 6)?,
                    stored_bytes: unsigned(row, 7)?,
                })
            })?;
            rows.collect()
        })
    }

    fn points(&self, repository: &str, vm: &Name) -> Result<Vec<PointSummary>> {
        self.ask(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT p.name, p.parent, p.sequence, p.started, p.disks, p.size, p.new_bytes, p.stored_bytes,
                        p.damaged OR p.found_damaged
                 FROM points p JOIN machines m ON m.id = p.machine JOIN repositories r ON r.id = m.repository
                 WHERE r.uuid = ?1 AND m.name = ?2 AND p.aborted = 0 ORDER BY p.sequence, p.name",
            )?;
            let rows = select.query_map([repository, vm.as_str()], |row| {
                Ok(PointSummary {
                    point: name(row, 0)?,
                    parent: maybe_name(row, 1)?,
                    sequence: unsigned(row, 2)?,
                    started: row.get(3)?,
                    disks: unsigned(row, 4)?,
                    size: unsigned(row, 5)?,
                    new_bytes: unsigned(row, 6)?,
                    stored_bytes: unsigned(row, 7)?,
                    damaged: row.get(8)?,
                })
            })?;
            rows.collect()
        })
    }

    fn commons(&self, repository: &str, by: CommonKey<'_>, most: usize) -> Result<Vec<CommonDisk>> {
        self.ask(|connection| {
            // Rows are numbered as they come in: the last ones in are the newest, and the index gives them first.
            let text = |condition: &str| {
                format!(
                    "SELECT m.name, p.name, d.name, d.common FROM disks d JOIN points p ON p.id = d.point
                     JOIN machines m ON m.id = p.machine JOIN repositories r ON r.id = m.repository
                     WHERE {condition} AND d.common IS NOT NULL AND r.uuid = ?1 ORDER BY d.point DESC LIMIT ?2"
                )
            };
            let read = |row: &rusqlite::Row<'_>| {
                Ok(CommonDisk { vm: name(row, 0)?, point: name(row, 1)?, disk: name(row, 2)?, id: row.get(3)? })
            };
            let most = most as i64;
            match by {
                CommonKey::Id(id) => connection
                    .prepare_cached(&text("d.common = ?3"))?
                    .query_map(params![repository, most, id], read)?
                    .collect(),
                CommonKey::Root(root) => connection
                    .prepare_cached(&text("d.root = ?3"))?
                    .query_map(params![repository, most, &root.0[..]], read)?
                    .collect(),
                CommonKey::File(device, inode) => connection
                    .prepare_cached(&text("d.inode = ?3 AND d.device = ?4"))?
                    .query_map(params![repository, most, inode as i64, device], read)?
                    .collect(),
            }
        })
    }

    fn common_machines(&self, repository: &str, id: &str, root: &ChunkId) -> Result<Vec<Name>> {
        self.ask(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT DISTINCT m.name FROM (
                     SELECT machine FROM common_machines WHERE common = ?2
                     UNION SELECT machine FROM common_machines WHERE root = ?3) c
                 JOIN machines m ON m.id = c.machine JOIN repositories r ON r.id = m.repository
                 WHERE r.uuid = ?1 ORDER BY m.name",
            )?;
            select.query_map(params![repository, id, &root.0[..]], |row| name(row, 0))?.collect()
        })
    }

    fn damage_stamp(&self, repository: &str) -> Result<Option<String>> {
        self.ask(|connection| {
            let stamp: Option<Option<String>> = connection
                .query_row("SELECT damage_stamp FROM repositories WHERE uuid = ?1", [repository], |row| {
                    row.get(0)
                })
                .optional()?;
            Ok(stamp.flatten())
        })
    }

    fn set_damaged(&mut self, repository: &str, points: &[(Name, Name)], stamp: Option<&str>) -> Result<()> {
        self.change(|transaction| {
            let repository = repository_row(transaction, repository)?;
            let mut touched: HashSet<i64> = transaction
                .prepare(
                    "SELECT DISTINCT p.machine FROM points p JOIN machines m ON m.id = p.machine
                     WHERE p.found_damaged = 1 AND m.repository = ?1",
                )?
                .query_map([repository], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            transaction.execute(
                "UPDATE points SET found_damaged = 0
                 WHERE found_damaged = 1 AND machine IN (SELECT id FROM machines WHERE repository = ?1)",
                [repository],
            )?;
            let mut find = transaction.prepare(
                "UPDATE points SET found_damaged = 1 WHERE name = ?3 AND aborted = 0
                 AND machine = (SELECT id FROM machines WHERE repository = ?1 AND name = ?2) RETURNING machine",
            )?;
            for (vm, point) in points {
                let machine: Option<i64> = find
                    .query_row(params![repository, vm.as_str(), point.as_str()], |row| row.get(0))
                    .optional()?;
                touched.extend(machine);
            }
            touched.into_iter().try_for_each(|machine| summarize(transaction, machine))?;
            transaction.execute("UPDATE repositories SET damage_stamp = ?2 WHERE id = ?1", params![repository, stamp])?;
            Ok(())
        })
    }

    fn damaged(&self, repository: &str) -> Result<Vec<(Name, Name)>> {
        self.ask(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT m.name, p.name FROM points p JOIN machines m ON m.id = p.machine
                 JOIN repositories r ON r.id = m.repository WHERE r.uuid = ?1 AND p.found_damaged = 1",
            )?;
            select.query_map([repository], |row| Ok((name(row, 0)?, name(row, 1)?)))?.collect()
        })
    }
}
