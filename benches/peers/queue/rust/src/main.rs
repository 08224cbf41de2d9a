//! The queues that are written in Rust: `queue-peers graphile_worker|apalis-postgres|apalis-sqlite`, with the database
//! in `DATABASE`. Each file uses one of them as its documentation says; `measure.rs` is the same for all.

mod apalis_postgres;
mod apalis_sqlite;
mod graphile_worker;
mod measure;

#[tokio::main]
async fn main() {
    let database = std::env::var("DATABASE").expect("DATABASE");
    let peer = std::env::args().nth(1).unwrap_or_default();
    let work = async {
        match peer.as_str() {
            "graphile_worker" => measure::measure(graphile_worker::Peer::open(&database).await).await,
            "apalis-postgres" => measure::measure(apalis_postgres::Peer::open(&database).await).await,
            "apalis-sqlite" => measure::measure(apalis_sqlite::Peer::open(&database).await).await,
            _ => panic!("no such peer"),
        }
    };
    tokio::task::LocalSet::new().run_until(work).await;
}
