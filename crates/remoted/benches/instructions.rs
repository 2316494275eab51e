//! Does one step of the hot path so many times, to be run by `cargo xtask bench instructions` under a program that counts
//! instructions. Without arguments it lists the steps.

#![allow(clippy::unwrap_used, reason = "a bench may end with a panic")]
#![allow(unreachable_pub, dead_code, reason = "the steps are shared with other programs")]

#[path = "../../proto/benches/steps/mod.rs"]
mod message;
mod steps;

fn main() {
    let mut all = message::all();
    all.extend(steps::all(message::KEEPALIVE));
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    match arguments.as_slice() {
        [] => all.iter().for_each(|(name, _)| println!("{name}")),
        [wanted, times] => {
            let (_, step) = all.iter_mut().find(|(name, _)| name == wanted).unwrap();
            (0..times.parse::<u32>().unwrap()).for_each(|_| step());
        }
        _ => eprintln!("usage: instructions [STEP TIMES]"),
    }
}
