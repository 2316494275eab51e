//! `muster-keypolld`.

fn main() {}
