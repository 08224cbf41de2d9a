//! What others wrote into titles, names and errors harms nobody who reads it.

use serde_json::{Value, json};

use crate::on_both;

/// Clears the screen, forges a line, names a window, turns text around, and the same by C1 and line separators.
const HOSTILE: &str = "=cmd|' /C calc'!A0\u{1b}[2J\u{1b}]0;owned\u{7}\r\n2026 ERROR forged\u{9b}2J\u{202e}txt\u{2066}\u{2028}\u{feff}<script>alert(1)</script>";

/// Whether text could move a cursor, forge a line or turn text around.
fn moves(text: &str) -> Option<char> {
    text.chars().find(|character| {
        (character.is_control() && *character != '\n')
            || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    })
}

on_both! {
    async fn a_hostile_title_is_shown_and_does_nothing(world) {
        use showrunner::actor::Actor;
        use showrunner::ledger::{Entry, append};
        world.start_still().await;
        let clip = json!({ "title": HOSTILE, "media_uri": HOSTILE, "visual_score": 5 });
        let (status, made) = world.post("/v1/clips", &clip).await;
        assert_eq!((status, &made["title"]), (201, &json!(HOSTILE)), "it is text, and kept as it is");
        let (status, refused) = world.post("/v1/clips", &json!({ HOSTILE: 1 })).await;
        assert_eq!(status, 422);
        assert!(refused["detail"].as_str().expect("a detail").contains("is not known"), "{refused}");
        let mut tx = world.db.begin().await.expect("a transaction");
        let entry = Entry::new("test.hostile", Actor::Operator(HOSTILE.to_owned()), json!({ "title": HOSTILE }));
        append(&mut tx, &[entry.subject(HOSTILE).rule(Some(HOSTILE.to_owned()))]).await.expect("an entry");
        tx.commit().await.expect("a commit");

        for arguments in [
            vec!["ledger", "query"],
            vec!["ledger", "query", "--json"],
            vec!["ledger", "tail"],
            vec!["ledger", "tail", "--json"],
            vec!["ledger", "query", "--subject", HOSTILE],
            vec!["ledger", "verify"],
            vec!["status"],
            vec!["snapshot"],
            vec!["run-once"],
            vec!["replay", "1"],
        ] {
            let (_, said, error) = world.command(&arguments).await;
            assert_eq!((moves(&said), moves(&error)), (None, None), "{arguments:?}: {said}{error}");
            assert!(!said.contains("\n2026 ERROR") && !error.contains("\n2026 ERROR"), "{arguments:?} forges a line");
        }
        // Programs read what was written.
        let (_, said, _) = world.command(&["ledger", "query", "--event", "test.hostile", "--json"]).await;
        let entries: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!((&entries[0]["subject"], &entries[0]["payload"]["title"]), (&json!(HOSTILE), &json!(HOSTILE)));
        let (code, _, error) = world.command(&["ledger", "export", "--format", "csv", "-o", "out.csv"]).await;
        assert_eq!(code, 0, "{error}");
        let mut table = csv::Reader::from_path(world.folder().join("out.csv")).expect("the export");
        for cell in table.records().flat_map(|row| row.expect("a row").iter().map(str::to_owned).collect::<Vec<_>>()) {
            assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']), "a spreadsheet would run {cell:?}");
        }
        let (_, metrics) = world.get("/metrics").await;
        assert!(!metrics.to_string().contains("owned"));
    }
}
