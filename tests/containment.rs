//! Programs that nobody has read: whatever they do, they end in time and leave nothing behind.
#![cfg(all(feature = "cli", target_os = "linux"))]

use proxytune::eval::contain::{Cell, Ending, Limits};
use std::time::{Duration, Instant};

fn run(program: &str) -> Ending {
    let limits = Limits { time: Duration::from_secs(4), memory: 300 << 20, processes: 16, file: 1 << 20 };
    let launcher = assert_cmd::cargo::cargo_bin!("proxytune").into();
    Cell { launcher, python: "/usr/bin/python3".into(), limits }.run(program).unwrap()
}

/// Processes whose command line holds a word.
fn processes(word: &str) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|p| std::fs::read_to_string(p.path().join("cmdline")).is_ok_and(|c| c.contains(word))).count()
}

#[test]
fn a_well_behaved_program_runs_and_its_failure_is_told() {
    let good = run("print(sum(range(10)))");
    assert_eq!((good.how.as_str(), good.output.as_str()), ("exit 0", "45\n"));
    let bad = run("assert 1 == 2, 'not equal'");
    assert_eq!((bad.how.as_str(), bad.error.as_str()), ("exit 1", "AssertionError: not equal"));
}

#[test]
fn loops_and_sleepers_end_in_time() {
    for program in ["while True: pass", "import time; time.sleep(1000)"] {
        let begin = Instant::now();
        assert_eq!(run(program).how, "time");
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    }
}

#[test]
fn forks_end_with_the_program_whatever_session_they_move_to() {
    let mark = "marked-orphan-of-the-test";
    let program = format!(
        "import os, sys\nfor _ in range(5):\n  if os.fork() == 0:\n    os.setsid()\n    \
         os.execv('/bin/sh', ['sh', '-c', 'sleep 300; : {mark}'])\nprint('left')"
    );
    assert_eq!(run(&program).output, "left\n");
    assert_eq!(processes(mark), 0);
}

#[test]
fn a_fork_bomb_stays_within_its_number_and_ends() {
    let ending = run(
        "import os, time\nbegin = time.time()\nwhile time.time() - begin < 2:\n  try:\n    if os.fork() == 0: time.sleep(100)\n  \
         except OSError as e: print('refused', e.errno); break\n",
    );
    assert!(ending.output.starts_with("refused 11"), "{ending:?}");
}

#[test]
fn memory_is_limited_for_one_process_and_for_all_together() {
    assert_eq!(run("x = bytearray(10 ** 9)").error, "MemoryError");
    let many = run(
        "import os, time\nfor _ in range(6):\n  if os.fork() == 0: break\nx = bytearray(b'x' * (100 << 20))\ntime.sleep(100)",
    );
    assert_eq!(many.how, "memory");
}

#[test]
fn there_is_no_network() {
    for program in [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1')",
    ] {
        let ending = run(program);
        assert_eq!(ending.how, "exit 1");
        assert!(ending.error.contains("Permission denied"), "{ending:?}");
    }
}

#[test]
fn files_are_limited_and_gone_in_the_end() {
    let ending = run("import os; print(os.getcwd())\nopen('big', 'wb').write(b'x' * (2 << 20))");
    assert!(ending.error.contains("File too large"), "{ending:?}");
    assert!(!std::path::Path::new(ending.output.trim()).exists());
    let flood = run("while True: print('x' * 1000)");
    assert!(flood.output.len() <= 4096 && flood.how.starts_with("exit"), "{flood:?}");
}

#[test]
fn it_cannot_end_its_keeper() {
    for pid in ["os.getppid()", "-1", "0"] {
        let ending = run(&format!("import os\nos.kill({pid}, 9)"));
        assert!(ending.how == "exit 1" && ending.error.contains("Permission denied"), "{pid}: {ending:?}");
    }
    assert!(run("import os; os.abort()").how.starts_with("signal"), "itself it may end");
}

#[test]
fn a_python_that_is_not_there_is_said() {
    let launcher = assert_cmd::cargo::cargo_bin!("proxytune").into();
    let cell = Cell { launcher, python: "/no/such/python".into(), limits: Limits::default() };
    let error = cell.run("").unwrap_err().to_string();
    assert!(error.contains("/no/such/python") && error.contains("--python"), "{error}");
}
