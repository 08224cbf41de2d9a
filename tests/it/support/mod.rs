//! What stories need: a database of each kind, and a service on it.

pub mod faults;
pub mod network;
pub mod node;
pub mod postgres;
pub mod process;
pub mod receiver;
pub mod s3;
pub mod worker;
pub mod world;

pub use world::World;

/// Runs a story on both databases: `on_both!(async fn name(world) { … })`.
#[macro_export]
macro_rules! on_both {
    ($($(#[$meta:meta])* async fn $name:ident($world:ident) $body:block)+) => {
        $(
            mod $name {
                #[allow(unused_imports)]
                use super::*;
                #[allow(unused_mut)]
                async fn story(mut $world: $crate::support::World) {
                    $body
                    $world.end().await;
                }
                $(#[$meta])*
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn sqlite() {
                    story($crate::support::World::on_sqlite().await).await;
                }
                $(#[$meta])*
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn postgres() {
                    if let Some(world) = $crate::support::World::on_postgres().await {
                        story(world).await;
                    }
                }
            }
        )+
    };
}
