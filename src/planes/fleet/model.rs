//! What streams and agents are, and their state machines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// A stream job's id: a number in SQL, `job-<number>` wherever people and programs meet it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub i64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job-{}", self.0)
    }
}

/// A text that is no job's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no job's id; one is written `job-12`")]
pub struct NotAJobId;

impl FromStr for JobId {
    type Err = NotAJobId;
    fn from_str(text: &str) -> Result<Self, NotAJobId> {
        let digits = text.strip_prefix("job-").ok_or(NotAJobId)?;
        let canonical = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
        digits.parse().ok().filter(|_| canonical).map(Self).ok_or(NotAJobId)
    }
}

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(|wrong| serde::de::Error::custom(format!("`{text}` {wrong}")))
    }
}

impl utoipa::PartialSchema for JobId {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        let text = utoipa::openapi::ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::String);
        text.pattern(Some("^job-[1-9][0-9]{0,17}$")).into()
    }
}
impl ToSchema for JobId {}

/// Declares an enum whose names are the same in SQL, JSON and the agents' protocol.
macro_rules! named {
    ($(#[$about:meta])* $name:ident, $what:literal { $($(#[$doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$doc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// As in SQL and JSON.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                let text = utoipa::openapi::ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::String);
                text.enum_values(Some([$($text),+])).into()
            }
        }
        impl ToSchema for $name {
            // The queue has jobs with states of their own.
            fn name() -> std::borrow::Cow<'static, str> {
                concat!("Stream", stringify!($name)).into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text { $($text => Ok(Self::$variant),)+ _ => Err(format!("`{text}` is no {}", $what)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
    };
}

named! {
    /// Where a stream job is in its life.
    JobStatus, "job status" {
        /// Created, and not looked at yet.
        Created = "CREATED",
        /// Waiting for an agent; its `reason` says what for.
        Pending = "PENDING",
        /// Offered to an agent that has not answered yet.
        Assigned = "ASSIGNED",
        /// The agent took it.
        Accepted = "ACCEPTED",
        /// The agent begins.
        Starting = "STARTING",
        /// On the air.
        Running = "RUNNING",
        /// Told to stop.
        Stopping = "STOPPING",
        /// Ended as it should.
        Stopped = "STOPPED",
        /// Ended with an error, and is not tried again.
        Failed = "FAILED",
        /// Given up by somebody before it ran, or while nobody could reach its agent.
        Canceled = "CANCELED",
        /// Its agent is out of reach.
        Unknown = "UNKNOWN",
    }
}

named! {
    /// Where an agent is.
    AgentState, "agent state" {
        /// Not connected, or silent for too long.
        Offline = "OFFLINE",
        /// A slot is free.
        Idle = "IDLE",
        /// Every slot is taken, the oldest job by an offer that is not answered yet.
        Reserved = "RESERVED",
        /// Every slot is taken, and the oldest job begins.
        Starting = "STARTING",
        /// Every slot is taken, and the oldest job is on the air.
        Running = "RUNNING",
        /// Every slot is taken, and the oldest job is told to stop.
        Stopping = "STOPPING",
        /// Jobs failed to start on it again and again; it is given none for a while.
        Error = "ERROR",
        /// It finishes what it has and is given nothing new.
        Draining = "DRAINING",
    }
}

named! {
    /// When a job that has ended is begun again.
    RestartPolicy, "restart policy" {
        Never = "never",
        /// After an error, and after its agent was lost.
        OnFailure = "onFailure",
        /// Also after it ended by itself.
        Always = "always",
    }
}

/// What becomes of a job that has ended or is taken from its agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It waits for an agent again.
    Again,
    /// It stays ended.
    End,
    /// Somebody wanted it to end, and nobody could see it end.
    Cancel,
}

/// How an agent that came back has a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumed {
    Accepted,
    Starting,
    Running,
    Stopping,
}

/// What can happen to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEvent {
    /// It was looked at, and no agent is free for it yet.
    Queued,
    /// It is offered to an agent.
    Assigned,
    /// The agent takes it.
    Accepted,
    /// The agent refuses it, or does not answer.
    Unplaced,
    /// The agent begins.
    Starting,
    /// It is on the air.
    Running,
    /// Somebody, or the agent itself, ends it.
    StopRequested,
    /// It ended as it should.
    Stopped(Then),
    /// It ended with an error.
    Failed(Then),
    /// The agent gave it up as it was told to.
    Canceled,
    /// Its agent is out of reach.
    Lost,
    /// Its agent came back with it.
    Resumed(Resumed),
    /// It is taken from an agent that does not come back with it, or does not confirm its end.
    Fenced(Then),
}

/// A pair of status and event that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {status} cannot take {event:?}")]
pub struct IllegalJobTransition {
    pub status: JobStatus,
    pub event: JobEvent,
}

