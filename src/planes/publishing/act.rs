//! What the loop and operators may do to publications. Each action re-checks everything inside the transaction that
//! it is given: what the snapshot showed is already old.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use super::dispatch;
use super::model::{Campaign, CampaignStatus, Clip, ClipStatus, Event, PublishLog, Status, subject_of_log};
use super::routes::NewPublishLog;
use super::slots::{self, Bounds};
use super::store::{self, NewLog};
use super::{Publishing, reconcile};
use crate::backoff;
use crate::db::{Result, Timestamp, Tx};
use crate::planes::{ActError, Effect};

/// A publication of a promoted clip goes before planned ones.
const PROMOTED_PRIORITY: i64 = 50;

/// A forced publication goes before all of the usual priorities, 0 to 100.
const FORCED_PRIORITY: i64 = 100;

/// A retry never waits longer than this, however often it failed.
const LONGEST_BACKOFF: Duration = Duration::from_secs(86_400);

/// Tries that a planned publication gets after its first.
pub(super) const MAX_RETRIES: i64 = 3;

/// Plans a publication of a clip in the best slot of the platform's next windows; without a platform, on the unused
/// one whose slot comes first.
pub async fn schedule_clip(
    tx: &mut Tx,
    publishing: &Publishing,
    clip_id: i64,
    platform: Option<&str>,
) -> Result<Effect, ActError> {
    let now = tx.now().await?;
    let (clip, campaign) = clip_to_publish(tx, clip_id, now).await?;
    let used = store::used_platforms(tx, clip_id).await?;
    let candidates: Vec<String> = match platform {
        Some(platform) => {
            if publishing.schedule().get(platform).is_none() {
                let known = publishing.platforms().join(", ");
                return refuse(format!("platform `{platform}` is not configured; there are {known}"));
            }
            if used.iter().any(|used| used == platform) {
                return refuse(format!("clip {clip_id} already has a publication on {platform}"));
            }
            vec![platform.to_owned()]
        }
        None => publishing.platforms().into_iter().filter(|platform| !used.contains(platform)).collect(),
    };
    if candidates.is_empty() {
        return refuse(format!("clip {clip_id} already has a publication on every platform"));
    }
    let from = slots::full_minute(now.utc());
    let mut best: Option<(DateTime<Utc>, String)> = None;
    let mut too_dear = None;
    for platform in candidates {
        let Some(schedule) = publishing.schedule().get(&platform) else { continue };
        if let Err(reason) = within_budget(tx, campaign.as_ref(), schedule.cost_cents).await? {
            too_dear = Some(reason);
            continue;
        }
        store::lock_slots(tx, &platform).await?;
        let taken = store::taken(tx, &platform, now).await?;
        let slot = slots::best_slot(schedule, bounds(campaign.as_ref(), from), &taken);
        if let Some(slot) = slot.filter(|slot| best.as_ref().is_none_or(|(earliest, _)| slot < earliest)) {
            best = Some((slot, platform));
        }
    }
    match (best, too_dear) {
        (Some((slot, platform)), _) => plan(tx, publishing, &clip, &platform, slot, 0).await,
        (None, Some(reason)) => refuse(reason),
        (None, None) => refuse(format!("no slot is free for clip {clip_id} within {} days", slots::HORIZON_DAYS)),
    }
}

/// Plans a publication of a clip in the window that is open now, ahead of others: on the unused platform whose window
/// closes first.
pub async fn promote_high_score_clip(tx: &mut Tx, publishing: &Publishing, clip_id: i64) -> Result<Effect, ActError> {
    let now = tx.now().await?;
    let (clip, campaign) = clip_to_publish(tx, clip_id, now).await?;
    let used = store::used_platforms(tx, clip_id).await?;
    let mut open: Vec<_> = publishing
        .platforms()
        .into_iter()
        .filter(|platform| !used.contains(platform))
        .filter_map(|platform| {
            let window = publishing.schedule().get(&platform)?.current_or_next(now.utc())?;
            window.contains(now.utc()).then_some((window.closes_at, window, platform))
        })
        .collect();
    if open.is_empty() {
        return refuse(format!("no window is open on a platform where clip {clip_id} has no publication"));
    }
    open.sort_by(|one, other| (one.0, &one.2).cmp(&(other.0, &other.2)));
    let mut too_dear = None;
    for (_, window, platform) in open {
        let Some(schedule) = publishing.schedule().get(&platform) else { continue };
        if let Err(reason) = within_budget(tx, campaign.as_ref(), schedule.cost_cents).await? {
            too_dear = Some(reason);
            continue;
        }
        store::lock_slots(tx, &platform).await?;
        let taken = store::taken(tx, &platform, now).await?;
        if let Some(slot) = slots::slot_in(schedule, window, bounds(campaign.as_ref(), now.utc()), &taken) {
            return plan(tx, publishing, &clip, &platform, slot, PROMOTED_PRIORITY).await;
        }
    }
    refuse(too_dear.unwrap_or_else(|| format!("no slot is free for clip {clip_id} in the windows that are open now")))
}

