//! The options of an unfinished image, read back from its metadata.

use std::path::Path;

use serde_json::Value as Json;

use super::super::{Codec, CreateOptions, Downsample, Format, Pyramid, ZarrVersion};
use super::meta::ArrayInfo;
use super::store::{Links, read_json};

/// Returns the options of the image in a folder, if this crate wrote it and its metadata is complete.
pub(in super::super) fn partial_options(folder: &Path) -> Option<CreateOptions> {
    let document = |name: &str| read_json(folder, name, Links::Refused).ok().flatten();
    options_of(folder, &document)
}

/// Returns the options of an image whose metadata `document` returns by their names in its folder.
pub(super) fn options_of(
    path: &Path,
    document: &dyn Fn(&str) -> Option<Json>,
) -> Option<CreateOptions> {
    let (version, format, image, array) = if let Some(group) = document("zarr.json") {
        let image = group.pointer("/attributes/ome/multiscales/0")?.clone();
        let array = document("0/zarr.json")?;
        (ZarrVersion::V3, Format::Zarr3, image, array)
    } else {
        let image = document(".zattrs")?;
        let image = image.pointer("/multiscales/0")?.clone();
        let array = document("0/.zarray")?;
        (ZarrVersion::V2, Format::Zarr2, image, array)
    };
    let facts = ArrayInfo::parse(path, format, &array, &[]).ok()?;
    let [_, chunk @ ..] = facts.as_chunk(&facts.read_chunk);
    let [_, shard @ ..] = facts.as_chunk(&facts.write_chunk);
    let (codec, level) = match version {
        ZarrVersion::V3 => codec(&array)?,
        ZarrVersion::V2 => codec_v2(&array)?,
    };
    Some(CreateOptions {
        chunk,
        shard: facts.sharded.then_some(shard),
        codec,
        clevel: level,
        zarr: version,
        pyramid: pyramid(&image)?,
        ..CreateOptions::default()
    })
}

/// Returns the levels that an image's metadata declares; `Some(None)` if it was written without a pyramid.
#[expect(clippy::option_option, reason = "no pyramid is an answer")]
fn pyramid(image: &Json) -> Option<Option<Pyramid>> {
    let levels = image.get("datasets")?.as_array()?.len();
    let Some(name) = image.get("type") else {
        return Some(None);
    };
    let all = [Downsample::Mean, Downsample::Mode];
    let method = all
        .into_iter()
        .find(|method| name.as_str() == Some(method.name()))?;
    Some(Some(Pyramid {
        levels: Some(levels),
        method,
    }))
}

/// Returns the codec and the compression level of a Zarr v3 array.
fn codec(array: &Json) -> Option<(Codec, Option<u8>)> {
    let mut list = array.get("codecs")?.as_array()?;
    if let Some(inner) = list[..].first()?.pointer("/configuration/codecs") {
        list = inner.as_array()?;
    }
    let Some(last) = list.get(1) else {
        return Some((Codec::None, None));
    };
    let name = last.get("name")?.as_str()?;
    named(name, last.get("configuration")?)
}

/// Returns the codec and the compression level of a Zarr v2 array.
fn codec_v2(array: &Json) -> Option<(Codec, Option<u8>)> {
    match array.get("compressor")? {
        Json::Null => Some((Codec::None, None)),
        compressor => named(compressor.get("id")?.as_str()?, compressor),
    }
}

fn named(name: &str, configuration: &Json) -> Option<(Codec, Option<u8>)> {
    let number = |key: &str| u8::try_from(configuration.get(key)?.as_u64()?).ok();
    let inner = configuration.get("cname").and_then(Json::as_str);
    let (codec, level) = match (name, inner) {
        ("zstd", _) => (Codec::Zstd, number("level")?),
        ("gzip", _) => (Codec::Gzip, number("level")?),
        ("zlib", _) => (Codec::Zlib, number("level")?),
        ("blosc", Some("zstd")) => (Codec::BloscZstd, number("clevel")?),
        ("blosc", Some("lz4")) => (Codec::BloscLz4, number("clevel")?),
        _ => return None,
    };
    Some((codec, Some(level)))
}

#[cfg(test)]
mod tests {
    use super::super::super::{Layout, create};
    use super::super::document::{files, plan};
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn options_come_back_so_that_they_give_the_same_documents() {
        let dir = tempfile::tempdir().unwrap();
        let shards = [None, Some([16, 8, 24]), Some([64; 3])];
        let pyramids = [None, Some(Some(2)), Some(None)];
        let mut all = 0;
        for format in [ZarrVersion::V2, ZarrVersion::V3] {
            for codec in [
                Codec::Zstd,
                Codec::BloscZstd,
                Codec::BloscLz4,
                Codec::Gzip,
                Codec::Zlib,
                Codec::None,
            ] {
                for (level, shard) in shards.iter().enumerate().map(|(n, shard)| {
                    let level = u8::try_from(n).unwrap();
                    ((level > 0).then_some(level), *shard)
                }) {
                    for levels in pyramids {
                        let options = CreateOptions {
                            chunk: [8; 3],
                            shard,
                            codec,
                            clevel: level,
                            zarr: format,
                            pyramid: levels.map(|levels| Pyramid {
                                levels,
                                method: Downsample::Mode,
                            }),
                            ..CreateOptions::default()
                        };
                        let layout = Layout::new([30, 5, 40], 2, DType::I16);
                        let path = dir.path().join(format!("{all}.zarr"));
                        let Ok(output) = create(&path, &layout, &options) else {
                            continue;
                        };
                        let layout = output.layout().clone();
                        output.finish().unwrap();
                        let found = partial_options(&path).unwrap();
                        let documents = |options: &CreateOptions| {
                            let planned = plan(&layout, options).unwrap();
                            files(&planned, "name", options)
                        };
                        assert_eq!(documents(&found), documents(&options), "{options:?}");
                        all += 1;
                    }
                }
            }
        }
        assert!(all > 50, "{all}");
        assert_eq!(partial_options(dir.path()), None);
    }
}
