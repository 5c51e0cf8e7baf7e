//! `voxpatch completions` and `voxpatch man`: files for shells and manuals.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use clap_complete::Shell;

use crate::report::print;

const EXAMPLES: &str = "\
Examples:
  voxpatch completions bash > ~/.local/share/bash-completion/completions/voxpatch
  voxpatch completions zsh > ~/.zfunc/_voxpatch";

/// Print a script that completes commands and options in a shell.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = EXAMPLES)]
pub(crate) struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
    /// Print help.
    #[arg(short, long, help_heading = "Common options", action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// Write man pages, one per command, into a folder.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// The folder.
    folder: PathBuf,
}

/// Prints the script for a shell.
pub(crate) fn complete(settings: &Completions, mut command: clap::Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(settings.shell, &mut command, "voxpatch", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes the man pages.
pub(crate) fn write_manual(settings: &Man, command: clap::Command) -> anyhow::Result<()> {
    let folder = &settings.folder;
    let failed = || format!("cannot write man pages to {}", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    clap_mangen::generate_to(command, folder).with_context(failed)
}
