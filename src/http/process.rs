//! `POST /api/process`: what a serverless instance does while it is asked to.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::actor::{Caller, Role};
use crate::clock::{SharedClock, SystemClock};
use crate::planes::pipelines::Pipelines;
use crate::planes::{publishing, queue};
use crate::problem::Problem;

/// Between looks while nothing but engines works.
const BESIDE_ENGINES: Duration = Duration::from_millis(20);

/// The work that there is to do, piece by piece.
pub struct Processor {
    worker: queue::Worker,
    remote: queue::Dispatcher,
    publications: publishing::Dispatcher,
    /// Where no engines run by themselves.
    pipelines: Option<Arc<Pipelines>>,
    /// No new piece is begun after it: by the machine's time, as its client waits by it.
    budget: Duration,
    clock: SharedClock,
}

impl Processor {
    /// `patience` is how long a request may take; half of it is spent, and the rest left to what runs by then.
    pub fn new(
        worker: queue::Worker,
        remote: queue::Dispatcher,
        publications: publishing::Dispatcher,
        pipelines: Option<Arc<Pipelines>>,
        patience: Duration,
    ) -> Self {
        Self { worker, remote, publications, pipelines, budget: patience / 2, clock: SystemClock::shared() }
    }
}

/// What was done.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Processed {
    /// `ok`
    status: &'static str,
    /// Jobs of this service that ran.
    ran: usize,
    /// Task runs that remote workers accepted.
    dispatched: usize,
    /// Runs of pipelines that ended.
    runs: u64,
    /// Whether there may be more: the time was used up first.
    more: bool,
}

pub fn routes<S: Clone + Send + Sync + 'static>(processor: Arc<Processor>) -> OpenApiRouter<S> {
    OpenApiRouter::new().routes(routes!(process)).with_state(processor)
}

/// Does what there is to do, within half the time that a request may take: due publications go out, jobs run, tasks go
/// to their services, triggers fire, and engines carry runs out; a run that is not over by then goes on at the next call. With `MODE=serverless` this is the only time at which the queue is worked; a scheduler calls it.
#[utoipa::path(post, path = "/api/process", operation_id = "process", tag = "queue",
    responses((status = 200, description = "Done", body = Processed)))]
async fn process(State(processor): State<Arc<Processor>>, caller: Caller) -> Result<Json<Processed>, Problem> {
    caller.require(Role::Operator)?;
    let ends = processor.clock.elapsed() + processor.budget;
    let mut done = Processed { status: "ok", ..Processed::default() };
    processor.publications.tick().await?;
    let Some(plane) = &processor.pipelines else {
        work(&processor, None, ends, &mut done).await?;
        return Ok(Json(done));
    };
    let engines = plane.apart("process").await?;
    let _ends = engines.ends_with(); // a request that is dropped on its way leaves no engine behind
    let worked = match engines.start_once().await {
        Ok(()) => work(&processor, Some(&engines), ends, &mut done).await,
        Err(cause) => Err(cause),
    };
    done.runs = engines.engines().iter().map(|engine| engine.health().runs_ended).sum();
    engines.stop().await;
    worked?;
    Ok(Json(done))
}

/// One round after the other, until there is nothing left to do or the time is used up.
async fn work(
    processor: &Processor,
    engines: Option<&Pipelines>,
    ends: Duration,
    done: &mut Processed,
) -> crate::db::Result<()> {
    loop {
        let ran = processor.worker.run_batch().await?;
        let dispatched = processor.remote.send_pending().await?;
        done.ran += ran;
        done.dispatched += dispatched;
        let busy = match engines {
            Some(engines) => engines.is_busy().await?,
            None => false,
        };
        if ran + dispatched == 0 && !busy {
            return Ok(());
        }
        if processor.clock.elapsed() >= ends {
            done.more = true;
            return Ok(());
        }
        if ran + dispatched == 0 {
            processor.clock.sleep(BESIDE_ENGINES).await;
        }
    }
}
