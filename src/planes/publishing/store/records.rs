//! Lists and edits of campaigns, clips and publications, as operators make them.

use super::super::model::{Campaign, Clip, PublishLog};
use super::super::routes::{CampaignPatch, CampaignQuery, ClipPatch, ClipQuery, LogQuery, NewCampaign, NewClip};
use crate::db::{Db, Result, Timestamp, Tx};

/// Campaigns, newest first.
pub(in super::super) async fn list_campaigns(db: &Db, query: &CampaignQuery) -> Result<Vec<Campaign>> {
    db.query(
        "SELECT * FROM campaigns WHERE id < $1 AND (CAST($2 AS TEXT) IS NULL OR status = $2) ORDER BY id DESC LIMIT $3",
    )
    .bind(query.cursor.map_or(i64::MAX, |cursor| cursor.0))
    .bind(query.status.map(|status| status.as_str()))
    .bind(query.limit.fetch())
    .all()
    .await
}

/// One campaign.
pub(in super::super) async fn campaign(db: &Db, id: i64) -> Result<Option<Campaign>> {
    db.query("SELECT * FROM campaigns WHERE id = $1").bind(id).optional().await
}

/// Makes a campaign.
pub(in super::super) async fn insert_campaign(tx: &mut Tx, new: &NewCampaign) -> Result<Campaign> {
    let now = tx.now().await?;
    tx.query(
        "INSERT INTO campaigns (name, status, budget_cents, priority, starts_at, ends_at, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7) RETURNING *",
    )
    .bind(new.name.clone())
    .bind(new.status.as_str())
    .bind(new.budget_cents)
    .bind(new.priority)
    .bind(new.starts_at)
    .bind(new.ends_at)
    .bind(now)
    .one()
    .await
}

/// Writes a changed campaign; what it has spent is not the operator's to change.
pub(in super::super) async fn update_campaign(tx: &mut Tx, id: i64, patch: CampaignPatch) -> Result<Campaign> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE campaigns SET name = coalesce($2, name), status = coalesce($3, status),
             budget_cents = coalesce($4, budget_cents), priority = coalesce($5, priority),
             starts_at = CASE WHEN $6 = 1 THEN $7 ELSE starts_at END,
             ends_at = CASE WHEN $8 = 1 THEN $9 ELSE ends_at END, updated_at = $10
         WHERE id = $1 RETURNING *",
    )
    .bind(id)
    .bind(patch.name)
    .bind(patch.status.map(|status| status.as_str()))
    .bind(patch.budget_cents)
    .bind(patch.priority)
    .bind(i64::from(patch.starts_at.is_some()))
    .bind(patch.starts_at.flatten())
    .bind(i64::from(patch.ends_at.is_some()))
    .bind(patch.ends_at.flatten())
    .bind(now)
    .one()
    .await
}

/// Clips, newest first.
pub(in super::super) async fn list_clips(db: &Db, query: &ClipQuery) -> Result<Vec<Clip>> {
    db.query(
        "SELECT * FROM clips WHERE id < $1 AND (CAST($2 AS TEXT) IS NULL OR status = $2)
           AND (CAST($3 AS BIGINT) IS NULL OR campaign_id = $3)
           AND (CAST($4 AS DOUBLE PRECISION) IS NULL OR visual_score >= $4)
         ORDER BY id DESC LIMIT $5",
    )
    .bind(query.cursor.map_or(i64::MAX, |cursor| cursor.0))
    .bind(query.status.map(|status| status.as_str()))
    .bind(query.campaign_id)
    .bind(query.min_visual_score)
    .bind(query.limit.fetch())
    .all()
    .await
}

/// One clip.
pub(in super::super) async fn get_clip(db: &Db, id: i64) -> Result<Option<Clip>> {
    db.query("SELECT * FROM clips WHERE id = $1").bind(id).optional().await
}

/// Makes a clip.
pub(in super::super) async fn insert_clip(tx: &mut Tx, new: &NewClip) -> Result<Clip> {
    let now = tx.now().await?;
    tx.query(
        "INSERT INTO clips (title, media_uri, campaign_id, visual_score, priority, duration_ms, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7) RETURNING *",
    )
    .bind(new.title.clone())
    .bind(new.media_uri.clone())
    .bind(new.campaign_id)
    .bind(new.visual_score)
    .bind(new.priority)
    .bind(new.duration_ms)
    .bind(now)
    .one()
    .await
}

