//! What a process costs, as the kernel counts it.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// Kernel and user time of all threads so far. Threads that have ended are not in it: daemons keep theirs.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/task")).context("the daemon has ended")? {
        // A thread may end between the two looks.
        let Ok(text) = fs::read_to_string(entry?.path().join("schedstat")) else {
            continue;
        };
        let first = text.split_whitespace().next().context("no time in schedstat")?;
        total += first.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
}

/// Kernel and user time of a process, its threads and the children that it has waited for, ended ones included. In steps of
/// 10 ms.
pub fn family_time(pid: u32) -> Result<Duration> {
    const STEP: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
    // The name, in parentheses, may have spaces in it.
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    let mut steps = 0;
    for field in rest.split_whitespace().skip(11).take(4) {
        steps += field.parse::<u32>()?;
    }
    Ok(STEP * steps)
}

/// Resident memory in KiB.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}

/// The machine, in a line.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = read("/proc/loadavg");
    format!(
        "{cores} cores ({model}), Linux {}, load before the run {}",
        read("/proc/sys/kernel/osrelease").trim(),
        load.split(' ').next().unwrap_or("unknown")
    )
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn time_of_a_busy_process_grows_as_it_works() {
        let own = std::process::id();
        let (before, begun) = (cpu_time(own).unwrap(), Instant::now());
        let mut sum = 0_u64;
        while begun.elapsed() < Duration::from_millis(200) {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        let used = cpu_time(own).unwrap() - before;
        assert!(used > Duration::from_millis(10), "{used:?}");
        assert!(family_time(own).unwrap() > Duration::from_millis(10));
        assert!(resident_kib(own).unwrap() > 0);
    }
}
