//! The position of predictions in their patch, derived from their lengths and from the caller's declarations.

use crate::error::{Error, Result};
use crate::region::{AXES, Shape};

/// The caller's declaration of the position of an output in its patch. The rest follows from the output's lengths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputPlace {
    /// Voxels (z, y, x) cropped from each face of the patch, e.g. by unpadded convolutions.
    pub halo: Option<Shape>,
    /// Patch voxels per output voxel along each axis: 1, 2, 4, ...
    pub scale: Option<u64>,
}

impl OutputPlace {
    /// Returns the halo and the scale of an output of `channels` channels and `shape` voxels for patches of `patch`
    /// voxels. `longer` is a longer patch with its output, if known: the growth of the output determines the scale.
    ///
    /// # Errors
    ///
    /// [`Error::OutputPlace`] if no halo and scale fit, or if several fit and neither this declaration nor `longer`
    /// decides.
    pub fn find(
        self,
        patch: Shape,
        (channels, shape): (u64, Shape),
        longer: Option<(Shape, Shape)>,
    ) -> Result<(Shape, u64)> {
        self.fitting(patch, (channels, shape), longer)
            .map_err(|problem| Error::OutputPlace {
                patch,
                shape,
                problem,
            })
    }

    fn fitting(
        self,
        patch: Shape,
        (channels, shape): (u64, Shape),
        longer: Option<(Shape, Shape)>,
    ) -> Result<(Shape, u64), String> {
        if shape.contains(&0) {
            return Err("it has no voxels".to_owned());
        }
        match (self.halo, self.scale) {
            (Some(halo), scale) => {
                let found = scale_without(patch, shape, halo)?;
                match scale {
                    Some(scale) if scale != found => Err(format!(
                        "without a halo of {} it has a scale of {found}, not {scale}",
                        list(halo)
                    )),
                    _ => Ok((halo, found)),
                }
            }
            (None, Some(scale)) => halo_at(patch, shape, scale).map(|halo| (halo, scale)),
            (None, None) => {
                let Some((longer, grown)) = longer else {
                    return only_reading(patch, channels, shape);
                };
                let scales = growth(patch, shape, (longer, grown)).ok_or_else(|| {
                    format!(
                        "it does not grow in proportion to the patch: for patches of {longer:?} it has {grown:?}"
                    )
                })?;
                let scale = one_scale(scales)?;
                Ok((halo_at(patch, shape, scale)?, scale))
            }
        }
    }
}

/// Returns the halo and scale of an output of which only the lengths are known, if they are unambiguous.
fn only_reading(patch: Shape, channels: u64, shape: Shape) -> Result<(Shape, u64), String> {
    if shape == patch {
        return Ok(([0; 3], 1));
    }
    if [channels, shape[0], shape[1]] == patch && shape[2] != patch[2] {
        return Err(format!(
            "its channels seem to come last: its axes are {channels}, {} after the batch, but channels come \
             before z, y, x",
            list(shape)
        ));
    }
    let halo = halo_at(patch, shape, 1);
    let Some(scales) = ratios(patch, shape) else {
        return halo.map(|halo| (halo, 1));
    };
    let larger = match one_scale(scales) {
        Ok(scale) if halo.is_err() => return Ok(([0; 3], scale)),
        Ok(scale) => format!("voxels {scale} times as long (a scale of {scale}, as from strides)"),
        Err(problem) if halo.is_err() => return Err(problem),
        Err(problem) => problem,
    };
    let halo = list(halo?);
    Err(format!(
        "it can be read in two ways: without {halo} voxels at each face (a halo of {halo}, as from unpadded \
         convolutions), or {larger}: declare the halo or the scale"
    ))
}

