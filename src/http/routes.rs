//! Ties requests to handlers. Path, method and authentication come from the type of the request, as ruma has it.

use std::sync::Arc;

use axum::{
    Router,
    extract::{RawPathParams, Request, State, rejection::RawPathParamsRejection},
    response::{IntoResponse as _, Response},
    routing::{MethodFilter, on},
};
use http::Method;
use ruma::api::{IncomingRequest, path_builder::PathBuilder};
use tokio_util::task::AbortOnDropHandle;

use super::{
    extract::{Accepts, Ruma, Scheme},
    respond::{Answer, respond},
};
use crate::{
    error::{Error, Result},
    service::Services,
};

/// Endpoints as they are listed.
pub(super) struct Routes {
    router: Router<Arc<Services>>,
    /// Method and path of each, because a router does not say what it holds.
    listed: Vec<(Method, String)>,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self {
            router: Router::new(),
            listed: Vec::new(),
        }
    }

    /// The router of everything listed.
    pub(super) fn finish(self) -> Router<Arc<Services>> {
        self.router
    }

    /// Method and path of everything listed.
    pub(super) fn list(self) -> Vec<(Method, String)> {
        self.listed
    }

    /// An endpoint for users, or for everybody if it needs no authentication.
    pub(super) fn on<R, A, F, Fut>(self, handler: F) -> Self
    where
        R: IncomingRequest<Authentication: Scheme> + Send + 'static,
        A: Answer + Send + 'static,
        F: Fn(Arc<Services>, Ruma<R>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<A>> + Send + 'static,
    {
        self.accepting(Accepts::USUAL, handler)
    }

    /// An endpoint that guests may use as well. See "Guest access".
    pub(super) fn also_guests<R, A, F, Fut>(self, handler: F) -> Self
    where
        R: IncomingRequest<Authentication: Scheme> + Send + 'static,
        A: Answer + Send + 'static,
        F: Fn(Arc<Services>, Ruma<R>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<A>> + Send + 'static,
    {
        self.accepting(
            Accepts {
                guests: true,
                ..Accepts::USUAL
            },
            handler,
        )
    }

    /// An endpoint with its own rules, under all paths that ruma knows for it.
    pub(super) fn accepting<R, A, F, Fut>(mut self, accepts: Accepts, handler: F) -> Self
    where
        R: IncomingRequest<Authentication: Scheme> + Send + 'static,
        A: Answer + Send + 'static,
        F: Fn(Arc<Services>, Ruma<R>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<A>> + Send + 'static,
    {
        for path in R::PATH_BUILDER.all_paths() {
            self = self.at(path, accepts, handler.clone());
        }
        self
    }

    /// An endpoint under one path.
    pub(super) fn at<R, A, F, Fut>(mut self, path: &str, accepts: Accepts, handler: F) -> Self
    where
        R: IncomingRequest<Authentication: Scheme> + Send + 'static,
        A: Answer + Send + 'static,
        F: Fn(Arc<Services>, Ruma<R>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<A>> + Send + 'static,
    {
        let method = MethodFilter::try_from(R::METHOD).expect("ruma uses usual methods");
        let endpoint =
            move |State(services): State<Arc<Services>>, path: Path, request: Request| {
                let handler = handler.clone();
                async move {
                    match Ruma::<R>::extract(&services, accepts, path, request).await {
                        Ok(request) => {
                            let work = handler(services.clone(), request);
                            let only_reads = accepts.only_reads || method == MethodFilter::GET;
                            run(&services, only_reads, work).await
                        }
                        Err(error) => error.into_response(),
                    }
                }
            };
        self.router = self.router.route(path, on(method, endpoint));
        self.listed.push((R::METHOD, path.to_owned()));
        self
    }
}

type Path = Result<RawPathParams, RawPathParamsRejection>;

/// Runs a handler in a task of its own. One that only reads ends with its connection; one that changes something runs
/// to its end even if the client goes away, so that nothing is left half done.
async fn run<A: Answer + Send + 'static>(
    services: &Services,
    only_reads: bool,
    work: impl Future<Output = Result<A>> + Send + 'static,
) -> Response {
    let task = services.tasks.spawn(async { respond(work.await) });
    let ended = if only_reads {
        AbortOnDropHandle::new(task).await
    } else {
        task.await
    };
    ended.unwrap_or_else(|error| {
        let error = Error::Internal(format!("a handler broke off: {error}"));
        error.into_response()
    })
}
