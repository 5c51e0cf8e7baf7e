//! The command line: its commands.

use clap::{Parser, Subcommand};

use crate::{convert, demo, infer, info, job, preview, sample, shell, stats, verify};

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed (one line on standard error says why), 2 wrong usage, 128 + N stopped by signal N
(130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1, 152 SIGXCPU, ...). A stopped command leaves nothing half-written; a second
signal ends it at once.

Try it: voxpatch demo";

/// Patches from huge 3-D volumes: inspect, convert, sample and predict without loading the volume.
///
/// A volume is a Zarr or OME-Zarr folder or archive, a DICOM folder, or a .npy, .nii, .nii.gz, .mhd, .mha, .nrrd, .nhdr,
/// .tif, .h5 or .raw file. Sizes are voxels along z, y, x: one number for all three, or `z,y,x`.
#[derive(Debug, Parser)]
#[command(name = "voxpatch", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Info(info::Info),
    Convert(convert::Convert),
    Sample(Box<sample::SampleArgs>),
    Infer(Box<infer::Infer>),
    Plan(job::Plan),
    RunTask(job::RunTask),
    Status(job::Status),
    Commit(job::Commit),
    Preview(preview::Preview),
    Stats(stats::Stats),
    Verify(verify::Verify),
    Demo(demo::DemoArgs),
    Completions(shell::Completions),
    #[command(hide = true)]
    Man(shell::Man),
}

impl Command {
    /// Returns the name of the command.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Info(_) => "info",
            Self::Convert(_) => "convert",
            Self::Sample(_) => "sample",
            Self::Infer(_) => "infer",
            Self::Plan(_) => "plan",
            Self::RunTask(_) => "run-task",
            Self::Status(_) => "status",
            Self::Commit(_) => "commit",
            Self::Preview(_) => "preview",
            Self::Stats(_) => "stats",
            Self::Verify(_) => "verify",
            Self::Demo(_) => "demo",
            Self::Completions(_) => "completions",
            Self::Man(_) => "man",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The visible commands.
    fn commands() -> Vec<clap::Command> {
        let mut command = Args::command();
        command.build();
        let all = command
            .get_subcommands()
            .filter(|command| !command.is_hide_set());
        all.filter(|command| command.get_name() != "help")
            .cloned()
            .collect()
    }

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_that_are_understood() {
        assert_eq!(commands().len(), 13);
        for command in commands() {
            let after = command.get_after_help().expect("examples").to_string();
            let lines = after.lines().filter(|line| line.starts_with("  voxpatch "));
            let examples: Vec<&str> = lines.map(str::trim).collect();
            assert!(!examples.is_empty(), "{}", command.get_name());
            for example in examples {
                let words = example
                    .split('>')
                    .next()
                    .unwrap_or_default()
                    .split_whitespace();
                let args = Args::try_parse_from(words);
                let args = args.unwrap_or_else(|error| panic!("{example}: {error}"));
                assert_eq!(args.command.name(), command.get_name());
            }
        }
    }

    #[test]
    fn options_come_in_sections_of_which_the_common_ones_are_last() {
        for command in commands() {
            let mut headings: Vec<&str> = Vec::new();
            let arguments = command.get_arguments().filter(|arg| !arg.is_positional());
            for argument in arguments {
                let heading = argument.get_help_heading();
                let heading = heading.unwrap_or_else(|| panic!("{argument} has no section"));
                if !headings.contains(&heading) {
                    headings.push(heading);
                }
            }
            assert_eq!(
                headings.last(),
                Some(&"Common options"),
                "{}",
                command.get_name()
            );
            let help = command.clone().render_help().to_string();
            let at = |heading: &&str| help.find(&format!("\n{heading}:\n"));
            let places: Option<Vec<usize>> = headings.iter().map(at).collect();
            let places = places.unwrap_or_else(|| panic!("{headings:?}: {help}"));
            assert!(places.is_sorted(), "{headings:?}: {help}");
            assert!(
                help.find("\nExamples:\n") > places.last().copied(),
                "{help}"
            );
        }
    }
}
