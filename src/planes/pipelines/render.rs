//! The graph of a pipeline as a picture: Mermaid's text, and SVG by a layered layout of our own. Pure.

use std::collections::HashMap;
use std::fmt::Write;

use super::compile::Pipeline;

/// A box, and the gaps between boxes, in pixels.
const WIDTH: usize = 170;
const HEIGHT: usize = 44;
const GAP_X: usize = 60;
const GAP_Y: usize = 18;
const MARGIN: usize = 16;
/// Letters that fit into a box.
const LETTERS: usize = 22;
/// How often neighbours are put in order; more changes little.
const SWEEPS: usize = 4;

impl Pipeline {
    /// As a Mermaid flow chart. `status` colours the steps of a run.
    pub fn mermaid(&self, status: &HashMap<String, String>) -> String {
        let mut text = "flowchart LR\n".to_owned();
        for (at, step) in self.definition.steps.iter().enumerate() {
            let (open, close) = if step.for_each.is_some() { ("[[", "]]") } else { ("[", "]") };
            let _ = writeln!(text, "    s{at}{open}\"{}<br/><small>{}</small>\"{close}", step.id, step.kind());
        }
        for (at, needs) in self.graph.needs.iter().enumerate() {
            for need in needs {
                let condition = if self.definition.steps[at].when.is_some() { "-.->" } else { "-->" };
                let _ = writeln!(text, "    s{need} {condition} s{at}");
            }
        }
        for (name, fill) in COLOURS {
            let of = |step: &&super::definition::Step| status.get(&step.id).is_some_and(|status| status == name);
            let steps = self.definition.steps.iter().enumerate().filter(|(_, step)| of(step));
            let steps: Vec<String> = steps.map(|(at, _)| format!("s{at}")).collect();
            if !steps.is_empty() {
                let _ = writeln!(text, "    classDef {name} fill:{fill}\n    class {} {name}", steps.join(","));
            }
        }
        text
    }

    /// As an SVG picture. `status` colours the steps of a run.
    pub fn svg(&self, status: &HashMap<String, String>) -> String {
        let rows = self.rows();
        let highest = rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = 2 * MARGIN + rows.len() * WIDTH + rows.len().saturating_sub(1) * GAP_X;
        let height = 2 * MARGIN + highest * HEIGHT + highest.saturating_sub(1) * GAP_Y;
        let mut places = vec![(0, 0); self.definition.steps.len()];
        for (column, steps) in rows.iter().enumerate() {
            let used = steps.len() * HEIGHT + steps.len().saturating_sub(1) * GAP_Y;
            let top = (height - used) / 2;
            for (row, step) in steps.iter().enumerate() {
                places[*step] = (MARGIN + column * (WIDTH + GAP_X), top + row * (HEIGHT + GAP_Y));
            }
        }
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"system-ui, sans-serif\" font-size=\"13\">\n"
        );
        for (at, needs) in self.graph.needs.iter().enumerate() {
            let (x2, y2) = (places[at].0, places[at].1 + HEIGHT / 2);
            let dash = if self.definition.steps[at].when.is_some() { " stroke-dasharray=\"4 3\"" } else { "" };
            for need in needs {
                let (x1, y1) = (places[*need].0 + WIDTH, places[*need].1 + HEIGHT / 2);
                let middle = (x1 + x2) / 2;
                let _ = writeln!(
                    svg,
                    "<path d=\"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}\" fill=\"none\" stroke=\"#8a94a6\"{dash}/>"
                );
            }
        }
        for (at, step) in self.definition.steps.iter().enumerate() {
            let (x, y) = places[at];
            let state = status.get(&step.id).map(String::as_str).unwrap_or_default();
            let fill = COLOURS.iter().find(|(name, _)| *name == state).map_or("#f4f6fa", |(_, fill)| fill);
            let name: String = match step.id.chars().count() > LETTERS {
                true => step.id.chars().take(LETTERS - 1).chain(['…']).collect(),
                false => step.id.clone(),
            };
            let kind = format!("{}{}", step.kind(), if step.for_each.is_some() { " ×" } else { "" });
            let _ = writeln!(
                svg,
                "<g><title>{}</title><rect x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"6\" \
                 fill=\"{fill}\" stroke=\"#5b6577\"/><text x=\"{}\" y=\"{}\">{}</text>\
                 <text x=\"{}\" y=\"{}\" font-size=\"11\" fill=\"#5b6577\">{}</text></g>",
                escaped(&format!("{} {state}", step.id)),
                x + 10,
                y + 19,
                escaped(&name),
                x + 10,
                y + 35,
                escaped(&kind),
            );
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// The levels, each in an order in which lines cross little: every step near the middle of its neighbours.
    fn rows(&self) -> Vec<Vec<usize>> {
        let mut rows = self.levels.clone();
        let dependents = self.graph.dependents();
        for sweep in 0..SWEEPS {
            let mut position = vec![0.0; self.definition.steps.len()];
            for row in &rows {
                for (at, step) in row.iter().enumerate() {
                    position[*step] = (at as f64 + 0.5) / row.len() as f64;
                }
            }
            let neighbours = if sweep % 2 == 0 { &self.graph.needs } else { &dependents };
            for row in &mut rows {
                let middle = |step: &usize| match neighbours[*step].as_slice() {
                    [] => position[*step],
                    near => near.iter().map(|step| position[*step]).sum::<f64>() / near.len() as f64,
                };
                row.sort_by(|one, other| middle(one).total_cmp(&middle(other)));
            }
        }
        rows
    }
}

const COLOURS: [(&str, &str); 6] = [
    ("completed", "#cdeccf"),
    ("running", "#cfe3fb"),
    ("waiting", "#fdf0c4"),
    ("failed", "#f8cfcb"),
    ("skipped", "#e6e6e6"),
    ("cancelled", "#dcd3e8"),
];

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::definition::Definition;
    use super::*;

    fn diamond() -> std::sync::Arc<Pipeline> {
        let yaml = "steps:
  - {id: a, eval: '1'}
  - {id: b, needs: [a], when: 'true', eval: '1'}
  - {id: c, needs: [a], for_each: '[1]', http: {url: 'http://h'}}
  - {id: d, needs: [b, c], eval: '1'}";
        Pipeline::compile("p", 1, Definition::parse(yaml).expect("readable")).expect("good")
    }

    #[test]
    fn mermaid_names_every_step_and_edge() {
        let text = diamond().mermaid(&HashMap::from([("a".to_owned(), "completed".to_owned())]));
        assert_eq!(
            text,
            "flowchart LR
    s0[\"a<br/><small>eval</small>\"]
    s1[\"b<br/><small>eval</small>\"]
    s2[[\"c<br/><small>http</small>\"]]
    s3[\"d<br/><small>eval</small>\"]
    s0 -.-> s1
    s0 --> s2
    s1 --> s3
    s2 --> s3
    classDef completed fill:#cdeccf
    class s0 completed
"
        );
    }

    #[test]
    fn svg_draws_each_step_once_and_none_over_another() {
        let svg = diamond().svg(&HashMap::new());
        assert_eq!((svg.matches("<rect").count(), svg.matches("<path").count()), (4, 4));
        let mut places: Vec<&str> =
            svg.split("<rect ").skip(1).filter_map(|rest| rest.split(" width").next()).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 4);
        assert!(svg.starts_with("<svg xmlns") && svg.ends_with("</svg>\n"));
    }
}
