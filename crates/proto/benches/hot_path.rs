//! Times the steps of a message's way: `cargo bench -p muster-proto`.

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::unwrap_used, reason = "a bench may end with a panic")]
#![allow(unreachable_pub, reason = "the steps are shared with another program")]

mod steps;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

fn hot_path(criterion: &mut Criterion) {
    for (name, mut step) in steps::all() {
        criterion.bench_function(&name, |bencher| bencher.iter(&mut step));
    }
    inflate(criterion);
}

/// The part of `open` that is zlib alone.
fn inflate(criterion: &mut Criterion) {
    let text = [
        b"0123456789abcdef0123456789abcdef123450000000007:0042:".as_slice(),
        &steps::short_event(),
    ]
    .concat();
    let mut packed = vec![0; 1024];
    let mut deflate = Compress::new(Compression::best(), true);
    deflate.compress(&text, &mut packed, FlushCompress::Finish).unwrap();
    packed.truncate(usize::try_from(deflate.total_out()).unwrap());
    let (mut inflate, mut room) = (Decompress::new(true), vec![0; 65_536]);
    criterion.bench_function("inflate, short", |bencher| {
        bencher.iter(|| {
            inflate.reset(true);
            inflate
                .decompress(black_box(&packed), &mut room, FlushDecompress::Finish)
                .unwrap();
            black_box(inflate.total_out())
        });
    });
}

criterion_group!(benches, hot_path);
criterion_main!(benches);
