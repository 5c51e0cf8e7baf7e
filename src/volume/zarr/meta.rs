//! The metadata of an array, checked before any of it is used.
//!
//! The dimensions z, y and x are found by their names, or else are the last three; the others are flattened, row-major,
//! into channels. Shapes, chunk shapes and their products are checked here, because a product that overflows would give
//! a small buffer for a large chunk.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::super::format::excerpt;
use super::super::{ChunkShape, Format};
use super::axes::{DimensionOrder, ZarrAxis};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::region::Shape;

/// The known members of a version 3 array; any other member must declare that it may be ignored.
const MEMBERS: [&str; 12] = [
    "attributes",
    "chunk_grid",
    "chunk_key_encoding",
    "codecs",
    // Not defined for arrays, but some writers leave it there.
    "consolidated_metadata",
    "data_type",
    "dimension_names",
    "fill_value",
    "node_type",
    "shape",
    "storage_transformers",
    "zarr_format",
];

/// Maximum decoded size of a chunk, in bytes.
pub(super) const MAX_CHUNK: u64 = 2 << 30;

/// The checked metadata of an array, along its own dimensions and as a volume.
///
/// The dimensions of the volume are those that are read as channels, slowest first, then z, y, x.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ArrayInfo {
    pub(super) path: PathBuf,
    pub(super) format: Format,
    pub(super) dtype: DType,
    /// Lengths of the volume's dimensions.
    pub(super) dims: Vec<u64>,
    /// The shape of one file's content, along the volume's dimensions.
    pub(super) write_chunk: Vec<u64>,
    /// The shape that is decoded at once, along the volume's dimensions: the inner chunk of a sharded array.
    pub(super) read_chunk: Vec<u64>,
    /// The array dimension of each of the volume's dimensions.
    pub(super) order: DimensionOrder,
    /// The lengths and both chunk shapes along the array's own dimensions.
    pub(super) stored: Stored,
    /// `true` if chunks are in shards that are read in parts.
    pub(super) sharded: bool,
    /// The names of the codecs, innermost last.
    pub(super) codecs: Vec<String>,
}

/// Lengths along an array's dimensions, as in its document.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) dims: Vec<u64>,
    pub(super) write_chunk: Vec<u64>,
    pub(super) read_chunk: Vec<u64>,
}

/// Rejects extensions, because they may change the meaning of chunks.
fn check_members(path: &Path, document: &Value) -> Result<()> {
    let members = document.as_object().into_iter().flatten();
    for (name, value) in members.filter(|(name, _)| !MEMBERS.contains(&name.as_str())) {
        if value.get("must_understand") != Some(&Value::Bool(false)) {
            let what = format!("the array's extension {:?} is not supported", excerpt(name));
            return Err(Error::unsupported(path, what));
        }
    }
    Ok(())
}

/// Returns the lengths in a document.
fn dims(path: &Path, format: Format, document: &Value) -> Result<Vec<u64>> {
    let shape = document.get("shape");
    lengths(shape).ok_or_else(|| Error::header(path, name(format), problem("shape", shape)))
}

impl ArrayInfo {
    /// Parses a `zarr.json` or `.zarray` document; `axes` are the dimensions' names, if there are any.
    pub(super) fn parse(
        path: &Path,
        format: Format,
        document: &Value,
        axes: &[ZarrAxis],
    ) -> Result<Self> {
        let dims = dims(path, format, document)?;
        if !(2..=8).contains(&dims.len()) {
            let what =
                format!("an array of shape {dims:?} is not a volume: 2 to 8 dimensions are read");
            return Err(Error::unsupported(path, what));
        }
        Self::of_dims(path, format, document, (axes, dims))
    }

    /// Parses the document of a list of numbers: an array of one dimension, which becomes x; `None` if it has more.
    pub(super) fn of_list(path: &Path, format: Format, document: &Value) -> Result<Option<Self>> {
        let dims = dims(path, format, document)?;
        if dims.len() != 1 {
            return Ok(None);
        }
        Self::of_dims(path, format, document, (&[], dims)).map(Some)
    }

