//! A network that fails: every agent connects through one of these.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use showrunner::random::Random;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the network does to what goes through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Fine,
    /// Every piece waits for up to so many real milliseconds, and may arrive cut in two.
    Slow(u64),
    /// Nothing passes, either way, and nobody is told: what was sent arrives when it clears up.
    Partition,
    /// As a partition, but only towards the server.
    Deaf,
    /// Connections are cut off at once.
    Reset,
}

pub struct Proxy {
    pub address: SocketAddr,
    weather: Arc<watch::Sender<Weather>>,
}

impl Proxy {
    /// Between agents and `server`.
    pub async fn before(server: SocketAddr, random: Random) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let weather = Arc::new(watch::channel(Weather::Fine).0);
        let sky = weather.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(server).await else { continue };
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                let (near_reads, near_writes) = near.into_split();
                let (far_reads, far_writes) = far.into_split();
                tokio::spawn(carry(near_reads, far_writes, sky.subscribe(), true, random.clone()));
                tokio::spawn(carry(far_reads, near_writes, sky.subscribe(), false, random.clone()));
            }
        });
        Self { address, weather }
    }

    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

/// Carries bytes one way until either end is gone or the weather resets it; dropping both ends closes the connection.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    towards_server: bool,
    random: Random,
) {
    let mut piece = vec![0; 4096];
    loop {
        let now = *weather.borrow_and_update();
        let stuck = now == Weather::Partition || now == Weather::Deaf && towards_server;
        if now == Weather::Reset {
            return;
        }
        tokio::select! {
            changed = weather.changed() => if changed.is_err() { return },
            read = from.read(&mut piece), if !stuck => {
                let Ok(length @ 1..) = read else { return };
                let (mut one, mut two) = piece[..length].split_at(0);
                if let Weather::Slow(most) = now {
                    (one, two) = piece[..length].split_at(random.between(0, length as u64) as usize);
                    tokio::time::sleep(Duration::from_millis(random.between(0, most))).await;
                }
                if to.write_all(one).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
                if to.write_all(two).await.is_err() {
                    return;
                }
            }
        }
    }
}
