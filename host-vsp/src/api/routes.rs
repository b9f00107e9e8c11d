//! The calls, and their description.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::model::{
    Counters, Disk, DiskConfig, EjectMedium, Freeze, GuestInfo, InsertMedium, KvpDelete, KvpGet,
    KvpList, KvpPair, KvpSet, Net, NetConfig, Ping, Problem, RemoveDevice, ResizeDisk, SetLink,
    TypeText, VmInfo,
};
use super::{Error, Vm, held};

/// What all paths begin with.
pub const PREFIX: &str = "/api/v1";

/// Most bytes of a call's body.
const BODY_MAX: usize = 64 * 1024;

/// What the description begins with; the calls describe themselves.
#[derive(OpenApi)]
#[openapi(info(
    title = "host-vsp",
    description = "One virtual machine of host-vsp. An answer that is not a success has a body of \
                   one field, `error`: a sentence that says what to do.",
))]
struct Description;

type Machine = State<Arc<dyn Vm>>;

/// The API of `vm`.
pub fn router(vm: Arc<dyn Vm>) -> Router {
    let calls = OpenApiRouter::new()
        .routes(routes!(ping))
        .routes(routes!(info))
        .routes(routes!(counters))
        .routes(routes!(guest))
        .routes(routes!(type_text))
        .routes(routes!(kvp_list))
        .routes(routes!(kvp_get))
        .routes(routes!(kvp_set))
        .routes(routes!(kvp_delete))
        .routes(routes!(freeze))
        .routes(routes!(thaw))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(shutdown))
        .routes(routes!(power_off))
        .routes(routes!(reboot))
        .routes(routes!(reset))
        .routes(routes!(add_disk))
        .routes(routes!(add_net))
        .routes(routes!(add_console))
        .routes(routes!(set_link))
        .routes(routes!(remove_device))
        .routes(routes!(insert_medium))
        .routes(routes!(eject_medium))
        .routes(routes!(resize_disk));
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .nest(PREFIX, calls)
        .split_for_parts();
    let description = Json(description);
    router
        .route(
            &format!("{PREFIX}/openapi.json"),
            get(async move || description),
        )
        .method_not_allowed_fallback(async || {
            problem(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("this call has another method; {PREFIX}/openapi.json says which"),
            )
        })
        .fallback(async || {
            problem(
                StatusCode::NOT_FOUND,
                format!("there is no such call; {PREFIX}/openapi.json has all that there are"),
            )
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(vm)
}

fn problem(status: StatusCode, error: String) -> Response {
    (status, Json(Problem { error })).into_response()
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        problem(status, self.to_string())
    }
}

/// Carries a call out where it may wait.
async fn call<T: Send + 'static>(
    State(vm): Machine,
    call: impl FnOnce(&dyn Vm) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(move || call(&*vm))
        .await
        .unwrap_or_else(|_| Err(Error::Failed("the call could not be carried out".into())))
}

async fn done(
    vm: Machine,
    what: impl FnOnce(&dyn Vm) -> Result<(), Error> + Send + 'static,
) -> Response {
    match call(vm, what).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => error.into_response(),
    }
}

/// The body of a call, whatever its type is said to be; or what is wrong with it.
fn parse<T: DeserializeOwned>(body: Body) -> Result<T, (StatusCode, String)> {
    let body = body.map_err(|rejection| {
        let reason = rejection.body_text();
        (
            rejection.status(),
            format!("the body cannot be read: {reason}"),
        )
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        (
            StatusCode::BAD_REQUEST,
            format!("the body is not the JSON of this call: {error}"),
        )
    })
}

type Body = Result<Bytes, BytesRejection>;

/// Who answers.
#[utoipa::path(get, path = "/vmm.ping", responses((status = 200, body = Ping)))]
async fn ping() -> Json<Ping> {
    Json(Ping::here())
}

/// What the machine is and does.
#[utoipa::path(get, path = "/vm.info", responses((status = 200, body = VmInfo)))]
async fn info(vm: Machine) -> Result<Json<VmInfo>, Error> {
    call(vm, |vm| vm.info()).await.map(Json)
}

