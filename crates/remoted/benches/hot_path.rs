//! Times what remoted does around a message: `cargo bench -p muster-remoted --bench hot_path`.

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::unwrap_used, reason = "a bench may end with a panic")]
#![allow(unreachable_pub, reason = "the steps are shared with another program")]

mod steps;

use criterion::{Criterion, criterion_group, criterion_main};

const KEEPALIVE: &str = "#!-Linux |a |6.1 |#1 |x86_64 [Debian|debian: 12] - Wazuh v4.14.7 / ab\nx merged.mg\n";

fn hot_path(criterion: &mut Criterion) {
    for (name, mut step) in steps::all(KEEPALIVE) {
        criterion.bench_function(&name, |bencher| bencher.iter(&mut step));
    }
}

criterion_group!(benches, hot_path);
criterion_main!(benches);
