//! Where bytes come from: files, objects in stores, and web servers.
//!
//! Only this module uses the `object_store` crate, and only with the feature `cloud`. Without it, addresses are
//! refused with an error that says so.

mod cache;
#[cfg(feature = "cloud")]
mod client;
#[cfg(feature = "cloud")]
mod connect;
#[cfg(feature = "cloud")]
mod engine;
#[cfg(test)]
#[cfg(feature = "cloud")]
pub(crate) mod faulty;
mod object;
mod options;
#[cfg(feature = "cloud")]
mod process;
#[cfg(feature = "cloud")]
mod profile;
#[cfg(feature = "cloud")]
mod put;
#[cfg(feature = "cloud")]
mod remote;
mod source;
#[cfg(feature = "cloud")]
mod uploads;
mod versions;
#[cfg(not(feature = "cloud"))]
mod without;

use std::path::{Path, PathBuf};

pub(crate) use self::cache::DiskCache;
#[cfg(feature = "cloud")]
pub(crate) use self::engine::HELD_BYTES;
pub(crate) use self::object::{Digest, Listed, Part, Version};
pub use self::options::StorageOptions;
#[cfg(feature = "cloud")]
pub(crate) use self::remote::Remote;
pub(crate) use self::source::{Input, Place, read_error};
#[cfg(feature = "cloud")]
pub(crate) use self::uploads::Uploads;
pub(crate) use self::versions::{Versions, version_bytes};
#[cfg(not(feature = "cloud"))]
pub(crate) use self::without::{HELD_BYTES, Remote, Uploads};

/// Returns the numbers of requests for objects, and of bytes received for them, of this process.
#[cfg(all(feature = "cloud", any(test, feature = "testing")))]
#[must_use]
pub fn request_counts() -> (u64, u64) {
    Remote::counts()
}

/// Returns the most bytes of answers that were held for reads to come since the last call, and those of running requests.
#[cfg(all(feature = "cloud", any(test, feature = "testing")))]
#[must_use]
pub fn most_held_bytes() -> u64 {
    Remote::take_most_held()
}

/// The schemes of addresses.
const SCHEMES: &[&str] = &[
    "s3",
    "s3a",
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "http",
    "https",
    #[cfg(test)]
    "memory",
];

/// Returns `true` if a path is an address of an object.
#[must_use]
pub fn is_remote(path: &Path) -> bool {
    let scheme = path.to_str().and_then(|text| text.split_once("://"));
    scheme.is_some_and(|(scheme, _)| SCHEMES.contains(&scheme))
}

/// Returns the path of a `file://` address, and any other path as it is.
pub(crate) fn local(path: &Path) -> PathBuf {
    let text = path.to_str();
    let stripped = text.and_then(|text| text.strip_prefix("file://"));
    // The host, if there is one, is this machine.
    let stripped = stripped.map(|rest| rest.strip_prefix("localhost").unwrap_or(rest));
    stripped.map_or_else(|| path.to_path_buf(), PathBuf::from)
}

/// Returns an address without its secrets: user, password and query.
#[must_use]
pub fn shown(address: &Path) -> PathBuf {
    let Some((scheme, rest)) = address.to_str().and_then(|text| text.split_once("://")) else {
        return address.to_path_buf();
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = rest
        .split_once('/')
        .map_or((rest, None), |(host, path)| (host, Some(path)));
    let host = host.rsplit('@').next().unwrap_or_default();
    let path = path.map(|path| format!("/{}", path.trim_end_matches('/')));
    PathBuf::from(format!("{scheme}://{host}{}", path.unwrap_or_default()))
}

/// Returns scheme and host of an address without secrets.
#[cfg(feature = "cloud")]
fn root(shown: &Path) -> String {
    let text = shown.to_string_lossy();
    let host = text.find("://").map_or(0, |at| at + 3);
    let end = text[host..].find('/').map_or(text.len(), |at| host + at);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_recognized_and_shown_without_secrets() {
        assert!(is_remote(Path::new("s3://bucket/a.zarr")) && is_remote(Path::new("http://h/a")));
        assert!(!is_remote(Path::new("s3/a.zarr")) && !is_remote(Path::new("ftp://h/a")));
        for (address, expected) in [
            ("s3://bucket/a.zarr/", "s3://bucket/a.zarr"),
            (
                "https://me:pw@host:80/a/b.nii?sig=x#y",
                "https://host:80/a/b.nii",
            ),
            ("az://box", "az://box"),
            ("a@b/c?d", "a@b/c?d"),
        ] {
            assert_eq!(shown(Path::new(address)), Path::new(expected), "{address}");
        }
        assert_eq!(
            local(Path::new("file:///data/a.nii")),
            Path::new("/data/a.nii")
        );
        assert_eq!(local(Path::new("a.nii")), Path::new("a.nii"));
    }
}