    fn of_dims(
        path: &Path,
        format: Format,
        document: &Value,
        (axes, dims): (&[ZarrAxis], Vec<u64>),
    ) -> Result<Self> {
        let bad = |problem: String| Error::header(path, name(format), problem);
        if format == Format::Zarr3 {
            check_members(path, document)?;
        }
        let dtype = dtype(path, format, document)?;
        let grid = if format == Format::Zarr3 {
            regular_grid(path, document)?
        } else {
            document.get("chunks")
        };
        let write_chunk = lengths(grid).ok_or_else(|| bad(problem("chunk shape", grid)))?;
        let (codecs, sharding) = codecs(format, document);
        let read_chunk = match sharding {
            Some(sharding) => {
                let shape = sharding.get("chunk_shape");
                lengths(shape).ok_or_else(|| bad(problem("inner chunk shape", shape)))?
            }
            None => write_chunk.clone(),
        };
        let order =
            DimensionOrder::by_name(axes, &dims).map_err(|what| Error::unsupported(path, what))?;
        let stored = Stored {
            dims,
            write_chunk,
            read_chunk,
        };
        let facts = Self {
            path: path.to_path_buf(),
            format,
            dtype,
            dims: Vec::new(),
            write_chunk: Vec::new(),
            read_chunk: Vec::new(),
            order: order.clone(),
            stored,
            sharded: sharding.is_some(),
            codecs,
        };
        facts.check()?;
        let stored_first = order.stored_first();
        let facts = facts.ordered(order);
        // Time is first, unless chunks then mix dimensions that are flattened into one axis.
        let facts = if facts.flattens() {
            facts
        } else {
            facts.ordered(stored_first)
        };
        facts.check_size()?;
        Ok(facts)
    }

    /// Returns the metadata with the volume's dimensions in a different order.
    fn ordered(mut self, order: DimensionOrder) -> Self {
        let along = |lengths: &[u64]| {
            order
                .all()
                .map(|own| own.map_or(1, |own| lengths[own]))
                .collect()
        };
        self.dims = along(&self.stored.dims);
        self.write_chunk = along(&self.stored.write_chunk);
        self.read_chunk = along(&self.stored.read_chunk);
        self.order = order;
        self
    }

    /// Returns the name of the format for users.
    pub(super) fn format_name(&self) -> &'static str {
        name(self.format)
    }

    fn check(&self) -> Result<()> {
        let bad = |problem: String| Error::header(&self.path, self.format_name(), problem);
        for (what, chunk) in [
            ("chunk", &self.stored.write_chunk),
            ("inner chunk", &self.stored.read_chunk),
        ] {
            if chunk.len() != self.stored.dims.len() {
                return Err(bad(format!(
                    "{what} {chunk:?} has a different rank from shape {:?}",
                    self.stored.dims
                )));
            }
            // A shard may be larger than memory: only its chunks are ever decoded.
            let limit = if self.sharded && what == "chunk" {
                i64::MAX.unsigned_abs()
            } else {
                MAX_CHUNK
            };
            let bytes = product(chunk).and_then(|n| n.checked_mul(self.dtype.size() as u64));
            if bytes.is_none_or(|bytes| bytes > limit) {
                return Err(bad(format!(
                    "{what} {chunk:?} of {} is larger than {limit} bytes",
                    self.dtype
                )));
            }
        }
        let whole = |(shard, chunk): (&u64, &u64)| shard.is_multiple_of(*chunk);
        let Stored {
            write_chunk,
            read_chunk,
            ..
        } = &self.stored;
        if !write_chunk.iter().zip(read_chunk).all(whole) {
            return Err(bad(format!(
                "shard {write_chunk:?} is not a multiple of its chunks {read_chunk:?}"
            )));
        }
        Ok(())
    }

    fn check_size(&self) -> Result<()> {
        let bytes = product(&self.dims).and_then(|n| n.checked_mul(self.dtype.size() as u64));
        if bytes.is_none_or(|bytes| i64::try_from(bytes).is_err()) {
            let (channels, shape) = (
                product(&self.dims[..self.leading()]).unwrap_or(u64::MAX),
                self.shape(),
            );
            return Err(Error::TooLarge {
                path: self.path.clone(),
                channels,
                shape,
                dtype: self.dtype,
            });
        }
        if !self.flattens() {
            let what = format!(
                "chunks of {:?} mix the first {} dimensions of shape {:?}, which are read as one axis of channels",
                self.read_chunk,
                self.leading(),
                self.dims
            );
            return Err(Error::unsupported(&self.path, what));
        }
        Ok(())
    }

    /// Returns the number of dimensions before z, y, x.
    fn leading(&self) -> usize {
        self.dims.len() - 3
    }

    /// Returns `true` if the channels of each chunk are consecutive after flattening the leading dimensions.
    fn flattens(&self) -> bool {
        let chunk = self.cut_chunk();
        let (dims, chunk) = (&self.dims[..self.leading()], &chunk[..self.leading()]);
        let Some(first) = chunk.iter().position(|&n| n > 1) else {
            return true;
        };
        let before: u64 = dims[..first].iter().product();
        let rest_whole = dims[first + 1..] == chunk[first + 1..];
        rest_whole && (before == 1 || dims[first].is_multiple_of(chunk[first]))
    }

    /// Returns the shape of the used part of a decoded chunk, along the volume's dimensions: a chunk may be longer than
    /// the array, but there are no channels after the last.
    pub(super) fn cut_chunk(&self) -> Vec<u64> {
        let mut chunk = self.read_chunk.clone();
        for (chunk, &length) in chunk.iter_mut().zip(&self.dims[..self.leading()]) {
            *chunk = length.min(*chunk);
        }
        chunk
    }

    /// Returns `true` if the voxels of a decoded chunk are in the order c, z, y, x, without others among them.
    pub(super) fn keeps_order(&self) -> bool {
        let cut = self.cut_chunk();
        let own = self.order.all().zip(&cut).filter(|(own, _)| own.is_some());
        let own = own.map(|(_, length)| length);
        self.order.is_stored() && own.eq(&self.stored.read_chunk)
    }

    /// Returns the voxels along z, y, x.
    pub(super) fn shape(&self) -> Shape {
        Self::last_three(&self.dims)
    }

    /// Returns the number of channels.
    pub(super) fn channels(&self) -> u64 {
        self.dims[..self.leading()].iter().product()
    }

    /// Converts a shape along the volume's dimensions to c, z, y, x.
    pub(super) fn as_chunk(&self, shape: &[u64]) -> ChunkShape {
        let [z, y, x] = Self::last_three(shape);
        [shape[..self.leading()].iter().product(), z, y, x]
    }

    fn last_three(lengths: &[u64]) -> Shape {
        std::array::from_fn(|axis| lengths[lengths.len() - 3 + axis])
    }

    /// Returns the index of a read chunk along the array's own dimensions.
    pub(super) fn chunk_index(&self, index: ChunkShape) -> Vec<u64> {
        let [mut c, space @ ..] = index;
        let mut own = vec![0; self.stored.dims.len()];
        for (i, &dimension) in self.order.leading.iter().enumerate().rev() {
            let count = self.dims[i].div_ceil(self.read_chunk[i]).max(1);
            own[dimension] = c % count;
            c /= count;
        }
        for (dimension, at) in self.order.space.into_iter().zip(space) {
            if let Some(dimension) = dimension {
                own[dimension] = at;
            }
        }
        own
    }

    /// Returns the distances, in voxels of a decoded chunk, between neighbors along each of the volume's dimensions.
    pub(super) fn steps(&self) -> Vec<u64> {
        let chunk = &self.stored.read_chunk;
        let step = |own: usize| chunk[own + 1..].iter().product();
        self.order.all().map(|own| own.map_or(0, step)).collect()
    }
}