/// What the machine has counted.
#[utoipa::path(get, path = "/vm.counters", responses((status = 200, body = Counters)))]
async fn counters(vm: Machine) -> Result<Json<Counters>, Error> {
    call(vm, |vm| vm.counters()).await.map(Json)
}

/// What the guest's own drivers say and would listen to.
#[utoipa::path(get, path = "/vm.guest", responses((status = 200, body = GuestInfo)))]
async fn guest(vm: Machine) -> Result<Json<GuestInfo>, Error> {
    call(vm, |vm| vm.guest()).await.map(Json)
}

/// Types on the machine's keyboard. Answered before the guest has read it.
#[utoipa::path(put, path = "/vm.type-text", request_body = TypeText, responses(
    (status = 204, description = "It is typed."),
    (status = 400, body = Problem, description = "There is no key for some character."),
    (status = 409, body = Problem, description = "The guest does not listen to the keyboard."),
))]
async fn type_text(vm: Machine, body: Body) -> Response {
    match parse::<TypeText>(body) {
        Ok(typed) => done(vm, move |vm| vm.type_text(&typed.text)).await,
        Err((status, error)) => problem(status, error),
    }
}

/// Reads the key-value pairs of a pool from the guest. Without a body, those by which the guest
/// describes itself.
#[utoipa::path(put, path = "/vm.kvp-list", request_body = Option<KvpList>, responses(
    (status = 200, body = Vec<KvpPair>),
    (status = 400, body = Problem),
    (status = 409, body = Problem, description = "The guest has nobody who answers."),
))]
async fn kvp_list(vm: Machine, body: Body) -> Response {
    let list = match &body {
        Ok(bytes) if bytes.is_empty() => Ok(KvpList::default()),
        _ => parse(body),
    };
    match list {
        Ok(list) => call(vm, move |vm| vm.kvp_list(list.pool))
            .await
            .map(Json)
            .into_response(),
        Err((status, error)) => problem(status, error),
    }
}

/// Reads a key-value pair from the guest.
#[utoipa::path(put, path = "/vm.kvp-get", request_body = KvpGet, responses(
    (status = 200, body = KvpPair),
    (status = 400, body = Problem),
    (status = 404, body = Problem, description = "There is no such key."),
    (status = 409, body = Problem, description = "The guest has nobody who answers."),
))]
async fn kvp_get(vm: Machine, body: Body) -> Response {
    match parse::<KvpGet>(body) {
        Ok(get) => call(vm, move |vm| vm.kvp_get(get.pool, &get.key))
            .await
            .map(Json)
            .into_response(),
        Err((status, error)) => problem(status, error),
    }
}

/// Writes a key-value pair, new or not, in the guest.
#[utoipa::path(put, path = "/vm.kvp-set", request_body = KvpSet, responses(
    (status = 204, description = "The guest has it."),
    (status = 400, body = Problem, description = "A text is too long."),
    (status = 409, body = Problem, description = "The guest has nobody who takes it."),
))]
async fn kvp_set(vm: Machine, body: Body) -> Response {
    match parse::<KvpSet>(body) {
        Ok(set) => done(vm, move |vm| vm.kvp_set(set.pool, &set.key, &set.value)).await,
        Err((status, error)) => problem(status, error),
    }
}

/// Takes a key-value pair away from the guest.
#[utoipa::path(put, path = "/vm.kvp-delete", request_body = KvpDelete, responses(
    (status = 204, description = "It is gone."),
    (status = 400, body = Problem),
    (status = 404, body = Problem, description = "There is no such key."),
    (status = 409, body = Problem, description = "The guest has nobody who answers."),
))]
async fn kvp_delete(vm: Machine, body: Body) -> Response {
    match parse::<KvpDelete>(body) {
        Ok(delete) => done(vm, move |vm| vm.kvp_delete(delete.pool, &delete.key)).await,
        Err((status, error)) => problem(status, error),
    }
}

