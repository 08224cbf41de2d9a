//! How the databases plan statements that run all the time: once, and along indexes, however new and empty a table is.

use showrunner::db::Dialect;

use crate::on_both;

on_both! {
    async fn a_statement_that_runs_all_the_time_is_planned_once_and_along_its_index(world) {
        if world.db.dialect() == Dialect::Sqlite {
            // Without this SQLite plans a statement with a bound LIMIT anew whenever it runs.
            let used = world.db.query("SELECT sqlite_compileoption_used('ENABLE_QPSG')");
            assert_eq!(used.one::<(i64,)>().await.expect("an answer").0, 1, "see .cargo/config.toml");
            return world.end().await;
        }
        for (is_kept, expected) in [(true, "force_generic_plan"), (false, "force_custom_plan")] {
            let begun = if is_kept { world.db.begin_kept().await } else { world.db.begin().await };
            let mut tx = begun.expect("a transaction");
            let (mode,): (String,) = tx.query("SHOW plan_cache_mode").one().await.expect("a setting");
            assert_eq!(mode, expected);
        }
        let mut tx = world.db.begin_kept().await.expect("a transaction");
        let plan: Vec<(String,)> = tx
            .query(
                "EXPLAIN SELECT ctid FROM jobs WHERE status = 'pending' AND concurrency_key IS NULL AND queue = 'q'
                     AND kind = 'k' ORDER BY priority DESC, id LIMIT 10",
            )
            .all()
            .await
            .expect("a plan");
        let plan: Vec<String> = plan.into_iter().map(|(line,)| line).collect();
        let plan = plan.join("\n");
        assert!(plan.contains("Index Scan using jobs_claimable") && !plan.contains("Sort"), "{plan}");
        drop(tx);
    }
}
