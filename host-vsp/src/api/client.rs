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
    let exchange = async { tokio::time::timeout(PATIENCE, exchange(path, request)).await };
    match runtime.block_on(exchange) {
        Ok(outcome) => outcome,
        Err(_) => Err(failed("there is no answer".into())),
    }
}

async fn exchange(path: &Path, request: Request<Full<Bytes>>) -> Result<Value, CallError> {
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
    let bytes = Limited::new(answer.into_body(), ANSWER_MAX)
        .collect()
        .await
        .map_err(|error| failed(&error))?
        .to_bytes();
    if !status.is_success() {
        return Err(match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => CallError::Refused(problem.error),
            Err(_) => failed(&format_args!("it answers {status}")),
        });
    }
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes).map_err(|error| failed(&error))
}