/// Returns the scale of an output that lacks `halo` voxels of the patch at each face.
fn scale_without(patch: Shape, shape: Shape, halo: Shape) -> Result<u64, String> {
    let mut inside = [0; 3];
    for a in 0..3 {
        let both = halo[a].checked_mul(2);
        let left = both.and_then(|both| patch[a].checked_sub(both));
        inside[a] = left.filter(|&left| left > 0).ok_or_else(|| {
            format!(
                "a halo of {} along {} leaves nothing of the patch",
                halo[a], AXES[a]
            )
        })?;
    }
    let scales = ratios(inside, shape).ok_or_else(|| {
        format!(
            "a halo of {} leaves {} voxels of the patch, which are not a whole multiple of its lengths",
            list(halo),
            list(inside)
        )
    })?;
    one_scale(scales)
}

/// Returns the halo of an output with a scale.
fn halo_at(patch: Shape, shape: Shape, scale: u64) -> Result<Shape, String> {
    if scale == 0 {
        return Err("a scale is 1 or more".to_owned());
    }
    let mut halo = [0; 3];
    for a in 0..3 {
        let covered = shape[a].checked_mul(scale);
        let missing = covered.and_then(|covered| patch[a].checked_sub(covered));
        let missing = missing.ok_or_else(|| {
            format!(
                "at a scale of {scale} it is longer than the patch along {}: it may have at most one voxel \
                 per voxel of the patch",
                AXES[a]
            )
        })?;
        if !missing.is_multiple_of(2) {
            return Err(format!(
                "at a scale of {scale} it lacks {missing} voxels along {}, which cannot be split equally \
                 between the two faces",
                AXES[a]
            ));
        }
        halo[a] = missing / 2;
    }
    Ok(halo)
}

/// Returns the quotient of `long` and `short` along each axis, if all are whole numbers.
fn ratios(long: Shape, short: Shape) -> Option<Shape> {
    let whole = (0..3).all(|a| short[a] > 0 && long[a] > 0 && long[a].is_multiple_of(short[a]));
    whole.then(|| std::array::from_fn(|a| long[a] / short[a]))
}

/// Returns the scale along each axis, from the growth of the output of a longer patch.
fn growth(patch: Shape, shape: Shape, (longer, grown): (Shape, Shape)) -> Option<Shape> {
    let more = |long: Shape, short: Shape| -> Option<Shape> {
        let mut more = [0; 3];
        for a in 0..3 {
            more[a] = long[a].checked_sub(short[a])?;
        }
        Some(more)
    };
    ratios(more(longer, patch)?, more(grown, shape)?)
}

/// Returns the scale, if it is the same along all axes.
fn one_scale(scales: Shape) -> Result<u64, String> {
    if scales[0] == scales[1] && scales[1] == scales[2] {
        return Ok(scales[0]);
    }
    Err(format!(
        "voxels that are {} times as long along z, y, x (scales that differ by axis are not supported: resample \
         the model's output to one scale)",
        list(scales)
    ))
}

