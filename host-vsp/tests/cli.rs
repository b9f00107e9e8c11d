//! The program as users meet it, on the machine that the tests run on: whatever its KVM can do,
//! what the program says about it must be true.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use kvm_ioctls::Kvm;

/// For one run of the program, which takes less than a second where it does nothing.
const LIMIT: Duration = Duration::from_secs(60);

/// `KVM_CAP_HYPERV_SYNIC`'s second version and its direct doorbells, as in `linux/kvm.h`.
const HYPERV_SYNIC2: u64 = 148;
const HYPERV_EVENTFD: u64 = 154;

/// The byte that the test's kernel writes to the exit port.
const STATUS: u8 = 21;

/// A kernel of six bytes, an ELF file without a PVH note: `mov al, STATUS`, `out 0xf4, al`, and a
/// jump to itself.
fn kernel() -> Vec<u8> {
    let code = [0xB0, STATUS, 0xE6, 0xF4, 0xEB, 0xFE];
    let (header, address) = (64 + 56, 0x10_0000_u64);
    let mut elf = b"\x7FELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for field in [address, 64, 0] {
        elf.extend(field.to_le_bytes());
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let length = code.len() as u64;
    for field in [header, address, address, length, length, 0x1000] {
        elf.extend(u64::to_le_bytes(field));
    }
    elf.extend(code);
    elf
}

/// A VHD of that kind, with just its footer.
fn vhd(kind: u8) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[512..520].copy_from_slice(b"conectix");
    image[512 + 63] = kind;
    image
}

/// Files to lose.
struct Files {
    dir: tempfile::TempDir,
    before: Vec<(PathBuf, Vec<u8>, SystemTime)>,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk: Vec<u8> = (0..1 << 20).map(|at| (at * 7 / 5) as u8).collect();
        let contents: [(&str, &[u8]); 7] = [
            ("kernel", &kernel()),
            ("disk.img", &disk),
            ("other.qcow2", &disk),
            ("disk.vhd", &vhd(2)),
            ("child.vhd", &vhd(4)),
            ("log", b"of yesterday\n"),
            ("text", b"no kernel\n"),
        ];
        for (name, content) in contents {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let mut files = Self {
            dir,
            before: Vec::new(),
        };
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30);
        for (path, ..) in files.look() {
            let file = File::options().write(true).open(path).unwrap();
            file.set_modified(long_ago).unwrap();
        }
        files.before = files.look();
        files
    }

    fn look(&self) -> Vec<(PathBuf, Vec<u8>, SystemTime)> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut seen: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .map(|path| {
                let content = fs::read(&path).unwrap();
                let modified = path.metadata().unwrap().modified().unwrap();
                (path, content, modified)
            })
            .collect();
        seen.sort();
        seen
    }

    #[track_caller]
    fn assert_untouched(&self) {
        let now = self.look();
        let names = |files: &[(PathBuf, Vec<u8>, SystemTime)]| {
            files
                .iter()
                .map(|(path, content, modified)| (path.clone(), content.len(), *modified))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&now), names(&self.before));
        assert!(now == self.before, "a file has other content");
    }

    /// `host-vsp run` in the directory, of the good kernel if `arguments` name none.
    fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        let names_kernel = arguments.iter().any(|word| word.as_ref() == "--kernel");
        let mut command = program(["run"]);
        if !names_kernel {
            command.args(["--kernel", "kernel"]);
        }
        finish(command.args(arguments).current_dir(self.dir.path()))
    }
}

fn program<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_host-vsp"));
    command
        .args(arguments)
        .env_remove("HOST_VSP_LOG")
        .env("HOST_VSP_STORAGE_DAEMON", "/nowhere/qemu-storage-daemon");
    command
}

