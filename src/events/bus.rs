//! Subscribers and their bounded buffers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::Notify;

use super::event::Event;

/// Events that wait for one subscriber; a slower one loses the oldest and is told how many.
const BUFFER: usize = 100;

/// What a subscriber is given.
#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    /// Something happened.
    Event(Arc<Event>),
    /// So many events were lost here because this subscriber was too slow; those that were not transient can be read
    /// from the table.
    Missed { count: u64, transient: u64 },
}

/// Everybody who listens.
#[derive(Default)]
pub(super) struct Bus {
    rings: Mutex<Vec<Weak<Ring>>>,
}

/// One subscriber's buffer.
#[derive(Default)]
struct Ring {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Arc<Event>>,
    missed: u64,
    missed_transient: u64,
    closed: bool,
}

/// Somebody who listens; dropped, it listens no longer.
pub struct Subscription {
    ring: Arc<Ring>,
}

impl Bus {
    pub(super) fn subscribe(&self) -> Subscription {
        let ring = Arc::new(Ring::default());
        self.rings.lock().expect("the bus's lock").push(Arc::downgrade(&ring));
        Subscription { ring }
    }

    /// Hands `event` to everybody; never waits for anybody.
    pub(super) fn publish(&self, event: &Arc<Event>) {
        self.to_each(|state| {
            if state.waiting.len() == BUFFER {
                let oldest = state.waiting.pop_front();
                state.missed += 1;
                state.missed_transient += u64::from(oldest.is_some_and(|event| event.id.is_none()));
            }
            state.waiting.push_back(event.clone());
        });
    }

    /// Tells everybody that `count` transient events never came this far.
    pub(super) fn lost(&self, count: u64) {
        self.to_each(|state| {
            state.missed += count;
            state.missed_transient += count;
        });
    }

    /// Ends every subscription once it has been read to its end.
    pub(super) fn close(&self) {
        self.to_each(|state| state.closed = true);
    }

    fn to_each(&self, change: impl Fn(&mut State)) {
        self.rings.lock().expect("the bus's lock").retain(|ring| {
            let Some(ring) = ring.upgrade() else { return false };
            change(&mut ring.state.lock().expect("a subscriber's lock"));
            ring.changed.notify_one();
            true
        });
    }
}

impl Subscription {
    /// The next event, or how many were missed before it; none once the monitor has ended.
    pub async fn recv(&mut self) -> Option<Received> {
        loop {
            {
                let mut state = self.ring.state.lock().expect("a subscriber's lock");
                if state.missed > 0 {
                    let (count, transient) = (state.missed, state.missed_transient);
                    (state.missed, state.missed_transient) = (0, 0);
                    return Some(Received::Missed { count, transient });
                }
                if let Some(event) = state.waiting.pop_front() {
                    return Some(Received::Event(event));
                }
                if state.closed {
                    return None;
                }
            }
            self.ring.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::NewEvent;
    use super::*;
    use crate::db::Timestamp;

    fn numbered(n: u64) -> Arc<Event> {
        let at: Timestamp = "2026-11-20T12:00:00Z".parse().expect("a time");
        Arc::new(NewEvent::new("test.event", "test").data(n.into()).transient(at))
    }

    #[tokio::test]
    async fn a_slow_subscriber_loses_the_oldest_and_is_told_and_holds_up_nobody() {
        let bus = Bus::default();
        let (mut slow, mut quick) = (bus.subscribe(), bus.subscribe());
        for n in 0..130 {
            bus.publish(&numbered(n));
            assert_eq!(quick.recv().await, Some(Received::Event(numbered(n))));
        }
        assert_eq!(slow.recv().await, Some(Received::Missed { count: 30, transient: 30 }));
        for n in 30..130 {
            assert_eq!(slow.recv().await, Some(Received::Event(numbered(n))));
        }
        bus.close();
        assert_eq!((slow.recv().await, quick.recv().await), (None, None));
    }

    #[tokio::test]
    async fn who_listens_no_longer_costs_nothing() {
        let bus = Bus::default();
        drop(bus.subscribe());
        let _stays = bus.subscribe();
        bus.publish(&numbered(1));
        assert_eq!(bus.rings.lock().expect("a lock").len(), 1);
    }
}
