//! The other end of the API: one call, one answer.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::Value;

use super::model::Problem;
use super::routes::PREFIX;

/// Most bytes of an answer.
const ANSWER_MAX: usize = 16 << 20;

/// The longest that a call may take: removing a disk waits until all of it is written.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why a call failed. The text is a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no socket.
    #[error(
        "there is no socket at {path:?}: is the machine running, with this --api-socket?",
        path = .0.display()
    )]
    NoSocket(PathBuf),
    /// Nobody answers.
    #[error(
        "nobody answers at {path:?}: the machine that made the socket is gone",
        path = .0.display()
    )]
    NobodyThere(PathBuf),
    /// The machine answers that it cannot or will not.
    #[error("{0}")]
    Refused(String),
    /// Anything else.
    #[error("the call to {path:?} failed: {reason}", path = path.display())]
    Failed {
        /// The socket.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
}

/// Calls `name` (`vm.info`, say) at the socket at `path`; the answer is null where it has no body.
///
/// # Errors
/// Nobody was there, or the answer is not a success.
pub fn call<B: Serialize>(
    path: &Path,
    method: Method,
    name: &str,
    body: Option<&B>,
) -> Result<Value, CallError> {
    let (runtime, request) = prepare(path, method, name, body)?;
    let exchange = async { tokio::time::timeout(PATIENCE, exchange(path, request)).await };
    match runtime.block_on(exchange) {
        Ok(outcome) => outcome,
        Err(_) => Err(no_answer(path)),
    }
}

/// A runtime for one call, and its request.
fn prepare<B: Serialize>(
    path: &Path,
    method: Method,
    name: &str,
    body: Option<&B>,
) -> Result<(tokio::runtime::Runtime, Request<Full<Bytes>>), CallError> {
    let failed = |reason: String| CallError::Failed {
        path: path.into(),
        reason,
    };
    let body = match body {
        Some(body) => serde_json::to_vec(body).map_err(|error| failed(error.to_string()))?,
        None => Vec::new(),
    };
    let request = Request::builder()
        .method(method)
        .uri(format!("{PREFIX}/{name}"))
        .header("Host", "localhost")
        .header("Content-Type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| failed(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(error.to_string()))?;
    Ok((runtime, request))
}

/// An answer that lasts until it is dropped, or the machine ends it.
pub struct Hold {
    runtime: tokio::runtime::Runtime,
    answer: hyper::Response<hyper::body::Incoming>,
}

impl Hold {
    /// Calls `name` like [`call`], and returns as soon as the answer begins.
    ///
    /// # Errors
    /// Nobody was there, or the answer is not a success.
    pub fn begin<B: Serialize>(path: &Path, name: &str, body: &B) -> Result<Self, CallError> {
        let (runtime, request) = prepare(path, Method::PUT, name, Some(body))?;
        let answer = runtime.block_on(async {
            let answer = tokio::time::timeout(PATIENCE, send(path, request)).await;
            answer.unwrap_or_else(|_| Err(no_answer(path)))
        })?;
        Ok(Self { runtime, answer })
    }

    /// Whether the machine has ended it.
    pub fn is_over(&mut self) -> bool {
        let answer = &mut self.answer;
        self.runtime.block_on(async {
            loop {
                let next = tokio::time::timeout(Duration::from_millis(10), answer.frame()).await;
                match next {
                    Ok(Some(Ok(_))) => {}
                    Ok(None | Some(Err(_))) => return true,
                    Err(_) => return false,
                }
            }
        })
    }
}

fn no_answer(path: &Path) -> CallError {
    CallError::Failed {
        path: path.into(),
        reason: "there is no answer".into(),
    }
}

/// Sends a request; the begin of a good answer, or why there is none.
async fn send(
    path: &Path,
    request: Request<Full<Bytes>>,
) -> Result<hyper::Response<hyper::body::Incoming>, CallError> {
    let failed = |reason: &dyn std::fmt::Display| CallError::Failed {
        path: path.into(),
        reason: reason.to_string(),
    };
    let stream = tokio::net::UnixStream::connect(path)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CallError::NoSocket(path.into()),
            io::ErrorKind::ConnectionRefused => CallError::NobodyThere(path.into()),
            _ => failed(&error),
        })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    // Its errors are also those of the answer.
    tokio::spawn(connection);
    let answer = sender
        .send_request(request)
        .await
        .map_err(|error| failed(&error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let bytes = collect(path, answer).await?;
    Err(match serde_json::from_slice::<Problem>(&bytes) {
        Ok(problem) => CallError::Refused(problem.error),
        Err(_) => failed(&format_args!("it answers {status}")),
    })
}

/// All of an answer's body.
async fn collect(
    path: &Path,
    answer: hyper::Response<hyper::body::Incoming>,
) -> Result<Bytes, CallError> {
    let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
    body.map(http_body_util::Collected::to_bytes)
        .map_err(|error| CallError::Failed {
            path: path.into(),
            reason: error.to_string(),
        })
}

async fn exchange(path: &Path, request: Request<Full<Bytes>>) -> Result<Value, CallError> {
    let failed = |reason: &dyn std::fmt::Display| CallError::Failed {
        path: path.into(),
        reason: reason.to_string(),
    };
    let answer = send(path, request).await?;
    let bytes = collect(path, answer).await?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes).map_err(|error| failed(&error))
}
