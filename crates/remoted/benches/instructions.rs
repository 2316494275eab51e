//! Does one step of the hot path so many times, to be run by `cargo xtask bench instructions` under a program that counts
//! instructions. Without arguments it lists the steps.

#![allow(clippy::unwrap_used, reason = "a bench may end with a panic")]
#![allow(unreachable_pub, dead_code, reason = "the steps are shared with other programs")]

#[path = "../../proto/benches/steps/mod.rs"]
mod message;
mod steps;

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    match arguments.as_slice() {
        [] => message::all()
            .iter()
            .chain(&steps::all(message::KEEPALIVE))
            .for_each(|(name, _)| println!("{name}")),
        [wanted, times] => {
            let find = |steps: Vec<message::Step>| steps.into_iter().find(|(name, _)| name == wanted);
            // The other steps need ten thousand agents.
            let found = find(message::all()).or_else(|| find(steps::all(message::KEEPALIVE)));
            let (_, mut step) = found.unwrap();
            (0..times.parse::<u32>().unwrap()).for_each(|_| step());
        }
        _ => eprintln!("usage: instructions [STEP TIMES]"),
    }
}
