//! What the loop decided, and enough beside it to decide the same again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::RuleFailure;
use super::plan::plan;
use super::propose::{Recorded, propose_with};
use super::rule_set::{RuleInfo, RuleSet};
use crate::config::Governors;
use crate::control::action::Action;
use crate::control::snapshot::Snapshot;
use crate::db::Timestamp;

/// The decision of one cycle. An idle one is `{}`: empty fields are left out.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Decision {
    /// The plan, in the order in which it is carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<PlannedAction>,
    /// Every proposal's fate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proposals: Vec<ProposalFate>,
    /// Rules that were not asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_rules: Vec<HeldRule>,
    /// Rules that failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<RuleFailure>,
    /// The rule that was asked first, where it was not the first of the set: an earlier cycle did not reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began_with: Option<String>,
    /// Rules that were not asked because the ones before them took too much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreached: Option<Unreached>,
    /// The plan was larger than the cap: none of it is carried out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blast_radius_exceeded: bool,
    /// How many proposals met which fate.
    #[serde(default, skip_serializing_if = "Summary::is_empty")]
    pub summary: Summary,
    /// The rules' hash; only where there were proposals, as everything below.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rules_hash: String,
    /// The time that cooldowns and breakers went by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// What the governors remembered of the proposed actions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// The governors' settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub governors: Option<Governors>,
}

/// One action to carry out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedAction {
    /// In JSON its fields stand here: `"action":"retry_failed_log","log_id":3`.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub action: Action,
    /// What it is done to.
    pub target: String,
    /// The highest of its rules.
    pub priority: i64,
    /// The rules that want it, the strongest first.
    pub rules: Vec<String>,
    /// Their reasons.
    pub reasons: Vec<String>,
    /// The first of them.
    pub reason: String,
}

/// What became of one proposal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProposalFate {
    /// The rule.
    pub rule: String,
    /// The action's kind.
    pub action: String,
    /// What it would be done to.
    pub target: String,
    /// The rule's priority.
    pub priority: i64,
    /// The rule's reason.
    pub reason: String,
    /// What became of it.
    pub fate: Fate,
    /// Why, where it was not simply planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

/// What can become of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It is carried out.
    Planned,
    /// Another rule wants the same; it is carried out once.
    Merged,
    /// A governor keeps it back.
    Held,
    /// Its rule only observes.
    Observed,
}

/// A rule that was not asked, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeldRule {
    /// The rule.
    pub rule: String,
    /// Which section was missing.
    pub because: String,
}

/// Rules that a cycle did not reach. The next one begins with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unreached {
    /// How many.
    pub count: usize,
    /// What was used up.
    pub because: String,
    /// Their names in the order in which they will be asked, the first hundred.
    pub rules: Vec<String>,
}

/// Counts of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Summary {
    /// All proposals.
    pub proposed: usize,
    /// Actions in the plan.
    pub planned: usize,
    /// Proposals that a governor keeps back.
    pub held: usize,
}

impl Summary {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What the governors remember from earlier cycles.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Memory {
    /// By rule and target: when the rule last acted on it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cooldowns: BTreeMap<String, BTreeMap<String, Timestamp>>,
    /// By action kind: how many were begun in the last hour.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub used: BTreeMap<String, u32>,
    /// By action kind.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub breakers: BTreeMap<String, Breaker>,
}

/// What one action kind's breaker remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Breaker {
    /// Failures since the last success.
    pub consecutive_failures: u32,
    /// When it last opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened_at: Option<Timestamp>,
}

/// Where a proposal comes from: all that the governors need to know of its rule.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) rule: String,
    pub(super) priority: i64,
    pub(super) cooldown_seconds: Option<u64>,
    pub(super) observe: bool,
}

impl From<&RuleInfo> for Origin {
    fn from(info: &RuleInfo) -> Self {
        Self {
            rule: info.name.clone(),
            priority: info.priority,
            cooldown_seconds: info.cooldown_seconds,
            observe: info.mode == super::rule_set::Mode::Observe,
        }
    }
}

/// Decides again from what a cycle recorded. With the same rules, the answer is the same byte for byte in JSON.
pub fn replay(rules: &RuleSet, snapshot: &Snapshot, recorded: &Decision) -> Decision {
    let pace = Recorded {
        timed_out: recorded.failures.iter().filter(|failure| failure.timed_out).cloned().collect(),
        unreached: recorded.unreached.as_ref(),
    };
    let health = recorded.failures.iter().filter(|failure| failure.rule == HEALTH_RULE).cloned().collect();
    let mut proposals = propose_with(rules, snapshot, None, recorded.began_with.as_deref(), &pace);
    proposals.add_failures(health);
    let memory = recorded.memory.clone().unwrap_or_default();
    let governors = recorded.governors.clone().unwrap_or_default();
    plan(proposals, &memory, &governors, recorded.at.unwrap_or(snapshot.at))
}

/// The name under which failures of `health.rhai` are reported. No rule can be called that: see the loader.
pub(super) const HEALTH_RULE: &str = "health";