/// Has the guest's file systems write everything and stand still, for a copy of its disks. They go
/// on at `vm.thaw`, or when the time is over. With `hold`, the answer is not complete before they
/// do, and they also go on when the connection ends.
#[utoipa::path(put, path = "/vm.freeze", request_body = Freeze, responses(
    (status = 200, description = "They stand still. With `hold`: until the answer ends."),
    (status = 204, description = "They stand still."),
    (status = 400, body = Problem, description = "The time is too long."),
    (status = 409, body = Problem, description = "They do already, or nobody in the guest can."),
))]
async fn freeze(vm: Machine, body: Body) -> Response {
    let freeze = match parse::<Freeze>(body) {
        Ok(freeze) => freeze,
        Err((status, error)) => return problem(status, error),
    };
    // Whoever is gone before the answer has frozen nothing: it is dropped then.
    match call(vm, move |vm| vm.freeze(freeze.seconds)).await {
        Ok(frozen) if freeze.hold => held::answer(frozen),
        Ok(frozen) => {
            frozen.keep();
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => error.into_response(),
    }
}

/// Has the guest's file systems go on.
#[utoipa::path(put, path = "/vm.thaw", responses(
    (status = 204, description = "They go on."),
    (status = 409, body = Problem, description = "They were not frozen."),
))]
async fn thaw(vm: Machine) -> Response {
    done(vm, |vm| vm.thaw()).await
}

/// Stops the machine where it is; when this is answered, nothing of it runs.
#[utoipa::path(put, path = "/vm.pause", responses(
    (status = 204, description = "It is paused."),
    (status = 409, body = Problem, description = "It is not running."),
))]
async fn pause(vm: Machine) -> Response {
    done(vm, |vm| vm.pause()).await
}

/// Lets a paused machine go on.
#[utoipa::path(put, path = "/vm.resume", responses(
    (status = 204, description = "It runs."),
    (status = 409, body = Problem, description = "It is not paused."),
))]
async fn resume(vm: Machine) -> Response {
    done(vm, |vm| vm.resume()).await
}

/// Asks the guest to shut down. Where it does not offer to be asked, the machine ends at once.
#[utoipa::path(put, path = "/vm.shutdown", responses(
    (status = 204, description = "It is asked, or ending."),
    (status = 409, body = Problem, description = "It has ended, or is paused."),
))]
async fn shutdown(vm: Machine) -> Response {
    done(vm, |vm| vm.shutdown()).await
}

/// Ends the machine without asking the guest; disks are flushed.
#[utoipa::path(put, path = "/vm.power-off", responses(
    (status = 204, description = "It is ending."),
    (status = 409, body = Problem, description = "It has ended."),
))]
async fn power_off(vm: Machine) -> Response {
    done(vm, |vm| vm.power_off()).await
}

/// Asks the guest to restart. Where it does not offer to be asked, the machine is reset at once.
#[utoipa::path(put, path = "/vm.reboot", responses(
    (status = 204, description = "It is asked, or starting again."),
    (status = 409, body = Problem, description = "It has ended, or is paused."),
))]
async fn reboot(vm: Machine) -> Response {
    done(vm, |vm| vm.reboot()).await
}

/// Resets the machine without asking the guest. A paused one stays paused.
#[utoipa::path(put, path = "/vm.reset", responses(
    (status = 204, description = "It is starting again."),
    (status = 409, body = Problem, description = "It has ended."),
))]
async fn reset(vm: Machine) -> Response {
    done(vm, |vm| vm.reset()).await
}

/// Adds a disk, and tells the guest.
#[utoipa::path(put, path = "/vm.add-disk", request_body = DiskConfig, responses(
    (status = 200, body = Disk),
    (status = 400, body = Problem, description = "The image cannot be used."),
    (status = 409, body = Problem, description = "The name is taken, or the controller is full."),
))]
async fn add_disk(vm: Machine, body: Body) -> Response {
    match parse::<DiskConfig>(body) {
        Ok(disk) => call(vm, move |vm| vm.add_disk(&disk))
            .await
            .map(Json)
            .into_response(),
        Err((status, error)) => problem(status, error),
    }
}

/// Adds a network adapter, and tells the guest.
#[utoipa::path(put, path = "/vm.add-net", request_body = NetConfig, responses(
    (status = 200, body = Net),
    (status = 400, body = Problem, description = "The net cannot be used."),
    (status = 409, body = Problem, description = "The name is taken."),
))]
async fn add_net(vm: Machine, body: Body) -> Response {
    match parse::<NetConfig>(body) {
        Ok(net) => call(vm, move |vm| vm.add_net(&net))
            .await
            .map(Json)
            .into_response(),
        Err((status, error)) => problem(status, error),
    }
}

