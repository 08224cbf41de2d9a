//! The simulated world: instances that come and go, other programs and operators, and a seed that decides.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use showrunner::config::Config;
use showrunner::control::decider::RuleSet;
use showrunner::db::{Db, Options};
use showrunner::random::Random;

use super::clock::SimClock;
use super::faults::{Fault, Operation, Progress, SimFaults, drive};
use super::instance::{Instance, Step};
use super::invariants;
use super::platform::SimPlatform;

const INSTANCES: usize = 3;

/// A place for an instance.
enum Place {
    Up(Box<Instance>),
    /// It stands still in the middle of something, until it has been passed by so many times.
    Stalled(Operation<Instance>, Arc<SimFaults>, u64),
    Down,
}

pub struct World {
    random: Random,
    pub clock: Arc<SimClock>,
    pub platform: Arc<SimPlatform>,
    pub config: Config,
    /// Looks at the database without faults.
    pub db: Db,
    url: String,
    places: Vec<Place>,
    folder: tempfile::TempDir,
    last_term: i64,
}

impl World {
    pub async fn new(seed: u64) -> Self {
        let random = Random::seeded(seed);
        let shared_memory = std::path::Path::new("/dev/shm");
        let folder = if shared_memory.is_dir() { tempfile::tempdir_in(shared_memory) } else { tempfile::tempdir() };
        let folder = folder.expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("sim.db").display());
        let clock = SimClock::at("2026-11-20T15:30:00Z".parse().expect("a time"));
        let opened = Db::open(&Options { max_connections: 2, ..Options::new(&url) }, clock.clone()).await;
        let db = opened.expect("a database");
        db.migrate().await.expect("the schema");
        let platform = Arc::new(SimPlatform::new(clock.clone(), Random::seeded(seed ^ 0x5eed)));
        let mut config = Config::default();
        config.publishing.settle_minutes = 10;
        let mut world = Self { random, clock, platform, config, db, url, places: Vec::new(), folder, last_term: 0 };
        world.write_rules(None);
        for _ in 0..INSTANCES {
            let instance = world.boot().await;
            world.places.push(Place::Up(Box::new(instance)));
        }
        world.step_of(0, Step::Enable, None).await;
        world
    }

    fn rules(&self) -> std::path::PathBuf {
        self.folder.path().join("rules")
    }

    /// The default rules, with one more file if given.
    fn write_rules(&self, more: Option<&str>) {
        std::fs::create_dir_all(self.rules()).expect("the rules' folder");
        for (name, source) in RuleSet::built_in().sources() {
            std::fs::write(self.rules().join(name), source).expect("a rule file");
        }
        let extra = self.rules().join("extra.rhai");
        match more {
            Some(text) => std::fs::write(extra, text).expect("a rule file"),
            None => drop(std::fs::remove_file(extra)),
        }
    }

    async fn boot(&self) -> Instance {
        let random = Random::seeded(self.random.between(0, u64::MAX));
        Instance::start(&self.url, &self.rules(), &self.clock, &self.platform, &self.config, random).await
    }

    /// Lets one thing happen, whatever the seed draws.
    pub async fn happen(&mut self) -> String {
        let place = self.random.between(0, INSTANCES as u64 - 1) as usize;
        match self.random.between(0, 99) {
            0..26 => {
                let by = Duration::from_millis(self.random.between(200, 3_000));
                self.clock.advance(by);
                format!("{by:?} pass")
            }
            26..28 => {
                let by = Duration::from_secs(self.random.between(60, 2_400));
                self.clock.advance(by);
                format!("{by:?} pass")
            }
            28..52 => self.step_at(place, Step::Loop).await,
            52..64 => self.step_at(place, Step::Dispatch).await,
            64..78 => self.step_at(place, Step::Work).await,
            78..79 => self.step_at(place, Step::Disable).await,
            79..81 => self.step_at(place, Step::Enable).await,
            81..82 => self.step_at(place, Step::Upkeep).await,
            82..83 => self.step_at(place, Step::Resign).await,
            83..85 => {
                self.places[place] = Place::Down;
                format!("instance {place} is killed")
            }
            85..87 => {
                if let Place::Up(instance) = &self.places[place] {
                    let jump = TimeDelta::seconds(self.random.between(0, 7_200) as i64 - 3_600);
                    *instance.skew.offset.lock().expect("offset") = jump;
                }
                format!("instance {place} shows another time")
            }
            87..89 => self.edit_rules(),
            _ => self.foreign_rows().await,
        }
    }

    fn edit_rules(&self) -> String {
        let texts = [
            None,
            Some("rule \"more\" priority 2 when jobs.pending > 20 then trigger_reconciliation() because \"many\";"),
            Some("rule \"broken\" priority 2 when jobs.pendng > 20 then trigger_reconciliation() because \"\";"),
            Some("rule \"half\" priority 2 when jobs.pen"),
            Some(
                "rule \"endless\" priority 2 when { let n = 0; loop { n += 1; } } then rebalance_queue() because \"\";",
            ),
        ];
        if self.random.between(0, 9) == 0 {
            std::fs::remove_dir_all(self.rules()).ok();
            return "the rules' folder is deleted".to_owned();
        }
        let text = texts[self.random.between(0, texts.len() as u64 - 1) as usize];
        self.write_rules(text);
        format!("rules are edited: {text:?}")
    }

    /// What other programs insert.
    async fn foreign_rows(&self) -> String {
        use showrunner::clock::Clock;
        let now = showrunner::db::Timestamp::new(self.clock.now());
        let score = self.random.between(0, 1000) as f64 / 10.0;
        let platform = ["instagram", "tiktok", "youtube", "nowhere"][self.random.between(0, 3) as usize];
        let random_clip = format!("(SELECT MIN(id) + {} FROM clips)", self.random.between(0, 20));
        let unused =
            format!("NOT EXISTS (SELECT 1 FROM publish_logs WHERE clip_id = clips.id AND platform = '{platform}')");
        let minutes = self.random.between(0, 240);
        let (earlier, later) =
            (now.before(Duration::from_secs(minutes * 60)), now.after(Duration::from_secs(minutes * 60)));
        let text = match self.random.between(0, 6) {
            0..3 => format!(
                "INSERT INTO clips (title, media_uri, visual_score, campaign_id, created_at, updated_at)
                 VALUES ('clip', 's3://clip', {score}, (SELECT MAX(id) FROM campaigns), '{now}', '{now}')"
            ),
            3 => format!(
                "INSERT INTO campaigns (name, status, budget_cents, created_at, updated_at)
                 VALUES ('campaign', 'active', {}, '{now}', '{now}')",
                self.random.between(0, 30_000)
            ),
            4 => format!(
                "INSERT INTO jobs (kind, created_at, updated_at) VALUES ('render', '{earlier}', '{now}'), ('render', '{now}', '{now}'), ('render', '{now}', '{now}')"
            ),
            5 => format!(
                "INSERT INTO publish_logs (clip_id, platform, status, scheduled_at, created_at, updated_at)
                 SELECT id, '{platform}', 'scheduled', '{}', '{now}', '{now}' FROM clips WHERE id = {random_clip} AND {unused}",
                if self.random.between(0, 1) == 0 { earlier } else { later }
            ),
            _ => format!(
                "INSERT INTO publish_logs (clip_id, platform, created_at, updated_at)
                 SELECT id, '{platform}', '{earlier}', '{now}' FROM clips WHERE id = {random_clip} AND {unused}"
            ),
        };
        self.sql(&text).await;
        if self.random.between(0, 3) == 0 {
            self.sql(&format!(
                "INSERT INTO cycle_requests (requested_by, requested_at) VALUES ('operator:sql', '{now}')"
            ))
            .await;
        }
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    async fn sql(&self, text: &str) {
        let mut tx = self.db.begin().await.expect("a transaction");
        let text: &'static str = text.to_owned().leak(); // statements are static outside tests
        tx.query(text).execute().await.expect(text);
        tx.commit().await.expect("a commit");
    }

    async fn step_at(&mut self, place: usize, step: Step) -> String {
        let fault = match self.random.between(0, 99) {
            0..5 => Some(Fault::Fails),
            5..9 => Some(Fault::AnswerLost),
            9..13 => Some(Fault::Crashes),
            13..19 => Some(Fault::Stalls),
            _ => None,
        };
        let fault = fault.map(|fault| (self.random.between(1, 40) as u32, fault));
        self.step_of(place, step, fault).await;
        format!("instance {place}: {step:?} {fault:?}")
    }

    /// One step of the instance at a place: started if it is down, driven on if it stands still.
    async fn step_of(&mut self, place: usize, step: Step, fault: Option<(u32, Fault)>) {
        let (operation, faults) = match std::mem::replace(&mut self.places[place], Place::Down) {
            Place::Down => {
                let instance = self.boot().await;
                self.places[place] = Place::Up(Box::new(instance));
                return;
            }
            Place::Stalled(operation, faults, passes) if passes > 0 => {
                self.places[place] = Place::Stalled(operation, faults, passes - 1);
                return;
            }
            Place::Stalled(operation, faults, _) => {
                faults.go_on();
                (operation, faults)
            }
            Place::Up(instance) => {
                let faults = instance.faults.clone();
                match fault {
                    Some((after, fault)) => faults.arm(after, fault),
                    None => faults.disarm(),
                }
                (Box::pin(instance.take(step)) as Operation<Instance>, faults)
            }
        };
        self.places[place] = match drive(operation, &self.clock, &faults).await {
            Progress::Done(instance) => Place::Up(Box::new(instance)),
            // Long enough, often, for its lease to lapse and another instance to lead.
            Progress::Stalled(operation) => Place::Stalled(operation, faults, self.random.between(0, 12)),
            Progress::Crashed => Place::Down,
        };
    }

    /// What must hold after every step; `deep` also walks the ledger.
    pub async fn check(&mut self, deep: bool) -> Result<(), String> {
        if let Some(double) = self.platform.doubles().first() {
            return Err(format!("posted twice: {double}"));
        }
        let (term,): (i64,) =
            self.db.query("SELECT coalesce(MAX(term), 0) FROM leases").one().await.map_err(|e| e.to_string())?;
        if term < self.last_term {
            return Err(format!("the term went back from {} to {term}", self.last_term));
        }
        self.last_term = term;
        if deep { invariants::ledger(&self.db).await } else { Ok(()) }
    }

    /// Faults stop, the platforms heal, somebody works the foreign jobs off: within hours everything is settled.
    pub async fn settle(&mut self) -> Result<(), String> {
        self.platform.heal();
        self.write_rules(None);
        for place in 0..INSTANCES {
            while !matches!(self.places[place], Place::Up(_)) {
                self.step_of(place, Step::Loop, None).await;
            }
        }
        self.step_of(0, Step::Enable, None).await;
        for round in 0..360 {
            self.clock.advance(Duration::from_secs(30));
            if round % 10 == 0 {
                self.sql(
                    "UPDATE jobs SET status = 'completed' WHERE kind = 'render' AND status IN ('pending', 'waiting')",
                )
                .await;
            }
            for place in 0..INSTANCES {
                self.step_of(place, Step::Loop, None).await;
                self.step_of(place, Step::Dispatch, None).await;
                self.step_of(place, Step::Work, None).await;
            }
            if round % 10 == 0 {
                self.step_of(round % INSTANCES, Step::Upkeep, None).await;
            }
            self.check(false).await?;
        }
        Ok(())
    }

    pub async fn end(mut self) {
        for place in self.places.drain(..) {
            if let Place::Up(instance) = place {
                instance.close().await;
            }
        }
        self.db.close().await;
    }
}
