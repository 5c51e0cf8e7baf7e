//! The order of frames in space, and the affine that follows from their positions.

use super::header::{FrameFacts, Order};
use crate::geometry::{Geometry, cross};
use crate::volume::AxisKind;

/// Maximum difference of direction cosines that count as equal.
const SAME_DIRECTION: f64 = 1e-3;

/// Maximum distance of a slice from its place on a regular grid, as a fraction of the spacing. Positions are often
/// rounded to 0.1 mm.
const SAME_STEP: f64 = 0.05;

/// Maximum shift of slices within their plane, over the whole volume, in pixels, that counts as none.
const SAME_LINE: f64 = 0.1;

/// The treatment of slices that do not make a box.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    /// Slices at uneven distances are taken as even.
    pub(super) uneven: bool,
    /// Slices that are shifted evenly within their plane make a sheared volume.
    pub(super) shear: bool,
}

/// The reason why frames are not a volume.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Their distances; they can be taken as even.
    Uneven(String),
    /// They are tilted; they can be taken as sheared.
    Tilted(String),
    /// Anything else.
    Other(String),
}

impl From<String> for Refusal {
    fn from(problem: String) -> Self {
        Self::Other(problem)
    }
}

/// Frames in the order of a volume.
#[derive(Debug)]
pub(super) struct Placed {
    /// The numbers of the frames, the volumes one after another, each from its first slice on.
    pub(super) order: Vec<usize>,
    pub(super) slices: usize,
    pub(super) geometry: Geometry,
    /// What orders the volumes, if there are several.
    pub(super) volumes: Option<Volumes>,
}

/// Several volumes at the same place.
#[derive(Debug)]
pub(super) struct Volumes {
    pub(super) count: usize,
    pub(super) by: Order,
    /// The number of each volume, if all of its slices have the same.
    pub(super) numbers: Option<Vec<f64>>,
}

impl Volumes {
    /// Returns the kind of the axis.
    pub(super) const fn kind(&self) -> AxisKind {
        match self.by {
            Order::BValue | Order::EchoTime | Order::EchoNumber => AxisKind::Channel,
            _ => AxisKind::Time,
        }
    }

    /// Returns the names of the volumes, if they are channels.
    pub(super) fn names(&self) -> Vec<String> {
        let prefix = match self.by {
            Order::BValue => "b=",
            Order::EchoTime => "TE=",
            Order::EchoNumber => "echo ",
            _ => return Vec::new(),
        };
        let numbers = self.numbers.iter().flatten();
        numbers.map(|number| format!("{prefix}{number}")).collect()
    }
}

/// Returns the directions of rows and columns.
fn directions(orientation: [f64; 6]) -> [[f64; 3]; 2] {
    [0, 3].map(|first| std::array::from_fn(|n| orientation[first + n]))
}

/// Returns the direction across the slices.
pub(super) fn normal(orientation: [f64; 6]) -> [f64; 3] {
    let [row, column] = directions(orientation);
    cross(row, column)
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn length(a: [f64; 3]) -> f64 {
    dot(a, a).sqrt()
}

fn difference(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    std::array::from_fn(|n| a[n] - b[n])
}

/// A frame with the facts that a geometry needs.
#[derive(Clone, Copy)]
struct Slice {
    frame: usize,
    position: [f64; 3],
    /// The position along the normal.
    along: f64,
}

#[expect(
    clippy::cast_precision_loss,
    reason = "numbers of slices are far below 2^53"
)]
const fn float(n: usize) -> f64 {
    n as f64
}

/// Sorts frames in space and finds their geometry. `between` is the distance between slices that the header names, for a
/// single slice. The error describes what is wrong.
pub(super) fn place(
    frames: &[FrameFacts],
    between: Option<f64>,
    allowed: Allowed,
) -> Result<Placed, Refusal> {
    let (orientation, spacing) = common(frames)?;
    let [row, column] = directions(orientation);
    let across = normal(orientation);
    let across = across.map(|value| value / length(across));
    let mut slices: Vec<Slice> = frames
        .iter()
        .enumerate()
        .filter_map(|(frame, facts)| {
            let position = facts.position?;
            Some(Slice {
                frame,
                position,
                along: dot(position, across),
            })
        })
        .collect();
    slices.sort_by(|a, b| a.along.total_cmp(&b.along));
    let groups = at_same_place(&slices);
    let count = groups[0].len();
    if let Some(other) = groups.iter().find(|group| group.len() != count) {
        let most = groups.iter().map(|group| group.len()).max().unwrap_or(0);
        let full = groups.iter().filter(|group| group.len() == most).count();
        return Err(Refusal::Other(format!(
            "its slices are duplicate or missing: {} images have {} different positions; {full} positions have {most} images, \
             but at {:.3} mm there are {} and at {:.3} mm {count}",
            slices.len(),
            groups.len(),
            other[0].along,
            other.len(),
            groups[0][0].along
        )));
    }
    for group in &groups {
        let shift = group
            .iter()
            .map(|slice| length(difference(slice.position, group[0].position)));
        let shift = shift.fold(0.0, f64::max);
        if shift > SAME_LINE * spacing[0].min(spacing[1]) {
            return Err(Refusal::Other(format!(
                "slices at {:.3} mm are next to each other in their plane, {shift:.3} mm apart",
                group[0].along
            )));
        }
    }
    let (order, volumes) = in_volumes(frames, &groups)?;
    let first: Vec<Slice> = groups.iter().map(|group| group[0]).collect();
    let n = first.len();
    let (step, distance) = if n == 1 {
        let thickness = frames[first[0].frame].thickness;
        let distance = between.or(thickness).map_or(1.0, f64::abs);
        let distance = if distance > 0.0 { distance } else { 1.0 };
        (across.map(|value| value * distance), distance)
    } else {
        step(&first, across, spacing, allowed)?
    };
    let columns = [
        row.map(|value| value * spacing[1]),
        column.map(|value| value * spacing[0]),
        step,
    ];
    let mut geometry = Geometry::from_lps(columns, first[0].position);
    // Exact, whereas the lengths of the columns are rounded.
    geometry.spacing = [distance, spacing[0], spacing[1]];
    Ok(Placed {
        order,
        slices: n,
        geometry,
        volumes,
    })
}

