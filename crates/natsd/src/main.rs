//! `muster-natsd`. The story of startup is in `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // One TLS provider for everything in this process; a second call is the only way to fail.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    muster_service::exit::report("muster-natsd", muster_natsd::run())
}
