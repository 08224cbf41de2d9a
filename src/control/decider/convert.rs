//! From a section's structure to [`Facts`]: only what rules mention, by serde.

use std::fmt::{self, Write as _};

use serde::Serialize;
use serde::ser::{Error, Impossible, SerializeSeq, SerializeStruct, Serializer};

use super::facts::{Fact, Facts};
use super::mentions::Place;

/// Writes `value`, which is mentioned at `place`, into a slot. What is no plain data, or is used as a whole, is held as
/// the engine's own value.
pub(super) fn fill(facts: &mut Facts<'_>, place: Place, slot: usize, value: &(impl Serialize + ?Sized)) {
    if value.serialize(Filler { facts: &mut *facts, place, slot }).is_err() {
        facts.values[slot] = Fact::Whole(rhai::serde::to_dynamic(value).unwrap_or_default());
    }
}

/// Writes one value.
struct Filler<'a, 'm> {
    facts: &'a mut Facts<'m>,
    place: Place,
    slot: usize,
}

impl Filler<'_, '_> {
    fn put(self, fact: Fact) -> Result<(), NotPlain> {
        self.facts.values[self.slot] = fact;
        Ok(())
    }
    fn text(self, write: impl FnOnce(&mut String)) -> Result<(), NotPlain> {
        let from = self.facts.texts.len();
        write(&mut self.facts.texts);
        let to = self.facts.texts.len();
        self.put(Fact::Text(from..to))
    }
    fn is_whole(&self) -> bool {
        self.facts.mentions.node(self.place).whole
    }
}

/// Writes the mentioned fields of a map.
struct Fields<'a, 'm> {
    facts: &'a mut Facts<'m>,
    place: Place,
    first: usize,
}

/// Writes the items of a list.
struct Items<'a, 'm> {
    facts: &'a mut Facts<'m>,
    items: Option<Place>,
    next: usize,
    end: usize,
}

/// What only the engine's own value can hold.
#[derive(Debug)]
struct NotPlain;

impl fmt::Display for NotPlain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no plain data")
    }
}

impl std::error::Error for NotPlain {}

impl Error for NotPlain {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

type Never = Impossible<(), NotPlain>;

#[rustfmt::skip] // a table
impl<'a, 'm> Serializer for Filler<'a, 'm> {
    type Ok = ();
    type Error = NotPlain;
    type SerializeSeq = Items<'a, 'm>;
    type SerializeStruct = Fields<'a, 'm>;
    type SerializeTuple = Never;
    type SerializeTupleStruct = Never;
    type SerializeTupleVariant = Never;
    type SerializeMap = Never;
    type SerializeStructVariant = Never;

    fn serialize_bool(self, value: bool) -> Result<(), NotPlain> { self.put(Fact::Truth(value)) }
    fn serialize_i8(self, value: i8) -> Result<(), NotPlain> { self.put(Fact::Int(value.into())) }
    fn serialize_i16(self, value: i16) -> Result<(), NotPlain> { self.put(Fact::Int(value.into())) }
    fn serialize_i32(self, value: i32) -> Result<(), NotPlain> { self.put(Fact::Int(value.into())) }
    fn serialize_i64(self, value: i64) -> Result<(), NotPlain> { self.put(Fact::Int(value)) }
    fn serialize_u8(self, value: u8) -> Result<(), NotPlain> { self.put(Fact::Int(value.into())) }
    fn serialize_u16(self, value: u16) -> Result<(), NotPlain> { self.put(Fact::Int(value.into())) }
    fn serialize_u32(self, value: u32) -> Result<(), NotPlain> { self.put(Fact::Int(value.into())) }
    fn serialize_u64(self, value: u64) -> Result<(), NotPlain> {
        let value = i64::try_from(value).map_err(|_| NotPlain)?;
        self.put(Fact::Int(value))
    }
    fn serialize_f32(self, value: f32) -> Result<(), NotPlain> { self.put(Fact::Float(value.into())) }
    fn serialize_f64(self, value: f64) -> Result<(), NotPlain> { self.put(Fact::Float(value)) }
    fn serialize_char(self, _: char) -> Result<(), NotPlain> { Err(NotPlain) }
    fn serialize_str(self, value: &str) -> Result<(), NotPlain> { self.text(|texts| texts.push_str(value)) }
    fn collect_str<T: fmt::Display + ?Sized>(self, value: &T) -> Result<(), NotPlain> {
        self.text(|texts| {
            let _ = write!(texts, "{value}");
        })
    }
    fn serialize_bytes(self, _: &[u8]) -> Result<(), NotPlain> { Err(NotPlain) }
    fn serialize_none(self) -> Result<(), NotPlain> { self.put(Fact::Unknown) }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), NotPlain> { value.serialize(self) }
    fn serialize_unit(self) -> Result<(), NotPlain> { self.put(Fact::Unknown) }
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), NotPlain> { self.put(Fact::Unknown) }
    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), NotPlain> {
        self.serialize_str(variant)
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), NotPlain> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self, _: &'static str, _: u32, _: &'static str, _: &T,
    ) -> Result<(), NotPlain> {
        Err(NotPlain)
    }
    fn serialize_seq(self, count: Option<usize>) -> Result<Items<'a, 'm>, NotPlain> {
        let Some(count) = count.filter(|_| !self.is_whole()) else { return Err(NotPlain) };
        let first = self.facts.reserve(count);
        self.facts.values[self.slot] = Fact::List { first, count };
        let items = self.facts.mentions.node(self.place).items;
        Ok(Items { facts: self.facts, items, next: first, end: first + count })
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields<'a, 'm>, NotPlain> {
        if self.is_whole() {
            return Err(NotPlain);
        }
        let first = self.facts.reserve(self.facts.mentions.node(self.place).fields.len());
        self.facts.values[self.slot] = Fact::Map { first };
        Ok(Fields { facts: self.facts, place: self.place, first })
    }
    fn serialize_tuple(self, _: usize) -> Result<Never, NotPlain> { Err(NotPlain) }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Never, NotPlain> { Err(NotPlain) }
    fn serialize_tuple_variant(
        self, _: &'static str, _: u32, _: &'static str, _: usize,
    ) -> Result<Never, NotPlain> {
        Err(NotPlain)
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Never, NotPlain> { Err(NotPlain) }
    fn serialize_struct_variant(
        self, _: &'static str, _: u32, _: &'static str, _: usize,
    ) -> Result<Never, NotPlain> {
        Err(NotPlain)
    }
}

impl SerializeStruct for Fields<'_, '_> {
    type Ok = ();
    type Error = NotPlain;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), NotPlain> {
        if let Some((slot, place)) = self.facts.mentions.find(self.place, name) {
            fill(self.facts, place, self.first + slot, value);
        }
        Ok(())
    }
    fn end(self) -> Result<(), NotPlain> {
        Ok(())
    }
}

impl SerializeSeq for Items<'_, '_> {
    type Ok = ();
    type Error = NotPlain;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotPlain> {
        if self.next == self.end {
            return Err(NotPlain); // longer than it said
        }
        if let Some(place) = self.items {
            fill(self.facts, place, self.next, value);
        }
        self.next += 1;
        Ok(())
    }
    fn end(self) -> Result<(), NotPlain> {
        if self.next == self.end { Ok(()) } else { Err(NotPlain) }
    }
}
