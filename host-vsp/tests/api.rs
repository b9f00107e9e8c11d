//! The API at its socket, before a machine that only remembers what it was asked.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use host_vsp::api::client::{CallError, Hold, call};
use host_vsp::api::model::{
    Counters, CpusConfig, Crash, Disk, DiskConfig, DiskType, Freeze, GuestInfo, Heartbeat, KvpPair,
    KvpPool, MemoryConfig, Net, NetConfig, PayloadConfig, Ping, RemoveDevice, ResizeDisk, SetLink,
    State, VmConfig, VmInfo,
};
use host_vsp::api::{Error, Server, Vm};
use host_vsp::freezer::Frozen;
use host_vsp::storage::Format;
use hyper::Method;
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(20);

/// Remembers its calls; the next ones fail as told.
struct Fake {
    calls: Arc<Mutex<Vec<String>>>,
    /// Dropped, it ends what was frozen last.
    end_of_freeze: Mutex<Option<tokio::sync::oneshot::Sender<()>>>,
    failure: Mutex<Option<Error>>,
    /// What `pause` waits for.
    gate: Mutex<Receiver<()>>,
}

impl Fake {
    fn note(&self, call: impl Into<String>) -> Result<(), Error> {
        self.calls.lock().unwrap().push(call.into());
        match self.failure.lock().unwrap().clone() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

fn a_disk() -> Disk {
    Disk {
        id: "disk1".into(),
        kind: DiskType::Disk,
        controller: "scsi0".into(),
        lun: 1,
        path: Some("/disk".into()),
        format: Format::Vhdx,
        readonly: true,
        size: 1 << 40,
        block_size: 512,
        serial: "WD-42".into(),
    }
}

fn a_pair() -> KvpPair {
    KvpPair {
        key: "OSName".into(),
        value: "Debian".into(),
    }
}

fn a_net() -> Net {
    Net {
        id: "net0".into(),
        mac: "02:15:5d:00:00:07".into(),
        mtu: 9000,
        leads_to: "tap tap0".into(),
        up: true,
    }
}

impl Vm for Fake {
    fn info(&self) -> Result<VmInfo, Error> {
        self.note("info")?;
        Ok(VmInfo {
            config: VmConfig {
                cpus: CpusConfig { boot_vcpus: 3 },
                memory: MemoryConfig { size: 512 << 20 },
                payload: PayloadConfig::default(),
                disks: vec![a_disk()],
                net: vec![a_net()],
            },
            state: State::Paused,
            memory_actual_size: 512 << 20,
        })
    }

    fn counters(&self) -> Result<Counters, Error> {
        self.note("counters")?;
        Ok(Counters {
            elapsed_seconds: 1.5,
            returns_total: 9,
            returns: [("msr".to_owned(), 9)].into(),
            devices: [].into(),
            kvm: [].into(),
        })
    }

    fn pause(&self) -> Result<(), Error> {
        let _ = self.gate.lock().unwrap().recv_timeout(DEADLINE);
        self.note("pause")
    }

    fn resume(&self) -> Result<(), Error> {
        self.note("resume")
    }

    fn shutdown(&self) -> Result<(), Error> {
        self.note("shutdown")
    }

    fn power_off(&self) -> Result<(), Error> {
        self.note("power-off")
    }

    fn reboot(&self) -> Result<(), Error> {
        self.note("reboot")
    }

    fn reset(&self) -> Result<(), Error> {
        self.note("reset")
    }

    fn add_disk(&self, disk: &DiskConfig) -> Result<Disk, Error> {
        self.note(format!("add {disk:?}"))?;
        Ok(a_disk())
    }

    fn add_net(&self, net: &NetConfig) -> Result<Net, Error> {
        self.note(format!("add {net:?}"))?;
        Ok(a_net())
    }

    fn add_console(&self) -> Result<(), Error> {
        self.note("console")
    }

    fn set_link(&self, id: &str, up: bool) -> Result<(), Error> {
        self.note(format!("link {id} {up}"))
    }

    fn remove_device(&self, id: &str) -> Result<(), Error> {
        self.note(format!("remove {id}"))
    }

    fn guest(&self) -> Result<GuestInfo, Error> {
        self.note("guest")?;
        Ok(GuestInfo {
            heartbeat: Heartbeat::Alive,
            beats: 7,
            shutdown: true,
            kvp: false,
            vss: true,
            frozen: false,
            keyboard: false,
            crashes: 1,
            crash: Some(Crash {
                parameters: vec!["0x1".into()],
                message: None,
            }),
        })
    }

    fn kvp_list(&self, pool: KvpPool) -> Result<Vec<KvpPair>, Error> {
        self.note(format!("list {pool:?}"))?;
        Ok(vec![a_pair()])
    }

    fn kvp_get(&self, pool: KvpPool, key: &str) -> Result<KvpPair, Error> {
        self.note(format!("get {pool:?} {key}"))?;
        Ok(a_pair())
    }

    fn kvp_set(&self, pool: KvpPool, key: &str, value: &str) -> Result<(), Error> {
        self.note(format!("set {pool:?} {key} {value}"))
    }

    fn kvp_delete(&self, pool: KvpPool, key: &str) -> Result<(), Error> {
        self.note(format!("delete {pool:?} {key}"))
    }

    fn freeze(&self, seconds: u64) -> Result<Frozen, Error> {
        self.note(format!("freeze {seconds}"))?;
        let (end, ended) = tokio::sync::oneshot::channel();
        *self.end_of_freeze.lock().unwrap() = Some(end);
        let calls = Arc::clone(&self.calls);
        let release = move || calls.lock().unwrap().push("released".into());
        Ok(Frozen::new(release, ended))
    }

    fn thaw(&self) -> Result<(), Error> {
        self.note("thaw")
    }

    fn type_text(&self, text: &str) -> Result<(), Error> {
        self.note(format!("type {text:?}"))
    }

    fn insert_medium(&self, id: &str, path: &Path, force: bool) -> Result<(), Error> {
        self.note(format!("insert {id} {} {force}", path.display()))
    }

    fn eject_medium(&self, id: &str, force: bool) -> Result<(), Error> {
        self.note(format!("eject {id} {force}"))
    }

    fn resize_disk(&self, id: &str, size: u64) -> Result<(), Error> {
        self.note(format!("resize {id} {size}"))
    }
}

struct Api {
    _dir: tempfile::TempDir,
    path: PathBuf,
    fake: Arc<Fake>,
    /// Dropped, it lets `pause` go on.
    gate: Option<Sender<()>>,
    server: Option<Server>,
}

impl Api {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let (gate, wait) = channel();
        let fake = Arc::new(Fake {
            calls: Arc::default(),
            end_of_freeze: Mutex::default(),
            failure: Mutex::default(),
            gate: Mutex::new(wait),
        });
        let socket = Server::bind(&path).unwrap();
        let server = Server::start(socket, Arc::clone(&fake) as Arc<dyn Vm>).unwrap();
        Self {
            _dir: dir,
            path,
            fake,
            gate: Some(gate),
            server: Some(server),
        }
    }

    fn get(&self, name: &str) -> Value {
        call(&self.path, Method::GET, name, None::<&()>).unwrap()
    }

    fn put(&self, name: &str) -> Result<Value, CallError> {
        call(&self.path, Method::PUT, name, None::<&()>)
    }

    fn last(&self) -> String {
        self.fake.calls.lock().unwrap().last().cloned().unwrap()
    }

    /// Sends a request as it stands; status and body of the answer.
    fn raw(&self, method: &str, name: &str, body: &str) -> (u16, Value) {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} /api/v1/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

#[test]
fn every_call_reaches_the_machine() {
    let mut api = Api::new();
    let ping: Ping = serde_json::from_value(api.get("vmm.ping")).unwrap();
    assert_eq!(ping, Ping::here());
    let info: VmInfo = serde_json::from_value(api.get("vm.info")).unwrap();
    assert_eq!(
        (info.state, &info.config.disks[0]),
        (State::Paused, &a_disk())
    );
    let counters: Counters = serde_json::from_value(api.get("vm.counters")).unwrap();
    assert_eq!(counters.returns["msr"], 9);
    let guest: GuestInfo = serde_json::from_value(api.get("vm.guest")).unwrap();
    assert_eq!((guest.heartbeat, guest.beats), (Heartbeat::Alive, 7));
    drop(api.gate.take());
    for name in [
        "pause",
        "resume",
        "shutdown",
        "power-off",
        "reboot",
        "reset",
    ] {
        assert_eq!(api.put(&format!("vm.{name}")).unwrap(), Value::Null);
        assert_eq!(api.last(), name);
    }
    let put = |name, body: &Value| call(&api.path, Method::PUT, name, Some(body)).unwrap();
    let disk = DiskConfig {
        path: Some("/disk".into()),
        readonly: true,
        ..DiskConfig::default()
    };
    let added = put("vm.add-disk", &serde_json::to_value(&disk).unwrap());
    assert_eq!(added, serde_json::to_value(a_disk()).unwrap());
    assert_eq!(api.last(), format!("add {disk:?}"));
    let id = "disk1".to_owned();
    let body = serde_json::to_value(ResizeDisk {
        id: id.clone(),
        desired_size: 1 << 50,
    });
    put("vm.resize-disk", &body.unwrap());
    assert_eq!(api.last(), format!("resize disk1 {}", 1_u64 << 50));
    let pair = serde_json::to_value(a_pair()).unwrap();
    assert_eq!(api.put("vm.kvp-list").unwrap(), json!([pair]));
    assert_eq!(api.last(), "list Auto");
    assert_eq!(put("vm.kvp-list", &json!({"pool": "Guest"})), json!([pair]));
    assert_eq!(api.last(), "list Guest");
    assert_eq!(put("vm.kvp-get", &json!({"key": "k"})), pair);
    assert_eq!(api.last(), "get Auto k");
    put("vm.kvp-set", &json!({"key": "k", "value": "v"}));
    assert_eq!(api.last(), "set External k v");
    put("vm.kvp-delete", &json!({"key": "k", "pool": "Guest"}));
    assert_eq!(api.last(), "delete Guest k");
    assert_eq!(put("vm.freeze", &json!({})), Value::Null);
    assert_eq!(api.last(), "freeze 10");
    assert_eq!(api.put("vm.thaw").unwrap(), Value::Null);
    assert_eq!(api.last(), "thaw");
    put("vm.insert-medium", &json!({"id": "dvd0", "path": "/iso"}));
    assert_eq!(api.last(), "insert dvd0 /iso false");
    put("vm.eject-medium", &json!({"id": "dvd0", "force": true}));
    assert_eq!(api.last(), "eject dvd0 true");
    let net = NetConfig {
        tap: Some("tap0".into()),
        mtu: Some(9000),
        ..NetConfig::default()
    };
    let added = put("vm.add-net", &serde_json::to_value(&net).unwrap());
    assert_eq!(added, serde_json::to_value(a_net()).unwrap());
    assert_eq!(api.last(), format!("add {net:?}"));
    let link = SetLink {
        id: "net0".into(),
        up: false,
    };
    put("vm.set-link", &serde_json::to_value(link).unwrap());
    assert_eq!(api.last(), "link net0 false");
    assert_eq!(api.put("vm.add-console").unwrap(), Value::Null);
    assert_eq!(api.last(), "console");
    put("vm.type-text", &json!({"text": "a\nb"}));
    assert_eq!(api.last(), r#"type "a\nb""#);
    put(
        "vm.remove-device",
        &serde_json::to_value(RemoveDevice { id }).unwrap(),
    );
    assert_eq!(api.last(), "remove disk1");
}

#[test]
fn what_goes_wrong_has_a_status_and_a_sentence() {
    let api = Api::new();
    let sentence = |answer: &Value| answer["error"].as_str().unwrap().to_owned();
    for (error, status) in [
        (Error::BadRequest("bad".into()), 400),
        (Error::NotFound("none".into()), 404),
        (Error::Conflict("not now".into()), 409),
        (Error::Failed("broken".into()), 500),
    ] {
        *api.fake.failure.lock().unwrap() = Some(error.clone());
        let (got, body) = api.raw("PUT", "vm.resume", "");
        assert_eq!((got, sentence(&body)), (status, error.to_string()));
        assert_eq!(api.raw("GET", "vm.info", "").0, status);
        let refused = api.put("vm.resume").unwrap_err();
        assert!(matches!(&refused, CallError::Refused(text) if *text == error.to_string()));
    }
    *api.fake.failure.lock().unwrap() = None;
    let before = api.fake.calls.lock().unwrap().len();
    for (method, name, body, status, word) in [
        ("PUT", "vm.dance", "", 404, "no such call"),
        ("GET", "vm.pause", "", 405, "another method"),
        ("PUT", "vm.add-disk", "", 400, "JSON"),
        ("PUT", "vm.add-disk", "{\"path\":3}", 400, "JSON"),
        (
            "PUT",
            "vm.add-disk",
            "{\"path\":\"x\",\"colour\":1}",
            400,
            "colour",
        ),
        (
            "PUT",
            "vm.type-text",
            r#"{"text": "a", "enter": true}"#,
            400,
            "enter",
        ),
        ("PUT", "vm.kvp-list", "{\"pool\":\"Moon\"}", 400, "Moon"),
        ("PUT", "vm.kvp-get", "{}", 400, "key"),
        ("PUT", "vm.kvp-set", "{\"key\":\"a\"}", 400, "value"),
        ("PUT", "vm.freeze", "{\"seconds\":-1}", 400, "JSON"),
        (
            "PUT",
            "vm.resize-disk",
            "{\"id\":\"a\",\"desired_size\":-1}",
            400,
            "JSON",
        ),
        ("PUT", "vm.remove-device", "\u{0}\u{1}", 400, "JSON"),
    ] {
        let (got, body) = api.raw(method, name, body);
        let text = sentence(&body);
        assert_eq!(got, status, "{name}: {text}");
        assert!(
            text.contains(word) && !text.contains('\n'),
            "{name}: {text}"
        );
    }
    let (status, _) = api.raw("PUT", "vm.add-disk", &"x".repeat(100_000));
    assert_eq!(status, 413);
    assert_eq!(api.fake.calls.lock().unwrap().len(), before);
}

#[test]
fn the_description_has_every_call_and_only_those() {
    let api = Api::new();
    let description = api.get("openapi.json");
    assert!(description["openapi"].as_str().unwrap().starts_with("3."));
    let paths = description["paths"].as_object().unwrap();
    let mut calls: Vec<_> = paths.keys().map(String::as_str).collect();
    calls.sort_unstable();
    assert_eq!(
        calls,
        [
            "/api/v1/vm.add-console",
            "/api/v1/vm.add-disk",
            "/api/v1/vm.add-net",
            "/api/v1/vm.counters",
            "/api/v1/vm.eject-medium",
            "/api/v1/vm.freeze",
            "/api/v1/vm.guest",
            "/api/v1/vm.info",
            "/api/v1/vm.insert-medium",
            "/api/v1/vm.kvp-delete",
            "/api/v1/vm.kvp-get",
            "/api/v1/vm.kvp-list",
            "/api/v1/vm.kvp-set",
            "/api/v1/vm.pause",
            "/api/v1/vm.power-off",
            "/api/v1/vm.reboot",
            "/api/v1/vm.remove-device",
            "/api/v1/vm.reset",
            "/api/v1/vm.resize-disk",
            "/api/v1/vm.resume",
            "/api/v1/vm.set-link",
            "/api/v1/vm.shutdown",
            "/api/v1/vm.thaw",
            "/api/v1/vm.type-text",
            "/api/v1/vmm.ping",
        ]
    );
    let schemas = &description["components"]["schemas"];
    let of_disk = &schemas["DiskConfig"];
    assert!(of_disk["properties"]["path"].is_object(), "{of_disk}");
    assert!(of_disk["properties"]["type"].is_object(), "{of_disk}");
    assert!(schemas["VmInfo"].is_object() && schemas["Problem"].is_object());
}

#[test]
fn a_call_that_waits_holds_up_no_other_and_not_the_end() {
    let mut api = Api::new();
    let path = api.path.clone();
    let waiting = std::thread::spawn(move || call(&path, Method::PUT, "vm.pause", None::<&()>));
    std::thread::sleep(Duration::from_millis(50));
    api.get("vm.info");
    let begin = Instant::now();
    drop(api.server.take());
    assert!(begin.elapsed() < DEADLINE / 2, "{:?}", begin.elapsed());
    assert!(!api.path.exists());
    drop(api.gate.take());
    assert!(waiting.join().unwrap().is_err(), "nobody can have answered");
}

#[test]
fn an_answer_that_is_on_its_way_arrives_before_the_end() {
    let mut api = Api::new();
    let path = api.path.clone();
    let waiting = std::thread::spawn(move || call(&path, Method::PUT, "vm.pause", None::<&()>));
    std::thread::sleep(Duration::from_millis(50));
    let gate = api.gate.take();
    let opener = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(gate);
    });
    drop(api.server.take());
    waiting.join().unwrap().unwrap();
    opener.join().unwrap();
}

#[test]
fn a_freeze_that_is_held_ends_with_its_connection_and_not_before() {
    let api = Api::new();
    let freeze = Freeze {
        seconds: 5,
        hold: true,
    };
    let mut hold = Hold::begin(&api.path, "vm.freeze", &freeze).unwrap();
    assert_eq!(api.last(), "freeze 5");
    api.get("vm.info");
    assert!(!hold.is_over());
    assert_eq!(api.last(), "info", "released too early");
    // Whoever held it dies.
    drop(hold);
    let end = Instant::now() + DEADLINE;
    while api.last() != "released" {
        assert!(Instant::now() < end, "nobody thaws");
        std::thread::sleep(Duration::from_millis(5));
    }
    // The other way round: the time is over.
    let mut hold = Hold::begin(&api.path, "vm.freeze", &freeze).unwrap();
    drop(api.fake.end_of_freeze.lock().unwrap().take());
    while !hold.is_over() {
        assert!(Instant::now() < end, "the answer does not end");
    }
    // A machine that refuses.
    *api.fake.failure.lock().unwrap() = Some(Error::Conflict("not now".into()));
    let refused = Hold::begin(&api.path, "vm.freeze", &freeze).err();
    assert!(matches!(refused, Some(CallError::Refused(text)) if text == "not now"));
}

#[test]
fn nobody_there_is_said_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api");
    let message = |path: &Path| {
        let error = call(path, Method::GET, "vm.info", None::<&()>).unwrap_err();
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    };
    assert!(message(&path).contains("is the machine running"));
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(message(&path).contains("nobody answers"));
    std::fs::write(dir.path().join("file"), "").unwrap();
    assert!(message(&dir.path().join("file")).contains("nobody answers"));
}
