//! From proposals to a plan: merge, then the governors that keep the loop from feeding on itself.
//!
//! mode → a rule's blast radius → merge → order → cooldown → breaker → budget → the plan's blast radius.
//! Each proposal's fate is recorded with the reason.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::decision::{Decision, Fate, Memory, PlannedAction, ProposalFate, Summary};
use super::propose::{Proposal, Proposals};
use crate::config::Governors;
use crate::db::Timestamp;

/// Decides what is carried out. Pure: everything it goes by is passed in and kept in the decision.
pub fn plan(proposals: Proposals, memory: &Memory, governors: &Governors, at: Timestamp) -> Decision {
    let Proposals { items, held_rules, failures, began_with, unreached, rules_hash } = proposals;
    if items.is_empty() {
        return Decision { held_rules, failures, began_with, unreached, ..Decision::default() };
    }
    let mut fates: Vec<Option<(Fate, Option<String>)>> = single_fates(&items, governors);
    let groups = groups(&items, &fates);
    let mut gate = Gate { memory, governors, at, begun: HashMap::new(), trying: Vec::new() };
    let mut planned = Vec::new();
    for group in &groups {
        match gate.admit(&items, group) {
            Ok(()) => planned.push(group),
            Err(because) => hold(&mut fates, group, &because),
        }
    }
    let blast_radius_exceeded = planned.len() > governors.plan_blast_radius;
    if blast_radius_exceeded {
        let because = format!(
            "the plan has {} actions, more than {}; none is carried out",
            planned.len(),
            governors.plan_blast_radius
        );
        for group in std::mem::take(&mut planned) {
            hold(&mut fates, group, &because);
        }
    }
    let actions: Vec<PlannedAction> = planned.iter().map(|group| action(&items, group)).collect();
    for group in planned {
        let strongest = &items[group[0]].origin.rule;
        for (place, index) in group.iter().enumerate() {
            fates[*index] = Some(match place {
                0 => (Fate::Planned, None),
                _ => (Fate::Merged, Some(format!("carried out once, for {strongest}"))),
            });
        }
    }
    let memory = Some(relevant(memory, &items));
    let proposals: Vec<ProposalFate> =
        items.into_iter().zip(fates).map(|(item, fate)| recorded(item, fate.unwrap_or((Fate::Held, None)))).collect();
    let held = proposals.iter().filter(|proposal| proposal.fate == Fate::Held).count();
    let summary = Summary { proposed: proposals.len(), planned: actions.len(), held };
    let governors = Some(governors.clone());
    Decision {
        actions,
        proposals,
        held_rules,
        failures,
        began_with,
        unreached,
        blast_radius_exceeded,
        summary,
        rules_hash,
        at: Some(at),
        memory,
        governors,
    }
}

/// The fates that are known before proposals are compared: rules that only observe, and rules that want too much.
fn single_fates(items: &[Proposal], governors: &Governors) -> Vec<Option<(Fate, Option<String>)>> {
    let mut count: HashMap<&str, usize> = HashMap::new();
    for item in items {
        *count.entry(&item.origin.rule).or_default() += 1;
    }
    items
        .iter()
        .map(|item| {
            let proposed = count[item.origin.rule.as_str()];
            if item.origin.observe {
                Some((Fate::Observed, Some("its rule only observes".to_owned())))
            } else if proposed > governors.rule_blast_radius {
                let most = governors.rule_blast_radius;
                Some((Fate::Held, Some(format!("its rule proposes {proposed} actions in one cycle, more than {most}"))))
            } else {
                None
            }
        })
        .collect()
}

/// Open proposals by kind and target, the strongest first in each; the groups in the order of the plan.
fn groups(items: &[Proposal], fates: &[Option<(Fate, Option<String>)>]) -> Vec<Vec<usize>> {
    let mut by_target: BTreeMap<(&str, String), Vec<usize>> = BTreeMap::new();
    for (index, item) in items.iter().enumerate().filter(|(index, _)| fates[*index].is_none()) {
        by_target.entry((item.action.kind(), item.action.target())).or_default().push(index);
    }
    let mut groups: Vec<Vec<usize>> = by_target.into_values().collect();
    for group in &mut groups {
        group.sort_by_key(|index| (Reverse(items[*index].origin.priority), *index));
    }
    groups.sort_by(|a, b| {
        let key = |group: &[usize]| {
            let first = &items[group[0]];
            (Reverse(first.origin.priority), Reverse(first.age_seconds), &first.origin.rule, group[0])
        };
        key(a).cmp(&key(b))
    });
    groups
}

