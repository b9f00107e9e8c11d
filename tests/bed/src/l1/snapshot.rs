//! What an L1 is busy with while something in it does not happen.

use std::sync::Arc;
use std::time::Duration;

use super::connection::Connection;
use crate::wire::Request;

/// Looks for a second, and for half a one.
const SCRIPT: &str = include_str!("snapshot.sh");

/// Long enough for an L1 whose one processor is busy with something else.
const LIMIT: Duration = Duration::from_secs(30);

/// Counters that move, what `host-vsp` waits for and the guest's exits, as text for a message. An L1
/// that does not get that far says less, which is no error: there is one already.
pub(crate) fn snapshot(connection: &Arc<Connection>) -> String {
    let id = connection.new_id();
    let argv = ["sh", "-c", SCRIPT].map(String::from).to_vec();
    let request = Request::Spawn {
        id,
        argv,
        env: Vec::new(),
        dir: "/".into(),
    };
    if connection.send(&request, &[]).is_err() {
        return String::new();
    }
    let ended = connection.wait_process(id, LIMIT, |record| record.finished());
    let text = connection.look(id, |record| {
        String::from_utf8_lossy(&record.stdout.bytes).into_owned()
    });
    connection.forget(id);
    match ended {
        Ok(Some(_)) => text,
        _ => format!("{text}\n(there would be more, but it took too long)"),
    }
}
