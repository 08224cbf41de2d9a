//! The simulated world: instances that come and go, other programs and operators, and a seed that decides.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::join;
use showrunner::clock::Clock;
use showrunner::config::Config;
use showrunner::control::decider::RuleSet;
use showrunner::db::{Db, Options, Timestamp};
use showrunner::random::Random;

use super::clock::{Owner, SimClock, Skewed};
use super::faults::{Fault, Operation, Progress, SimFaults, drive};
use super::instance::{Instance, Step, Surroundings};
use super::invariants::{self, Memory};
use super::platform::{Mood, SimPlatform};
use super::store::Store;

pub const INSTANCES: usize = 3;

/// Rounds, a cycle on each instance in every one, within which everything is settled once the faults stop.
const LIVENESS: u32 = 1_200;

/// The owner of the database's clock; nobody sleeps on it.
const DATABASE: Owner = u64::MAX - 1;

/// A place for an instance.
enum Place {
    Up(Box<Instance>),
    /// It stands still in the middle of something, until it has been passed by so many times.
    Stalled(Operation<Instance>, Owner, Arc<SimFaults>, u64),
    Down,
}

/// An operation that is ready to be driven.
type Begun = (Operation<Instance>, Owner, Arc<SimFaults>);

/// What a seed decides at the beginning.
struct Character {
    /// Platforms say what is not so.
    liar: bool,
    /// The database's clock is set back now and then.
    set_back: bool,
    /// The database's clock is set ahead now and then: then nobody can tell how old a request without an answer is.
    set_ahead: bool,
}

pub struct World {
    random: Random,
    character: Character,
    pub clock: Arc<SimClock>,
    pub around: Surroundings,
    /// Looks at the database without faults.
    pub db: Db,
    places: Vec<Place>,
    owners: Owner,
    memory: Memory,
    /// Entries of the ledger after which the database's clock was set back.
    set_back_after: Vec<i64>,
    store: Store,
    _folder: tempfile::TempDir,
}

impl World {
    pub async fn new(seed: u64, store: Store) -> Self {
        let random = Random::seeded(seed);
        let one_in = |n: u64| random.between(1, n) == 1;
        let character = Character { liar: one_in(4), set_back: one_in(3), set_ahead: one_in(4) };
        let folder = super::store::folder();
        let url = store.make(folder.path()).await;
        let clock = SimClock::at("2026-11-20T15:30:00Z".parse().expect("a time"));
        let drift = random.between(0, 400) as i64 - 200;
        let database_clock = Skewed::new(&clock, DATABASE, drift, None);
        let opened = Db::open(&Options { max_connections: 2, ..Options::new(&url) }, database_clock.clone()).await;
        let db = opened.expect("a database").with_clock(database_clock.clone());
        let platform = SimPlatform::new(clock.clone(), Random::seeded(seed ^ 0x5eed), character.liar);
        let mut config = Config::default();
        for platform in config.publishing.platforms.values_mut() {
            platform.cost_cents = 1_500;
        }
        let rules = folder.path().join("rules");
        let around = Surroundings { url, rules, database_clock, platform: Arc::new(platform), config };
        let mut world = Self {
            random,
            character,
            clock,
            around,
            db,
            places: Vec::new(),
            owners: 0,
            memory: Memory::default(),
            set_back_after: Vec::new(),
            store,
            _folder: folder,
        };
        world.write_rules(None);
        for _ in 0..INSTANCES {
            let instance = world.boot().await;
            world.places.push(Place::Up(Box::new(instance)));
        }
        world.step_of(0, Step::Enable, None).await;
        world
    }

    /// The database's time.
    pub fn now(&self) -> Timestamp {
        Timestamp::new(self.around.database_clock.now())
    }

