//! A normalization as text, with the mask in which it is measured.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::{Normalize, Normalizer};
use crate::error::{Error, Result};
use crate::volume;

/// A normalization and the path of the mask in which it is measured: `zscore@brain.nii.gz`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct NormalizeSetting {
    /// The normalization.
    pub normalize: Normalize,
    /// The mask: a path, or where there are named images, the name of one of them.
    pub mask: Option<String>,
}

impl NormalizeSetting {
    /// Returns the normalization of one volume. The mask is opened by its path when the volume is measured.
    #[must_use]
    pub fn normalizer(&self) -> Normalizer {
        let normalizer = Normalizer::from(self.normalize.clone());
        match self.mask.clone() {
            Some(mask) => {
                normalizer.with_mask_by(mask.clone(), move || volume::open(Path::new(&mask)))
            }
            None => normalizer,
        }
    }
}

impl From<Normalize> for NormalizeSetting {
    fn from(normalize: Normalize) -> Self {
        Self {
            normalize,
            mask: None,
        }
    }
}

impl fmt::Display for NormalizeSetting {
    /// Writes the text that [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mask {
            Some(mask) => write!(f, "{}@{mask}", self.normalize),
            None => self.normalize.fmt(f),
        }
    }
}

impl FromStr for NormalizeSetting {
    type Err = Error;

    /// Parses a [`Normalize`], and the mask after an `@`.
    fn from_str(text: &str) -> Result<Self> {
        let Some((normalize, mask)) = text.split_once('@') else {
            return Ok(text.parse::<Normalize>()?.into());
        };
        let normalize: Normalize = normalize.parse()?;
        let problem = if mask.is_empty() {
            "give the path of the mask after the @, as zscore@brain.nii.gz"
        } else if !normalize.measures() {
            "a mask is only used by zscore and percentile: leave it out"
        } else {
            return Ok(Self {
                normalize,
                mask: Some(mask.to_owned()),
            });
        };
        Err(Error::InvalidArgument {
            argument: "normalization",
            value: text.to_owned(),
            problem: problem.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::progress::silent;
    use crate::volume::{MemoryVolume, Volume};

    #[test]
    fn a_mask_follows_the_normalization() {
        for text in [
            "none",
            "zscore",
            "zscore@brain.nii.gz",
            "percentile:1,99@s3://a@b/m.zarr",
        ] {
            let setting: NormalizeSetting = text.parse().unwrap();
            assert_eq!(setting.to_string(), text);
        }
        let mixed: NormalizeSetting = "zscore;window:0,1@m".parse().unwrap();
        assert_eq!(mixed.mask.as_deref(), Some("m"));
        for text in ["none@m", "window:0,1@m", "zscore@", "@m", "z@m"] {
            assert!(text.parse::<NormalizeSetting>().is_err(), "{text}");
        }
        let missing: NormalizeSetting = "zscore@no.such.nii".parse().unwrap();
        let scan: Arc<dyn Volume> =
            Arc::new(MemoryVolume::from_vec([1, 1, 2], 1, vec![1_u8, 2]).unwrap());
        let error = missing
            .normalizer()
            .scales_of(&scan, 1, &silent)
            .unwrap_err();
        assert!(error.to_string().contains("no.such.nii"), "{error}");
    }
}
