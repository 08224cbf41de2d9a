//! The routes, through a router: what they take, refuse, answer and write into the ledger.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use axum::{Extension, Router};
use tower::ServiceExt;

use super::*;
use crate::actor::{Caller, Role};

struct Door {
    router: Router,
}

impl Door {
    fn of(world: &World, role: Role) -> Self {
        let (router, _) = crate::planes::publishing::routes::<()>(world.publishing.clone()).split_for_parts();
        Self { router: router.layer(Extension(Caller { name: "ann".to_owned(), role })) }
    }

    async fn ask(&self, method: Method, path: &str, key: Option<&str>, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let response = self.router.clone().oneshot(request.body(body).expect("request")).await.expect("answer");
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("body");
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.ask(Method::GET, path, None, None).await
    }
    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.ask(Method::POST, path, None, Some(body)).await
    }
    async fn patch(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.ask(Method::PATCH, path, None, Some(body)).await
    }

    /// The refused fields, in order.
    async fn refused(&self, method: Method, path: &str, body: Value) -> Vec<String> {
        let (status, problem) = self.ask(method, path, None, Some(body)).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
        let errors = problem["errors"].as_array().expect("errors");
        errors.iter().map(|error| error["field"].as_str().expect("a field").to_owned()).collect()
    }
}

#[tokio::test]
async fn campaigns_are_made_changed_and_read() {
    in_each_world(settings(), async |world| {
        let door = Door::of(&world, Role::Operator);
        let new = json!({ "name": "Spring", "budget_cents": 20_000, "starts_at": "2026-11-20T19:30:00+01:00" });
        let (status, made) = door.post("/v1/campaigns", new).await;
        assert_eq!((status, &made["status"], &made["spent_cents"]), (StatusCode::CREATED, &json!("draft"), &json!(0)));
        assert_eq!(made["starts_at"], "2026-11-20T18:30:00.000Z");
        let path = format!("/v1/campaigns/{}", made["id"]);
        let (status, changed) =
            door.patch(&path, json!({ "status": "active", "starts_at": null, "priority": 5 })).await;
        assert_eq!(status, StatusCode::OK, "{changed}");
        let seen = (&changed["status"], &changed["starts_at"], &changed["priority"], &changed["name"]);
        assert_eq!(seen, (&json!("active"), &Value::Null, &json!(5), &json!("Spring")));
        assert_eq!(door.get(&path).await.1, changed);
        assert_eq!(world.ledger().await, ["publishing.campaign_created", "publishing.campaign_changed"]);
        let (actor, subject): (String, String) =
            world.db.query("SELECT actor, subject FROM ledger_entries WHERE id = 2").one().await.expect("entry");
        assert_eq!((actor, subject), ("operator:ann".to_owned(), format!("campaign:{}", made["id"])));
        let bad = json!({ "name": " ", "budget_cents": -1, "priority": 1001,
                          "starts_at": "2026-01-02T00:00:00Z", "ends_at": "2026-01-01T00:00:00Z" });
        let fields = door.refused(Method::POST, "/v1/campaigns", bad).await;
        assert_eq!(fields, ["name", "budget_cents", "priority", "ends_at"]);
        assert_eq!(door.refused(Method::PATCH, &path, json!({ "spent_cents": 1 })).await, ["spent_cents"]);
        assert_eq!(door.patch("/v1/campaigns/999", json!({})).await.0, StatusCode::NOT_FOUND);
        assert_eq!(door.get("/v1/campaigns/999").await.0, StatusCode::NOT_FOUND);
        assert_eq!(world.ledger().await.len(), 2, "what was refused is not in the ledger");
    })
    .await;
}

#[tokio::test]
async fn clips_are_made_listed_by_page_and_archived() {
    in_each_world(settings(), async |world| {
        let door = Door::of(&world, Role::Operator);
        for score in 0..5 {
            let new = json!({ "title": format!("c{score}"), "media_uri": "u", "visual_score": score * 20 });
            assert_eq!(door.post("/v1/clips", new).await.0, StatusCode::CREATED);
        }
        let (_, first) = door.get("/v1/clips?limit=2&min_visual_score=20").await;
        let titles = |page: &Value| -> Vec<String> {
            let items = page["items"].as_array().expect("items");
            items.iter().map(|clip| clip["title"].as_str().expect("a title").to_owned()).collect()
        };
        assert_eq!(titles(&first), ["c4", "c3"]);
        let cursor = first["next_cursor"].as_str().expect("a cursor");
        let (_, second) = door.get(&format!("/v1/clips?limit=2&min_visual_score=20&cursor={cursor}")).await;
        assert_eq!((titles(&second), &second["next_cursor"]), (vec!["c2".to_owned(), "c1".to_owned()], &Value::Null));

        let id = first["items"][0]["id"].as_i64().expect("an id");
        let path = format!("/v1/clips/{id}");
        let log = world.log(id, "tiktok", "", "'pending'").await;
        assert_eq!(door.patch(&path, json!({ "status": "archived" })).await.0, StatusCode::CONFLICT);
        write(&world.db, format!("UPDATE publish_logs SET status = 'published' WHERE id = {log}")).await;
        let (_, archived) = door.patch(&path, json!({ "status": "archived", "duration_ms": 7 })).await;
        assert_eq!((&archived["status"], &archived["duration_ms"]), (&json!("archived"), &json!(7)));
        let (_, back) = door.patch(&path, json!({ "status": "ready" })).await;
        assert_eq!(back["status"], "published", "as its publications say");
        assert_eq!(door.refused(Method::PATCH, &path, json!({ "status": "scheduled" })).await, ["status"]);
        assert_eq!(door.refused(Method::PATCH, &path, json!({ "campaign_id": 999 })).await, ["campaign_id"]);
        let bad = json!({ "title": "", "media_uri": "", "visual_score": 101, "duration_ms": -1 });
        let fields = door.refused(Method::POST, "/v1/clips", bad).await;
        assert_eq!(fields, ["title", "media_uri", "visual_score", "duration_ms"]);
    })
    .await;
}

