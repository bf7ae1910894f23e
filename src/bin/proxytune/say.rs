//! What the program says: results on stdout, all else on stderr.
//!
//! A line of the log that cannot be written, on a disk that is full for instance, is no reason to stop; a result is, and a reader
//! who has gone away, as `| head` does, is a reason to stop without a word.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};

/// Writes to stdout.
macro_rules! out {
    ($($text:tt)*) => { $crate::say::write_out(format_args!($($text)*), "") };
}

/// Writes a line to stdout.
macro_rules! outln {
    () => { $crate::say::write_out(format_args!(""), "\n") };
    ($($text:tt)*) => { $crate::say::write_out(format_args!($($text)*), "\n") };
}

/// Writes a line to stderr.
macro_rules! note {
    ($($text:tt)*) => { $crate::say::write_note(format_args!($($text)*)) };
}

pub(crate) use {note, out, outln};

pub fn write_out(text: Arguments<'_>, end: &str) {
    let mut out = anstream::stdout().lock();
    let written = out.write_fmt(text).and_then(|()| out.write_all(end.as_bytes()));
    must_be_out(written.and_then(|()| out.flush()));
}

pub fn write_note(text: Arguments<'_>) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// Ends the program where stdout takes no more.
pub fn must_be_out(written: io::Result<()>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            write_note(format_args!(
                "error: stdout: cannot be written: {error}; free some space, or write elsewhere"
            ));
            std::process::exit(2)
        }
    }
}
