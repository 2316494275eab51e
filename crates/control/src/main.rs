//! See the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    muster_control::main()
}
