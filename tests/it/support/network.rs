//! A network that fails: whoever connects does so through one of these.

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
    /// A few bytes at a time, with a pause after each.
    Trickle,
    /// Packets are lost, and sent again as TCP does it: after 200 ms, and twice that if they are lost again.
    Lossy,
    /// Nothing passes, either way, and nobody is told: what was sent arrives when it clears up.
    Partition,
    /// As a partition, but only towards the server.
    Deaf,
    /// As a partition, but only away from the server.
    Mute,
    /// What is sent towards the server is gone for good, and nobody is told: a connection of that time stays dead.
    Swallow,
    /// The server's end is closed, and the other end is not told.
    HalfOpen,
    /// Connections are cut off at once.
    Reset,
}

/// The longest that a lost packet waits to be sent again.
const LONGEST_RESEND: Duration = Duration::from_millis(1_600);

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
        let stuck = match now {
            Weather::Partition => true,
            Weather::Deaf => towards_server,
            Weather::Mute => !towards_server,
            Weather::Reset => return,
            Weather::Swallow if towards_server => return swallow(from, Some(to)).await,
            Weather::HalfOpen if towards_server => {
                drop(to);
                return swallow(from, None).await;
            }
            Weather::HalfOpen => {
                drop(from);
                let _held = to;
                return std::future::pending().await;
            }
            _ => false,
        };
        tokio::select! {
            changed = weather.changed() => if changed.is_err() { return },
            read = from.read(&mut piece), if !stuck => {
                let Ok(length @ 1..) = read else { return };
                if pass(&mut to, &piece[..length], now, &random).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Lets a piece through, as the weather is.
async fn pass(to: &mut OwnedWriteHalf, piece: &[u8], weather: Weather, random: &Random) -> std::io::Result<()> {
    let wait = |milliseconds| tokio::time::sleep(Duration::from_millis(milliseconds));
    match weather {
        Weather::Slow(most) => {
            let (one, two) = piece.split_at(random.between(0, piece.len() as u64) as usize);
            wait(random.between(0, most)).await;
            to.write_all(one).await?;
            tokio::task::yield_now().await;
            to.write_all(two).await
        }
        Weather::Trickle => {
            for bytes in piece.chunks(16) {
                to.write_all(bytes).await?;
                wait(random.between(1, 20)).await;
            }
            Ok(())
        }
        Weather::Lossy => {
            let mut resend = Duration::from_millis(200);
            while random.between(0, 9) < 3 && resend <= LONGEST_RESEND {
                tokio::time::sleep(resend).await;
                resend *= 2;
            }
            to.write_all(piece).await
        }
        _ => to.write_all(piece).await,
    }
}

/// Takes what comes and throws it away; `held` stays open, so that its other end is told nothing.
async fn swallow(mut from: OwnedReadHalf, held: Option<OwnedWriteHalf>) {
    let mut piece = vec![0; 4096];
    while let Ok(1..) = from.read(&mut piece).await {}
    if held.is_some() {
        std::future::pending().await
    }
}