fn list(numbers: Shape) -> String {
    numbers.map(|n| n.to_string()).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(halo: Option<Shape>, scale: Option<u64>) -> OutputPlace {
        OutputPlace { halo, scale }
    }

    #[test]
    fn halo_and_scale_follow_from_two_patches() {
        let cases = [
            // patch, output, growth of the output for 64 voxels more; halo, scale
            ([32; 3], [32; 3], [64; 3], Some(([0; 3], 1))),
            ([32; 3], [28, 30, 32], [64; 3], Some(([2, 1, 0], 1))),
            ([32; 3], [16; 3], [32; 3], Some(([0; 3], 2))),
            ([32; 3], [16; 3], [64; 3], Some(([8; 3], 1))),
            ([32; 3], [6; 3], [16; 3], Some(([4; 3], 4))),
            ([32; 3], [64; 3], [128; 3], None),
            ([32; 3], [32, 16, 16], [64, 32, 32], None),
            ([32; 3], [1; 3], [0; 3], None),
            ([32; 3], [32, 16, 16], [64, 64, 64], Some(([0, 8, 8], 1))),
        ];
        for (patch, out, by, expected) in cases {
            let grown = std::array::from_fn(|a| out[a] + by[a]);
            let longer = Some((patch.map(|n: u64| n + 64), grown));
            let found = OutputPlace::default().find(patch, (1, out), longer);
            assert_eq!(found.ok(), expected, "{patch:?} {out:?}");
        }
    }

    /// For every output up to the patch's size: the halo and scale that are found produce it. An ambiguous output is an
    /// error, and declaring the halo or the scale resolves it.
    #[test]
    fn only_outputs_that_can_be_read_in_one_way_are_read() {
        let mut counts = [0; 3];
        for patch in [6_u64, 7, 8, 9, 16] {
            for (z, y, x) in (1..=patch)
                .flat_map(|z| (1..=patch).map(move |y| (z, y)))
                .flat_map(|(z, y)| [y, z, patch].map(move |x| (z, y, x)))
            {
                let (whole, out) = ([patch; 3], [z, y, x]);
                let rim = out
                    .iter()
                    .all(|n| (patch - n) % 2 == 0)
                    .then(|| out.map(|n| (patch - n) / 2));
                let stride = (1..=patch).find(|s| out == [patch / s; 3] && patch % s == 0);
                let apart = out.iter().all(|n| patch % n == 0);
                let found = OutputPlace::default().find(whole, (3, out), None);
                let readings = if out == whole {
                    1
                } else {
                    usize::from(rim.is_some()) + usize::from(apart)
                };
                match (rim, stride) {
                    (Some(halo), Some(1)) => assert_eq!(found.ok(), Some((halo, 1))),
                    (None, Some(scale)) => assert_eq!(found.ok(), Some(([0; 3], scale))),
                    (Some(halo), None) if !apart => assert_eq!(found.ok(), Some((halo, 1))),
                    _ => {
                        let error = found.expect_err("no single reading").to_string();
                        assert_eq!(error.contains("two ways"), readings == 2, "{error}");
                        if stride.is_none() && apart {
                            assert!(error.contains("differ by axis"), "{error}");
                        }
                    }
                }
                if let Some(halo) = rim {
                    let told = said(Some(halo), None).find(whole, (3, out), None);
                    assert_eq!(told.ok(), Some((halo, 1)), "{out:?} of {patch}");
                }
                if let Some(scale) = stride {
                    let told = said(None, Some(scale)).find(whole, (3, out), None);
                    assert_eq!(told.ok(), Some(([0; 3], scale)), "{out:?} of {patch}");
                }
                counts[readings.min(2)] += 1;
            }
        }
        assert!(counts.iter().all(|&count| count > 20), "{counts:?}");
    }

    #[test]
    fn declarations_are_checked_and_completed() {
        let find = |halo, scale, out| said(halo, scale).find([16; 3], (1, out), None);
        assert_eq!(find(None, Some(2), [6; 3]).unwrap(), ([2; 3], 2));
        assert_eq!(find(Some([2; 3]), None, [6; 3]).unwrap(), ([2; 3], 2));
        assert_eq!(find(Some([2; 3]), Some(2), [6; 3]).unwrap(), ([2; 3], 2));
        for (halo, scale, out, problem) in [
            (Some([4; 3]), Some(2), [8; 3], "scale of 1, not 2"),
            (Some([8, 0, 0]), None, [8; 3], "leaves nothing"),
            (Some([1; 3]), None, [8; 3], "not a whole multiple"),
            (Some([0; 3]), None, [16, 8, 8], "differ by axis"),
            (None, Some(2), [16; 3], "longer than the patch along z"),
            (None, Some(1), [16, 13, 16], "lacks 3 voxels along y"),
            (None, Some(0), [16; 3], "1 or more"),
            (None, None, [0; 3], "no voxels"),
            (None, None, [17; 3], "longer than the patch"),
        ] {
            let error = find(halo, scale, out).unwrap_err().to_string();
            assert!(error.contains(problem), "{problem}: {error}");
        }
    }

    #[test]
    fn channels_at_the_end_are_named() {
        let last = OutputPlace::default().find([16; 3], (16, [16, 16, 8]), None);
        let error = last.unwrap_err().to_string();
        assert!(error.contains("channels seem to come last"), "{error}");
        let halo = said(Some([0, 0, 4]), None).find([16; 3], (16, [16, 16, 8]), None);
        assert_eq!(halo.unwrap(), ([0, 0, 4], 1));
    }
}
