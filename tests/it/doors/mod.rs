//! Hostile input at the doors: what comes in is refused by name, and what goes out can harm nobody who reads it.

mod injection;
mod matrix;
mod requests;
mod schemathesis;
mod secrets;

use showrunner::app::App;

use crate::support::World;

/// Where the world's service listens.
fn address(world: &World) -> std::net::SocketAddr {
    world.app.as_ref().and_then(App::address).expect("a listening service")
}
