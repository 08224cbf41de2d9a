use proptest::prelude::*;

use super::*;

const KINDS: [&str; 9] = [
    "cancel_run",
    "drain_agent",
    "force_publish",
    "pause_queue",
    "pause_trigger",
    "quarantine_worker",
    "rebalance_queue",
    "restart_stream",
    "trigger_reconciliation",
];

/// Reads `file` (its name and text) under `variables` under `flags`.
fn read(
    file: Option<(&str, &str)>,
    variables: &[(&str, &str)],
    flags: &[(&'static str, &'static str, &str)],
) -> Result<Loaded, ConfigError> {
    let folder = tempfile::tempdir().expect("a folder");
    if let Some((name, text)) = file {
        std::fs::write(folder.path().join(name), text).expect("a file");
    }
    let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let flags = flags.iter().map(|(flag, key, value)| (*flag, *key, (*value).to_owned())).collect();
    Loaded::read(&Overrides { file: None, flags }, variables, folder.path(), &KINDS)
}

fn refusals(file: Option<(&str, &str)>, variables: &[(&str, &str)]) -> String {
    read(file, variables, &[]).expect_err("a refusal").to_string()
}

#[test]
fn flags_lie_over_the_environment_over_the_file_over_the_defaults() {
    let file = Some(("showrunner.yaml", "port: 1001\nhost: \"::1\"\norchestrator:\n  enabled: yes\n"));
    let loaded = read(file, &[("PORT", "1002"), ("ORCHESTRATOR_INTERVAL_SECONDS", "7")], &[("--port", "port", "1003")])
        .expect("a configuration");
    assert_eq!(loaded.config.port, 1003);
    assert_eq!(loaded.config.host.to_string(), "::1");
    assert!(loaded.config.orchestrator.enabled);
    assert_eq!(loaded.config.orchestrator.interval_seconds, 7);
    assert_eq!(loaded.config.queue.max_concurrency, 10);
    assert_eq!(loaded.origins["port"], "--port");
    assert_eq!(loaded.origins["orchestrator.interval_seconds"], "ORCHESTRATOR_INTERVAL_SECONDS");
    assert_eq!(loaded.origins["host"], "showrunner.yaml");
    assert!(!loaded.origins.contains_key("queue.max_concurrency"));
}

#[test]
fn the_default_database_is_a_file_in_the_data_folder() {
    let url = read(None, &[], &[]).expect("a configuration").config.database_url;
    assert!(url.starts_with("sqlite://") && url.ends_with("showrunner.db"), "{url}");
}

#[test]
fn the_variables_of_the_other_documents_are_read() {
    let loaded = read(
        None,
        &[
            ("ORCHESTRATOR_ENABLED", "1"),
            ("DATABASE_URL", "postgres://user:hidden@host/name"),
            ("HOST", "localhost"),
            ("MAX_CONCURRENCY", "3"),
            ("POLL_INTERVAL_MS", "250"),
            ("LOG_LEVEL", "DEBUG"),
            ("PORT", ""),
            ("SHOWRUNNER_URL", "http://127.0.0.1:8000"),
            ("SHOWRUNNER_TEST_POSTGRES_URL", "postgres://x"),
            ("PATH", "/bin"),
        ],
        &[],
    )
    .expect("a configuration")
    .config;
    assert!(loaded.orchestrator.enabled && loaded.host.is_loopback());
    assert_eq!((loaded.queue.max_concurrency, loaded.queue.poll_interval_ms, loaded.port), (3, 250, 8000));
    assert_eq!(loaded.log.level, "DEBUG");
}