fn name(format: Format) -> &'static str {
    match format {
        Format::Zarr3 => "Zarr v3",
        Format::N5 => "N5",
        _ => "Zarr v2",
    }
}

fn problem(field: &str, value: Option<&Value>) -> String {
    match value {
        Some(value) => format!("{field} is {value}, not a list of whole numbers above 0"),
        None => format!("{field} is missing"),
    }
}

fn lengths(value: Option<&Value>) -> Option<Vec<u64>> {
    let list = value?.as_array().filter(|list| list.len() <= 32)?;
    list.iter().map(|n| n.as_u64().filter(|&n| n > 0)).collect()
}

fn product(lengths: &[u64]) -> Option<u64> {
    lengths.iter().try_fold(1_u64, |all, &n| all.checked_mul(n))
}

fn regular_grid<'a>(path: &Path, document: &'a Value) -> Result<Option<&'a Value>> {
    let grid = document.get("chunk_grid").unwrap_or(&Value::Null);
    match grid.get("name").and_then(Value::as_str) {
        Some("regular") => Ok(grid.pointer("/configuration/chunk_shape")),
        Some(other @ ("rectilinear" | "rectangular")) => Err(Error::unsupported(
            path,
            format!(
                "its chunks have unequal sizes (chunk grid {other:?}), which is not read: write it again with equal \
                 chunks, as zarr-python does by default"
            ),
        )),
        other => Err(Error::unsupported(
            path,
            format!(
                "chunk grid {:?} is not read, only \"regular\"",
                other.map(excerpt)
            ),
        )),
    }
}