#[tokio::test]
async fn publications_are_made_moved_and_given_up() {
    in_each_world(settings(), async |world| {
        let door = Door::of(&world, Role::Operator);
        let clip = world.clip(50.0).await;
        let new = json!({ "clip_id": clip, "platform": "tiktok", "scheduled_at": "2026-11-21T18:00:00Z" });
        let (status, made) = door.post("/v1/publish-logs", new.clone()).await;
        assert_eq!(
            (status, &made["status"], &made["max_retries"]),
            (StatusCode::CREATED, &json!("scheduled"), &json!(3))
        );
        let (status, problem) = door.post("/v1/publish-logs", new).await;
        assert_eq!(status, StatusCode::CONFLICT);
        assert_eq!(problem["detail"], format!("Clip {clip} has a live publication on tiktok."));
        let path = format!("/v1/publish-logs/{}", made["id"]);
        let (_, moved) = door.patch(&path, json!({ "scheduled_at": "2026-11-20T18:00:00Z", "priority": 9 })).await;
        assert_eq!((&moved["scheduled_at"], &moved["priority"]), (&json!("2026-11-20T18:00:00.000Z"), &json!(9)));
        world.tick().await;
        assert_eq!(door.patch(&path, json!({ "scheduled_at": "2026-11-22T18:00:00Z" })).await.0, StatusCode::CONFLICT);
        door.patch(&path, json!({ "priority": 11 })).await;
        assert_eq!(count(&world.db, "SELECT priority FROM jobs").await, 21, "its job goes with it");
        let (status, gone) = door.patch(&path, json!({ "status": "cancelled" })).await;
        assert_eq!((status, &gone["status"]), (StatusCode::OK, &json!("cancelled")));
        assert_eq!(door.patch(&path, json!({ "priority": 1 })).await.0, StatusCode::CONFLICT);
        assert_eq!(door.patch(&path, json!({ "status": "cancelled" })).await.0, StatusCode::CONFLICT);
        assert_eq!(door.refused(Method::PATCH, &path, json!({ "status": "published" })).await, ["status"]);
        world.work().await;
        assert_eq!(world.posts().await, 0);

        let (_, at_once) = door.post("/v1/publish-logs", json!({ "clip_id": clip, "platform": "tiktok" })).await;
        assert_eq!(at_once["status"], "pending");
        world.work().await;
        let (_, page) = door.get(&format!("/v1/publish-logs?status=published&clip_id={clip}&platform=tiktok")).await;
        assert_eq!(page["items"][0]["id"], at_once["id"]);
        assert_eq!(world.posts().await, 1);
        for (body, field) in [
            (json!({ "clip_id": 999, "platform": "tiktok" }), "clip_id"),
            (json!({ "clip_id": clip, "platform": "myspace" }), "platform"),
            (json!({ "clip_id": clip, "platform": "tiktok", "max_retries": 101 }), "max_retries"),
        ] {
            assert_eq!(door.refused(Method::POST, "/v1/publish-logs", body).await, [field]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_repeated_request_is_answered_and_not_done_again() {
    in_each_world(settings(), async |world| {
        let door = Door::of(&world, Role::Operator);
        let new = json!({ "title": "c", "media_uri": "u", "visual_score": 50 });
        let first = door.ask(Method::POST, "/v1/clips", Some("k"), Some(new.clone())).await;
        assert_eq!(first.0, StatusCode::CREATED);
        assert_eq!(door.ask(Method::POST, "/v1/clips", Some("k"), Some(new)).await, first);
        let other = json!({ "title": "d", "media_uri": "u", "visual_score": 50 });
        let (status, _) = door.ask(Method::POST, "/v1/clips", Some("k"), Some(other)).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!((count(&world.db, "SELECT COUNT(*) FROM clips").await, world.ledger().await.len()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn viewers_read_and_do_not_write() {
    in_each_world(settings(), async |world| {
        let door = Door::of(&world, Role::Viewer);
        let clip = world.clip(50.0).await;
        assert_eq!(door.get(&format!("/v1/clips/{clip}")).await.0, StatusCode::OK);
        assert_eq!(door.get("/v1/publish-logs").await.0, StatusCode::OK);
        let new = json!({ "title": "c", "media_uri": "u", "visual_score": 50 });
        assert_eq!(door.post("/v1/clips", new).await.0, StatusCode::FORBIDDEN);
        assert_eq!(
            door.post("/v1/campaigns", json!({ "name": "n", "budget_cents": 1 })).await.0,
            StatusCode::FORBIDDEN
        );
        let log = json!({ "clip_id": clip, "platform": "tiktok" });
        assert_eq!(door.post("/v1/publish-logs", log).await.0, StatusCode::FORBIDDEN);
        assert_eq!(door.patch(&format!("/v1/clips/{clip}"), json!({})).await.0, StatusCode::FORBIDDEN);
    })
    .await;
}