/// Gives a failed publication another try, after a backoff.
pub async fn retry_failed_log(tx: &mut Tx, publishing: &Publishing, log_id: i64) -> Result<Effect, ActError> {
    let log = log_to_change(tx, log_id).await?;
    if log.status == Status::Unknown {
        return refuse(format!("the outcome of publication {log_id} is unknown; only reconciliation settles it"));
    }
    let next = allowed(&log, Event::Retried)?;
    if log.retry_count >= log.max_retries {
        return refuse(format!("publication {log_id} has used its {} retries", log.max_retries));
    }
    if store::lock_clip(tx, log.clip_id).await?.is_some_and(|clip| clip.status == ClipStatus::Archived) {
        return refuse(format!("clip {} is archived", log.clip_id));
    }
    if store::has_live_log(tx, log.clip_id, &log.platform).await? {
        return refuse(format!("clip {} has another live publication on {}", log.clip_id, log.platform));
    }
    if let Some(campaign_id) = log.campaign_id {
        let campaign = store::lock_campaign(tx, campaign_id).await?;
        if let Some(campaign) = &campaign {
            may_publish(campaign, log.clip_id, tx.now().await?)?;
        }
        if let Err(reason) = within_budget(tx, campaign.as_ref(), log.cost_cents).await? {
            return refuse(reason);
        }
    }
    let now = tx.now().await?;
    let base = Duration::from_secs(publishing.config().retry_backoff_minutes.saturating_mul(60));
    let tries = u32::try_from(log.retry_count + 1).unwrap_or(u32::MAX);
    let at = now.after(backoff::exponential(base, LONGEST_BACKOFF, tries, publishing.random()));
    if store::reschedule_failed(tx, log_id, at).await? == 0 {
        return refuse(format!("publication {log_id} has changed meanwhile"));
    }
    Ok(Effect {
        detail: json!({
            "clip_id": log.clip_id, "platform": log.platform, "from": log.status, "to": next,
            "scheduled_at": at, "retry_count": log.retry_count + 1, "max_retries": log.max_retries,
            "last_error": log.last_error,
        }),
    })
}

/// Enqueues the job that asks the platforms what became of publications without an answer; one at a time.
pub async fn trigger_reconciliation(tx: &mut Tx) -> Result<Effect, ActError> {
    let enqueued = reconcile::enqueue(tx).await?;
    if !enqueued.created {
        return refuse("a reconciliation is already under way");
    }
    Ok(Effect { detail: json!({ "job_id": enqueued.id }) })
}

/// Moves a clip's scheduled publications a day later, to the same local time.
pub async fn downgrade_low_score_clip(tx: &mut Tx, publishing: &Publishing, clip_id: i64) -> Result<Effect, ActError> {
    let most = i64::from(publishing.config().max_postponements);
    let logs = store::lock_scheduled_of_clip(tx, clip_id).await?;
    if logs.is_empty() {
        return refuse(format!("clip {clip_id} has no scheduled publication"));
    }
    let mut moved = Vec::new();
    for log in logs.iter().filter(|log| log.postponed_count < most) {
        let Some(at) = log.scheduled_at else { continue };
        allowed(log, Event::Postponed)?;
        let later = match publishing.schedule().get(&log.platform) {
            Some(schedule) => schedule.same_time_later(at.utc(), 1),
            None => at.utc() + TimeDelta::days(1),
        };
        let later = Timestamp::new(later);
        store::postpone(tx, log.id, later).await?;
        moved.push(json!({ "log_id": log.id, "platform": log.platform, "from": at, "to": later }));
    }
    if moved.is_empty() {
        return refuse(format!("clip {clip_id} has been postponed {most} times already"));
    }
    Ok(Effect { detail: json!({ "postponed": moved }) })
}