#[test]
fn every_key_has_its_variable() {
    let loaded = read(
        None,
        &[
            ("SHOWRUNNER_PUBLISHING__SANDBOX__REFUSE", "0.1"),
            ("SHOWRUNNER_PUBLISHING__TIME_ZONE", "Europe/Madrid"),
            ("SHOWRUNNER_PUBLISHING__PLATFORMS__INSTAGRAM__OPENS", "17:30"),
            ("SHOWRUNNER_GOVERNORS__BUDGETS__FORCE_PUBLISH", "4"),
            ("SHOWRUNNER_AUTH__TOKENS", "ann:admin:0123456789abcdef,bob:viewer:fedcba:9876543210"),
        ],
        &[],
    )
    .expect("a configuration")
    .config;
    assert_eq!(loaded.publishing.sandbox.refuse, 0.1);
    assert_eq!(loaded.publishing.time_zone, "Europe/Madrid");
    assert_eq!(loaded.publishing.platforms["instagram"].opens, "17:30");
    assert_eq!(loaded.publishing.platforms.len(), 3);
    assert_eq!(loaded.governors.budgets["force_publish"], 4);
    assert_eq!(loaded.auth.tokens[1].name, "bob");
    assert_eq!(secrecy::ExposeSecret::expose_secret(&loaded.auth.tokens[1].token), "fedcba:9876543210");
}

#[test]
fn the_agents_token_that_everybody_knows_is_refused_where_strangers_may_come() {
    let known = ("AGENT_TOKEN", "dev-shared-token");
    let tokens = ("SHOWRUNNER_AUTH__TOKENS", "ann:admin:0123456789abcdef");
    assert!(read(None, &[known], &[]).is_ok());
    assert!(read(None, &[tokens], &[]).is_ok());
    for variables in [vec![known, tokens], vec![known, tokens, ("HOST", "0.0.0.0")]] {
        let refusal = refusals(None, &variables);
        assert!(refusal.contains("is the one that everybody knows"), "{refusal}");
    }
}

#[test]
fn agents_always_have_a_lease() {
    let refusal = refusals(None, &[("SHOWRUNNER_FLEET__RECONNECT_GRACE_MS", "0")]);
    assert!(refusal.contains("0 is outside 100 to 3600000"), "{refusal}");
}

#[test]
fn each_key_of_the_shape_can_be_set_to_its_default() {
    let good = defaults();
    for key in Shape::of_config().keys() {
        let Some(value) = good.pointer(&format!("/{}", key.replace('.', "/"))) else { continue };
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Bool(_) | Value::Number(_) => value.to_string(),
            _ => continue,
        };
        let variable = format!("SHOWRUNNER_{}", key.to_uppercase().replace('.', "__"));
        read(None, &[(&variable, &text)], &[]).unwrap_or_else(|error| panic!("{variable}={text}: {error}"));
    }
}

#[test]
fn a_file_that_names_platforms_names_all_of_them() {
    let yaml = "publishing:\n  platforms:\n    tiktok:\n      daily_quota: 3\n    radio:\n      opens: 22:00\n      closes: 02:00\n";
    let platforms =
        read(Some(("showrunner.yml", yaml)), &[], &[]).expect("a configuration").config.publishing.platforms;
    assert_eq!(platforms.keys().collect::<Vec<_>>(), ["radio", "tiktok"]);
    assert_eq!((platforms["tiktok"].daily_quota, platforms["tiktok"].opens.as_str()), (3, "16:00"));
    assert_eq!(platforms["radio"].spacing_minutes, 15);
}

#[test]
fn toml_says_the_same_as_yaml() {
    let toml = "port = 9\n[[auth.tokens]]\nname = \"ann\"\nrole = \"operator\"\ntoken = \"0123456789abcdef\"\n";
    let loaded = read(Some(("showrunner.toml", toml)), &[], &[]).expect("a configuration").config;
    assert_eq!((loaded.port, loaded.auth.tokens[0].name.as_str()), (9, "ann"));
    assert!(!format!("{loaded:?}").contains("0123456789abcdef"), "a secret is never shown");
    assert!(!serde_json::to_string(&loaded).expect("json").contains("0123456789abcdef"));
}