impl JobStatus {
    /// The next status.
    pub fn on(self, event: JobEvent) -> Result<Self, IllegalJobTransition> {
        use JobEvent as E;
        match (self, event) {
            (Self::Created, E::Queued) => Ok(Self::Pending),
            (Self::Created | Self::Pending, E::Assigned) => Ok(Self::Assigned),
            (Self::Created | Self::Pending, E::StopRequested) => Ok(Self::Canceled),
            (Self::Assigned, E::Accepted) => Ok(Self::Accepted),
            (Self::Assigned, E::Unplaced) => Ok(Self::Pending),
            // Messages may come out of order: who starts has accepted.
            (Self::Assigned | Self::Accepted, E::Starting) => Ok(Self::Starting),
            (Self::Assigned | Self::Accepted | Self::Starting, E::Running) => Ok(Self::Running),
            (Self::Assigned | Self::Accepted | Self::Starting | Self::Running | Self::Stopping, E::StopRequested) => {
                Ok(Self::Stopping)
            }
            // Nobody can be told now; it is told when the agent comes back.
            (Self::Unknown, E::StopRequested) => Ok(Self::Unknown),
            (Self::Stopping, E::Canceled) => Ok(Self::Canceled),
            (status, E::Stopped(then)) if status.is_held() => Ok(then.of(Self::Stopped)),
            (status, E::Failed(then)) if status.is_held() => Ok(then.of(Self::Failed)),
            // What is only offered is known not to have begun under any other lease: it stays so until its offer is over.
            (Self::Assigned | Self::Unknown | Self::Stopping, E::Fenced(then)) => Ok(then.of(Self::Failed)),
            (Self::Accepted | Self::Starting | Self::Running | Self::Stopping, E::Lost) => Ok(Self::Unknown),
            (Self::Unknown, E::Resumed(how)) => Ok(match how {
                Resumed::Accepted => Self::Accepted,
                Resumed::Starting => Self::Starting,
                Resumed::Running => Self::Running,
                Resumed::Stopping => Self::Stopping,
            }),
            (status, event) => Err(IllegalJobTransition { status, event }),
        }
    }

    /// Whether nothing happens to it any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed | Self::Canceled)
    }

    /// Whether it takes up an agent's slot.
    pub fn is_held(self) -> bool {
        matches!(
            self,
            Self::Assigned | Self::Accepted | Self::Starting | Self::Running | Self::Stopping | Self::Unknown
        )
    }

    /// Whether it waits for an agent.
    pub fn is_waiting(self) -> bool {
        matches!(self, Self::Created | Self::Pending)
    }
}

impl Then {
    fn of(self, end: JobStatus) -> JobStatus {
        match self {
            Self::Again => JobStatus::Pending,
            Self::End => end,
            Self::Cancel => JobStatus::Canceled,
        }
    }
}

/// How far an agent's slots are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// A slot is free.
    Free,
    /// None is; the oldest job stands here.
    Reserved,
    Starting,
    Running,
    Stopping,
}

impl Load {
    /// `oldest` is the status of the oldest job.
    pub fn of(slots: i64, busy: i64, oldest: Option<JobStatus>) -> Self {
        match oldest {
            _ if busy < slots => Self::Free,
            None => Self::Free,
            Some(JobStatus::Assigned) => Self::Reserved,
            Some(JobStatus::Accepted | JobStatus::Starting) => Self::Starting,
            Some(JobStatus::Stopping) => Self::Stopping,
            Some(_) => Self::Running,
        }
    }

    fn state(self) -> AgentState {
        match self {
            Self::Free => AgentState::Idle,
            Self::Reserved => AgentState::Reserved,
            Self::Starting => AgentState::Starting,
            Self::Running => AgentState::Running,
            Self::Stopping => AgentState::Stopping,
        }
    }
}

/// What can happen to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentEvent {
    /// It said hello.
    Connected(Load),
    /// Its connection ended, or nothing was heard of it for too long.
    Lost,
    /// Its jobs changed.
    Loaded(Load),
    /// It is to take nothing new.
    Drained,
    /// It may take jobs again.
    Undrained(Load),
    /// Jobs failed to start on it again and again.
    Faulted,
    /// It has rested.
    Recovered(Load),
}

/// A pair of state and event that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an agent that is {state} cannot take {event:?}")]
pub struct IllegalAgentTransition {
    pub state: AgentState,
    pub event: AgentEvent,
}

