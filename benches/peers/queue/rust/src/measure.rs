//! What is measured of a queue, the same as in Showrunner's own bench (`benches/queue.rs`): the median of three runs,
//! in one process that is worker and producer. Prints a column and its value a line.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// The job: it does nothing, and says when it began.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Noop {
    pub n: u64,
}

static BEGUN: Mutex<Option<UnboundedSender<Instant>>> = Mutex::new(None);

impl Noop {
    /// Every handler calls this and nothing else.
    pub fn begins() {
        if let Some(begun) = BEGUN.lock().expect("no handler panics").as_ref() {
            let _ = begun.send(Instant::now());
        }
    }
}

/// For what a worker is set.
#[derive(Clone, Copy, PartialEq)]
pub enum For {
    FullQueue,
    IdleQueue,
}

/// Ends a worker.
pub type Stop = Pin<Box<dyn Future<Output = ()>>>;

pub trait Queue {
    async fn clear(&mut self);
    /// Has the database write down what it holds back.
    async fn settle(&mut self);
    async fn one(&mut self, n: u64);
    async fn batch(&mut self, numbers: Range<u64>);
    /// Jobs that have not ended.
    async fn open_jobs(&mut self) -> i64;
    async fn work(&mut self, what: For) -> Stop;
}

pub async fn measure(mut queue: impl Queue) {
    let (jobs, singles, latencies) = (option("JOBS", 20_000), option("SINGLES", 1_000), option("LATENCIES", 200));
    let (sender, mut begun) = unbounded_channel();
    *BEGUN.lock().expect("no handler panics") = Some(sender);

    let mut rates = Vec::new();
    while more(&rates, singles) {
        queue.clear().await;
        queue.settle().await;
        let began = Instant::now();
        for n in 0..singles {
            queue.one(n).await;
        }
        rates.push(singles as f64 / began.elapsed().as_secs_f64());
    }
    report("enqueue", rates);

    let mut rates = Vec::new();
    while more(&rates, jobs) {
        queue.clear().await;
        queue.settle().await;
        let began = Instant::now();
        batches(&mut queue, jobs).await;
        rates.push(jobs as f64 / began.elapsed().as_secs_f64());
    }
    report("batch", rates);

    let mut rates = Vec::new();
    while more(&rates, jobs) {
        queue.clear().await;
        batches(&mut queue, jobs).await;
        queue.settle().await;
        let began = Instant::now();
        let stop = queue.work(For::FullQueue).await;
        for _ in 0..jobs {
            begun.recv().await;
        }
        while queue.open_jobs().await > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        rates.push(jobs as f64 / began.elapsed().as_secs_f64());
        stop.await;
        while begun.try_recv().is_ok() {}
    }
    report("drain", rates);

    queue.clear().await;
    let stop = queue.work(For::IdleQueue).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut took = Vec::new();
    for i in 0..latencies + 20 {
        tokio::time::sleep(Duration::from_millis(15 + i * 37 % 17)).await; // out of step with whoever polls
        let sent = Instant::now();
        queue.one(i).await;
        took.push((begun.recv().await.expect("a start") - sent).as_secs_f64() * 1_000.0);
    }
    stop.await;
    let mut took = took.split_off(20);
    took.sort_by(f64::total_cmp);
    println!("p50 {:.3}", took[took.len() / 2]);
    println!("p99 {:.3}", took[took.len() * 99 / 100]);
}

fn option(name: &str, count: u64) -> u64 {
    std::env::var(name).map_or(count, |text| text.parse().expect("a number"))
}

/// Three runs, but one of what takes more than ten seconds.
fn more(rates: &[f64], count: u64) -> bool {
    rates.len() < 3 && rates.last().is_none_or(|rate| count as f64 / rate < 10.0)
}

fn report(column: &str, mut rates: Vec<f64>) {
    rates.sort_by(f64::total_cmp);
    println!("{column} {:.1}", rates[rates.len() / 2]);
}

async fn batches(queue: &mut impl Queue, jobs: u64) {
    for from in (0..jobs).step_by(1_000) {
        queue.batch(from..(from + 1_000).min(jobs)).await;
    }
}
