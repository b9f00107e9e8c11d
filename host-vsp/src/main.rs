//! The `host-vsp` command.

fn main() {}
