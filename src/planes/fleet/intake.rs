//! What agents say, written down: hundreds of messages in one transaction, in the order in which they came.
//!
//! A connection waits where the intake is full, so that its agent feels it; nothing piles up. Where the database fails,
//! the batch is tried until it is written.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::{mpsc, oneshot};

use super::Fleet;
use super::change::{Change, Saved, id_of};
use super::hub::{Connection, Out};
use super::model::{AgentState, JobStatus};
use super::protocol::{self, AssignAck, AudioAck, Heartbeat, Hello, HelloAck, Ids, JobUpdate, ToAgent, close};
use super::store;
use super::store::tokens::{self, Known};
use crate::config::DEVELOPMENT_TOKEN;
use crate::db::{Error, Result, Timestamp};

/// Messages that one transaction takes.
const BATCH: usize = 500;
/// Messages that wait for it.
pub const WAITING: usize = 2_000;
/// Until a batch is tried again that the database did not take.
const AGAIN: Duration = Duration::from_millis(250);

/// Tries that a stopping instance gives the last batch.
const LAST_TRIES: u32 = 4;

/// Something that a connection has to report.
pub enum Report {
    Hello(Box<Arrival>),
    Said {
        connection: Arc<Connection>,
        said: Said,
        correlation: Option<String>,
    },
    Lost(Arc<Connection>),
    /// Nobody has anything to report any more.
    Stop,
}

/// An agent's hello on its way.
pub struct Arrival {
    pub hello: Hello,
    pub msg_id: Option<String>,
    pub connection: Arc<Connection>,
    /// Whether it comes from this machine.
    pub from_loopback: bool,
    pub answer: oneshot::Sender<std::result::Result<(), Refusal>>,
}

/// Why a hello is not taken, and the code with which its connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub code: u16,
    pub reason: &'static str,
}

/// What an agent says after its hello.
pub enum Said {
    Answer(AssignAck),
    Update(Box<JobUpdate>),
    Muted(AudioAck, bool),
    Alive(Heartbeat),
}

impl Said {
    fn is_the_end_of_a_job(&self) -> bool {
        use JobStatus as S;
        matches!(self, Self::Update(update) if matches!(update.status, Some(S::Stopped | S::Failed | S::Canceled)))
    }
}

impl Report {
    fn agent(&self) -> Option<&str> {
        match self {
            Self::Hello(arrival) => Some(&arrival.hello.agent_id),
            Self::Said { connection, .. } | Self::Lost(connection) => Some(&connection.agent_id),
            Self::Stop => None,
        }
    }

    fn connection(&self) -> Option<&Arc<Connection>> {
        match self {
            Self::Hello(arrival) => Some(&arrival.connection),
            Self::Said { connection, .. } | Self::Lost(connection) => Some(connection),
            Self::Stop => None,
        }
    }

    /// Whether it may change any job of its agent.
    fn is_of_all_jobs(&self) -> bool {
        matches!(self, Self::Hello(_) | Self::Lost(_) | Self::Said { said: Said::Alive(_), .. })
    }

    fn jobs(&self) -> Option<i64> {
        match self {
            Self::Said { said: Said::Answer(ack), .. } => id_of(&ack.job_id),
            Self::Said { said: Said::Update(update), .. } => id_of(&update.job_id),
            Self::Said { said: Said::Muted(ack, _), .. } => id_of(&ack.job_id),
            _ => None,
        }
    }
}

/// What became of a hello.
type Greeting = std::result::Result<i64, Refusal>;

