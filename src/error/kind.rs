//! Groups of errors by what a caller can do about them.

use std::io;

use super::Error;

/// The kind of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file or folder does not exist.
    NotFound,
    /// The operating system denies access.
    PermissionDenied,
    /// An output's name is taken.
    AlreadyExists,
    /// Another process has locked the output.
    Locked,
    /// The disk is full, or has too little space to start.
    OutOfSpace,
    /// Memory is too small: a limit, or the address space.
    OutOfMemory,
    /// The operating system reported a different error.
    Io,
    /// The content of a file is damaged or violates its format.
    Corrupt,
    /// A format or feature is not supported.
    Unsupported,
    /// Untrusted data asked for something unsafe.
    Untrusted,
    /// An argument is invalid.
    InvalidArgument,
    /// An index or region is out of range.
    OutOfRange,
    /// Voxel values are invalid for this use, or do not fit a type.
    InvalidValue,
    /// Two things that are used together do not match.
    Mismatch,
    /// Patches or chunks are missing.
    Incomplete,
    /// A model cannot be loaded or run.
    Model,
    /// The caller asked to stop.
    Interrupted,
    /// A callback, or this crate, panicked.
    Panicked,
}

impl Error {
    /// Returns the kind of this error; of its cause for [`Error::Subject`] and [`Error::Shared`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::OutOfSpace,
                _ => ErrorKind::Io,
            },
            Self::Exists { .. } | Self::NotOverwritable { .. } | Self::Unfinished { .. } => {
                ErrorKind::AlreadyExists
            }
            Self::Locked { .. } => ErrorKind::Locked,
            Self::NoSpace { .. } => ErrorKind::OutOfSpace,
            Self::MemoryLimit { .. } | Self::BlenderMemory { .. } | Self::OutOfMemory { .. } => {
                ErrorKind::OutOfMemory
            }
            Self::Header { .. }
            | Self::FileLength { .. }
            | Self::Chunk { .. }
            | Self::MissingChunk { .. }
            | Self::InvalidLocation { .. } => ErrorKind::Corrupt,
            Self::UnknownFormat { .. }
            | Self::Unsupported { .. }
            | Self::UnevenSlices { .. }
            | Self::TiltedSlices { .. }
            | Self::UnsupportedDType { .. }
            | Self::TooLarge { .. }
            | Self::NoIdentity { .. }
            | Self::NoModelId { .. } => ErrorKind::Unsupported,
            Self::UntrustedCodec { .. }
            | Self::UntrustedLink { .. }
            | Self::ExternalFile { .. } => ErrorKind::Untrusted,
            Self::InvalidArgument { .. }
            | Self::BufferLength { .. }
            | Self::PatchSize { .. }
            | Self::Overlap { .. }
            | Self::PartialChunk { .. }
            | Self::NotOwned { .. }
            | Self::ChunkWritten { .. }
            | Self::DuplicatePatch { .. }
            | Self::OutputIsInput { .. }
            | Self::SameOutput { .. }
            | Self::NoTime { .. }
            | Self::SeriesChoice { .. } => ErrorKind::InvalidArgument,
            Self::OutOfBounds { .. }
            | Self::NoSuchChannel { .. }
            | Self::NoSuchBox { .. }
            | Self::NoSuchTime { .. }
            | Self::IndexOutOfRange { .. } => ErrorKind::OutOfRange,
            Self::NotFinite { .. }
            | Self::InvalidMapValue { .. }
            | Self::NoCenter { .. }
            | Self::NotEnoughContent { .. }
            | Self::ValueRange { .. }
            | Self::Lossy { .. }
            | Self::OutputRange { .. } => ErrorKind::InvalidValue,
            Self::WrongDType { .. }
            | Self::InputModified { .. }
            | Self::OutputModified { .. }
            | Self::PredictionShape { .. }
            | Self::GridMismatch { .. }
            | Self::SubjectMismatch { .. }
            | Self::NoGeometry { .. }
            | Self::StateMismatch { .. }
            | Self::RunMismatch { .. }
            | Self::StaleIndex { .. }
            | Self::ModelChannels { .. }
            | Self::ModelMismatch { .. } => ErrorKind::Mismatch,
            Self::MissingPatches { .. } | Self::MissingChunks { .. } => ErrorKind::Incomplete,
            Self::OutputGrid { .. }
            | Self::OutputPlace { .. }
            | Self::ModelOutputs { .. }
            | Self::ModelFile { .. }
            | Self::ModelOperator { .. }
            | Self::ModelRun { .. } => ErrorKind::Model,
            Self::Interrupted => ErrorKind::Interrupted,
            Self::Panicked { .. } => ErrorKind::Panicked,
            Self::Subject { source, .. } | Self::Shared(source) => source.kind(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn kind_follows_the_system_and_looks_through_wrappers() {
        let failed = |kind: io::ErrorKind| Error::io("read", Path::new("scan.raw"))(kind.into());
        let cases = [
            (io::ErrorKind::NotFound, ErrorKind::NotFound),
            (io::ErrorKind::PermissionDenied, ErrorKind::PermissionDenied),
            (io::ErrorKind::StorageFull, ErrorKind::OutOfSpace),
            (io::ErrorKind::TimedOut, ErrorKind::Io),
        ];
        for (system, expected) in cases {
            assert_eq!(failed(system).kind(), expected);
            let subject = Error::Subject {
                index: 0,
                name: String::new(),
                source: Arc::new(Error::Shared(Arc::new(failed(system)))),
            };
            assert_eq!(subject.kind(), expected);
        }
        assert_eq!(Error::Interrupted.kind(), ErrorKind::Interrupted);
    }
}
