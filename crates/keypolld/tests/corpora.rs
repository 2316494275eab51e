//! What the fuzzer has found worth keeping, once more: every input of `fuzz/corpus` through the functions that it runs.

use std::{fs, path::Path};

#[path = "../../../fuzz/src/keypolld.rs"]
#[allow(
    unreachable_pub,
    clippy::panic,
    clippy::unwrap_used,
    reason = "the fuzzer includes the file too, and there it is public; a panic is how it tells what does not hold"
)]
mod targets;

#[test]
fn every_input_of_the_corpora_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, run) in targets::TARGETS {
        let inputs = fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("no corpus for {name}: {error}"));
        let mut count = 0;
        for input in inputs {
            let path = input.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            if std::panic::catch_unwind(|| run(&bytes)).is_err() {
                panic!("{} fails", path.display());
            }
            count += 1;
        }
        assert!(count > 0, "the corpus of {name} is empty");
    }
}