/// Runs it to its end, with a deadline. Nobody prints more than a pipe holds.
fn finish(command: &mut Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > LIMIT {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("{command:?} did not end: {output:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// Asserts a refusal in one sentence, and returns it.
#[track_caller]
fn refusal(output: &Output, code: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let sentence = text.strip_suffix('\n').unwrap_or_default();
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert!(
        sentence.starts_with("host-vsp: ") && !sentence.contains(['\n', '\x1B']),
        "not one sentence: {text}"
    );
    sentence.to_owned()
}

/// What this machine's KVM is, found out by ourselves.
#[derive(Debug, PartialEq, Eq)]
enum Here {
    Whole,
    WithoutHyperv,
    Missing,
    Denied,
}

fn here() -> Here {
    match Kvm::new().map_err(io::Error::from) {
        Ok(kvm) => {
            let has = |capability| kvm.check_extension_raw(capability) > 0;
            if has(HYPERV_SYNIC2) && has(HYPERV_EVENTFD) {
                Here::Whole
            } else {
                Here::WithoutHyperv
            }
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Here::Denied,
        Err(_) => Here::Missing,
    }
}

#[test]
fn check_tells_the_truth_on_one_screen() {
    let output = finish(&mut program(["check"]));
    let screen = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    assert!(screen.lines().count() <= 24, "more than a screen: {screen}");
    let line = |what: &str| {
        screen
            .lines()
            .find(|line| line.contains(what))
            .unwrap_or_default()
    };
    let refused: Vec<&str> = screen
        .lines()
        .filter(|line| line.trim_start().starts_with("NO "))
        .collect();
    assert!(line("64-bit processor").contains("yes"), "{screen}");
    let verdict = screen.lines().last().unwrap_or_default();
    let remedy = match here() {
        // Its processor's flags or the trial may still say no; then the program must say so.
        Here::Whole if refused.is_empty() => {
            assert_eq!(output.status.code(), Some(0), "{screen}");
            assert_eq!(verdict, "This machine can host.");
            assert!(line("trial VM").contains("yes"), "{screen}");
            return;
        }
        Here::Whole => "",
        Here::WithoutHyperv => {
            assert!(line("/dev/kvm").contains("yes"), "{screen}");
            for what in ["KVM_CAP_HYPERV_SYNIC2", "KVM_CAP_HYPERV_EVENTFD"] {
                assert!(line(what).trim_start().starts_with("NO "), "{screen}");
            }
            "Linux 5.10 or later with CONFIG_KVM_HYPERV"
        }
        Here::Missing => "load the kernel module",
        Here::Denied => "its group",
    };
    assert_eq!(output.status.code(), Some(1), "{screen}");
    assert!(
        refused.iter().any(|line| line.contains(remedy)),
        "it does not say {remedy:?}: {screen}"
    );
    assert_eq!(
        verdict,
        "This machine cannot host: see the lines marked NO."
    );
}

#[test]
fn a_machine_runs_or_is_refused_with_the_reason() {
    let files = Files::new();
    let arguments = "--memory 64M --disk path=disk.img --serial file=log --exit-port=0xf4";
    let output = files.run(&arguments.split(' ').collect::<Vec<_>>());
    let says = match here() {
        Here::Whole => {
            let status = i32::from(STATUS) * 2 + 1;
            assert_eq!(output.status.code(), Some(status), "{output:?}");
            let log = fs::read(files.dir.path().join("log")).unwrap();
            assert_eq!(log, b"", "the log begins anew");
            return;
        }
        Here::WithoutHyperv => [
            "/dev/kvm lacks KVM_CAP_",
            "use a Linux kernel 5.10 or later",
        ],
        Here::Missing => ["there is no /dev/kvm", "load the kernel module"],
        Here::Denied => ["no permission to use /dev/kvm", "run as root"],
    };
    let sentence = refusal(&output, 1);
    for part in says {
        assert!(sentence.contains(part), "{sentence}");
    }
    files.assert_untouched();
}

/// Whether or not there is a KVM: what is wrong with the input is said first.
#[test]
fn bad_input_is_refused_before_anything_is_touched() {
    let files = Files::new();
    let cases = [
        ("--disk path=nope", 1, "create it first"),
        ("--disk path=.", 1, "name a file or a block device"),
        (
            "--disk path=disk.img --disk path=disk.img",
            1,
            "given twice",
        ),
        (
            "--disk path=disk.img --serial file=disk.img",
            1,
            "given twice",
        ),
        ("--serial file=log --disk path=nope", 1, "create it first"),
        (
            "--disk path=disk.img,format=qcow2",
            1,
            "no header of a qcow2 image",
        ),
        ("--disk path=other.qcow2", 1, "format=raw"),
        (
            "--disk path=disk.img,format=vhdx",
            1,
            "no header of a VHDX image",
        ),
        ("--disk path=disk.img,format=vmdk", 2, "not \"vmdk\""),
        ("--disk path=disk.vhd", 1, "qemu-utils"),
        ("--disk path=child.vhd", 1, "merge them first"),
        ("--kernel text", 1, "give a 64-bit x86 Linux bzImage"),
        ("--kernel nope", 1, "give --kernel the path"),
        ("--kernel .", 1, "not a regular file"),
        ("--initrd nope", 1, "give --initrd the path"),
        ("--memory 0", 1, "--memory 512M"),
        ("--memory 16777215T", 1, "lower --memory"),
        ("--memory 16E", 2, "512M or 4G"),
        ("--cpus 0", 1, "change --cpus"),
        ("--cpus 1000", 1, "change --cpus"),
        ("--frobnicate", 2, "see host-vsp run --help"),
        ("--disk path=disk.img,cache=none", 2, "readonly=on"),
        ("--disk path=disk.img,block-size=4K", 2, "is a number"),
        ("--disk path=disk.img,block-size=1024", 1, "use 512 or 4096"),
        ("--net tap=no-such-tap", 1, "ip tuntap add no-such-tap"),
        ("--net tap=much-too-long-for-a-tap", 1, "1 to 15 letters"),
        ("--net socket=nope", 1, "start the other end first"),
        ("--net socket=log,listen=on", 1, "cannot be listened at"),
        ("--net nowhere", 2, "tap=NAME"),
        ("--net mtu=1500", 2, "where the cable leads"),
        ("--net user,mtu=67", 2, "from 68 to 9000"),
        ("--net user,mtu=70000", 2, "from 68 to 9000"),
        ("--net user,mac=02:00:00:00:00", 2, "six pairs"),
        ("--net user,mac=03:00:00:00:00:01", 2, "one station"),
        ("--net user,forward=80", 2, "tcp:8080:80"),
    ];
    for (arguments, code, says) in cases {
        let output = files.run(&arguments.split(' ').collect::<Vec<_>>());
        let sentence = refusal(&output, code);
        assert!(sentence.contains(says), "{arguments}: {sentence}");
    }
    let long = "x".repeat(70_000);
    let sentence = refusal(&files.run(&["--cmdline", &long]), 1);
    assert!(sentence.contains("longer than 65535 bytes"), "{sentence}");
    files.assert_untouched();
}

#[test]
fn a_net_without_its_program_is_refused() {
    let files = Files::new();
    let mut command = program(["run"]);
    command.args(["--kernel", "kernel", "--net", "user"]);
    command.env("PATH", files.dir.path());
    let output = finish(command.current_dir(files.dir.path()));
    let sentence = refusal(&output, 1);
    assert!(sentence.contains("passt is not installed"), "{sentence}");
    files.assert_untouched();
}

/// Nothing waits for the other end of a pipe, and odd names do not break the sentence.
#[test]
fn pipes_and_odd_names() {
    let files = Files::new();
    let pipe = files.dir.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let sentence = refusal(&files.run(&["--kernel", "pipe"]), 1);
    assert!(sentence.contains("not a regular file"), "{sentence}");
    let sentence = refusal(&files.run(&["--disk", "path=pipe"]), 1);
    assert!(sentence.contains("neither a file nor"), "{sentence}");
    let sentence = refusal(&files.run(&["--kernel", "two\nlines"]), 1);
    assert!(sentence.contains("two\\nlines"), "{sentence}");

    let not_text = OsStr::from_bytes(b"path=\xFF");
    refusal(&files.run(&[OsStr::new("--disk"), not_text]), 2);
    files.assert_untouched();
}

#[test]
fn help_is_no_error_and_a_closed_stderr_no_crash() {
    for arguments in [["--help", "--help"], ["run", "--help"], ["check", "--help"]] {
        let output = finish(&mut program(arguments));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Usage: host-vsp"), "{text}");
    }
    let codes = String::from_utf8(finish(&mut program(["run", "--help"])).stdout).unwrap();
    for documented in ["128+N", "SIGTERM ", "SIGINT ", "SIGUSR1", "Ctrl-]"] {
        assert!(codes.contains(documented), "{codes}");
    }

    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut child = program(["run", "--kernel", "/does/not/exist"])
        .stdin(Stdio::null())
        .stderr(writer)
        .spawn()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

/// The kernel of these tests is one that the program takes.
#[test]
fn the_kernel_of_six_bytes_loads() {
    use host_vsp::boot::{Entry, Payload, Protocol};
    let files = Files::new();
    let path = files.dir.path().join("kernel");
    let payload = Payload::open(Path::new(&path), Protocol::Auto, None, "").unwrap();
    let memory = vm_memory::GuestMemoryMmap::from_ranges(&[(vm_memory::GuestAddress(0), 16 << 20)]);
    let entry = payload.load(&memory.unwrap(), 16 << 20, 0xE_0000).unwrap();
    assert_eq!(entry, Entry::Linux64 { address: 0x10_0000 });
}
