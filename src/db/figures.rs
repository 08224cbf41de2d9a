//! Figures of several rooms, read by one statement: each room writes one row of its own, and all of them are asked
//! side by side.

use std::time::Duration;

use super::query::Row;
use super::{Result, Sql, Timestamp, Tx};

/// How far before now the moments `$2` to `$5` of [`Tx::figures`] lie.
pub const AGO: [Duration; 4] =
    [Duration::from_secs(60), Duration::from_secs(10 * 60), Duration::from_secs(3_600), Duration::from_secs(86_400)];

impl Sql {
    /// One statement for `parts`, each a SELECT of exactly one row; no two may have a column of the same name.
    pub fn side_by_side(parts: &[Self]) -> Self {
        let join = |texts: Vec<&str>| -> &'static str {
            let tables: Vec<String> =
                texts.iter().enumerate().map(|(place, text)| format!("({text}) AS part_{place}")).collect();
            format!("SELECT * FROM {}", tables.join(" CROSS JOIN ")).leak() // kept for the life of the program
        };
        Self {
            sqlite: join(parts.iter().map(|part| part.sqlite).collect()),
            postgres: join(parts.iter().map(|part| part.postgres).collect()),
        }
    }
}

impl Tx {
    /// The one row of `sql`, in which `$1` is `now`, `$2` a minute ago, `$3` ten minutes, `$4` an hour and `$5` a day.
    pub async fn figures<T: Row>(&mut self, sql: Sql, now: Timestamp) -> Result<T> {
        AGO.iter().fold(self.query(sql).bind(now), |query, ago| query.bind(now.before(*ago))).one().await
    }
}