fn hold(fates: &mut [Option<(Fate, Option<String>)>], group: &[usize], because: &str) {
    for index in group {
        fates[*index] = Some((Fate::Held, Some(because.to_owned())));
    }
}

/// Cooldown, breaker and budget, with what this plan has begun so far.
struct Gate<'a> {
    memory: &'a Memory,
    governors: &'a Governors,
    at: Timestamp,
    begun: HashMap<&'static str, u32>,
    /// Kinds whose half-open breaker has let its one action through.
    trying: Vec<&'static str>,
}

impl Gate<'_> {
    fn admit(&mut self, items: &[Proposal], group: &[usize]) -> Result<(), String> {
        let first = &items[group[0]];
        let kind = first.action.kind();
        if group.iter().all(|index| self.cooling(&items[*index]).is_some()) {
            return Err(self.cooling(first).unwrap_or_default());
        }
        let half_open = self.breaker(kind)?;
        let used = self.memory.used.get(kind).copied().unwrap_or(0);
        let begun = self.begun.entry(kind).or_default();
        let budget = self.governors.budgets.get(kind).copied().unwrap_or(self.governors.budget_per_hour);
        if used.saturating_add(*begun) >= budget {
            return Err(format!("the budget of {budget} {kind} an hour is used up"));
        }
        *begun += 1;
        if half_open {
            self.trying.push(kind);
        }
        Ok(())
    }

    /// Until when the proposal's rule leaves its target alone.
    fn cooling(&self, item: &Proposal) -> Option<String> {
        let origin = &item.origin;
        let cooldown = Duration::from_secs(origin.cooldown_seconds?);
        let target = item.action.target();
        let acted_at = *self.memory.cooldowns.get(&origin.rule)?.get(&target)?;
        let until = acted_at.after(cooldown);
        (until > self.at)
            .then(|| format!("{} acted on {target} at {acted_at}; its cooldown ends at {until}", origin.rule))
    }

    /// Whether the kind's breaker is half open; an open one is the error.
    fn breaker(&self, kind: &'static str) -> Result<bool, String> {
        let breaker = self.memory.breakers.get(kind).copied().unwrap_or_default();
        if breaker.consecutive_failures < self.governors.breaker_failures.max(1) {
            return Ok(false);
        }
        let failures = breaker.consecutive_failures;
        let closes = breaker.opened_at.map(|at| at.after(Duration::from_secs(self.governors.breaker_open_seconds)));
        match closes {
            Some(closes) if closes > self.at => {
                Err(format!("the breaker of {kind} is open until {closes}: {failures} failures in a row"))
            }
            _ if self.trying.contains(&kind) => {
                Err(format!("the breaker of {kind} lets one action through to try: {failures} failures in a row"))
            }
            _ => Ok(true),
        }
    }
}

fn action(items: &[Proposal], group: &[usize]) -> PlannedAction {
    let (mut rules, mut reasons): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for item in group.iter().map(|index| &items[*index]) {
        if !rules.contains(&item.origin.rule) {
            rules.push(item.origin.rule.clone());
        }
        if !reasons.contains(&item.reason) {
            reasons.push(item.reason.clone());
        }
    }
    let first = &items[group[0]];
    PlannedAction {
        action: first.action.clone(),
        target: first.action.target(),
        priority: first.origin.priority,
        rules,
        reason: first.reason.clone(),
        reasons,
    }
}

fn recorded(item: Proposal, (fate, because): (Fate, Option<String>)) -> ProposalFate {
    ProposalFate {
        action: item.action.kind().to_owned(),
        target: item.action.target(),
        rule: item.origin.rule,
        priority: item.origin.priority,
        reason: item.reason,
        fate,
        because,
    }
}

/// The part of the memory that these proposals were measured against.
fn relevant(memory: &Memory, items: &[Proposal]) -> Memory {
    let mut kept = Memory::default();
    for item in items {
        let (rule, target, kind) = (&item.origin.rule, item.action.target(), item.action.kind());
        if let Some(acted_at) = memory.cooldowns.get(rule).and_then(|targets| targets.get(&target)) {
            kept.cooldowns.entry(rule.clone()).or_default().insert(target, *acted_at);
        }
        if let Some(used) = memory.used.get(kind) {
            kept.used.insert(kind.to_owned(), *used);
        }
        if let Some(breaker) = memory.breakers.get(kind) {
            kept.breakers.insert(kind.to_owned(), *breaker);
        }
    }
    kept
}
