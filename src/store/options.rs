//! Options for object stores.

use std::collections::BTreeMap;
use std::fmt;

/// Options for opening object stores: credentials, endpoints and regions, by name.
///
/// The names are those of the store's own tools (`aws_access_key_id`, `google_service_account`,
/// `azure_storage_account_name`, with or without the prefix) and those of fsspec (`key`, `secret`, `token`,
/// `endpoint_url`, `anon`). Options that are not given are taken from the environment and, for S3, from the profile
/// (`AWS_PROFILE`, `~/.aws`). Values are never printed.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorageOptions(BTreeMap<String, String>);

impl StorageOptions {
    /// Creates options without any values.
    #[must_use]
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Sets an option. Names are not case-sensitive.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0.insert(name.to_ascii_lowercase(), value.into());
        self
    }

    /// Returns `true` if there are no options.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes an option and returns its value.
    #[cfg(feature = "cloud")]
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    #[cfg(feature = "cloud")]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

impl<N: AsRef<str>, V: Into<String>> FromIterator<(N, V)> for StorageOptions {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(options: I) -> Self {
        let all = options.into_iter();
        Self(
            all.map(|(name, value)| (name.as_ref().to_ascii_lowercase(), value.into()))
                .collect(),
        )
    }
}

impl IntoIterator for StorageOptions {
    type Item = (String, String);
    type IntoIter = std::collections::btree_map::IntoIter<String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Debug for StorageOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.0.keys().map(|name| (name, "...")))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_printed() {
        let options = StorageOptions::new().with("SECRET", "hush");
        assert_eq!(format!("{options:?}"), r#"{"secret": "..."}"#);
    }
}