/// Returns the orientation and the spacing of all frames.
fn common(frames: &[FrameFacts]) -> Result<([f64; 6], [f64; 2]), String> {
    let all = frames.len();
    let count =
        |has: &dyn Fn(&FrameFacts) -> bool| frames.iter().filter(|facts| has(facts)).count();
    for (what, found) in [
        (
            "position (Image Position (Patient))",
            count(&|f| f.position.is_some()),
        ),
        (
            "orientation (Image Orientation (Patient))",
            count(&|f| f.orientation.is_some()),
        ),
        (
            "pixel spacing (Pixel Spacing)",
            count(&|f| f.spacing.is_some()),
        ),
    ] {
        if found < all {
            return Err(format!(
                "{} of its {all} images have no {what}",
                all - found
            ));
        }
    }
    let none = || "it has no images".to_owned();
    let first = frames.first().ok_or_else(none)?;
    let orientation = first.orientation.ok_or_else(none)?;
    let spacing = first.spacing.ok_or_else(none)?;
    let [row, column] = directions(orientation);
    let is_sound = (length(row) - 1.0).abs() < SAME_DIRECTION
        && (length(column) - 1.0).abs() < SAME_DIRECTION
        && dot(row, column).abs() < SAME_DIRECTION;
    if !is_sound {
        return Err(format!(
            "its orientation {orientation:?} is not two perpendicular directions"
        ));
    }
    if !spacing.iter().all(|&n| n > 0.0) {
        return Err(format!("its pixel spacing {spacing:?} is not above 0"));
    }
    for facts in frames {
        let other = facts.orientation.unwrap_or(orientation);
        let turned = orientation
            .iter()
            .zip(&other)
            .any(|(a, b)| (a - b).abs() > SAME_DIRECTION);
        if turned {
            let count = frames
                .iter()
                .filter(|f| f.orientation == Some(other))
                .count();
            return Err(format!(
                "its images have different orientations: {orientation:?} and, {count} of {all}, {other:?}"
            ));
        }
        let other = facts.spacing.unwrap_or(spacing);
        if spacing
            .iter()
            .zip(&other)
            .any(|(a, b)| (a - b).abs() > 1e-4 * a)
        {
            return Err(format!(
                "its images have different pixel spacings: {spacing:?} mm and {other:?} mm"
            ));
        }
    }
    Ok((orientation, spacing))
}

/// Groups sorted slices by their position along the normal.
fn at_same_place(slices: &[Slice]) -> Vec<&[Slice]> {
    let mut gaps: Vec<f64> = slices
        .windows(2)
        .map(|pair| pair[1].along - pair[0].along)
        .collect();
    gaps.retain(|&gap| gap > 1e-4);
    gaps.sort_by(f64::total_cmp);
    let near = gaps
        .get(gaps.len() / 2)
        .map_or(1e-4, |median| 0.01 * median);
    slices.chunk_by(|a, b| b.along - a.along <= near).collect()
}