/// Sends a publication out next, whatever its window.
pub async fn force_publish(tx: &mut Tx, publishing: &Publishing, log_id: i64) -> Result<Effect, ActError> {
    let Some((log, job)) = store::lock_log_with_job(tx, log_id).await? else {
        return refuse(format!("there is no publication {log_id}"));
    };
    let next = allowed(&log, Event::Forced)?;
    if publishing.schedule().get(&log.platform).is_none() {
        return refuse(format!("platform `{}` of publication {log_id} is not configured", log.platform));
    }
    if log.status == Status::Retry && log.retry_count >= log.max_retries {
        return refuse(format!("publication {log_id} has used its {} retries", log.max_retries));
    }
    let priority = log.priority.max(FORCED_PRIORITY);
    let of_job = dispatch::job_priority(priority);
    let waiting = match (log.status, job.as_deref()) {
        (Status::Pending, Some("processing")) => {
            return refuse(format!("publication {log_id} is going out already"));
        }
        (Status::Pending, Some("pending" | "waiting" | "retry")) => log.job_id,
        _ => None,
    };
    let job_id = match waiting {
        Some(job_id) => {
            store::raise_job_priority(tx, job_id, of_job).await?;
            store::make_job_due(tx, job_id).await?;
            job_id
        }
        None => dispatch::enqueue_publish(tx, &log, of_job).await?,
    };
    store::force(tx, &log, priority, job_id).await?;
    Ok(Effect {
        detail: json!({
            "clip_id": log.clip_id, "platform": log.platform, "from": log.status, "to": next,
            "was_scheduled_at": log.scheduled_at, "job_id": job_id,
        }),
    })
}

/// Fails the publications that waited on jobs which an emergency failed in the queue; they can be retried. Returns
/// their ids.
pub async fn fail_waiting_on(tx: &mut Tx, job_ids: &[i64]) -> Result<Vec<i64>> {
    if job_ids.is_empty() {
        return Ok(Vec::new());
    }
    store::fail_waiting_on(tx, job_ids, "its job waited too long and was failed in an emergency").await
}

/// Gives a publication up.
pub async fn cancel(tx: &mut Tx, log_id: i64) -> Result<Effect, ActError> {
    let log = log_to_change(tx, log_id).await?;
    let next = allowed(&log, Event::Cancelled)?;
    // Two cancellations at once would not see each other, and the clip would wait for a publication that is none.
    store::lock_clip(tx, log.clip_id).await?;
    if store::cancel(tx, log_id).await? == 0 {
        return refuse(format!("publication {log_id} has changed meanwhile"));
    }
    Ok(Effect { detail: json!({ "clip_id": log.clip_id, "platform": log.platform, "from": log.status, "to": next }) })
}

/// Makes a publication that an operator asks for, at a time or at once; the campaign must be active and able to pay.
pub(super) async fn publish_by_hand(
    tx: &mut Tx,
    publishing: &Publishing,
    new: &NewPublishLog,
    cost_cents: i64,
) -> Result<PublishLog, ActError> {
    let now = tx.now().await?;
    let (clip, campaign) = clip_to_publish(tx, new.clip_id, now).await?;
    if store::has_live_log(tx, clip.id, &new.platform).await? {
        return refuse(format!("clip {} has a live publication on {}", clip.id, new.platform));
    }
    if let Err(reason) = within_budget(tx, campaign.as_ref(), cost_cents).await? {
        return refuse(reason);
    }
    let log = NewLog {
        clip_id: clip.id,
        campaign_id: clip.campaign_id,
        platform: new.platform.clone(),
        scheduled_at: new.scheduled_at,
        max_retries: new.max_retries,
        priority: new.priority,
        cost_cents,
        idempotency_key: publishing.random().token(),
    };
    Ok(store::insert_log(tx, log).await?)
}

