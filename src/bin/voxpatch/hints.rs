//! The options that help where the library can only report what is wrong.

use std::sync::Arc;

use voxpatch::Error;

/// An option and the hint that names it.
type Hint = (&'static str, &'static str);

/// Returns the hint for an error, if the command has the option.
pub(crate) fn hint(error: &anyhow::Error, command: &clap::Command) -> &'static str {
    let hints = error.chain().find_map(|cause| {
        let shared = cause.downcast_ref::<Arc<Error>>();
        let own = cause.downcast_ref().or(shared.map(|shared| &**shared));
        own.map(hints).filter(|hints| !hints.is_empty())
    });
    let has = |option: &str| {
        let mut options = command.get_arguments();
        options.any(|argument| argument.get_long() == Some(option))
    };
    let hints = hints.unwrap_or_default().iter();
    let mut hints = hints.filter(|(option, _)| has(option));
    hints.next().map_or("", |(_, hint)| hint)
}

/// Returns the hints for an error, the best first.
fn hints(error: &Error) -> &'static [Hint] {
    match error {
        Error::Shared(inner) | Error::Subject { source: inner, .. } => hints(inner),
        Error::Exists { .. } => &[("overwrite", " (--overwrite)"), ("keep", " (--keep)")],
        Error::Unfinished { .. } => &[("overwrite", " (--overwrite)")],
        Error::UntrustedCodec { .. } | Error::UntrustedLink { .. } => {
            &[("untrusted", " (leave out --untrusted)")]
        }
        Error::ExternalFile { .. } => &[("allow-external", " (--allow-external)")],
        Error::UnsupportedDType { .. } => &[("dtype", " (--dtype)")],
        Error::NoGeometry { .. } => &[("same-grid", " (--same-grid)")],
        Error::PatchSize { patch, volume, .. } if patch > volume => {
            &[("border", " (--border pad)"), ("padding", " (--padding)")]
        }
        Error::Lossy { .. } | Error::OutputRange { .. } => &[("clip", " (--clip)")],
        Error::ValueRange { .. } => &[("values", " (--values stored)")],
        Error::MemoryLimit { .. } => &[("memory", " (--memory)")],
        Error::SeriesChoice { .. } => &[("series", " (--series)")],
        Error::UnevenSlices { .. } => &[("allow-uneven", " (--allow-uneven)")],
        Error::TiltedSlices { .. } => &[("tilt", " (--tilt shear)")],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::CommandFactory;

    use super::*;
    use crate::args::Args;

    #[test]
    fn a_command_proposes_only_options_that_it_has() {
        let exists = || {
            anyhow::Error::from(Error::Exists {
                path: PathBuf::from("a.zarr"),
            })
        };
        let all = Args::command();
        let of = |name: &str| all.find_subcommand(name).expect("a command");
        for (name, expected) in [
            ("convert", " (--overwrite)"),
            ("sample", " (--overwrite)"),
            ("infer", " (--overwrite)"),
            ("preview", " (--overwrite)"),
            ("demo", " (--keep)"),
            ("info", ""),
            ("stats", ""),
            ("verify", ""),
        ] {
            assert_eq!(hint(&exists(), of(name)), expected, "{name}");
            let shared = anyhow::Error::from(Arc::new(Error::Exists {
                path: PathBuf::from("a"),
            }));
            assert_eq!(hint(&shared.context("outer"), of(name)), expected, "{name}");
            assert_eq!(hint(&anyhow::anyhow!("another"), of(name)), "", "{name}");
        }
    }
}
