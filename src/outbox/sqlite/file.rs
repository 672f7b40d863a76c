//! The database file: made whole or not at all, checked before it is used, put aside when it is damaged.

use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;
use rusqlite::ErrorCode;
use rusqlite::OpenFlags;
use rusqlite::config::DbConfig;
use tracing::error;

use crate::outbox::open::Examined;
use crate::outbox::open::OpenError;
use crate::outbox::open::private;
use crate::outbox::open::sync_dir;
use crate::outbox::sqlite::schema;
use crate::outbox::sqlite::schema::MIGRATIONS;

pub(super) const DATABASE: &str = "outbox.db";
const NEW: &str = "outbox.db.new";
/// What SQLite keeps beside a database.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];
/// Another program (a backup, an administrator's shell) may hold the file for so long.
const BUSY: Duration = Duration::from_secs(5);
/// A larger file takes too long to be read through by the way.
const MOST_EXAMINED_BYTES: u64 = 1 << 30;
/// The write-ahead log shrinks to this after a burst.
const LOG_BYTES: i64 = 16 << 20;
/// Statements kept ready on a connection: more than there are different ones.
const STATEMENTS: usize = 128;

/// Why a file is not used as it is.
pub(super) enum Unfit {
    /// It is to be put aside.
    Damaged(String),
    /// It stays as it is, and nothing starts.
    Refused(OpenError),
}

impl Unfit {
    pub(super) fn from(path: &Path) -> impl Fn(rusqlite::Error) -> Self + '_ {
        |e| match e.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged(e.to_string())
            }
            _ => Self::Refused(OpenError::Database {
                path: path.to_owned(),
                why: e.to_string(),
            }),
        }
    }
}

/// Opens a file that exists, for writing.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    db.busy_timeout(BUSY)?;
    // Else a statement with `LIMIT ?` is planned anew each time it is run, which takes longer than the run.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(db)
}

fn prepare(db: &Connection) -> rusqlite::Result<()> {
    db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "foreign_keys", true)?;
    db.pragma_update(None, "secure_delete", true)?;
    db.pragma_update(None, "trusted_schema", false)?;
    db.pragma_update(None, "temp_store", "MEMORY")?;
    db.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES, |_| Ok(()))
}

/// A connection that only reads.
pub(super) fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let db = connect(path)?;
    db.pragma_update(None, "query_only", true)?;
    db.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(db)
}

/// Opens the outbox and brings it up to date; makes it if there is none.
pub(super) fn open(dir: &Path) -> Result<Connection, Unfit> {
    let path = dir.join(DATABASE);
    let refused = |e| Unfit::Refused(OpenError::file(&path)(e));
    match fs::metadata(&path) {
        Ok(found) if found.len() == 0 => return Err(Unfit::Damaged("it is empty".to_owned())),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if COMPANIONS.iter().any(|end| beside(&path, end).exists()) {
                return Err(Unfit::Damaged(
                    "it is gone, only its log is there".to_owned(),
                ));
            }
            make(dir)?;
        }
        Err(e) => return Err(refused(e)),
    }
    drop(private(&mut OpenOptions::new(), &path).map_err(refused)?);
    let unfit = Unfit::from(&path);
    let mut db = connect(&path).map_err(&unfit)?;
    let found = checked_version(&db, &path)?;
    let sound: String = db
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(&unfit)?;
    if sound != "ok" {
        return Err(Unfit::Damaged(sound));
    }
    if found < MIGRATIONS.len() {
        schema::migrate(&mut db, MIGRATIONS).map_err(&unfit)?;
    }
    prepare(&db).map_err(&unfit)?;
    // The log of a process that was killed may still hold codes that were wiped.
    truncate_log(&db).map_err(&unfit)?;
    Ok(db)
}

/// Empties the write-ahead log; `false` if a reader was in the way.
pub(super) fn truncate_log(db: &Connection) -> rusqlite::Result<bool> {
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
        Ok(row.get::<_, i64>(0)? == 0)
    })
}

/// Looks for damage, without changing anything.
pub(super) fn examine(dir: &Path) -> Result<Examined, OpenError> {
    let path = dir.join(DATABASE);
    let size = match fs::metadata(&path) {
        Ok(found) => found.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Missing(dir.to_owned()));
        }
        Err(e) => return Err(OpenError::file(&path)(e)),
    };
    if size > MOST_EXAMINED_BYTES {
        return Ok(Examined::TooLarge(size));
    }
    let sound = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&path, flags)?;
        db.busy_timeout(BUSY)?;
        db.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))
    };
    match sound().map_err(Unfit::from(&path)) {
        Ok(sound) if sound == "ok" => Ok(Examined::Sound),
        Ok(why) | Err(Unfit::Damaged(why)) => Err(OpenError::Damaged { path, why }),
        Err(Unfit::Refused(e)) => Err(e),
    }
}