/// Whether an operator may still change a publication, and its time.
pub(super) fn may_edit(log: &PublishLog, its_time: bool) -> Result<(), ActError> {
    if its_time {
        allowed(log, Event::Postponed)?;
    }
    match log.status {
        Status::Scheduled | Status::Pending | Status::Retry | Status::Failed => Ok(()),
        status => refuse(format!("publication {} is {status} and cannot be changed", log.id)),
    }
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, ActError> {
    Err(ActError::refused(reason))
}

/// The status after `event`, or a refusal in words.
fn allowed(log: &PublishLog, event: Event) -> Result<Status, ActError> {
    log.status.on(event).map_err(|_| {
        let verb = match event {
            Event::Retried => "retried",
            Event::Postponed => "moved",
            Event::Forced => "forced out",
            _ => "cancelled",
        };
        ActError::refused(format!("publication {} is {} and cannot be {verb}", log.id, log.status))
    })
}

async fn log_to_change(tx: &mut Tx, log_id: i64) -> Result<PublishLog, ActError> {
    match store::lock_log(tx, log_id).await? {
        Some(log) => Ok(log),
        None => refuse(format!("there is no publication {log_id}")),
    }
}

/// The clip with its campaign, both held, if they allow a publication at all.
async fn clip_to_publish(tx: &mut Tx, clip_id: i64, now: Timestamp) -> Result<(Clip, Option<Campaign>), ActError> {
    let Some(clip) = store::lock_clip(tx, clip_id).await? else {
        return refuse(format!("there is no clip {clip_id}"));
    };
    if clip.status == ClipStatus::Archived {
        return refuse(format!("clip {clip_id} is archived"));
    }
    let Some(campaign_id) = clip.campaign_id else { return Ok((clip, None)) };
    let Some(campaign) = store::lock_campaign(tx, campaign_id).await? else { return Ok((clip, None)) };
    may_publish(&campaign, clip_id, now)?;
    Ok((clip, Some(campaign)))
}

/// Whether a campaign lets its clips go out at all.
fn may_publish(campaign: &Campaign, clip_id: i64, now: Timestamp) -> Result<(), ActError> {
    let id = campaign.id;
    if campaign.status != CampaignStatus::Active {
        return refuse(format!("campaign {id} of clip {clip_id} is {}, not active", campaign.status));
    }
    if campaign.ends_at.is_some_and(|ends| ends <= now) {
        return refuse(format!("campaign {id} of clip {clip_id} is over"));
    }
    Ok(())
}

/// Whether a campaign can pay for one more publication; the reason if not.
async fn within_budget(tx: &mut Tx, campaign: Option<&Campaign>, cost: i64) -> Result<Result<(), String>> {
    let Some(campaign) = campaign else { return Ok(Ok(())) };
    let reserved = store::reserved_cents(tx, campaign.id).await?;
    let left = campaign.budget_cents.saturating_sub(campaign.spent_cents).saturating_sub(reserved);
    if cost > left || (campaign.budget_cents > 0 && left <= 0) {
        return Ok(Err(format!(
            "campaign {} has {left} of {} cents left; {} are spent, {reserved} reserved, and this publication costs {cost}",
            campaign.id, campaign.budget_cents, campaign.spent_cents
        )));
    }
    Ok(Ok(()))
}

/// From when to when the campaign allows a slot.
fn bounds(campaign: Option<&Campaign>, from: DateTime<Utc>) -> Bounds {
    let starts = campaign.and_then(|campaign| campaign.starts_at).map(Timestamp::utc);
    let until = campaign.and_then(|campaign| campaign.ends_at).map(Timestamp::utc);
    Bounds { from: starts.map_or(from, |starts| slots::full_minute(starts).max(from)), until }
}

/// Writes the planned publication down.
async fn plan(
    tx: &mut Tx,
    publishing: &Publishing,
    clip: &Clip,
    platform: &str,
    slot: DateTime<Utc>,
    priority: i64,
) -> Result<Effect, ActError> {
    let cost_cents = publishing.schedule().get(platform).map_or(0, |schedule| schedule.cost_cents);
    let new = NewLog {
        clip_id: clip.id,
        campaign_id: clip.campaign_id,
        platform: platform.to_owned(),
        scheduled_at: Some(slot.into()),
        max_retries: MAX_RETRIES,
        priority: priority.max(clip.priority),
        cost_cents,
        idempotency_key: publishing.random().token(),
    };
    let log = store::insert_log(tx, new).await?;
    Ok(Effect {
        detail: json!({
            "publication": subject_of_log(log.id), "log_id": log.id, "platform": platform,
            "scheduled_at": log.scheduled_at, "priority": log.priority, "campaign_id": log.campaign_id,
            "cost_cents": cost_cents, "visual_score": clip.visual_score,
        }),
    })
}