impl AgentState {
    /// The next state.
    pub fn on(self, event: AgentEvent) -> Result<Self, IllegalAgentTransition> {
        use AgentEvent as E;
        match (self, event) {
            (_, E::Connected(load)) => Ok(load.state()),
            // What is decided about an agent that is away counts when it comes back.
            (Self::Offline, E::Loaded(_) | E::Drained | E::Undrained(_)) => Ok(Self::Offline),
            (Self::Offline, event) => Err(IllegalAgentTransition { state: self, event }),
            (_, E::Lost) => Ok(Self::Offline),
            (_, E::Drained) => Ok(Self::Draining),
            (Self::Draining, E::Undrained(load)) => Ok(load.state()),
            (Self::Draining, E::Loaded(_) | E::Faulted | E::Recovered(_)) => Ok(Self::Draining),
            (Self::Error, E::Recovered(load)) => Ok(load.state()),
            (Self::Error, E::Loaded(_) | E::Undrained(_)) => Ok(Self::Error),
            (_, E::Faulted) => Ok(Self::Error),
            (_, E::Loaded(load) | E::Undrained(load) | E::Recovered(load)) => Ok(load.state()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn then() -> impl Strategy<Value = Then> {
        prop::sample::select(vec![Then::Again, Then::End, Then::Cancel])
    }

    fn any_event() -> impl Strategy<Value = JobEvent> {
        use JobEvent as E;
        let plain = vec![
            E::Queued,
            E::Assigned,
            E::Accepted,
            E::Unplaced,
            E::Starting,
            E::Running,
            E::StopRequested,
            E::Canceled,
            E::Lost,
            E::Resumed(Resumed::Running),
            E::Resumed(Resumed::Stopping),
        ];
        prop_oneof![
            4 => prop::sample::select(plain),
            1 => then().prop_map(E::Stopped),
            1 => then().prop_map(E::Failed),
            1 => then().prop_map(E::Fenced),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_a_job_runs_only_after_an_assignment_and_ends_once(
            events in prop::collection::vec(any_event(), 0..80)
        ) {
            let mut status = JobStatus::Created;
            let mut assigned = false;
            for event in events {
                let before = status;
                match status.on(event) {
                    Ok(next) => status = next,
                    Err(illegal) => prop_assert_eq!(illegal, IllegalJobTransition { status, event }),
                }
                prop_assert!(!before.is_final() || status == before, "{before} is the end, and became {status}");
                assigned = (assigned || event == JobEvent::Assigned) && !status.is_waiting();
                if status.is_held() {
                    prop_assert!(assigned, "{status} without an assignment since it waited");
                }
            }
        }

        #[test]
        fn every_job_can_still_end(status in prop::sample::select(JobStatus::ALL.to_vec())) {
            let road = [JobEvent::Assigned, JobEvent::StopRequested, JobEvent::Stopped(Then::End)];
            let end = road.iter().fold(status, |status, event| status.on(*event).unwrap_or(status));
            prop_assert!(end.is_final());
        }
    }

    #[test]
    fn a_drained_agent_takes_nothing_and_one_that_is_away_stays_away() {
        let free = Load::Free;
        let states = |events: &[AgentEvent]| {
            events.iter().fold(AgentState::Offline, |state, event| state.on(*event).unwrap_or(state))
        };
        use AgentEvent as E;
        assert_eq!(states(&[E::Connected(free)]), AgentState::Idle);
        assert_eq!(states(&[E::Drained, E::Loaded(free)]), AgentState::Offline);
        assert_eq!(states(&[E::Connected(free), E::Drained, E::Loaded(free)]), AgentState::Draining);
        assert_eq!(states(&[E::Connected(free), E::Drained, E::Undrained(free)]), AgentState::Idle);
        assert_eq!(states(&[E::Connected(free), E::Faulted, E::Loaded(free)]), AgentState::Error);
        assert_eq!(states(&[E::Connected(free), E::Faulted, E::Recovered(Load::Running)]), AgentState::Running);
        assert_eq!(states(&[E::Connected(free), E::Loaded(Load::Reserved), E::Lost]), AgentState::Offline);
        assert!(AgentState::Offline.on(E::Lost).is_err() && AgentState::Offline.on(E::Faulted).is_err());
    }

    #[test]
    fn an_agent_is_idle_while_a_slot_is_free() {
        assert_eq!(Load::of(2, 1, Some(JobStatus::Running)), Load::Free);
        assert_eq!(Load::of(2, 2, Some(JobStatus::Assigned)), Load::Reserved);
        assert_eq!(Load::of(1, 1, Some(JobStatus::Accepted)), Load::Starting);
        assert_eq!(Load::of(1, 1, Some(JobStatus::Unknown)), Load::Running);
    }

    #[test]
    fn ids_and_names_read_back() {
        assert_eq!(JobId(12).to_string().parse(), Ok(JobId(12)));
        for text in ["", "12", "job-", "job-0", "job-01", "job-+1", "job--1", "job-x", "job-99999999999999999999"] {
            assert_eq!(text.parse::<JobId>(), Err(NotAJobId), "{text}");
        }
        for status in JobStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(*status));
        }
    }
}