/// Returns the codecs' names, and the configuration of sharding if it is the outermost codec and the only one.
fn codecs(format: Format, document: &Value) -> (Vec<String>, Option<&Value>) {
    if format != Format::Zarr3 {
        let filters = document
            .get("filters")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let compressor = document.get("compressor").filter(|c| c.is_object());
        let id = |codec: &Value| codec.get("id").and_then(Value::as_str).map(str::to_owned);
        return (filters.chain(compressor).filter_map(id).collect(), None);
    }
    let list = document
        .get("codecs")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    let mut names = Vec::new();
    collect_names(list, &mut names, 0);
    let sharding = match list {
        [only] if only.get("name").and_then(Value::as_str) == Some("sharding_indexed") => {
            only.get("configuration")
        }
        _ => None,
    };
    (names, sharding)
}

fn collect_names(codecs: &[Value], names: &mut Vec<String>, depth: usize) {
    for codec in codecs {
        let name = codec
            .as_str()
            .or_else(|| codec.get("name").and_then(Value::as_str))
            .unwrap_or("?");
        let cname = codec
            .pointer("/configuration/cname")
            .and_then(Value::as_str);
        names.push(cname.map_or_else(|| name.to_owned(), |cname| format!("{name}-{cname}")));
        if let Some(inner) = codec
            .pointer("/configuration/codecs")
            .and_then(Value::as_array)
            && depth < 4
        {
            collect_names(inner, names, depth + 1);
        }
    }
}

fn dtype(path: &Path, format: Format, document: &Value) -> Result<DType> {
    let (field, found) = if format == Format::Zarr3 {
        let field = document.get("data_type").unwrap_or(&Value::Null);
        let name = field.get("name").unwrap_or(field).as_str();
        let found = name.and_then(DType::from_name);
        (field, found.filter(|dtype| Some(dtype.name()) == name))
    } else {
        let field = document.get("dtype").unwrap_or(&Value::Null);
        (field, field.as_str().and_then(v2_dtype))
    };
    found.ok_or_else(|| {
        let names = DType::ALL.map(DType::name).join(", ");
        Error::unsupported(
            path,
            format!("voxels of data type {field} are not read; {names} are"),
        )
    })
}

/// Rewrites codecs for zarrs. It does not know the `numcodecs.` names of codecs that Zarr v3 has adopted since, and it
/// requires settings that are irrelevant to decoding.
pub(super) fn plain_codecs(list: &mut Value) {
    if let Some(list) = list.as_array_mut() {
        list.retain(|codec| !only_rounds(codec, None));
    }
    for codec in list.as_array_mut().into_iter().flatten() {
        let Some(codec) = codec.as_object_mut() else {
            continue;
        };
        let name = codec.get("name").and_then(Value::as_str).unwrap_or("");
        let plain = name.strip_prefix("numcodecs.").unwrap_or(name);
        let plain = match plain {
            "blosc" | "crc32c" | "gzip" | "zstd" => plain.to_owned(),
            _ => name.to_owned(),
        };
        let renamed = plain != name;
        let defaults = match plain.as_str() {
            "zstd" => json!({"level": 0, "checksum": false}),
            "gzip" => json!({"level": 5}),
            "blosc" => json!({"clevel": 5, "blocksize": 0}),
            _ => json!({}),
        };
        let configuration = codec.entry("configuration").or_insert_with(|| json!({}));
        if let Some(configuration) = configuration.as_object_mut() {
            for (key, value) in defaults.as_object().into_iter().flatten() {
                configuration.entry(key).or_insert_with(|| value.clone());
            }
            if plain == "blosc" && renamed {
                configuration.insert("shuffle".to_owned(), json!("noshuffle"));
            }
            for inner in ["codecs", "index_codecs"] {
                configuration
                    .get_mut(inner)
                    .into_iter()
                    .for_each(plain_codecs);
            }
        }
        codec.insert("name".to_owned(), Value::String(plain));
    }
}

/// Removes the filters of a Zarr v2 array that do nothing on decoding.
pub(super) fn plain_filters(document: &mut Map<String, Value>) {
    let dtype = document.get("dtype").cloned();
    if let Some(Value::Array(filters)) = document.get_mut("filters") {
        filters.retain(|filter| !only_rounds(filter, dtype.as_ref()));
    }
}

/// Returns `true` if a codec of numcodecs rounds voxels on writing and leaves them unchanged on reading. Only codecs
/// that zarrs does not have are checked. In Zarr v2, the codec must have the array's `dtype`.
fn only_rounds(codec: &Value, dtype: Option<&Value>) -> bool {
    let name = |key| codec.get(key).and_then(Value::as_str);
    let settings = codec.get("configuration").unwrap_or(codec);
    let own = settings.get("dtype");
    let is_kept = || settings.get("astype").is_none_or(|to| Some(to) == own);
    match (name("id"), name("name")) {
        (Some("bitround"), _) => true,
        (Some("quantize"), _) => own == dtype && is_kept(),
        (_, Some("numcodecs.quantize")) => is_kept(),
        _ => false,
    }
}