    fn rules(&self) -> &PathBuf {
        &self.around.rules
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

    async fn boot(&mut self) -> Instance {
        let random = Random::seeded(self.random.between(0, u64::MAX));
        self.owners += 1;
        let faults = SimFaults::new(self.store.stalls_inside());
        let drift = self.random.between(0, 20_000) as i64 - 10_000;
        let skew = Skewed::new(&self.clock, self.owners, drift, Some(faults.clone()));
        Instance::start(&self.around, self.owners, skew, faults, random).await
    }

    fn one_of<T: Copy>(&self, choices: &[T]) -> T {
        choices[self.random.between(0, choices.len() as u64 - 1) as usize]
    }

    /// Lets one thing happen, whatever the seed draws.
    pub async fn happen(&mut self) -> String {
        let place = self.random.between(0, INSTANCES as u64 - 1) as usize;
        match self.random.between(0, 99) {
            0..24 => self.pass(Duration::from_millis(self.random.between(200, 3_000))),
            24..26 => self.pass(Duration::from_secs(self.random.between(60, 2_400))),
            26..27 => self.set_database_clock().await,
            27..50 => self.step_at(place, Step::Loop).await,
            50..61 => self.step_at(place, Step::Dispatch).await,
            61..75 => self.step_at(place, Step::Work).await,
            75..78 => self.both_at(place).await,
            78..79 => self.step_at(place, Step::Disable).await,
            79..81 => self.step_at(place, Step::Enable).await,
            81..82 => self.step_at(place, Step::Upkeep).await,
            82..83 => self.step_at(place, Step::Resign).await,
            83..84 => self.step_at(place, Step::RunOnce).await,
            84..86 => {
                self.places[place] = Place::Down;
                format!("instance {place} is killed")
            }
            86..87 => {
                let by = self.random.between(0, 7_200) as i64 - 3_600;
                if let Place::Up(instance) = &self.places[place] {
                    instance.clock.jump(TimeDelta::seconds(by));
                }
                format!("the clock of instance {place} jumps by {by} s")
            }
            87..89 => self.edit_rules(),
            _ => self.foreign_rows().await,
        }
    }

    pub fn pass(&self, by: Duration) -> String {
        self.clock.advance(by);
        format!("{by:?} pass")
    }

    async fn set_database_clock(&mut self) -> String {
        let by = self.random.between(60, 5_400) as i64;
        let by = match (self.character.set_back, self.character.set_ahead, self.random.between(0, 1)) {
            (true, true, 0) | (true, false, _) => -by,
            (true, true, _) | (false, true, _) => by,
            (false, false, _) => 0,
        };
        if by < 0 {
            let last = invariants::count(&self.db, "SELECT coalesce(MAX(id), 0) FROM ledger_entries").await;
            self.set_back_after.push(last);
        }
        self.around.database_clock.jump(TimeDelta::seconds(by));
        format!("the database's clock jumps by {by} s")
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
        let text = self.one_of(&texts);
        self.write_rules(text);
        format!("rules are edited: {text:?}")
    }

    /// What other programs insert. Publications that they insert carry keys that begin with `sql-`.
    async fn foreign_rows(&self) -> String {
        let now = self.now();
        let score = self.random.between(0, 1000) as f64 / 10.0;
        let platform = self.one_of(&["instagram", "tiktok", "youtube", "nowhere"]);
        let random_clip = format!("(SELECT MIN(id) + {} FROM clips)", self.random.between(0, 20));
        let unused =
            format!("NOT EXISTS (SELECT 1 FROM publish_logs WHERE clip_id = clips.id AND platform = '{platform}')");
        let minutes = self.random.between(0, 240);
        let key = format!("sql-{}", self.random.token());
        let (earlier, later) =
            (now.before(Duration::from_secs(minutes * 60)), now.after(Duration::from_secs(minutes * 60)));
        let text = match self.random.between(0, 6) {
            0..3 => self.clip(score, now),
            3 => format!(
                "INSERT INTO campaigns (name, status, budget_cents, created_at, updated_at)
                 VALUES ('campaign', 'active', {}, '{now}', '{now}')",
                self.random.between(0, 30_000)
            ),
            4 => render_jobs(earlier, now),
            5 => format!(
                "INSERT INTO publish_logs (clip_id, platform, status, scheduled_at, idempotency_key, created_at, updated_at)
                 SELECT id, '{platform}', 'scheduled', '{}', '{key}', '{now}', '{now}'
                 FROM clips WHERE id = {random_clip} AND {unused}",
                self.one_of(&[earlier, later])
            ),
            _ => format!(
                "INSERT INTO publish_logs (clip_id, platform, idempotency_key, created_at, updated_at)
                 SELECT id, '{platform}', '{key}', '{earlier}', '{now}'
                 FROM clips WHERE id = {random_clip} AND {unused}"
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

    fn clip(&self, score: f64, now: Timestamp) -> String {
        format!(
            "INSERT INTO clips (title, media_uri, visual_score, campaign_id, created_at, updated_at)
             VALUES ('clip', 's3://clip', {score}, (SELECT MAX(id) FROM campaigns), '{now}', '{now}')"
        )
    }

    /// A good clip and a batch of jobs that nobody works off, for hours on end.
    pub async fn feed(&self) {
        let now = self.now();
        self.sql(&self.clip(90.0, now)).await;
        self.sql(&self.clip(20.0, now)).await;
        self.sql(&render_jobs(now, now)).await;
    }

    pub async fn work_off_foreign_jobs(&self) {
        self.sql("UPDATE jobs SET status = 'completed' WHERE kind = 'render' AND status IN ('pending', 'waiting')")
            .await;
    }

    async fn sql(&self, text: &str) {
        let text: &'static str = text.to_owned().leak(); // statements are static outside tests
        for _ in 0..5 {
            let mut tx = self.db.begin().await.expect("a transaction");
            match tx.query(text).execute().await {
                Ok(_) => return tx.commit().await.expect("a commit"),
                // On PostgreSQL somebody may stand still with a lock that this needs.
                Err(showrunner::db::Error::Unavailable(_)) => {}
                Err(error) => panic!("{text}: {error}"),
            }
        }
        panic!("{text}: the database does not let it through");
    }

    async fn step_at(&mut self, place: usize, step: Step) -> String {
        let fault = self.fault();
        self.step_of(place, step, fault).await;
        format!("instance {place}: {step:?} {fault:?}")
    }

    fn fault(&self) -> Option<(u32, Fault)> {
        let fault = match self.random.between(0, 99) {
            0..5 => Fault::Fails,
            5..9 => Fault::AnswerLost,
            9..14 => Fault::Crashes,
            14..21 => Fault::Stalls,
            21..23 => Fault::AllFail,
            _ => return None,
        };
        Some((self.random.between(1, 40) as u32, fault))
    }

    /// Two instances take a step. On PostgreSQL at once, as the server lets them; on SQLite, where that could not be
    /// replayed, one stands still somewhere inside of its step while the other takes its own.
    async fn both_at(&mut self, place: usize) -> String {
        let other = (place + 1) % INSTANCES;
        let (first, second) = (self.one_of(&BUSY), self.one_of(&BUSY));
        if !self.store.interleaves() {
            let stalls = Some((self.random.between(1, 30) as u32, Fault::Stalls));
            self.step_of(place, first, stalls).await;
            self.step_of(other, second, None).await;
            return format!("instance {place}: {first:?} {stalls:?}, then instance {other}: {second:?}");
        }
        let faults = (self.fault(), self.fault());
        let (one, two) = (self.begin(place, first, faults.0).await, self.begin(other, second, faults.1).await);
        let clock = self.clock.clone();
        let driven = async |begun: Option<Begun>| match begun {
            Some((operation, owner, faults)) => {
                let progress = drive(operation, owner, &clock, &faults).await;
                Some((progress, owner, faults))
            }
            None => None,
        };
        let (one, two) = join(driven(one), driven(two)).await;
        for (place, ended) in [(place, one), (other, two)] {
            if let Some((progress, owner, faults)) = ended {
                self.put(place, progress, owner, faults);
            }
        }
        format!("instance {place}: {first:?} {:?}, and instance {other}: {second:?} {:?}", faults.0, faults.1)
    }

    /// One step of the instance at a place: started if it is down, driven on if it stands still.
    pub async fn step_of(&mut self, place: usize, step: Step, fault: Option<(u32, Fault)>) {
        let Some((operation, owner, faults)) = self.begin(place, step, fault).await else { return };
        let clock = self.clock.clone();
        let progress = drive(operation, owner, &clock, &faults).await;
        self.put(place, progress, owner, faults);
    }

    async fn begin(&mut self, place: usize, step: Step, fault: Option<(u32, Fault)>) -> Option<Begun> {
        match std::mem::replace(&mut self.places[place], Place::Down) {
            Place::Down => {
                let instance = self.boot().await;
                self.places[place] = Place::Up(Box::new(instance));
                None
            }
            Place::Stalled(operation, owner, faults, passes) if passes > 0 => {
                self.places[place] = Place::Stalled(operation, owner, faults, passes - 1);
                None
            }
            Place::Stalled(operation, owner, faults, _) => {
                faults.go_on(fault);
                Some((operation, owner, faults))
            }
            Place::Up(instance) => {
                let (owner, faults) = (instance.owner, instance.faults.clone());
                faults.arm(fault);
                Some((Box::pin(instance.take(step)) as Operation<Instance>, owner, faults))
            }
        }
    }

    fn put(&mut self, place: usize, progress: Progress<Instance>, owner: Owner, faults: Arc<SimFaults>) {
        self.places[place] = match progress {
            Progress::Done(instance) => Place::Up(Box::new(instance)),
            // Long enough, often, for its lease to lapse and another instance to lead.
            Progress::Stalled(operation) => Place::Stalled(operation, owner, faults, self.random.between(0, 12)),
            Progress::Crashed => Place::Down,
        };
    }

    /// What must hold after every step; `deep` also walks the ledger and all rows.
    pub async fn check(&mut self, deep: bool) -> Result<(), String> {
        let platform = &self.around.platform;
        if let Some(wrong) = platform.wrongs().first() {
            return Err(format!("posted twice: {wrong}"));
        }
        if !self.character.liar
            && !self.character.set_ahead
            && let Some(repeat) = platform.repeats().first()
        {
            return Err(format!("posted again under the same key: {repeat}"));
        }
        invariants::always(&self.db, &mut self.memory).await?;
        if deep { invariants::deep(&self.db, &mut self.memory).await } else { Ok(()) }
    }

    /// What must hold of the whole history.
    pub async fn check_history(&mut self) -> Result<(), String> {
        self.check(true).await?;
        invariants::terms(&self.db).await?;
        self.check_governors().await?;
        invariants::replays(&self.db).await
    }

    pub async fn check_governors(&self) -> Result<(), String> {
        invariants::governors(&self.db, &self.around.config, &self.set_back_after).await
    }

    async fn settled(&self) -> Result<(), String> {
        let now = self.now();
        // What a platform said that lies is all that can be known of it.
        let platform = (!self.character.liar).then_some(&*self.around.platform);
        invariants::settled(&self.db, platform, now).await
    }

    /// Every instance is up and well.
    pub async fn raise(&mut self) {
        for place in 0..INSTANCES {
            while !matches!(self.places[place], Place::Up(_)) {
                self.step_of(place, Step::Loop, None).await;
            }
        }
    }

    /// Faults stop, the platforms heal, somebody works the foreign jobs off: everything is settled within so many
    /// cycles, and stays so.
    pub async fn settle(&mut self) -> Result<u32, String> {
        self.around.platform.set_mood(Mood::Healthy);
        self.write_rules(None);
        self.raise().await;
        self.step_of(0, Step::Enable, None).await;
        let mut open = "not looked at".to_owned();
        for round in 0..LIVENESS {
            self.pass(Duration::from_secs(if round < 20 { 15 } else { 60 }));
            if round % 5 == 0 {
                self.work_off_foreign_jobs().await;
                self.step_of(round as usize % INSTANCES, Step::Upkeep, None).await;
            }
            for place in 0..INSTANCES {
                self.step_of(place, Step::Loop, None).await;
            }
            let place = round as usize % INSTANCES;
            self.step_of(place, Step::Dispatch, None).await;
            self.step_of(place, Step::Work, None).await;
            self.check(false).await?;
            if round >= 20 && round % 10 == 0 {
                match self.settled().await {
                    Ok(()) => return Ok(round),
                    Err(why) => open = why,
                }
            }
        }
        Err(format!("after {LIVENESS} cycles without a fault {open}"))
    }

    pub async fn end(mut self) {
        for place in self.places.drain(..) {
            if let Place::Up(instance) = place {
                instance.close().await;
            }
        }
        self.db.close().await;
        self.store.end(&self.around.url).await;
    }
}

/// Steps in which instances get into each other's way.
const BUSY: [Step; 5] = [Step::Loop, Step::Dispatch, Step::Work, Step::Work, Step::Upkeep];

fn render_jobs(earlier: Timestamp, now: Timestamp) -> String {
    format!(
        "INSERT INTO jobs (kind, created_at, updated_at)
         VALUES ('render', '{earlier}', '{now}'), ('render', '{now}', '{now}'), ('render', '{now}', '{now}')"
    )
}