#[test]
fn what_is_refused_names_its_place_and_what_would_be_taken() {
    let yaml = |text: &'static str| Some(("showrunner.yaml", text));
    type Case<'a> = (Option<(&'a str, &'a str)>, &'a [(&'a str, &'a str)], &'a str);
    let cases: &[Case<'_>] = &[
        (yaml("prot: 1"), &[], "showrunner.yaml: prot: there is no such key; did you mean `port`?"),
        (
            yaml("publishing:\n  sandbox:\n    refused: 0.1"),
            &[],
            "showrunner.yaml: publishing.sandbox.refused: there is no such key; did you mean `refuse`?",
        ),
        (
            yaml("publishing:\n  platforms:\n    tiktok:\n      open: \"1\""),
            &[],
            "showrunner.yaml: publishing.platforms.tiktok.open: there is no such key; did you mean `opens`?",
        ),
        (yaml("publishing:\n  platforms:\n    x:\n      opens: \"10:00\""), &[], "publishing.platforms.x"),
        (yaml("port: many"), &[], "showrunner.yaml: port: `many` is not a whole number"),
        (yaml("port: 70000"), &[], "showrunner.yaml: port: "),
        (yaml("orchestrator: 5"), &[], "showrunner.yaml: orchestrator: takes keys and values of its own"),
        (yaml("auth:\n  tokens: 5"), &[], "showrunner.yaml: auth.tokens: takes a list"),
        (yaml("- 1\n- 2"), &[], "showrunner.yaml: "),
        (
            Some(("showrunner.toml", "[publishing.sandbox]\nrefuse = nan")),
            &[],
            "publishing.sandbox.refuse: `null` is not a number",
        ),
        (yaml("a: [1"), &[], "showrunner.yaml: cannot be read"),
        (None, &[("SHOWRUNNER_PUBLISHING__TIMEZONE", "UTC")], "did you mean `SHOWRUNNER_PUBLISHING__TIME_ZONE`?"),
        (None, &[("SHOWRUNNER_PUBLISHING", "UTC")], "SHOWRUNNER_PUBLISHING: sets no key"),
        (None, &[("PORT", "http")], "PORT: `http` is not a whole number"),
        (None, &[("ORCHESTRATOR_ENABLED", "maybe")], "ORCHESTRATOR_ENABLED: `maybe` is not true or false"),
        (None, &[("HOST", "nowhere")], "HOST: host: "),
        (None, &[("SHOWRUNNER_AUTH__TOKENS", "ann")], "auth.tokens: token 1 is not written name:role:token"),
        (
            None,
            &[("SHOWRUNNER_AUTH__TOKENS", "ann:king:0123456789abcdef")],
            "SHOWRUNNER_AUTH__TOKENS: auth.tokens.0.role: the value cannot be taken; expected one of `viewer`",
        ),
        (None, &[("SHOWRUNNER_DURABILITY", "most")], "SHOWRUNNER_DURABILITY: durability: unknown variant `most`"),
        (None, &[("SHOWRUNNER_CONFIG", "/nowhere/x.yaml")], "x.yaml: cannot be read (/nowhere/x.yaml)"),
    ];
    for (file, variables, expected) in cases {
        let refused = refusals(*file, variables);
        assert!(refused.contains(expected), "{file:?} {variables:?}\n  said:     {refused}\n  expected: {expected}");
        assert_eq!(refused.lines().count(), 1, "one fault, one line: {refused}");
    }
}