/// Returns the fill value in the form that zarrs accepts: some writers omit it, or write a whole number with a decimal
/// point.
pub(super) fn fill_value(document: &Value, dtype: DType) -> Value {
    let zero = match dtype {
        DType::Bool => Value::Bool(false),
        dtype if dtype.is_float() => Value::from(0.0),
        _ => Value::from(0),
    };
    let fill = document.get("fill_value");
    // Some writers store every number as a string.
    let text = fill.and_then(Value::as_str).map(str::trim);
    let number = text.and_then(|text| serde_json::from_str::<serde_json::Number>(text).ok());
    let number = number.map(Value::Number);
    match number.as_ref().or(fill) {
        None | Some(Value::Null) => zero,
        Some(Value::String(text)) if text.is_empty() => zero,
        Some(Value::String(text)) if dtype == DType::Bool && text.eq_ignore_ascii_case("false") => {
            Value::Bool(false)
        }
        Some(Value::String(text)) if dtype == DType::Bool && text.eq_ignore_ascii_case("true") => {
            Value::Bool(true)
        }
        Some(fill) if dtype == DType::Bool => match fill.as_f64() {
            Some(number) => Value::Bool(number != 0.0),
            None => fill.clone(),
        },
        Some(fill) if dtype.is_integer() => match fill.as_f64() {
            // Below 2^53 a whole f64 prints as that integer.
            Some(number)
                if fill.is_f64() && number.fract() == 0.0 && number.abs() < 2_f64.powi(53) =>
            {
                format!("{number}")
                    .parse::<i64>()
                    .map_or_else(|_| fill.clone(), Value::from)
            }
            _ => fill.clone(),
        },
        Some(fill) => fill.clone(),
    }
}

/// Parses a numpy type string like `<i2`; the codecs handle the byte order.
fn v2_dtype(name: &str) -> Option<DType> {
    DType::from_code(name.strip_prefix(['<', '>', '|'])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(shape: &Value, chunk: &Value) -> Result<ArrayInfo> {
        let grid = json!({"name": "regular", "configuration": {"chunk_shape": chunk}});
        let document = json!({"shape": shape, "data_type": "int16", "chunk_grid": grid,
            "codecs": [{"name": "bytes"}, {"name": "blosc", "configuration": {"cname": "lz4"}}]});
        ArrayInfo::parse(Path::new("x.zarr"), Format::Zarr3, &document, &[])
    }

    #[test]
    fn leading_dimensions_become_channels() {
        let facts = parse(&json!([3, 4, 10, 11, 12]), &json!([1, 2, 5, 5, 5])).unwrap();
        assert_eq!((facts.channels(), facts.shape()), (12, [10, 11, 12]));
        assert_eq!(facts.as_chunk(&facts.read_chunk), [2, 5, 5, 5]);
        assert_eq!(facts.chunk_index([3, 1, 2, 0]), [1, 1, 1, 2, 0]);
        assert_eq!(facts.codecs, ["bytes", "blosc-lz4"]);
        assert_eq!(facts.steps(), [250, 125, 25, 5, 1]);
        let flat = parse(&json!([11, 12]), &json!([5, 5])).unwrap();
        assert_eq!(
            (
                flat.channels(),
                flat.shape(),
                flat.chunk_index([0, 0, 1, 2])
            ),
            (1, [1, 11, 12], vec![1, 2])
        );
    }

    #[test]
    fn absurd_shapes_are_refused_before_they_are_used() {
        let refused = |shape: Value, chunk: Value| parse(&shape, &chunk).unwrap_err().to_string();
        assert!(refused(json!([1_u64 << 40, 1_u64 << 40, 4]), json!([1, 1, 4])).contains("2^63"));
        assert!(
            refused(json!([9, 9, 9]), json!([u64::MAX / 2, u64::MAX / 2, 4]))
                .contains("larger than")
        );
        assert!(refused(json!([9, 9, 9]), json!([4096, 4096, 4096])).contains("larger than"));
        assert!(refused(json!([9, 9, 9]), json!([3, 3])).contains("different rank"));
        assert!(refused(json!([9, 9, 9]), json!([3, 0, 3])).contains("above 0"));
        assert!(refused(json!([9, -9, 9]), json!([3, 3, 3])).contains("above 0"));
        assert!(refused(json!([9]), json!([3])).contains("not a volume"));
        assert!(refused(json!([3, 4, 5, 6, 7]), json!([2, 2, 5, 6, 7])).contains("mix"));
    }
}