/// Opens what is there, without making or changing anything.
pub(super) fn open_as_it_is(dir: &Path) -> Result<Connection, OpenError> {
    let path = dir.join(DATABASE);
    let damaged = |unfit| match unfit {
        Unfit::Damaged(why) => OpenError::Damaged {
            path: path.clone(),
            why,
        },
        Unfit::Refused(e) => e,
    };
    match fs::metadata(&path) {
        Ok(found) if found.len() == 0 => {
            return Err(damaged(Unfit::Damaged("it is empty".to_owned())));
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Missing(dir.to_owned()));
        }
        Err(e) => return Err(OpenError::file(&path)(e)),
    }
    let open = || {
        let db = connect(&path).map_err(Unfit::from(&path))?;
        let found = checked_version(&db, &path)?;
        if found < MIGRATIONS.len() {
            return Err(Unfit::Refused(OpenError::TooOld {
                path: path.clone(),
                found,
                known: MIGRATIONS.len(),
            }));
        }
        prepare(&db).map_err(Unfit::from(&path))?;
        Ok(db)
    };
    open().map_err(damaged)
}

/// The format of a file that is an outbox and not of a later version.
fn checked_version(db: &Connection, path: &Path) -> Result<usize, Unfit> {
    let application: i32 = db
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(Unfit::from(path))?;
    if application != schema::APPLICATION_ID {
        return Err(Unfit::Damaged("it is no outbox of ftm-relay".to_owned()));
    }
    let found = schema::version(db).map_err(Unfit::from(path))?;
    if found > MIGRATIONS.len() {
        return Err(Unfit::Refused(OpenError::TooNew {
            path: path.to_owned(),
            found,
            known: MIGRATIONS.len(),
        }));
    }
    Ok(found)
}

/// Makes an empty outbox under another name first, so that a file called `outbox.db` is never half made.
fn make(dir: &Path) -> Result<(), Unfit> {
    let (path, new) = (dir.join(DATABASE), dir.join(NEW));
    let refused = |e| Unfit::Refused(OpenError::file(&new)(e));
    for leftover in [new.clone()]
        .into_iter()
        .chain(COMPANIONS.map(|end| beside(&new, end)))
    {
        match fs::remove_file(&leftover) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(refused(e)),
            _ => {}
        }
    }
    drop(private(OpenOptions::new().create_new(true), &new).map_err(refused)?);
    let unfit = Unfit::from(&new);
    let mut db = connect(&new).map_err(&unfit)?;
    db.pragma_update(None, "synchronous", "FULL")
        .map_err(&unfit)?;
    schema::migrate(&mut db, MIGRATIONS).map_err(&unfit)?;
    db.close().map_err(|(_, e)| unfit(e))?;
    fs::rename(&new, &path)
        .and_then(|()| sync_dir(dir))
        .map_err(refused)
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Puts a damaged database aside, with what SQLite keeps beside it, under names that SQLite's shell opens together.
pub(super) fn quarantine(dir: &Path, why: &str) -> Result<PathBuf, OpenError> {
    let path = dir.join(DATABASE);
    let now = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut aside = dir.join(format!("{DATABASE}.damaged-{now}"));
    let mut copy = 1;
    while aside.exists() || COMPANIONS.iter().any(|end| beside(&aside, end).exists()) {
        copy += 1;
        aside = dir.join(format!("{DATABASE}.damaged-{now}-{copy}"));
    }
    // The database goes first: without it, nobody takes the log that is left for the log of a new one.
    for end in [""].into_iter().chain(COMPANIONS) {
        match fs::rename(beside(&path, end), beside(&aside, end)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(OpenError::file(&path)(e)),
            _ => {}
        }
    }
    sync_dir(dir).map_err(OpenError::file(dir))?;
    error!(
        file = %aside.display(),
        "The outbox was damaged ({why}). It is kept as {}, and an empty one takes its place. Codes that waited in the damaged one \
         will not be sent: have the FortiGates send them again. What can still be read of it: sqlite3 {} \
         \"SELECT received_at, user, device_name, state FROM activation WHERE state IN ('received', 'routed', 'needs-attention')\"",
        aside.display(),
        aside.display(),
    );
    Ok(aside)
}
