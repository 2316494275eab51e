//! Reads the files that are named, one after the other, and says what is wrong with each.
fn main() {
    for path in std::env::args().skip(1) {
        match muster_config::load(std::path::Path::new("/nonexistent"), Some(std::path::Path::new(&path))) {
            Ok(loaded) => {
                for w in &loaded.warnings {
                    println!("{w}");
                }
                println!(
                    "{}",
                    muster_config::show(&loaded.settings, muster_config::Secrets::Masked)
                );
            }
            Err(e) => println!("{e}"),
        }
    }
}