/// Writes a changed clip, except its status.
pub(in super::super) async fn update_clip(tx: &mut Tx, id: i64, patch: ClipPatch) -> Result<Clip> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE clips SET title = coalesce($2, title), media_uri = coalesce($3, media_uri),
             visual_score = coalesce($4, visual_score), priority = coalesce($5, priority),
             campaign_id = CASE WHEN $6 = 1 THEN $7 ELSE campaign_id END,
             duration_ms = CASE WHEN $8 = 1 THEN $9 ELSE duration_ms END, updated_at = $10
         WHERE id = $1 RETURNING *",
    )
    .bind(id)
    .bind(patch.title)
    .bind(patch.media_uri)
    .bind(patch.visual_score)
    .bind(patch.priority)
    .bind(i64::from(patch.campaign_id.is_some()))
    .bind(patch.campaign_id.flatten())
    .bind(i64::from(patch.duration_ms.is_some()))
    .bind(patch.duration_ms.flatten())
    .bind(now)
    .one()
    .await
}

/// Puts a clip away; `false` while a publication of it is still to go out.
pub(in super::super) async fn archive_clip(tx: &mut Tx, id: i64) -> Result<bool> {
    let archived = tx
        .query(
            "UPDATE clips SET status = 'archived' WHERE id = $1 AND NOT EXISTS (
                 SELECT 1 FROM publish_logs WHERE clip_id = $1 AND status IN ('scheduled', 'pending', 'publishing', 'retry'))",
        )
        .bind(id)
        .execute()
        .await?;
    Ok(archived > 0)
}

/// Takes a clip out of the archive, to the status that follows from its publications.
pub(in super::super) async fn restore_clip(tx: &mut Tx, id: i64) -> Result<()> {
    tx.query(
        "UPDATE clips SET status = CASE
             WHEN EXISTS (SELECT 1 FROM publish_logs WHERE clip_id = $1 AND status = 'published') THEN 'published'
             WHEN EXISTS (SELECT 1 FROM publish_logs WHERE clip_id = $1 AND status <> 'cancelled') THEN 'scheduled'
             ELSE 'ready' END
         WHERE id = $1 AND status = 'archived'",
    )
    .bind(id)
    .execute()
    .await?;
    Ok(())
}

/// Publications, newest first.
pub(in super::super) async fn list_logs(db: &Db, query: LogQuery) -> Result<Vec<PublishLog>> {
    db.query(
        "SELECT * FROM publish_logs WHERE id < $1 AND (CAST($2 AS TEXT) IS NULL OR status = $2)
           AND (CAST($3 AS TEXT) IS NULL OR platform = $3) AND (CAST($4 AS BIGINT) IS NULL OR clip_id = $4)
           AND (CAST($5 AS BIGINT) IS NULL OR campaign_id = $5)
         ORDER BY id DESC LIMIT $6",
    )
    .bind(query.cursor.map_or(i64::MAX, |cursor| cursor.0))
    .bind(query.status.map(|status| status.as_str()))
    .bind(query.platform)
    .bind(query.clip_id)
    .bind(query.campaign_id)
    .bind(query.limit.fetch())
    .all()
    .await
}

/// One publication.
pub(in super::super) async fn get_log(db: &Db, id: i64) -> Result<Option<PublishLog>> {
    db.query("SELECT * FROM publish_logs WHERE id = $1").bind(id).optional().await
}

/// Moves a planned publication to a time, and sets what governs its order and tries; the caller holds its row.
pub(in super::super) async fn edit_log(
    tx: &mut Tx,
    id: i64,
    scheduled_at: Option<Timestamp>,
    priority: Option<i64>,
    max_retries: Option<i64>,
) -> Result<PublishLog> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE publish_logs SET scheduled_at = coalesce($2, scheduled_at), priority = coalesce($3, priority),
             max_retries = coalesce($4, max_retries), updated_at = $5 WHERE id = $1 RETURNING *",
    )
    .bind(id)
    .bind(scheduled_at)
    .bind(priority)
    .bind(max_retries)
    .bind(now)
    .one()
    .await
}