/// Orders the frames of each place, and returns them volume by volume.
fn in_volumes(
    frames: &[FrameFacts],
    groups: &[&[Slice]],
) -> Result<(Vec<usize>, Option<Volumes>), String> {
    let count = groups[0].len();
    if count == 1 {
        return Ok((groups.iter().map(|group| group[0].frame).collect(), None));
    }
    for by in Order::ALL {
        let number = |slice: &Slice| frames[slice.frame].order[by as usize];
        let sorted: Option<Vec<Vec<(f64, usize)>>> = groups
            .iter()
            .map(|group| {
                let numbers = group
                    .iter()
                    .map(|slice| Some((number(slice)?, slice.frame)));
                let mut numbers: Vec<(f64, usize)> = numbers.collect::<Option<_>>()?;
                numbers.sort_by(|a, b| a.0.total_cmp(&b.0));
                numbers
                    .windows(2)
                    .all(|pair| pair[0].0 < pair[1].0)
                    .then_some(numbers)
            })
            .collect();
        let Some(sorted) = sorted else {
            continue;
        };
        let same = |n: usize| {
            sorted
                .iter()
                .all(|group| group[n].0.total_cmp(&sorted[0][n].0).is_eq())
        };
        let is_same = (0..count).all(same);
        // Numbers that also count the slices order the volumes only if nothing better does.
        let counts_slices = (by as usize) >= Order::AcquisitionNumber as usize;
        if !is_same && !counts_slices {
            continue;
        }
        let order = (0..count).flat_map(|n| sorted.iter().map(move |group| group[n].1));
        let numbers = is_same.then(|| sorted[0].iter().map(|(number, _)| *number).collect());
        return Ok((order.collect(), Some(Volumes { count, by, numbers })));
    }
    Err(format!(
        "its slices are duplicate: each of {} positions has {count} images, which differ in no time, b-value, echo or number",
        groups.len()
    ))
}

/// Returns the vector from slice to slice, and its length.
fn step(
    slices: &[Slice],
    across: [f64; 3],
    spacing: [f64; 2],
    allowed: Allowed,
) -> Result<([f64; 3], f64), Refusal> {
    let n = slices.len();
    let (first, last) = (slices[0], slices[n - 1]);
    let intervals = float(n - 1);
    let mean = (last.along - first.along) / intervals;
    check_even(slices, mean, allowed).map_err(Refusal::Uneven)?;
    let whole = difference(last.position, first.position);
    let along = last.along - first.along;
    let drift: [f64; 3] = std::array::from_fn(|a| whole[a] - along * across[a]);
    let pixel = spacing[0].min(spacing[1]);
    // Slices must be on a line, tilted or not.
    for slice in slices {
        let part = if along > 0.0 {
            (slice.along - first.along) / along
        } else {
            0.0
        };
        let moved = difference(slice.position, first.position);
        let off: [f64; 3] = std::array::from_fn(|a| {
            moved[a] - (slice.along - first.along) * across[a] - part * drift[a]
        });
        if length(off) > SAME_LINE.max(0.5 * SAME_STEP) * pixel {
            return Err(Refusal::Other(format!(
                "its slices are not on a line: the one at {:.3} mm is {:.3} mm off, within its plane",
                slice.along,
                length(off)
            )));
        }
    }
    if length(drift) <= SAME_LINE * pixel {
        return Ok((across.map(|value| value * mean), mean));
    }
    if !allowed.shear {
        let angle = length(drift).atan2(along).to_degrees();
        return Err(Refusal::Tilted(format!(
            "its slices are tilted by {angle:.2} degrees (gantry tilt), {:.3} mm over {n} slices",
            length(drift)
        )));
    }
    let step: [f64; 3] = whole.map(|value| value / intervals);
    Ok((step, length(step)))
}

/// Checks that slices are at even distances.
fn check_even(slices: &[Slice], mean: f64, allowed: Allowed) -> Result<(), String> {
    let gaps: Vec<f64> = slices
        .windows(2)
        .map(|pair| pair[1].along - pair[0].along)
        .collect();
    let mut sorted = gaps.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let far = slices
        .iter()
        .enumerate()
        .map(|(n, slice)| (slice.along - slices[0].along - float(n) * mean).abs());
    let far = far.fold(0.0, f64::max);
    if far <= SAME_STEP * mean || allowed.uneven {
        return Ok(());
    }
    let uneven = |gap: f64| (gap - median).abs() > SAME_STEP * median;
    let odd: Vec<(usize, f64)> = gaps
        .iter()
        .copied()
        .enumerate()
        .filter(|(_, gap)| uneven(*gap))
        .collect();
    let told: Vec<String> = odd
        .iter()
        .take(5)
        .map(|(n, gap)| format!("{gap:.3} mm after {:.3} mm", slices[*n].along))
        .collect();
    let more = if odd.len() > 5 {
        format!(" and {} more", odd.len() - 5)
    } else {
        String::new()
    };
    let multiple = |gap: f64| {
        let times = (gap / median).round();
        times >= 1.0 && (gap - times * median).abs() <= 2.0 * SAME_STEP * median
    };
    if odd.iter().all(|(_, gap)| multiple(*gap)) && !odd.is_empty() {
        let missing: f64 = odd
            .iter()
            .map(|(_, gap)| (gap / median).round() - 1.0)
            .sum();
        return Err(format!(
            "{missing} slices are missing: they are {median:.3} mm apart, but {}{more}",
            told.join(", ")
        ));
    }
    Err(format!(
        "its slices are unevenly spaced: mostly {median:.3} mm apart, but {}{more} (from {:.3} to {:.3} mm)",
        told.join(", "),
        sorted[0],
        sorted[sorted.len() - 1]
    ))
}
