//! The versions of the database: a list of scripts, each carried out in one transaction.

use rusqlite::Connection;
use rusqlite::TransactionBehavior;

/// `ftmr`: by which a file is known as an outbox.
pub(super) const APPLICATION_ID: i32 = 0x6674_6d72;

/// Script n leads from version n to n + 1. A released script never changes; what comes later is a new script.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("1.sql"),
    include_str!("2.sql"),
    include_str!("3.sql"),
];

/// The version a file has.
pub(super) fn version(db: &Connection) -> rusqlite::Result<usize> {
    let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    // A negative one is none of ours; it counts as newer than anything known.
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

/// Brings a file up to date. What fails leaves the version before it, whole.
pub(super) fn migrate(db: &mut Connection, migrations: &[&str]) -> rusqlite::Result<()> {
    while let Some(script) = migrations.get(version(db)?) {
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let next = version(&tx)? + 1;
        tx.execute_batch(script)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", next as i64)?;
        tx.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(db: &Connection) -> Vec<String> {
        let mut names = db
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name")
            .unwrap();
        let rows = names.query_map([], |row| row.get(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn a_migration_that_fails_leaves_the_version_before_it() {
        let mut db = Connection::open_in_memory().unwrap();
        let steps = [
            "CREATE TABLE one (a INTEGER) STRICT",
            "CREATE TABLE two (a INTEGER) STRICT; INSERT INTO one VALUES (1); INSERT INTO nowhere VALUES (1)",
        ];
        assert!(migrate(&mut db, &steps).is_err());
        assert_eq!(version(&db).unwrap(), 1);
        assert_eq!(tables(&db), ["one"]);
        let rows: i64 = db
            .query_row("SELECT count(*) FROM one", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 0);

        let repaired = [steps[0], "CREATE TABLE two (a INTEGER) STRICT"];
        migrate(&mut db, &repaired).unwrap();
        assert_eq!(tables(&db), ["one", "two"]);
        migrate(&mut db, &repaired).unwrap();
        assert_eq!(version(&db).unwrap(), 2);
    }

    #[test]
    fn the_known_versions_build_an_outbox_from_nothing() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, MIGRATIONS).unwrap();
        assert_eq!(version(&db).unwrap(), MIGRATIONS.len());
        assert_eq!(tables(&db), ["activation", "delivery", "history", "meta"]);
    }
}
