//! Deciding by rules.
