#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| muster_fuzz::run("config_internal", input));
