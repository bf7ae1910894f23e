//! The process that gives up its rights and becomes the program.

use super::{NOBODY, Orders};
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Sets all limits and becomes the program; returns only when that fails, with the exit code for it.
pub fn inmate(orders: &str) -> u8 {
    let reason = match become_program(orders) {
        Ok(never) => match never {},
        Err(reason) => reason,
    };
    eprintln!("{reason}");
    125
}

fn become_program(text: &str) -> Result<std::convert::Infallible, String> {
    let orders = Orders(serde_json::from_str(text).map_err(|e| e.to_string())?);
    let step = |what: &str, e: nix::Error| format!("{what} ({e})");
    let folder = orders.text("folder");
    std::env::set_current_dir(&folder).map_err(|e| format!("its folder is out of reach ({e})"))?;
    if geteuid().is_root() {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        setgroups(&[]).map_err(|e| step("cannot leave its groups", e))?;
        setresgid(group, group, group).map_err(|e| step("cannot change its group", e))?;
        setresuid(user, user, user).map_err(|e| step("cannot become nobody", e))?;
    }
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| step("cannot be tied to its keeper", e))?;
    let seconds = orders.number("time_ms").div_ceil(1000).max(1);
    // Processes are counted for the whole user: those there are already come on top.
    let processes = orders.number("processes") + tasks_of_this_user();
    for (resource, most) in [
        (Resource::RLIMIT_CPU, seconds),
        (Resource::RLIMIT_AS, orders.number("memory")),
        (Resource::RLIMIT_FSIZE, orders.number("file")),
        (Resource::RLIMIT_NPROC, processes),
        (Resource::RLIMIT_NOFILE, 64),
        (Resource::RLIMIT_CORE, 0),
    ] {
        setrlimit(resource, most, most).map_err(|e| step(&format!("cannot limit {resource:?}"), e))?;
    }
    prctl::set_no_new_privs().map_err(|e| step("cannot give up rights for good", e))?;
    forbid()?;
    let error = Command::new(orders.text("python"))
        .args(["-I", "-B", "program.py"])
        .env_clear()
        .envs([("PATH", "/usr/bin:/bin"), ("HOME", &folder), ("TMPDIR", &folder), ("PYTHONHASHSEED", "0")])
        .exec();
    Err(format!("{} cannot be run ({error}); give another --python", orders.text("python")))
}

/// No sockets, and no hand laid on other processes, whatever else the system permits: where there is no PID namespace,
/// the keeper would be within reach.
fn forbid() -> Result<(), String> {
    let failed = |e: seccompiler::BackendError| format!("no seccomp filter ({e})");
    // io_uring would be a way around.
    let always = [
        libc::SYS_socket,
        libc::SYS_io_uring_setup,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_pidfd_send_signal,
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
    ];
    let mut calls: std::collections::BTreeMap<_, _> = always.map(|call| (call, Vec::new())).into();
    // How a program aborts itself.
    let own = u64::from(std::process::id());
    let others = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, own).map_err(failed)?;
    calls.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![others]).map_err(failed)?]);
    let refuse = SeccompAction::Errno(libc::EACCES as u32);
    let arch = std::env::consts::ARCH.try_into().map_err(failed)?;
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, refuse, arch).map_err(failed)?;
    let program: BpfProgram = filter.try_into().map_err(failed)?;
    seccompiler::apply_filter(&program).map_err(|e| format!("the system takes no seccomp filter ({e})"))
}

fn tasks_of_this_user() -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let own = geteuid().as_raw();
    let is_own = |p: &std::fs::DirEntry| p.metadata().is_ok_and(|m| m.uid() == own);
    let threads = |p: std::fs::DirEntry| {
        std::fs::read_dir(p.path().join("task")).map_or(0, |tasks| tasks.count() as u64)
    };
    processes.flatten().filter(is_own).map(threads).sum()
}