/// Offers the guest the console again that was removed; where its bytes go has not changed.
#[utoipa::path(put, path = "/vm.add-console", responses(
    (status = 204, description = "The guest has got it."),
    (status = 404, body = Problem, description = "The machine was started without a console."),
    (status = 409, body = Problem, description = "The guest has got it already."),
))]
async fn add_console(vm: Machine) -> Response {
    done(vm, |vm| vm.add_console()).await
}

/// Plugs a network adapter's cable in or pulls it, and tells the guest.
#[utoipa::path(put, path = "/vm.set-link", request_body = SetLink, responses(
    (status = 204, description = "It is so."),
    (status = 404, body = Problem, description = "There is no such adapter."),
))]
async fn set_link(vm: Machine, body: Body) -> Response {
    match parse::<SetLink>(body) {
        Ok(link) => done(vm, move |vm| vm.set_link(&link.id, link.up)).await,
        Err((status, error)) => problem(status, error),
    }
}

/// Removes a disk, a controller with its disks, a network adapter, or the `console`, and tells the
/// guest. When this is answered, what the guest wrote is in the image, and the image is free. A controller goes
/// when the guest has let go of its disks, which takes some seconds.
#[utoipa::path(put, path = "/vm.remove-device", request_body = RemoveDevice, responses(
    (status = 204, description = "It is gone."),
    (status = 400, body = Problem),
    (status = 404, body = Problem, description = "There is no such device."),
    (status = 409, body = Problem, description = "It is a controller, and the machine is paused."),
))]
async fn remove_device(vm: Machine, body: Body) -> Response {
    match parse::<RemoveDevice>(body) {
        Ok(device) => done(vm, move |vm| vm.remove_device(&device.id)).await,
        Err((status, error)) => problem(status, error),
    }
}

/// Puts an image into a DVD drive, in place of what is there, and tells the guest.
#[utoipa::path(put, path = "/vm.insert-medium", request_body = InsertMedium, responses(
    (status = 204, description = "It is in."),
    (status = 400, body = Problem, description = "The image cannot be used, or it is no drive."),
    (status = 404, body = Problem, description = "There is no such drive."),
    (status = 409, body = Problem, description = "The guest has locked the old one in."),
))]
async fn insert_medium(vm: Machine, body: Body) -> Response {
    match parse::<InsertMedium>(body) {
        Ok(medium) => {
            done(vm, move |vm| {
                vm.insert_medium(&medium.id, &medium.path, medium.force)
            })
            .await
        }
        Err((status, error)) => problem(status, error),
    }
}

/// Takes the medium out of a DVD drive, and tells the guest. When this is answered, the image is
/// free.
#[utoipa::path(put, path = "/vm.eject-medium", request_body = EjectMedium, responses(
    (status = 204, description = "It is out."),
    (status = 400, body = Problem, description = "It is no drive."),
    (status = 404, body = Problem, description = "There is no such drive."),
    (status = 409, body = Problem, description = "The guest has locked it in, and is asked to let go."),
))]
async fn eject_medium(vm: Machine, body: Body) -> Response {
    match parse::<EjectMedium>(body) {
        Ok(medium) => done(vm, move |vm| vm.eject_medium(&medium.id, medium.force)).await,
        Err((status, error)) => problem(status, error),
    }
}

/// Makes a disk larger, and tells the guest.
#[utoipa::path(put, path = "/vm.resize-disk", request_body = ResizeDisk, responses(
    (status = 204, description = "It has the new size."),
    (status = 400, body = Problem, description = "It cannot have that size."),
    (status = 404, body = Problem, description = "There is no such disk."),
))]
async fn resize_disk(vm: Machine, body: Body) -> Response {
    match parse::<ResizeDisk>(body) {
        Ok(resize) => {
            done(vm, move |vm| {
                vm.resize_disk(&resize.id, resize.desired_size)
            })
            .await
        }
        Err((status, error)) => problem(status, error),
    }
}
