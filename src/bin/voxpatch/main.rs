//! The `voxpatch` command: the library for the shell.
//!
//! Results go to standard output, everything else to standard error. The exit status is 0
//! if all is done, 1 if something failed (one line says what), 2 if the command line is
//! wrong, and 128 + N if signal N stopped it. An output appears whole or not at all.

mod args;
mod blending;
mod common;
mod convert;
mod demo;
mod hints;
mod infer;
mod info;
mod input;
mod job;
mod output;
mod parse;
mod preview;
mod progress;
mod report;
mod sample;
mod shell;
mod stats;
mod stop;
mod storage;
mod verify;
mod workers;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use voxpatch::volume::share_heaps;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    share_heaps();
    let args = Args::parse();
    let done = stop::listen().and_then(|()| match &args.command {
        Command::Info(settings) => info::run(settings),
        Command::Convert(settings) => convert::run(settings),
        Command::Infer(settings) => infer::run(settings),
        Command::Plan(settings) => job::plan(settings),
        Command::RunTask(settings) => job::run_task(settings),
        Command::Status(settings) => job::status(settings),
        Command::Commit(settings) => job::commit(settings),
        Command::Demo(settings) => demo::run(settings),
        Command::Sample(settings) => sample::run(settings),
        Command::Preview(settings) => preview::run(settings),
        Command::Stats(settings) => stats::run(settings),
        Command::Verify(settings) => verify::run(settings),
        Command::Completions(settings) => shell::complete(settings, Args::command()),
        Command::Man(settings) => shell::write_manual(settings, Args::command()),
    });
    let Err(error) = done else {
        return ExitCode::SUCCESS;
    };
    if error.is::<report::Closed>() {
        return ExitCode::SUCCESS;
    }
    // If standard error is closed or full, the exit status still reports the failure.
    let _ = writeln!(
        io::stderr(),
        "voxpatch: {}{}",
        one_line(&error),
        hint(&error, args.command.name())
    );
    if error.chain().any(is_stop) {
        return ExitCode::from(stop::status_now());
    }
    ExitCode::FAILURE
}

fn is_stop(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<voxpatch::Error>();
    error.is_some_and(|error| error.kind() == voxpatch::ErrorKind::Interrupted)
}

/// The option of the command that helps, if there is one.
fn hint(error: &anyhow::Error, command: &str) -> &'static str {
    let all = Args::command();
    let command = all.find_subcommand(command);
    command.map_or("", |command| hints::hint(error, command))
}

/// A message on one line. Names of files and fields may hold what a terminal would obey.
fn printable(message: &str) -> String {
    let mut line = String::new();
    for c in message.chars() {
        match c {
            '\n' | '\r' => line.push(' '),
            c if c.is_control() => line.extend(c.escape_debug()),
            c => line.push(c),
        }
    }
    line
}

/// The message and its causes, each said once.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = printable(&cause.to_string());
        if line.contains(&cause) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&cause);
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    #[test]
    fn a_cause_that_was_named_is_not_named_again() {
        let error = anyhow::anyhow!("no such file")
            .context("cannot open a: no such file")
            .context("cannot convert");
        assert_eq!(
            super::one_line(&error),
            "cannot convert: cannot open a: no such file"
        );
        let colorful = anyhow::anyhow!("cannot open \u{1b}[31mred\u{7}.npy");
        assert_eq!(
            super::one_line(&colorful),
            "cannot open \\u{1b}[31mred\\u{7}.npy"
        );
        let nested = Err::<(), _>(anyhow::anyhow!("two\nlines")).context("outer");
        assert_eq!(
            super::one_line(&nested.expect_err("it is one")),
            "outer: two lines"
        );
    }
}
