//! The header of a MetaImage that is written: voxels not packed, time or channels as a fourth
//! dimension, of which a comment says that it is channels.
//!
//! `ElementNumberOfChannels` would put the channels of a voxel beside each other; outputs here are
//! written channel by channel.

use super::super::metaimage::FOURTH_IS_CHANNELS;
use super::{fourth, lps, native_is_big};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::volume::{AxisKind, Layout};

/// The header of a MetaImage whose voxels follow it, or lie in the file `data` beside it.
///
/// # Errors
///
/// [`Error::Unsupported`] for voxels and geometries that MetaImage does not have.
pub(in super::super::super) fn metaimage(layout: &Layout, data: Option<&str>) -> Result<Vec<u8>> {
    let name = match layout.dtype {
        DType::Bool | DType::U8 => "MET_UCHAR",
        DType::I8 => "MET_CHAR",
        DType::U16 => "MET_USHORT",
        DType::I16 => "MET_SHORT",
        DType::U32 => "MET_UINT",
        DType::I32 => "MET_INT",
        DType::U64 => "MET_ULONG_LONG",
        DType::I64 => "MET_LONG_LONG",
        DType::F32 => "MET_FLOAT",
        DType::F64 => "MET_DOUBLE",
        DType::F16 => return Err(Error::no_float16(&layout.path, "MetaImage")),
    };
    let (columns, origin) = lps(layout, "MetaImage")?;
    let [z, y, x] = layout.shape;
    let [dz, dy, dx] = layout.geometry.spacing;
    let (mut sizes, mut spacing, mut offset) = (vec![x, y, z], vec![dx, dy, dz], origin.to_vec());
    let mut rows: Vec<Vec<f64>> = columns
        .into_iter()
        .zip([dx, dy, dz])
        .map(|(column, length)| column.map(|value| quotient(value, length)).to_vec())
        .collect();
    let fourth = fourth(layout, "MetaImage")?;
    let mut comment = String::new();
    if let Some(axis) = &fourth {
        if axis.kind != AxisKind::Time {
            comment = format!("Comment = {FOURTH_IS_CHANNELS}\n");
        }
        sizes.push(layout.channels);
        spacing.push(axis.step);
        offset.push(0.0);
        for row in &mut rows {
            row.push(0.0);
        }
        rows.push(vec![0.0, 0.0, 0.0, 1.0]);
    }
    let rescale = layout.rescale.map_or(String::new(), |rescale| {
        format!(
            "ElementToIntensityFunctionSlope = {}\nElementToIntensityFunctionOffset = {}\n",
            rescale.slope, rescale.intercept
        )
    });
    let text = format!(
        "{comment}ObjectType = Image\nNDims = {}\nBinaryData = True\nBinaryDataByteOrderMSB = {}\n\
         CompressedData = False\nTransformMatrix = {}\nOffset = {}\nElementSpacing = {}\n\
         DimSize = {}\n{rescale}ElementType = {name}\nElementDataFile = {}\n",
        sizes.len(),
        if native_is_big() { "True" } else { "False" },
        words(&rows.concat()),
        words(&offset),
        words(&spacing),
        words(&sizes),
        data.unwrap_or("LOCAL"),
    );
    Ok(text.into_bytes())
}

fn words<T: ToString>(values: &[T]) -> String {
    let words: Vec<String> = values.iter().map(T::to_string).collect();
    words.join(" ")
}

/// What gives `value` again when it is multiplied by `length`, if a number does.
#[expect(clippy::float_cmp, reason = "to the last bit")]
fn quotient(value: f64, length: f64) -> f64 {
    let near = value / length;
    let candidates = [near, near.next_up(), near.next_down()];
    let exact = candidates.into_iter().find(|n| n * length == value);
    exact.unwrap_or(near)
}
