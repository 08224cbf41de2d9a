//! How many requests a client address may send.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};

use crate::problem::Problem;

/// Addresses share this many buckets, so that no number of clients makes the table grow: about 1 MiB when full.
const BUCKETS: u64 = 16_384;

/// A token bucket for each client address. It goes by the machine's time, whatever clock the platform runs on.
pub struct Limiter {
    limiter: DefaultKeyedRateLimiter<u64>,
    clock: DefaultClock,
    hasher: RandomState,
}

impl Limiter {
    /// So many requests a second, and bursts of ten times that.
    pub fn new(requests_per_second: u32) -> Self {
        let rate = NonZeroU32::new(requests_per_second).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(rate).allow_burst(rate.saturating_mul(NonZeroU32::new(10).unwrap_or(rate)));
        Self {
            limiter: DefaultKeyedRateLimiter::keyed(quota),
            clock: DefaultClock::default(),
            hasher: RandomState::new(), // which addresses share a bucket cannot be foreseen from outside
        }
    }

    /// Whole seconds to wait, if the address has used up its share.
    fn check(&self, address: IpAddr) -> Result<(), u64> {
        let bucket = self.hasher.hash_one(network(address)) % BUCKETS;
        self.limiter
            .check_key(&bucket)
            .map_err(|until| until.wait_time_from(self.clock.now()).as_millis().div_ceil(1000).max(1) as u64)
    }
}

/// What counts as one client: an IPv4 address, or a whole /64 of IPv6, which one client commands.
pub fn network(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address) >> 64 << 64,
    }
}

/// 429 with `Retry-After` for an address that has used up its share.
pub async fn limit(State(limiter): State<Arc<Limiter>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    match limiter.check(peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))) {
        Ok(()) => next.run(request).await,
        Err(seconds) => {
            let detail = format!("Too many requests from this address; try again in {seconds} s.");
            let mut response = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail).into_response();
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_use_up_anothers_share_and_a_network_shares_one() {
        let limiter = Limiter::new(1);
        let at = |text: &str| text.parse::<IpAddr>().expect("address");
        let taken = |address| (0..20).filter(|_| limiter.check(address).is_ok()).count();
        assert_eq!(taken(at("10.0.0.1")), 10);
        assert_eq!(taken(at("2001:db8::1")), 10);
        assert_eq!(taken(at("2001:db8::2")), 0, "the same /64");
        assert!(limiter.check(at("10.0.0.1")).expect_err("used up") >= 1);
        for n in 0..40_000_u32 {
            let _ = limiter.check(IpAddr::from(n.to_be_bytes()));
        }
        assert!(limiter.limiter.len() as u64 <= BUCKETS);
    }
}
