//! The graph of a pipeline: who waits for whom, in levels, its cycles and its critical path. Pure.

use std::time::Duration;

/// Steps by position, each with the positions that it waits for.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    pub needs: Vec<Vec<usize>>,
}

impl Graph {
    /// Who waits for each step.
    pub fn dependents(&self) -> Vec<Vec<usize>> {
        let mut dependents = vec![Vec::new(); self.needs.len()];
        for (step, needs) in self.needs.iter().enumerate() {
            for need in needs {
                dependents[*need].push(step);
            }
        }
        dependents
    }

    /// The steps by level: those of one level wait for nothing of the same or a later one. The error is one cycle.
    pub fn levels(&self) -> Result<Vec<Vec<usize>>, Vec<usize>> {
        let dependents = self.dependents();
        let mut open: Vec<usize> = self.needs.iter().map(Vec::len).collect();
        let mut level: Vec<usize> = (0..open.len()).filter(|step| open[*step] == 0).collect();
        let (mut levels, mut placed) = (Vec::new(), 0);
        while !level.is_empty() {
            placed += level.len();
            let mut next = Vec::new();
            for step in &level {
                for dependent in &dependents[*step] {
                    open[*dependent] -= 1;
                    if open[*dependent] == 0 {
                        next.push(*dependent);
                    }
                }
            }
            next.sort_unstable();
            levels.push(std::mem::replace(&mut level, next));
        }
        if placed == self.needs.len() { Ok(levels) } else { Err(self.cycle(&open)) }
    }

    /// A cycle among the steps that could not be placed: each waits for at least one other of them.
    fn cycle(&self, open: &[usize]) -> Vec<usize> {
        let Some(mut at) = open.iter().position(|open| *open > 0) else { return Vec::new() };
        let mut path: Vec<usize> = Vec::new();
        loop {
            if let Some(from) = path.iter().position(|step| *step == at) {
                let mut cycle = path.split_off(from);
                cycle.reverse(); // in the order in which they would run
                return cycle;
            }
            path.push(at);
            match self.needs[at].iter().find(|need| open[**need] > 0) {
                Some(need) => at = *need,
                None => return path,
            }
        }
    }

    /// Whether a step waits for another one, directly or not.
    pub fn stands_behind(&self, step: usize, other: usize) -> bool {
        let mut seen = vec![false; self.needs.len()];
        let mut open = vec![step];
        while let Some(step) = open.pop() {
            if self.needs[step].contains(&other) {
                return true;
            }
            for need in &self.needs[step] {
                if !std::mem::replace(&mut seen[*need], true) {
                    open.push(*need);
                }
            }
        }
        false
    }

    /// The longest chain by the steps' durations, and how long it takes.
    pub fn critical_path(&self, levels: &[Vec<usize>], durations: &[Duration]) -> (Vec<usize>, Duration) {
        let mut ends = vec![(Duration::ZERO, None); self.needs.len()];
        for step in levels.iter().flatten() {
            let before = self.needs[*step].iter().copied().max_by_key(|need| ends[*need].0);
            let begins = before.map_or(Duration::ZERO, |need| ends[need].0);
            ends[*step] = (begins + durations[*step], before);
        }
        let last = (0..ends.len()).max_by_key(|step| ends[*step].0);
        let mut path = Vec::new();
        let mut at = last;
        while let Some(step) = at {
            path.push(step);
            at = ends[step].1;
        }
        path.reverse();
        (path, last.map_or(Duration::ZERO, |step| ends[step].0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn graph(needs: &[&[usize]]) -> Graph {
        Graph { needs: needs.iter().map(|needs| needs.to_vec()).collect() }
    }

    #[test]
    fn a_diamond_has_three_levels_and_its_slower_side_is_critical() {
        let diamond = graph(&[&[], &[0], &[0], &[1, 2]]);
        let levels = diamond.levels().expect("no cycle");
        assert_eq!(levels, [vec![0], vec![1, 2], vec![3]]);
        let seconds = [1, 2, 5, 1].map(Duration::from_secs);
        assert_eq!(diamond.critical_path(&levels, &seconds), (vec![0, 2, 3], Duration::from_secs(7)));
        assert!([0, 1, 2].iter().all(|step| diamond.stands_behind(3, *step)) && !diamond.stands_behind(1, 2));
    }

    #[test]
    fn a_cycle_is_named_in_the_order_in_which_it_would_run() {
        let cycle = graph(&[&[], &[0, 3], &[1], &[2], &[3]]).levels().expect_err("a cycle");
        assert_eq!(cycle.len(), 3);
        let at = cycle.iter().position(|step| *step == 1).expect("in it");
        assert_eq!([cycle[at], cycle[(at + 1) % 3], cycle[(at + 2) % 3]], [1, 2, 3]);
        assert_eq!(graph(&[&[0]]).levels(), Err(vec![0]));
    }

    proptest! {
        #[test]
        fn every_step_stands_once_and_behind_all_that_it_needs(edges in prop::collection::vec((0_usize..40, 0_usize..40), 0..120)) {
            let mut needs = vec![Vec::new(); 40];
            for (one, other) in edges {
                let (from, to) = (one.min(other), one.max(other));
                if from != to && !needs[to].contains(&from) {
                    needs[to].push(from);
                }
            }
            let graph = Graph { needs };
            let levels = graph.levels().expect("edges go up only");
            let mut level_of = vec![usize::MAX; 40];
            for (level, steps) in levels.iter().enumerate() {
                for step in steps {
                    prop_assert_eq!(level_of[*step], usize::MAX);
                    level_of[*step] = level;
                }
            }
            for (step, needs) in graph.needs.iter().enumerate() {
                prop_assert!(needs.iter().all(|need| level_of[*need] < level_of[step]));
            }
        }
    }
}
