//! An answer that lasts as long as what it tells of.

use std::convert::Infallible;
use std::future::Future as _;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hyper::body::{Body, Bytes, Frame};

use crate::freezer::Frozen;

/// What is said at once, so that the other end sees that it is done.
const SAID: &[u8] = b"{\"frozen\":true}\n";

/// The answer's body: says that file systems stand still, ends when they go on, and has them go on
/// when it is dropped, as it is when the connection ends.
struct Held {
    said: bool,
    frozen: Frozen,
}

impl Body for Held {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.said {
            self.said = true;
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(SAID)))));
        }
        // Whether it was said or its sender is gone: it is over.
        pin!(self.frozen.ended()).poll(context).map(|_| None)
    }
}

/// The answer that holds `frozen`.
pub(super) fn answer(frozen: Frozen) -> Response {
    let body = axum::body::Body::new(Held {
        said: false,
        frozen,
    });
    let json = [(header::CONTENT_TYPE, "application/json")];
    (StatusCode::OK, json, body).into_response()
}
