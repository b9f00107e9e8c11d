//! Boots an L1, puts the files named before `--` into `/tmp` there, runs the shell line after it,
//! and ends with its status: `cargo run -p bed --example l1 -- FILE... -- 'LINE'`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<String>) -> bed::Result<u8> {
    let split = arguments.iter().position(|argument| argument == "--");
    let (files, line) = match split {
        Some(at) => (&arguments[..at], arguments[at + 1..].join(" ")),
        None => (&[][..], arguments.join(" ")),
    };
    let begun = std::time::Instant::now();
    let l1 = bed::l1::L1::boot()?;
    eprintln!("L1 is up after {:.1?}", begun.elapsed());
    for file in files {
        let name = Path::new(file)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let begun = std::time::Instant::now();
        l1.put(file, &format!("/tmp/{name}"))?;
        eprintln!("put {file} in {:.1?}", begun.elapsed());
    }
    let output = l1.shell(&line).run(Duration::from_secs(300))?;
    // Whoever closed our output does not want it.
    let _ = std::io::stdout().write_all(&output.stdout);
    let _ = std::io::stderr().write_all(&output.stderr);
    eprintln!("{}", output.status);
    Ok(output
        .status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1))
}
