//! What happens to the jobs of a client that goes away: nobody wants them any more, so they are cancelled.

use std::sync::Arc;

use lockstep_protocol::ids::JobId;

use crate::http::App;

/// Cancels jobs when it is dropped, unless they have ended, or the coordinator goes down: then they go on at its next
/// start.
#[derive(Debug)]
pub struct Abandon {
    app: Arc<App>,
    jobs: Vec<JobId>,
}

impl Abandon {
    /// Of these jobs, which this request has made.
    pub fn new(app: &Arc<App>, jobs: Vec<JobId>) -> Self {
        Self { app: Arc::clone(app), jobs }
    }

    /// This job has ended.
    pub fn ended(&mut self, job: &JobId) {
        self.jobs.retain(|other| other != job);
    }

    /// The client comes back for them.
    pub fn keep_all(&mut self) {
        self.jobs.clear();
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        if self.jobs.is_empty() || *self.app.stopping.borrow() {
            return;
        }
        // Outside of a runtime there is no engine either.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (engine, jobs) = (self.app.engine.clone(), std::mem::take(&mut self.jobs));
        runtime.spawn(async move {
            for job in jobs {
                if engine.cancel(job).await.is_err() {
                    return;
                }
            }
        });
    }
}
