//! What happens by itself: jobs find agents, times come, silent agents are given up, commands of other instances go out.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::Fleet;
use super::change::Change;
use super::hub::Out;
use super::placement::place;
use super::protocol::close;
use super::store::{self, read};
use crate::db::{Result, Timestamp};

/// Between looks for what is due: a stop becomes a kill within this of its time.
const LOOK: Duration = Duration::from_millis(250);
/// Between looks where nothing wakes: hints may be lost.
const POLL: Duration = Duration::from_secs(1);
/// Rows of one transaction.
const BATCH: usize = 500;
/// Offers of one transaction: agents answer each with two messages at once, and the fleet's lock is not left to those.
const OFFERS: usize = 1_000;
/// Between two signs of life of an instance, and two looks for instances that died.
const INSTANCES: Duration = Duration::from_secs(2);
/// How old `last_seen_at` may grow in the table while heartbeats come.
const SEEN: Duration = Duration::from_secs(15);
/// Instances that were silent for so long are forgotten, and commands that nobody took.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// What this instance knows of its own life and of the other instances, by its own clock.
#[derive(Debug, Default)]
pub struct Signs {
    /// When its last sign of life was given that is written down.
    lived_at: Option<Duration>,
    /// When it last looked for the others, and could.
    looked_at: Option<Duration>,
    /// Since when it looks for them without a gap.
    watching_since: Option<Duration>,
    /// Whether it saw another one at its last look.
    has_company: bool,
}

impl Signs {
    fn lived(&mut self, at: Duration) {
        self.lived_at = self.lived_at.max(Some(at));
    }

    fn looked(&mut self, at: Duration, has_company: bool, timeout: Duration) {
        if self.looked_at.is_none_or(|last| at.saturating_sub(last) > timeout) {
            self.watching_since = Some(at);
        }
        (self.looked_at, self.has_company) = (Some(at), has_company);
    }

    /// Whether everybody else had the time to give a sign of life. After an outage that all share nobody has given one,
    /// and who is back first would take all others for dead.
    fn knows_the_others(&self, at: Duration, timeout: Duration) -> bool {
        self.watching_since.is_some_and(|since| at.saturating_sub(since) > timeout)
    }

    /// Whether another instance takes this one for dead, and begins its streams elsewhere.
    fn is_given_up(&self, at: Duration, timeout: Duration) -> bool {
        self.has_company && self.lived_at.is_some_and(|lived| at.saturating_sub(lived) > timeout)
    }
}

/// Keeps the mirror up to date.
pub async fn follow(fleet: Arc<Fleet>) {
    let mut hint = fleet.db.listen(crate::db::Topic::Fleet);
    loop {
        if let Err(cause) = fleet.mirror.catch_up(&fleet.db).await {
            tracing::debug!(%cause, "changes of the fleet cannot be read; they are read once they can");
            tokio::time::sleep(POLL).await;
        }
        tokio::select! {
            () = fleet.stop.cancelled() => return,
            () = hint.woken() => {}
            () = fleet.clock.sleep(POLL) => {}
        }
    }
}

