//! What rules mention of a snapshot: nothing else is converted for them.

use rhai::ImmutableString;

use super::facts::SECTIONS;

/// A tree of the mentioned fields, a branch for each section. Nodes and fields keep their places as more are added.
#[derive(Debug)]
pub(super) struct Mentions {
    nodes: Vec<Node>,
}

/// One mentioned value.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// The fields of it that are mentioned, if it is a map.
    pub(super) fields: Vec<(ImmutableString, Place)>,
    /// Its items, if it is a list that rules go through.
    pub(super) items: Option<Place>,
    /// It is used as a value itself, so that everything in it may matter.
    pub(super) whole: bool,
}

/// Where a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(usize);

impl Default for Mentions {
    fn default() -> Self {
        Self { nodes: SECTIONS.iter().map(|_| Node::default()).collect() }
    }
}

impl Mentions {
    pub(super) fn node(&self, place: Place) -> &Node {
        &self.nodes[place.0]
    }

    /// The node of a section.
    pub(super) fn section(name: &str) -> Option<(usize, Place)> {
        SECTIONS.iter().position(|section| *section == name).map(|index| (index, Place(index)))
    }

    /// The slot and node of a field, if it is mentioned.
    pub(super) fn find(&self, place: Place, name: &str) -> Option<(usize, Place)> {
        let mut fields = self.node(place).fields.iter().enumerate();
        fields.find(|(_, (field, _))| field == name).map(|(slot, (_, place))| (slot, *place))
    }

    /// Mentions a field.
    pub(super) fn field(&mut self, place: Place, name: &str) -> Place {
        if let Some((_, known)) = self.find(place, name) {
            return known;
        }
        let new = self.add();
        self.nodes[place.0].fields.push((name.into(), new));
        new
    }

    /// Mentions the items of a list.
    pub(super) fn items(&mut self, place: Place) -> Place {
        if let Some(known) = self.node(place).items {
            return known;
        }
        let new = self.add();
        self.nodes[place.0].items = Some(new);
        new
    }

    /// Mentions everything in a value.
    pub(super) fn whole(&mut self, place: Place) {
        self.nodes[place.0].whole = true;
    }

    fn add(&mut self) -> Place {
        self.nodes.push(Node::default());
        Place(self.nodes.len() - 1)
    }
}
