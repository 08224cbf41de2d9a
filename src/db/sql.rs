//! One statement for both databases: shared text, with the places named where the dialects part.

/// The text of one statement, per dialect. Made by [`sql!`](crate::sql) or from a shared `&'static str`.
#[derive(Debug, Clone, Copy)]
pub struct Sql {
    /// What SQLite is given.
    pub sqlite: &'static str,
    /// What PostgreSQL is given.
    pub postgres: &'static str,
}

impl From<&'static str> for Sql {
    fn from(shared: &'static str) -> Self {
        Self { sqlite: shared, postgres: shared }
    }
}

/// `sql!("SELECT … " { sqlite: "", postgres: "FOR UPDATE SKIP LOCKED" } " …")`.
#[macro_export]
macro_rules! sql {
    ($($part:tt)+) => {
        $crate::db::Sql {
            sqlite: $crate::sql_dialect!(sqlite () $($part)+),
            postgres: $crate::sql_dialect!(postgres () $($part)+),
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! sql_dialect {
    ($dialect:ident ($($done:tt)*)) => { concat!($($done)*) };
    (sqlite ($($done:tt)*) { sqlite: $a:literal, postgres: $b:literal } $($rest:tt)*) => {
        $crate::sql_dialect!(sqlite ($($done)* $a,) $($rest)*)
    };
    (postgres ($($done:tt)*) { sqlite: $a:literal, postgres: $b:literal } $($rest:tt)*) => {
        $crate::sql_dialect!(postgres ($($done)* $b,) $($rest)*)
    };
    ($dialect:ident ($($done:tt)*) $shared:literal $($rest:tt)*) => {
        $crate::sql_dialect!($dialect ($($done)* $shared,) $($rest)*)
    };
}