#[test]
fn impossible_values_are_refused_all_at_once() {
    let variables = [
        ("ORCHESTRATOR_INTERVAL_SECONDS", "0"),
        ("SHOWRUNNER_PUBLISHING__TIME_ZONE", "Europe/Madird"),
        ("SHOWRUNNER_PUBLISHING__SANDBOX__REFUSE", "1.5"),
        ("SHOWRUNNER_PUBLISHING__SANDBOX__LATENCY_MIN_MS", "500"),
        ("SHOWRUNNER_PUBLISHING__PLATFORMS__TIKTOK__CLOSES", "24:01"),
        ("SHOWRUNNER_PUBLISHING__PLATFORMS__YOUTUBE__CLOSES", "17:00"),
        ("SHOWRUNNER_PUBLISHING__CONNECTOR", "webhook"),
        ("SHOWRUNNER_GOVERNORS__PLAN_BLAST_RADIUS", "0"),
        ("SHOWRUNNER_GOVERNORS__BUDGETS__FORCE_PUBLSH", "3"),
        ("SHOWRUNNER_AUTH__TOKENS", "ann:admin:short,ann:viewer:0123456789abcdef"),
        ("DATABASE_URL", "mysql://somewhere"),
        ("RULES_DIR", "/nowhere"),
        ("LOG_LEVEL", "verbose"),
        ("POLL_INTERVAL_MS", "1"),
        ("SHOWRUNNER_PUBLISHING__SETTLE_MINUTES", "1"),
        ("SHOWRUNNER_PUBLISHING__CALL_TIMEOUT_MS", "31000"),
        ("SHOWRUNNER_PUBLISHING__SANDBOX__LOSE_ANSWER", "0.2"),
        ("MAX_CONCURRENCY", "0"),
    ];
    let refused = refusals(None, &variables);
    for expected in [
        "ORCHESTRATOR_INTERVAL_SECONDS: orchestrator.interval_seconds: 0 is outside 1 to 3600",
        "did you mean `Europe/Madrid`?",
        "publishing.sandbox.refuse: 1.5 is no probability",
        "publishing.sandbox.latency_min_ms: 500 is more than latency_max_ms, which is 120",
        "publishing.platforms.tiktok.closes: `24:01` is no time",
        "publishing.platforms.youtube.closes: is the same as opens",
        "publishing.webhook.url: ",
        "publishing.webhook.status_url: ",
        "publishing.webhook.secret: ",
        "governors.plan_blast_radius: 0 is outside",
        "did you mean `force_publish`?",
        "auth.tokens.0.token: takes 16 or more",
        "auth.tokens.1.name: is the name of another token too",
        "database_url: takes sqlite://",
        "rules_dir: `/nowhere` is not a folder",
        "log.level: `verbose` is no level",
        "publishing.settle_minutes: is less than twice call_timeout_ms",
        "publishing.sandbox: refuse, throttle, lose_request and lose_answer come to 1.7",
        "queue.poll_interval_ms: 1 is outside 10 to 60000",
        "queue.max_concurrency: 0 is outside 1 to 1000",
    ] {
        assert!(refused.contains(expected), "missing `{expected}` in:\n{refused}");
    }
    assert!(!refused.contains("short"), "a secret is never shown");
}

/// A secret as it stands where a slip puts it, and nowhere in what is said of it.
const SLIPPED: &str = "SLIPPED-secret-0123456789abcdef";

#[test]
fn a_file_that_cannot_be_read_is_told_by_its_place_and_never_by_its_text() {
    for (name, text, place) in [
        ("showrunner.toml", "port = 1\n[publishing.webhook]\nsecret = SLIPPED\n", "line 3, column"),
        ("showrunner.toml", "database_url = \"postgres://ann:SLIPPED@host/db\n", "line 1, column"),
        ("showrunner.toml", "secret_key SLIPPED\n", "line 1, column"),
        ("showrunner.toml", "[[auth.tokens]]\ntoken = \"\"\"\n1 | SLIPPED\nSLIPPED\n", "line "),
        ("showrunner.toml", "[[auth.tokens]]\ntoken = 'SLIPPED' SLIPPED\n", "line 2, column"),
        ("showrunner.toml", "secret_key = \"\\q SLIPPED\"\n", "line 1, column"),
        ("showrunner.yaml", "port: 1\nsecret_key: \"SLIPPED\n", "line "),
        ("showrunner.yaml", "secret_key: SLIPPED: SLIPPED\n", "line 1"),
        ("showrunner.yaml", "auth:\n  tokens:\n    - token: [SLIPPED\n", "line "),
        ("showrunner.yaml", "secret_key: *SLIPPED\n", "line 1"),
        ("showrunner.yaml", "secret_key: !SLIPPED!x y\n", "line 1"),
        ("showrunner.yaml", "secret_key: %SLIPPED\n", "line 1"),
    ] {
        let refused = refusals(Some((name, &text.replace("SLIPPED", SLIPPED))), &[]);
        assert!(
            refused.starts_with(&format!("{name}: cannot be read: ")) && refused.contains(place),
            "{text}: {refused}"
        );
        assert!(!refused.contains("SLIPPED"), "{text}: {refused}");
        assert_eq!(refused.lines().count(), 1, "{refused}");
    }
}