/// SHA-256 in hexadecimal digits, as tokens are kept.
pub fn hash(token: &str) -> String {
    Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes reports until it is told to stop.
pub async fn run(fleet: Arc<Fleet>, mut reports: mpsc::Receiver<Report>) {
    let mut batch = Vec::with_capacity(BATCH);
    while reports.recv_many(&mut batch, BATCH).await > 0 {
        let stopped = batch.iter().any(|report| matches!(report, Report::Stop));
        let taken = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
        if let Some(refused) = take(&fleet, taken).await {
            // One of them cannot be stored, which shall not stop all others: each by itself then.
            for report in refused {
                for poison in take(&fleet, vec![report]).await.into_iter().flatten() {
                    if let Some(connection) = poison.connection() {
                        tracing::warn!(
                            agent = connection.agent_id,
                            "an agent said what cannot be stored; it is cut off"
                        );
                        connection.cut.cancel();
                    }
                }
            }
        }
        if stopped {
            return;
        }
    }
}

/// Writes a batch down and does what follows from it. Comes back with the batch where the database will never take it.
async fn take(fleet: &Fleet, batch: Vec<Report>) -> Option<Vec<Report>> {
    let mut tries = 0_u32;
    let written = loop {
        match write(fleet, &batch).await {
            Ok(written) => break written,
            Err(Error::Unavailable(cause)) => {
                tries += 1;
                tracing::warn!(cause, "what agents said cannot be written down; it is tried again");
                if fleet.stop.is_cancelled() && tries > LAST_TRIES {
                    return None;
                }
                tokio::time::sleep(AGAIN).await;
            }
            Err(cause) => {
                tracing::warn!(%cause, "what agents said is refused by the database");
                return Some(batch);
            }
        }
    };
    let Written { greetings, saved } = written;
    let mut greetings = greetings.into_iter();
    for report in batch {
        match report {
            Report::Hello(arrival) => greet(fleet, *arrival, greetings.next()),
            Report::Lost(connection) => fleet.hub.unregister(&connection),
            Report::Said { .. } | Report::Stop => {}
        }
    }
    if let Some(saved) = saved {
        fleet.told(saved).await;
    }
    None
}

/// What came of a batch.
struct Written {
    greetings: Vec<Greeting>,
    /// None where nothing changed.
    saved: Option<Saved>,
}

fn greet(fleet: &Fleet, arrival: Arrival, greeting: Option<Greeting>) {
    let answer = match greeting {
        Some(Ok(number)) => {
            fleet.hub.register(&arrival.connection, number);
            let config = &fleet.rules.config;
            let ack = ToAgent::HelloAck(HelloAck {
                heartbeat_interval_ms: config.heartbeat_interval_ms,
                heartbeat_timeout_ms: config.heartbeat_timeout_ms,
                grace_ms: config.reconnect_grace_ms,
                instance: fleet.instance.clone(),
            });
            let ts = Some(Timestamp::new(fleet.clock.now()));
            let ids = Ids { msg_id: None, correlation_id: arrival.msg_id, ts };
            arrival.connection.send(Out::Text(protocol::encode(&ack, &ids).into()));
            Ok(())
        }
        Some(Err(refusal)) => Err(refusal),
        None => Err(Refusal { code: 1011, reason: "the hello was lost" }),
    };
    let _ = arrival.answer.send(answer);
}

async fn write(fleet: &Fleet, batch: &[Report]) -> Result<Written> {
    let agents: BTreeSet<&str> = batch.iter().filter_map(Report::agent).collect();
    let agents: Vec<&str> = agents.into_iter().collect();
    let jobs: BTreeSet<i64> = batch.iter().filter_map(Report::jobs).collect();
    let jobs: Vec<i64> = jobs.into_iter().collect();
    let arrivals: BTreeSet<&str> =
        batch.iter().filter(|report| matches!(report, Report::Hello(_))).filter_map(Report::agent).collect();
    let arrivals: Vec<&str> = arrivals.into_iter().collect();
    let whole: BTreeSet<&str> =
        batch.iter().filter(|report| report.is_of_all_jobs()).filter_map(Report::agent).collect();
    let whole: Vec<&str> = whole.into_iter().collect();
    let leaving = batch.iter().filter(|report| matches!(report, Report::Lost(_))).count();

    let began = fleet.clock.elapsed();
    let mut tx = fleet.db.begin().await?;
    let mut change = Change::begin(&mut tx, &fleet.rules).await?;
    change.load(&mut tx, &agents, &jobs).await?;
    change.load_jobs_of(&mut tx, &whole).await?;
    let lives = !arrivals.is_empty() && fleet.is_one_of_several();
    if lives {
        // No later than its agents, or others would take those for lost.
        store::instance_lives(&mut tx, &fleet.instance).await?;
    }
    let known = if arrivals.is_empty() { Vec::new() } else { tokens::of_agents(&mut tx, &arrivals).await? };
    let mut greetings = Vec::new();
    // Numbers that connections of this very batch were given.
    let mut numbers: HashMap<usize, i64> = HashMap::new();
    let number_of = |numbers: &HashMap<usize, i64>, connection: &Arc<Connection>| {
        numbers.get(&address(connection)).copied().unwrap_or_else(|| connection.number())
    };
    for report in batch {
        match report {
            Report::Hello(arrival) => {
                let presented = &arrival.hello.auth.token;
                let greeting = admit(fleet, presented, &arrival.hello.agent_id, &known, arrival.from_loopback);
                let greeting = greeting.map_err(|reason| Refusal { code: close::UNAUTHORIZED, reason });
                greetings.push(greeting.and_then(|token_id| {
                    let number = number_of(&numbers, &arrival.connection);
                    let known = (number > 0).then_some(number);
                    let newest = change.agent(&arrival.hello.agent_id).map(|agent| agent.connection);
                    // An agent that ends says hello once more; by then its successor may have been welcomed.
                    if known.is_some() && newest > known {
                        let reason = "another connection said hello as this agent";
                        return Err(Refusal { code: close::REPLACED, reason });
                    }
                    let number = change.hello(&arrival.hello, &fleet.instance, token_id, known);
                    numbers.insert(address(&arrival.connection), number);
                    Ok(number)
                }));
            }
            Report::Said { connection, said, correlation } => {
                let (agent, number) = (connection.agent_id.as_str(), number_of(&numbers, connection));
                let Some(row) = change.agent(agent).filter(|row| row.connection == number) else {
                    continue; // an older connection has nothing to say any more
                };
                if row.state == AgentState::Offline && !said.is_the_end_of_a_job() {
                    continue; // it was taken for lost, and tells everything in the hello that it is sent back for
                }
                match said {
                    Said::Answer(ack) => change.answer_offer(agent, ack, correlation.as_deref()),
                    Said::Update(update) => change.update(agent, update, correlation.as_deref()),
                    Said::Muted(ack, muted) => change.answer_audio(agent, ack, *muted),
                    Said::Alive(beat) => change.heartbeat(agent, beat.active_jobs.as_deref().unwrap_or_default()),
                }
            }
            Report::Lost(connection) => {
                let number = number_of(&numbers, connection);
                let silent = connection.silent_for(fleet.clock.elapsed());
                let last_seen = Some(change.now.before(silent));
                let grace = change.grace(leaving);
                change.lost(&connection.agent_id, number, last_seen, grace);
            }
            Report::Stop => {}
        }
    }
    if change.is_empty() {
        return Ok(Written { greetings, saved: None });
    }
    let saved = change.save(&mut tx, Some(&fleet.instance)).await?;
    tx.commit().await?;
    if lives {
        fleet.lived(began);
    }
    Ok(Written { greetings, saved: Some(saved) })
}

/// What tells a connection from every other that is open.
fn address(connection: &Arc<Connection>) -> usize {
    Arc::as_ptr(connection).addr()
}

/// Whether the token lets this agent in; the id of its own token.
fn admit(
    fleet: &Fleet,
    token: &str,
    agent: &str,
    known: &[Known],
    from_loopback: bool,
) -> std::result::Result<Option<i64>, &'static str> {
    let presented = hash(token);
    let mut own = known.iter().filter(|known| known.agent_id == agent).peekable();
    if own.peek().is_some() {
        let fits = |known: &&Known| bool::from(known.hash.as_bytes().ct_eq(presented.as_bytes()));
        return match own.find(fits) {
            Some(known) if known.revoked => Err("this token was revoked"),
            Some(known) => Ok(Some(known.id)),
            None => Err("this agent has tokens of its own, and this is none of them"),
        };
    }
    let shared = fleet.rules.config.agent_token.expose_secret();
    let development = shared.is_empty() && fleet.takes_development_token && from_loopback;
    let expected = if development { DEVELOPMENT_TOKEN } else { shared };
    if expected.is_empty() {
        return Err(
            "no AGENT_TOKEN is set; the development token is taken only on loopback and where no `auth.tokens` are set",
        );
    }
    if bool::from(hash(expected).as_bytes().ct_eq(presented.as_bytes())) {
        Ok(None)
    } else {
        Err("the token in `auth.token` is not the one that AGENT_TOKEN names")
    }
}
