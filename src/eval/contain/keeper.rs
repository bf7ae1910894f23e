//! The process between the evaluation and the program: watches, and ends all that is left.

use super::{INMATE, Orders};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(5);
/// Between looks at the memory of all processes.
const LOOK: Duration = Duration::from_millis(50);

/// Runs one program by `orders` (JSON) and prints how it ended. Returns the exit code.
pub fn keeper(orders: &str) -> u8 {
    let said = match run(orders) {
        Ok(ending) => ending,
        Err(reason) => json!({ "refused": reason }),
    };
    println!("{said}");
    0
}

fn run(text: &str) -> Result<Value, String> {
    let orders = Orders(serde_json::from_str(text).map_err(|e| e.to_string())?);
    let step = |what: &str, e: nix::Error| format!("{what} ({e})");
    setsid().map_err(|e| step("cannot begin a session", e))?;
    // What outlives its parent becomes our child, and nothing outlives us.
    prctl::set_child_subreaper(true).map_err(|e| step("cannot adopt its processes", e))?;
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| step("cannot be tied to the evaluation", e))?;
    // Not even a program of the same user looks into us.
    prctl::set_dumpable(false).map_err(|e| step("cannot close itself", e))?;
    let network = if leave() { "namespace" } else { "seccomp" };
    let file = |name: &str| {
        File::create(format!("{}/{name}", orders.text("folder")))
            .map_err(|e| format!("no file for {name} ({e})"))
    };
    let (output, errors) = (file("stdout")?, file("stderr")?);
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut child = Command::new(own)
        .args([INMATE, text])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(|e| format!("cannot be started ({e})"))?;
    let how = watch(&mut child, &orders);
    end_all(child);
    match how.as_str() {
        // The inmate's own code for a limit that it could not set; its reason is the last line it wrote.
        "exit 125" => {
            let folder = orders.text("folder");
            let reason = super::last_line(&super::tail(&std::path::Path::new(&folder).join("stderr"), 4096));
            Err(if reason.is_empty() { "exit code 125".into() } else { reason })
        }
        _ => Ok(json!({ "how": how, "network": network })),
    }
}

/// Leaves the network and the other processes behind, in namespaces of our own. False where that is not permitted.
fn leave() -> bool {
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC;
    // Root needs no user namespace, and without one can still become nobody.
    [own, own | CloneFlags::CLONE_NEWUSER, CloneFlags::CLONE_NEWNET]
        .into_iter()
        .any(|flags| unshare(flags).is_ok())
}

fn watch(child: &mut Child, orders: &Orders) -> String {
    let begin = Instant::now();
    let (time, memory) = (Duration::from_millis(orders.number("time_ms")), orders.number("memory"));
    let mut look = begin;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return ending(status, begin.elapsed(), time),
            Ok(None) => {}
            Err(error) => return format!("lost ({error})"),
        }
        if begin.elapsed() > time {
            return "time".into();
        }
        if look.elapsed() > LOOK {
            look = Instant::now();
            if family().iter().map(|pid| resident(*pid)).sum::<u64>() > memory {
                return "memory".into();
            }
        }
        std::thread::sleep(POLL);
    }
}

fn ending(status: ExitStatus, elapsed: Duration, time: Duration) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        // By its limit on processor time, which several threads reach before the clock.
        (_, Some(signal)) if signal == Signal::SIGXCPU as i32 || (signal == 9 && elapsed >= time) => {
            "time".into()
        }
        (_, signal) => format!("signal {}", signal.unwrap_or(0)),
    }
}

/// Kills the program and all that it started, whatever session or group that has moved to.
fn end_all(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
    // A process may fork between the look and the kill: again until there are none.
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        for pid in family() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(_) => return,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(POLL),
            Ok(_) => {}
        }
    }
}

/// All processes that descend from this one.
fn family() -> Vec<i32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in processes.flatten().filter_map(|p| p.file_name().to_str()?.parse::<i32>().ok()) {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The name may hold anything, spaces and brackets included; the parent is the second field after it.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let mut found = Vec::new();
    let mut next = vec![std::process::id() as i32];
    while let Some(pid) = next.pop() {
        let own = children.remove(&pid).unwrap_or_default();
        found.extend_from_slice(&own);
        next.extend(own);
    }
    found
}

/// Bytes of a process that are in memory.
fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
