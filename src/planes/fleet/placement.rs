//! Which job goes to which agent: pure.
//!
//! Agents with the same capabilities are one class, and a job's requirements are held against each class once, so that
//! thousands of jobs and agents take milliseconds.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Map, Value};

use crate::config::Strategy;

/// A job that waits.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    pub id: i64,
    /// A larger one goes first; of the same, the older.
    pub priority: i64,
    pub requires: &'a Map<String, Value>,
    /// Agents that are taken if they have a free slot.
    pub prefers: &'a [String],
    /// Agents that are taken only if there is no other.
    pub avoid: &'a [String],
    /// Its last offer was not taken, and agents that it avoids are not asked again yet.
    pub is_held_back: bool,
    /// Why its last offer was not taken, which is what it waits with.
    pub was_refused: bool,
    /// Jobs of one group go to different agents while there are any.
    pub group: Option<&'a str>,
}

/// An agent that may be given jobs.
#[derive(Debug, Clone)]
pub struct Seat<'a> {
    pub id: &'a str,
    pub slots: i64,
    pub taken: i64,
    pub capabilities: &'a Map<String, Value>,
    /// The same for agents with the same capabilities.
    pub class: u64,
    /// Groups of the jobs that it has.
    pub groups: Vec<&'a str>,
}

/// What becomes of the jobs that wait.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub offers: Vec<(i64, String)>,
    /// Why the others wait.
    pub waits: Vec<(i64, String)>,
}

/// Agents of one class that are looked at for one job, best first: enough to step around a group or what it avoids.
const LOOKED_AT: usize = 64;

/// Places `wishes`, which come in any order.
pub fn place(mut wishes: Vec<Wish<'_>>, seats: &[Seat<'_>], strategy: Strategy) -> Plan {
    wishes.sort_by_key(|wish| (std::cmp::Reverse(wish.priority), wish.id));
    let mut plan = Plan::default();
    let mut taken: Vec<i64> = seats.iter().map(|seat| seat.taken).collect();
    let mut groups: Vec<BTreeSet<&str>> = seats.iter().map(|seat| seat.groups.iter().copied().collect()).collect();
    let by_id: HashMap<&str, usize> = seats.iter().enumerate().map(|(at, seat)| (seat.id, at)).collect();
    // Free agents of each class, best first.
    let mut classes: BTreeMap<u64, (usize, BTreeSet<(i64, usize)>)> = BTreeMap::new();
    let rank = |at: usize, taken: &[i64]| match strategy {
        Strategy::Spread => taken[at] - seats[at].slots,
        Strategy::Pack => seats[at].slots - taken[at],
    };
    for (at, seat) in seats.iter().enumerate() {
        let class = classes.entry(seat.class).or_insert_with(|| (at, BTreeSet::new()));
        if seat.taken < seat.slots {
            class.1.insert((rank(at, &taken), at));
        }
    }
    // For each kind of requirements: the classes that meet them, and why jobs of it wait, once one does.
    let mut fitting: HashMap<String, (Vec<u64>, Option<String>)> = HashMap::new();
    for wish in wishes {
        let (fits, why) = fitting.entry(Value::Object(wish.requires.clone()).to_string()).or_insert_with(|| {
            let fits =
                |(class, (at, _)): (&u64, &(usize, _))| meets(seats[*at].capabilities, wish.requires).then_some(*class);
            (classes.iter().filter_map(fits).collect(), None)
        });
        let avoids = |at: usize| wish.avoid.iter().any(|id| id == seats[at].id);
        let preferred = wish.prefers.iter().filter_map(|id| by_id.get(id.as_str()).copied());
        let chosen = preferred
            .filter(|at| fits.contains(&seats[*at].class) && taken[*at] < seats[*at].slots)
            .find(|at| !avoids(*at))
            .or_else(|| {
                let best = fits
                    .iter()
                    .filter_map(|class| classes.get(class))
                    .flat_map(|(_, free)| free.iter().take(LOOKED_AT));
                best.filter(|(_, at)| !wish.is_held_back || !avoids(*at))
                    .map(|(rank, at)| {
                        let together = wish.group.is_some_and(|group| groups[*at].contains(group));
                        (avoids(*at), together, *rank, *at)
                    })
                    .min()
                    .map(|(.., at)| at)
            });
        let Some(at) = chosen else {
            if !wish.was_refused {
                let why = why.get_or_insert_with(|| reason(seats, fits, wish.requires));
                plan.waits.push((wish.id, why.clone()));
            }
            continue;
        };
        if let Some((_, free)) = classes.get_mut(&seats[at].class) {
            free.remove(&(rank(at, &taken), at));
            taken[at] += 1;
            if taken[at] < seats[at].slots {
                free.insert((rank(at, &taken), at));
            }
        }
        if let Some(group) = wish.group {
            groups[at].insert(group);
        }
        plan.offers.push((wish.id, seats[at].id.to_owned()));
    }
    plan
}