/// Gives jobs that wait to agents that are free, whenever something changed.
pub async fn place_jobs(fleet: Arc<Fleet>) {
    let mut changes = fleet.mirror.watch();
    loop {
        match fleet.place_once().await {
            Ok(true) if fleet.stop.is_cancelled() => return,
            Ok(true) => continue,
            Ok(false) => {}
            Err(_) if fleet.stop.is_cancelled() => return,
            Err(cause) => {
                tracing::debug!(%cause, "jobs cannot be placed; it is tried again");
                tokio::time::sleep(POLL).await;
                continue;
            }
        }
        tokio::select! {
            () = fleet.stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// Does what is due.
pub async fn keep(fleet: Arc<Fleet>) {
    let mut looked_for_instances: Option<Duration> = None;
    loop {
        let at = fleet.clock.elapsed();
        let instances = looked_for_instances.is_none_or(|last| at.saturating_sub(last) >= INSTANCES);
        if instances {
            looked_for_instances = Some(at);
        }
        if let Err(cause) = fleet.keep_once(instances).await {
            tracing::debug!(%cause, "what is due in the fleet cannot be done; it is tried again");
        }
        tokio::select! {
            () = fleet.stop.cancelled() => return,
            () = fleet.clock.sleep(LOOK) => {}
        }
    }
}

/// Pings and gives up agents that are silent; needs no database.
pub async fn sweep(fleet: Arc<Fleet>) {
    let config = fleet.rules.config.clone();
    let interval = Duration::from_millis(config.heartbeat_interval_ms);
    let timeout = Duration::from_millis(config.heartbeat_timeout_ms);
    loop {
        let at = fleet.clock.elapsed();
        if fleet.signs().is_given_up(at, fleet.patience_with_instances()) {
            // Answered pings would hold the leases of its agents, whose streams another instance begins elsewhere.
            let agents = fleet.hub.silence_all("this instance cannot reach its database");
            if agents > 0 {
                tracing::warn!(agents, "this instance cannot reach its database; its agents are sent to others");
            }
        }
        fleet.hub.sweep(at, interval, timeout);
        tokio::select! {
            () = fleet.stop.cancelled() => return,
            () = fleet.clock.sleep(interval / 4) => {}
        }
    }
}

/// Sends what other instances, and the loop, left for agents of this one.
pub async fn carry(fleet: Arc<Fleet>) {
    let mut hint = fleet.db.listen(crate::db::Topic::Fleet);
    loop {
        if let Err(cause) = fleet.carry_once().await {
            tracing::debug!(%cause, "commands for agents cannot be read; they go out once they can");
            tokio::time::sleep(POLL).await;
        }
        tokio::select! {
            () = fleet.stop.cancelled() => return,
            () = hint.woken() => {}
            () = fleet.clock.sleep(POLL) => {}
        }
    }
}

impl Fleet {
    /// Offers jobs; whether there may be more to do at once.
    async fn place_once(&self) -> Result<bool> {
        let strategy = self.rules.config.placement;
        let plan = |now: Timestamp| self.mirror.for_placement(now, |wishes, seats| place(wishes, &seats, strategy));
        // A look without the lock: most of the time there is nothing to do.
        let Some(first) = plan(Timestamp::new(self.clock.now())) else { return Ok(false) };
        let news = |(job, reason): &(i64, String)| self.mirror.reason(*job).as_deref() != Some(reason);
        if first.offers.is_empty() && !first.waits.iter().any(news) {
            return Ok(false);
        }
        let held = self.mirror.hold().await;
        let mut tx = self.db.begin().await?;
        let mut change = Change::begin(&mut tx, &self.rules).await?;
        if !self.mirror.is_at(change.base()) {
            self.mirror.catch_up_in(&held, &mut tx).await?;
        }
        drop(held);
        let Some(plan) = plan(change.now) else { return Ok(false) };
        let offers = &plan.offers[..plan.offers.len().min(OFFERS)];
        let waits: Vec<&(i64, String)> = plan.waits.iter().filter(|wait| news(wait)).take(BATCH).collect();
        let agents: Vec<&str> = offers.iter().map(|(_, agent)| agent.as_str()).collect();
        let jobs: Vec<i64> = offers.iter().map(|(job, _)| *job).chain(waits.iter().map(|(job, _)| *job)).collect();
        change.load(&mut tx, &agents, &jobs).await?;
        for (job, agent) in offers {
            change.offer(*job, agent);
        }
        for (job, reason) in waits {
            change.wait(*job, reason);
        }
        if change.is_empty() {
            return Ok(false);
        }
        let saved = change.save(&mut tx, Some(&self.instance)).await?;
        tx.commit().await?;
        if !self.told(saved).await {
            self.mirror.catch_up(&self.db).await?;
        }
        Ok(true)
    }

    /// Does what is due now.
    async fn keep_once(&self, instances: bool) -> Result<()> {
        let now = self.db.now().await?;
        if instances {
            self.give_a_sign_of_life().await?; // before anything that may take long or fail
        }
        let jobs = read::due_jobs(&self.db, now, BATCH as i64).await?;
        let agents = read::due_agents(&self.db, now, BATCH as i64).await?;
        if !jobs.is_empty() || !agents.is_empty() {
            let mut tx = self.db.begin().await?;
            let mut change = Change::begin(&mut tx, &self.rules).await?;
            let ids: Vec<&str> = agents.iter().map(String::as_str).collect();
            change.load(&mut tx, &ids, &jobs).await?;
            change.load_jobs_of(&mut tx, &ids).await?;
            jobs.iter().for_each(|job| change.due(*job));
            ids.iter().for_each(|agent| change.agent_due(agent));
            let saved = change.save(&mut tx, Some(&self.instance)).await?;
            tx.commit().await?;
            self.told(saved).await;
        }
        self.note_seen(now).await?;
        if instances {
            self.send_back_who_was_given_up();
            self.look_for_instances(now).await?;
        }
        Ok(())
    }

    fn signs(&self) -> MutexGuard<'_, Signs> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sign of life that was begun then is written down.
    pub(super) fn lived(&self, began: Duration) {
        self.signs().lived(began);
    }

    /// How long an instance may give no sign of life.
    fn patience_with_instances(&self) -> Duration {
        Duration::from_millis(self.rules.config.heartbeat_timeout_ms).max(3 * INSTANCES)
    }

    /// Also without agents: who has some must know whether anybody is there to take them over.
    async fn give_a_sign_of_life(&self) -> Result<()> {
        if !self.is_one_of_several() {
            return Ok(());
        }
        let began = self.clock.elapsed(); // no later than the time that is written
        let mut tx = self.db.begin().await?;
        store::instance_lives(&mut tx, &self.instance).await?;
        tx.commit().await?;
        self.lived(began);
        Ok(())
    }

    /// Another instance may take an agent of this one for lost, where this one gave no sign of life in time. Only a hello
    /// tells all that it runs: its connection is closed, so that it says one.
    fn send_back_who_was_given_up(&self) {
        for connection in self.hub.connected() {
            if self.mirror.is_given_up(&connection.agent_id, connection.number()) {
                let reason = "this agent was taken for lost; connect and say hello again".to_owned();
                connection.send(Out::Close { code: close::SILENT, reason });
            }
        }
    }

    /// Writes signs of life down, seldom and many at once.
    async fn note_seen(&self, now: Timestamp) -> Result<()> {
        let seen = self.hub.to_note(self.clock.elapsed(), SEEN, 2 * BATCH);
        if seen.is_empty() {
            return Ok(());
        }
        let seen: Vec<(String, i64, Timestamp)> =
            seen.into_iter().map(|(agent, connection, ago)| (agent, connection, now.before(ago))).collect();
        let mut tx = self.db.begin().await?;
        store::lock(&mut tx).await?; // else two such statements could wait for each other
        store::note_seen(&mut tx, &seen).await?;
        tx.commit().await
    }

    /// Gives up the agents of instances that give no sign of life.
    async fn look_for_instances(&self, now: Timestamp) -> Result<()> {
        let forgotten = now.before(FORGOTTEN);
        if read::has_forgotten(&self.db, forgotten).await? {
            let mut tx = self.db.begin().await?;
            store::forget_instances(&mut tx, forgotten).await?;
            tx.commit().await?;
        }
        if !self.is_one_of_several() {
            return self.give_up_orphans(None).await; // one process serves: whoever is connected to another one, was
        }
        let timeout = self.patience_with_instances();
        let since = now.before(timeout);
        let has_company = read::others_live(&self.db, &self.instance, since).await?;
        let at = self.clock.elapsed();
        let knows_the_others = {
            let mut signs = self.signs();
            signs.looked(at, has_company, timeout);
            signs.knows_the_others(at, timeout)
        };
        if knows_the_others {
            self.give_up_orphans(Some(since)).await?;
        }
        Ok(())
    }

    /// Agents whose instance died are offline; all that were lost with it share one grace.
    async fn give_up_orphans(&self, since: Option<Timestamp>) -> Result<()> {
        let orphans = read::orphans(&self.db, &self.instance, since, i64::MAX).await?;
        for batch in orphans.chunks(BATCH) {
            let mut tx = self.db.begin().await?;
            let mut change = Change::begin(&mut tx, &self.rules).await?;
            let ids: Vec<&str> = batch.iter().map(|(agent, _)| agent.as_str()).collect();
            change.load(&mut tx, &ids, &[]).await?;
            change.load_jobs_of(&mut tx, &ids).await?;
            let grace = change.grace(orphans.len());
            for (agent, connection) in batch {
                change.lost(agent, *connection, None, grace);
            }
            let saved = change.save(&mut tx, Some(&self.instance)).await?;
            tx.commit().await?;
            self.told(saved).await;
        }
        if !orphans.is_empty() {
            tracing::warn!(agents = orphans.len(), "agents of an instance that is gone are offline");
        }
        Ok(())
    }

    async fn carry_once(&self) -> Result<()> {
        if self.hub.len() == 0 || !read::has_commands(&self.db, &self.instance).await? {
            return Ok(());
        }
        let mut tx = self.db.begin().await?;
        let commands = store::take_commands(&mut tx, &self.instance).await?;
        tx.commit().await?;
        self.hub.deliver(commands);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn who_cannot_say_that_it_lives_lets_its_agents_go_where_others_take_them() {
        let mut signs = Signs::default();
        assert!(!signs.is_given_up(at(100), TIMEOUT), "it has had no agents");
        signs.lived(at(100));
        signs.looked(at(100), false, TIMEOUT);
        assert!(!signs.is_given_up(at(1_000), TIMEOUT), "nobody else begins its streams");
        signs.looked(at(101), true, TIMEOUT);
        assert!(!signs.is_given_up(at(110), TIMEOUT));
        assert!(signs.is_given_up(at(111), TIMEOUT));
        signs.lived(at(111));
        signs.lived(at(105)); // one that was begun earlier and took longer
        assert!(!signs.is_given_up(at(121), TIMEOUT));
    }

    #[test]
    fn nobody_is_taken_for_dead_before_all_could_say_that_they_live() {
        let mut signs = Signs::default();
        assert!(!signs.knows_the_others(at(100), TIMEOUT));
        for second in (100..=110).step_by(2) {
            signs.looked(at(second), false, TIMEOUT);
            assert!(!signs.knows_the_others(at(second), TIMEOUT), "at {second}");
        }
        signs.looked(at(112), false, TIMEOUT);
        assert!(signs.knows_the_others(at(112), TIMEOUT));
        // Outages shorter than the time-out change nothing, longer ones begin anew.
        signs.looked(at(122), false, TIMEOUT);
        assert!(signs.knows_the_others(at(122), TIMEOUT));
        signs.looked(at(133), false, TIMEOUT);
        assert!(!signs.knows_the_others(at(133), TIMEOUT));
        signs.looked(at(143), false, TIMEOUT);
        assert!(!signs.knows_the_others(at(143), TIMEOUT));
        assert!(signs.knows_the_others(at(144), TIMEOUT));
    }
}