#[test]
fn a_token_in_the_wrong_place_is_not_shown() {
    for tokens in [
        format!("ann:{SLIPPED}:viewer"),
        format!("{SLIPPED}:viewer:0123456789abcdef,{SLIPPED}:viewer:0123456789abcdeg"),
        format!("{SLIPPED}:viewer"),
        format!("viewer:{SLIPPED}:ann"),
    ] {
        let refused = refusals(None, &[("SHOWRUNNER_AUTH__TOKENS", &tokens)]);
        assert!(refused.contains("auth.tokens") && !refused.contains("SLIPPED"), "{refused}");
    }
    for tokens in [
        format!("- {{name: a, role: {SLIPPED}}}"),
        format!("- {{name: a, role: [{SLIPPED}]}}"),
        SLIPPED.to_owned(),
        format!("- {SLIPPED}"),
    ] {
        let refused = refusals(Some(("showrunner.yaml", &format!("auth:\n  tokens:\n    {tokens}\n"))), &[]);
        assert!(refused.contains("auth.tokens") && !refused.contains("SLIPPED"), "{refused}");
    }
}

#[test]
fn a_whole_webhook_is_taken() {
    let variables = [
        ("SHOWRUNNER_PUBLISHING__CONNECTOR", "webhook"),
        ("SHOWRUNNER_PUBLISHING__WEBHOOK__URL", "https://publisher.example/publish"),
        ("SHOWRUNNER_PUBLISHING__WEBHOOK__STATUS_URL", "https://publisher.example/status/{key}"),
        ("SHOWRUNNER_PUBLISHING__WEBHOOK__SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    ];
    read(None, &variables, &[]).expect("a configuration");
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(text in "[a-z_]{0,12}(:|=| ?\\[)?.{0,40}\n?.{0,40}", toml: bool) {
        let name = if toml { "showrunner.toml" } else { "showrunner.yaml" };
        _ = read(Some((name, &text)), &[], &[]);
    }

    #[test]
    fn no_key_or_value_makes_it_panic(index in 0_usize..60, text in "\\PC{0,30}") {
        let keys = Shape::of_config().keys();
        let key = &keys[index % keys.len()];
        let variable = format!("SHOWRUNNER_{}", key.to_uppercase().replace('.', "__"));
        _ = read(None, &[(&variable, &text)], &[]);
        let yaml = format!("{}: {text}", key.replace('.', ":\n "));
        _ = read(Some(("showrunner.yaml", &yaml)), &[], &[]);
    }

    #[test]
    fn no_variable_name_makes_it_panic(name in "[A-Z_0-9.]{0,40}", value in "\\PC{0,20}") {
        _ = read(None, &[(&format!("SHOWRUNNER_{name}"), &value)], &[]);
    }
}

/// A value as an operator, a slip or a stranger writes it.
fn values() -> impl Strategy<Value = String> {
    let edges = [
        "0",
        "-1",
        "1",
        "65536",
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775809",
        "1e308",
        "1e999",
        "nan",
        ".nan",
        ".inf",
        "-0.0",
        "0x10",
        "0o17",
        "1_000",
        "true",
        "yes",
        "~",
        "null",
        "[]",
        "{}",
        "[[]]",
        "\"\"",
        "' '",
        "*",
        "&a",
        "!!binary AA==",
        "2026-02-29",
        "24:00",
        "24:01",
        "23:59",
        "00:00",
        "25:00",
        "Europe/Madrd",
        "Europe/Madrid",
        "utc",
        "\u{202e}10",
        "１０",
        "sqlite:",
        "postgres://",
        "${HOME}",
        "../..",
        "a.b.c",
        "info,=,debug",
        "warn,[{]}",
        "\u{7f}",
    ];
    prop_oneof![
        3 => proptest::sample::select(edges.to_vec()).prop_map(str::to_owned),
        1 => "\\PC{0,40}",
        1 => any::<String>(),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        1 => any::<f64>().prop_map(|number| number.to_string()),
    ]
}

/// Every key, those with names of the operator's choosing too.
fn every_key() -> Vec<String> {
    let mut keys = Shape::of_config().keys();
    keys.retain(|key| !matches!(key.as_str(), "publishing.platforms" | "governors.budgets"));
    let fields = ["opens", "closes", "time_zone", "spacing_minutes", "daily_quota", "cost_cents"];
    keys.extend(
        fields
            .iter()
            .flat_map(|field| ["tiktok", "myspace"].map(|name| format!("publishing.platforms.{name}.{field}"))),
    );
    keys.extend(["governors.budgets.force_publish".to_owned(), "governors.budgets.fly".to_owned()]);
    keys
}

/// Whatever was wrong is told with its place; what was taken is within its bounds.
fn told(origins: &[&str], result: Result<Loaded, ConfigError>) -> Result<(), TestCaseError> {
    match result {
        Ok(loaded) => {
            prop_assert!(loaded.config.check(&KINDS).is_empty());
        }
        Err(error) => {
            prop_assert!(!error.faults.is_empty());
            for fault in &error.faults {
                prop_assert!(origins.contains(&fault.origin.as_str()), "{fault:?} is said to come from elsewhere");
                prop_assert!(!fault.message.is_empty() && !fault.to_string().contains('\u{202e}'), "{fault:?}");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_value_of_any_key_is_taken_or_told(key in proptest::sample::select(every_key()), value in values()) {
        if !value.contains('\0') {
            let variable = format!("SHOWRUNNER_{}", key.to_uppercase().replace('.', "__"));
            told(&[&variable], read(None, &[(&variable, &value)], &[]))?;
        }
        let mut yaml = String::new();
        for (depth, name) in key.split('.').enumerate() {
            yaml += &format!("{}{}{name}:", if depth > 0 { "\n" } else { "" }, "  ".repeat(depth));
        }
        let toml = |value: &str| {
            let (table, name) = key.rsplit_once('.').unwrap_or(("", &key));
            let head = if table.is_empty() { String::new() } else { format!("[{table}]\n") };
            format!("{head}{name} = {value}\n")
        };
        let quoted = format!("{:?}", serde_json::Value::from(value.as_str()).to_string());
        for value in [&value, &quoted] {
            told(&["showrunner.yaml"], read(Some(("showrunner.yaml", &format!("{yaml} {value}\n"))), &[], &[]))?;
            told(&["showrunner.toml"], read(Some(("showrunner.toml", &toml(value))), &[], &[]))?;
        }
    }

    #[test]
    fn any_file_is_taken_or_told(text in any::<String>(), lines in proptest::collection::vec(("[a-z_.]{1,12}", values()), 0..8)) {
        told(&["showrunner.yaml"], read(Some(("showrunner.yaml", &text)), &[], &[]))?;
        told(&["showrunner.toml"], read(Some(("showrunner.toml", &text)), &[], &[]))?;
        let yaml: String = lines.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        told(&["showrunner.yaml"], read(Some(("showrunner.yaml", &yaml)), &[], &[]))?;
        let toml: String = lines.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        told(&["showrunner.toml"], read(Some(("showrunner.toml", &toml)), &[], &[]))?;
    }
}

#[test]
fn a_file_that_nests_without_end_is_refused() {
    for depth in [200, 12_000] {
        for (name, text) in [
            ("showrunner.yaml", format!("port: {}", "[".repeat(depth))),
            ("showrunner.yaml", format!("port: {}{}", "{a: ".repeat(depth), "}".repeat(depth))),
            ("showrunner.yaml", format!("port:\n  {}1", "- ".repeat(depth))),
            ("showrunner.toml", format!("port = {}{}", "[".repeat(depth), "]".repeat(depth))),
            ("showrunner.toml", format!("port = {}1{}", "{a = ".repeat(depth), "}".repeat(depth))),
            ("showrunner.toml", format!("{} = 1", vec!["a"; depth].join("."))),
        ] {
            let found = refusals(Some((name, &text)), &[]);
            assert!(found.starts_with(name), "{found}");
        }
    }
    // An alias of an alias: a few lines that would be gigabytes.
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let alias = format!("*a{}, ", level - 1).repeat(10);
        bomb += &format!("a{level}: &a{level} [{}]\n", alias.trim_end_matches(", "));
    }
    assert!(refusals(Some(("showrunner.yaml", &bomb)), &[]).starts_with("showrunner.yaml"));
}