/// Why a job waits; the same words while nothing changes for it.
fn reason(seats: &[Seat<'_>], fits: &[u64], requires: &Map<String, Value>) -> String {
    if seats.is_empty() {
        return "no agent is connected and free to take jobs".to_owned();
    }
    if !fits.is_empty() {
        return "every slot of the agents that fit is taken".to_owned();
    }
    let nobody = requires.iter().find(|(name, wanted)| !seats.iter().any(|seat| has(seat.capabilities, name, wanted)));
    match nobody {
        Some((name, wanted)) => format!("no connected agent has the capability {name}: {wanted}"),
        None => "no connected agent has all the capabilities that it requires".to_owned(),
    }
}

/// Whether `capabilities` has everything that is required.
pub fn meets(capabilities: &Map<String, Value>, requires: &Map<String, Value>) -> bool {
    requires.iter().all(|(name, wanted)| has(capabilities, name, wanted))
}

/// A number or a resolution is met by one at least as large, a list by one that holds all of it, anything else by the
/// same.
fn has(capabilities: &Map<String, Value>, name: &str, wanted: &Value) -> bool {
    let Some(there) = capabilities.get(name) else {
        return matches!(wanted, Value::Bool(false) | Value::Null);
    };
    if name == "maxResolution"
        && let (Some(there), Some(wanted)) = (lines(there), lines(wanted))
    {
        return there >= wanted;
    }
    match (there, wanted) {
        (Value::Number(there), Value::Number(wanted)) => there.as_f64() >= wanted.as_f64(),
        (Value::Array(there), Value::Array(wanted)) => wanted.iter().all(|item| there.contains(item)),
        (Value::Array(there), wanted) => there.contains(wanted),
        (there, wanted) => there == wanted,
    }
}

/// The lines of a resolution: `1080p`, `1920x1080`, `4k`, or a number.
fn lines(resolution: &Value) -> Option<u64> {
    let text = match resolution {
        Value::Number(number) => return number.as_u64(),
        Value::String(text) => text.trim().to_ascii_lowercase(),
        _ => return None,
    };
    match text.as_str() {
        "4k" | "uhd" => return Some(2160),
        "8k" => return Some(4320),
        _ => {}
    }
    let text = text.strip_suffix('p').unwrap_or(&text);
    text.rsplit('x').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Strategy;
    use proptest::prelude::*;
    use serde_json::json;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn a_capability_is_met_by_more_than_is_required_and_not_by_less() {
        let there = object(json!({ "slots": 4, "maxResolution": "1080p", "gpu": true, "codecs": ["h264", "av1"] }));
        for (requires, met) in [
            (json!({}), true),
            (json!({ "maxResolution": "720p" }), true),
            (json!({ "maxResolution": "1920x1080" }), true),
            (json!({ "maxResolution": "4k" }), false),
            (json!({ "gpu": true, "slots": 2 }), true),
            (json!({ "slots": 5 }), false),
            (json!({ "codecs": "av1" }), true),
            (json!({ "codecs": ["h264", "vp9"] }), false),
            (json!({ "region": "eu" }), false),
            (json!({ "region": null }), true),
        ] {
            assert_eq!(meets(&there, &object(requires.clone())), met, "{requires}");
        }
    }

    fn seat<'a>(id: &'a str, slots: i64, taken: i64, capabilities: &'a Map<String, Value>, class: u64) -> Seat<'a> {
        Seat { id, slots, taken, capabilities, class, groups: Vec::new() }
    }

    fn anything(requires: &Map<String, Value>) -> Wish<'_> {
        Wish {
            id: 1,
            priority: 0,
            requires,
            prefers: &[],
            avoid: &[],
            is_held_back: false,
            was_refused: false,
            group: None,
        }
    }

    #[test]
    fn jobs_spread_or_pack_prefer_avoid_and_part() {
        let none = Map::new();
        let gpu = object(json!({ "gpu": true }));
        let seats = [seat("a", 4, 3, &none, 0), seat("b", 4, 1, &none, 0), seat("c", 4, 0, &gpu, 1)];
        let wish = |id| Wish { id, ..anything(&none) };
        let one = |wish: Wish<'_>, strategy| place(vec![wish], &seats, strategy).offers[0].1.clone();
        assert_eq!(one(wish(1), Strategy::Spread), "c");
        assert_eq!(one(wish(1), Strategy::Pack), "a");
        let (a, c) = (["a".to_owned()], ["c".to_owned()]);
        assert_eq!(one(Wish { prefers: &a, ..wish(1) }, Strategy::Spread), "a");
        assert_eq!(one(Wish { avoid: &c, ..wish(1) }, Strategy::Spread), "b");
        assert_eq!(one(Wish { requires: &gpu, ..wish(1) }, Strategy::Pack), "c");
        let together = |id| Wish { group: Some("event"), ..wish(id) };
        let plan = place(vec![together(1), together(2), together(3)], &seats, Strategy::Spread);
        let agents: BTreeSet<&str> = plan.offers.iter().map(|(_, agent)| agent.as_str()).collect();
        assert_eq!(agents.len(), 3, "{plan:?}");
    }

    #[test]
    fn what_was_refused_goes_to_others_at_once_and_back_after_its_wait() {
        let none = Map::new();
        let (refuses, other) = (seat("a", 4, 0, &none, 0), seat("b", 1, 0, &none, 0));
        let avoid = ["a".to_owned()];
        let wish = |is_held_back| Wish { avoid: &avoid, is_held_back, was_refused: true, ..anything(&none) };
        let to_a = vec![(1, "a".to_owned())];
        let alone = [refuses.clone()];
        assert_eq!(place(vec![wish(true)], &alone, Strategy::Spread), Plan::default(), "its refusal stays its reason");
        assert_eq!(place(vec![wish(false)], &alone, Strategy::Spread).offers, to_a);
        let both = [refuses, other];
        assert_eq!(place(vec![wish(true)], &both, Strategy::Spread).offers, [(1, "b".to_owned())]);
    }

    #[test]
    fn who_waits_is_told_why() {
        let (none, gpu) = (Map::new(), object(json!({ "gpu": true })));
        let why =
            |requires, seats: &[Seat<'_>]| place(vec![anything(requires)], seats, Strategy::Spread).waits[0].1.clone();
        assert_eq!(why(&none, &[]), "no agent is connected and free to take jobs");
        assert_eq!(why(&gpu, &[seat("a", 1, 0, &none, 0)]), "no connected agent has the capability gpu: true");
        assert_eq!(why(&none, &[seat("a", 1, 1, &none, 0)]), "every slot of the agents that fit is taken");
    }

    proptest! {
        #[test]
        fn no_slot_is_given_twice_and_the_urgent_never_wait_for_others(
            seats in prop::collection::vec((0_i64..4, 0_i64..4, 0_u64..3), 0..12),
            wishes in prop::collection::vec((0_i64..5, 0_u64..3), 0..30),
            pack: bool,
        ) {
            let kinds: Vec<Map<String, Value>> = (0..3).map(|kind| object(json!({ "kind": kind }))).collect();
            let names: Vec<String> = (0..seats.len()).map(|n| format!("agent-{n}")).collect();
            let rows: Vec<Seat<'_>> = seats.iter().zip(&names)
                .map(|((slots, taken, kind), name)| seat(name, *slots, (*taken).min(*slots), &kinds[*kind as usize], *kind))
                .collect();
            let asked: Vec<Wish<'_>> = wishes.iter().enumerate().map(|(id, (priority, kind))| Wish {
                id: id as i64, priority: *priority, ..anything(&kinds[*kind as usize])
            }).collect();
            let strategy = if pack { Strategy::Pack } else { Strategy::Spread };
            let plan = place(asked.clone(), &rows, strategy);
            prop_assert_eq!(plan.offers.len() + plan.waits.len(), asked.len());
            for row in &rows {
                let given = plan.offers.iter().filter(|(_, agent)| agent == row.id).count() as i64;
                prop_assert!(row.taken + given <= row.slots);
            }
            for (waits, _) in &plan.waits {
                let waiting = &asked[*waits as usize];
                for (placed, _) in &plan.offers {
                    let placed = &asked[*placed as usize];
                    // A requirement of a smaller kind is met by a larger one: only the same kind competes for sure.
                    if placed.requires == waiting.requires {
                        prop_assert!(placed.priority >= waiting.priority);
                    }
                }
            }
        }
    }
}
