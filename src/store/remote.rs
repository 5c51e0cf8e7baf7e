//! Objects by path, in stores and on web servers.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt, TryStreamExt};
use object_store::ObjectMeta;
use object_store::path::Path as Key;
use tokio::time::timeout;

use super::cache::DiskCache;
use super::client::Client;
use super::connect::{self, Target};
use super::engine::{Engine, engine, running};
use super::object::{Failure, Fetched, Listed, Part, Version, plain_tag};
use super::options::StorageOptions;
use super::process::PerProcess;
use super::put::refused_write;
use super::uploads::Uploads;
use crate::error::{Error, Result};

/// A bucket or a web server. Paths are addresses without secrets: `s3://bucket/scan.zarr/zarr.json`.
#[derive(Clone, Debug)]
pub(crate) struct Remote(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Identifies the prefetches of this volume.
    owner: u64,
    target: Target,
    /// The start of all paths: scheme and host.
    root: String,
    client: PerProcess<Arc<Client>>,
    cache: Option<Arc<DiskCache>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(engine) = running() {
            engine.forget(self.owner);
        }
    }
}

impl Remote {
    /// Returns the store of an address, and the address without secrets. Nothing is requested yet.
    /// What is read goes into the cache.
    pub(crate) fn open(
        address: &Path,
        options: &StorageOptions,
        cache: Option<Arc<DiskCache>>,
    ) -> Result<(Self, PathBuf)> {
        static OWNERS: AtomicU64 = AtomicU64::new(0);
        let shown = super::shown(address);
        let failed = |problem: String| Error::unsupported(&shown, problem);
        let text = address
            .to_str()
            .ok_or_else(|| failed("its path is not UTF-8".to_owned()))?;
        let (target, _) = connect::split(text, options).map_err(failed)?;
        let remote = Self(Arc::new(Inner {
            owner: OWNERS.fetch_add(1, Ordering::Relaxed),
            target,
            root: super::root(&shown),
            client: PerProcess::new(),
            cache,
        }));
        remote.client(&shown)?;
        Ok((remote, shown))
    }

    /// Reads a part of an object; `None` if there is no such object. An object that is not `pin` is an error, and so is
    /// one of more than `limit` bytes where all are wanted; `length` makes that error from the object's size.
    pub(crate) fn read(
        &self,
        path: &Path,
        part: Part,
        limits: (u64, &dyn Fn(u64) -> Error),
        pin: Option<&Arc<Version>>,
    ) -> Result<Option<Fetched>> {
        let Some(cache) = &self.0.cache else {
            return self.fetch(path, part, limits, pin);
        };
        let version = match pin {
            Some(pin) => Arc::clone(pin),
            None => match self.version(path)? {
                Some(version) => Arc::new(version),
                None => return Ok(None),
            },
        };
        let Some(name) = self.entry(path, &part, &version) else {
            return self.fetch(path, part, limits, Some(&version));
        };
        let found = cache.get(&name);
        if let Some(bytes) = found.filter(|bytes| bytes.len() as u64 <= limits.0) {
            let bytes = bytes.into();
            return Ok(Some(Fetched { bytes, version }));
        }
        let fetched = self.fetch(path, part, limits, Some(&version))?;
        if let Some(fetched) = &fetched {
            cache.put(&name, &fetched.bytes);
        }
        Ok(fetched)
    }

    /// Returns the name of a part of an object in the cache; `None` if its version has no entity tag.
    fn entry(&self, path: &Path, part: &Part, version: &Version) -> Option<String> {
        let tag = version.etag.as_ref()?;
        let range = part.range(version.size);
        let (path, size) = (path.display(), version.size);
        let server = self.0.target.server();
        Some(format!(
            "{server}\n{path}\n{tag}\n{size}\n{}-{}",
            range.start, range.end
        ))
    }

    /// As [`read`](Self::read), from the server.
    fn fetch(
        &self,
        path: &Path,
        part: Part,
        (limit, length): (u64, &dyn Fn(u64) -> Error),
        pin: Option<&Arc<Version>>,
    ) -> Result<Option<Fetched>> {
        let (engine, client) = self.client(path)?;
        let place = (self.0.owner, client);
        let key = self.key(path)?;
        let ranged = (client.allow_whole && part != Part::Whole).then(|| part.clone());
        let read = match (engine.read(place, &key, part, limit, pin.cloned()), ranged) {
            (Err(Failure::NoRanges), Some(part)) => {
                let all = engine.read(place, &key, Part::Whole, u64::MAX, pin.cloned());
                all.and_then(|all| all.part(&part))
            }
            (read, _) => read,
        };
        match read {
            Ok(fetched) => Ok(Some(fetched)),
            Err(Failure::Absent) => Ok(None),
            Err(Failure::Length(size)) => Err(length(size)),
            Err(failure) => Err(failed(path, "read", failure)),
        }
    }

    /// Begins to read a part of an object. Nothing depends on it.
    pub(crate) fn prefetch(&self, path: &Path, part: Part, limit: u64, pin: Option<&Arc<Version>>) {
        if let Some(cache) = &self.0.cache {
            // Without the version, nobody knows whether the cache has it.
            let Some(pin) = pin else {
                return;
            };
            let name = self.entry(path, &part, pin);
            if name.is_some_and(|name| cache.has(&name)) {
                return;
            }
        }
        if let Ok((engine, client)) = self.client(path)
            && let Ok(key) = self.key(path)
        {
            engine.prefetch((self.0.owner, client), &key, part, limit, pin.cloned());
        }
    }

    /// Returns `true` if a part that was prefetched has arrived.
    pub(crate) fn has(&self, path: &Path, part: &Part) -> bool {
        let client = self.client(path);
        let key = self.key(path);
        client.is_ok_and(|(engine, _)| key.is_ok_and(|key| engine.has(self.0.owner, &key, part)))
    }

    /// Returns the version of an object; `None` if there is no such object.
    pub(crate) fn version(&self, path: &Path) -> Result<Option<Version>> {
        let (engine, client) = self.client(path)?;
        let (client, key) = (Arc::clone(client), Key::from(self.key(path)?));
        match engine
            .wait_for(async move { client.head(&key, engine).await })
            .flatten()
        {
            Ok(version) => Ok(Some(version)),
            Err(Failure::Absent) => Ok(None),
            Err(failure) => Err(failed(path, "look at", failure)),
        }
    }

    /// Returns the paths directly below a path that have something below them, sorted.
    pub(crate) fn folders(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let (engine, client) = self.client(path)?;
        let (client, key) = (Arc::clone(client), self.key(path)?);
        let listed = engine.wait_for(async move {
            let prefix = Key::from(key.as_str());
            client
                .repeated(&key, engine, || {
                    client.store.list_with_delimiter(Some(&prefix))
                })
                .await
        });
        let listed = listed
            .flatten()
            .map_err(|failure| failed(path, "list", failure))?;
        let names = listed.common_prefixes.iter().filter_map(Key::filename);
        let names: BTreeSet<&str> = names.collect();
        Ok(names.into_iter().map(|name| path.join(name)).collect())
    }

    /// Returns the bytes of all objects below a path.
    pub(crate) fn bytes_below(&self, path: &Path) -> Result<u64> {
        let (engine, client) = self.client(path)?;
        let (client, key) = (Arc::clone(client), self.key(path)?);
        let listed = engine.wait_for(async move {
            let prefix = Key::from(key.as_str());
            client
                .repeated(&key, engine, || {
                    let all = client.store.list(Some(&prefix));
                    all.try_fold(0_u64, |bytes, found| async move { Ok(bytes + found.size) })
                })
                .await
        });
        listed
            .flatten()
            .map_err(|failure| failed(path, "list", failure))
    }

    /// Checks that objects can be written there.
    pub(crate) fn check_writable(&self, path: &Path) -> Result<()> {
        let (_, client) = self.client(path)?;
        match client.multipart {
            Some(_) => Ok(()),
            None => Err(failed(path, "write", Failure::ReadOnly)),
        }
    }

    /// Writes an object that must not exist, with a mark in its metadata if there is one. Returns `false` if it does.
    pub(crate) fn create(&self, path: &Path, bytes: Vec<u8>, mark: Option<&str>) -> Result<bool> {
        let (engine, client, key) = self.place(path)?;
        let mark = mark.map(str::to_owned);
        let created =
            engine.wait_for(async move { client.create(&key, bytes.into(), mark, engine).await });
        match created.flatten() {
            Ok(()) => Ok(true),
            Err(Failure::Taken) => Ok(false),
            Err(failure) => Err(failed(path, "write", failure)),
        }
    }

    /// Returns the mark that [`create`](Self::create) gave an object; `None` if it has none, or does not exist.
    pub(crate) fn mark(&self, path: &Path) -> Result<Option<String>> {
        let (engine, client, key) = self.place(path)?;
        let found = engine.wait_for(async move { client.mark(&key, engine).await });
        match found.flatten() {
            Ok(mark) => Ok(mark),
            Err(Failure::Absent) => Ok(None),
            Err(failure) => Err(failed(path, "look at", failure)),
        }
    }

    /// Writes an object, or replaces it.
    pub(crate) fn put(&self, path: &Path, bytes: Vec<u8>) -> Result<()> {
        let (engine, client, key) = self.place(path)?;
        let put = engine.wait_for(async move { client.put(&key, bytes.into(), engine).await });
        put.flatten()
            .map(|_| ())
            .map_err(|failure| failed(path, "write", failure))
    }

    /// Returns what writes objects while its caller goes on, at most `limit` bytes at once.
    pub(crate) fn uploads(&self, limit: u64) -> Uploads {
        Uploads::new(self.clone(), limit)
    }

    /// Returns the objects below a path, at most `most` of them.
    pub(crate) fn list(&self, path: &Path, most: usize) -> Result<Vec<Listed>> {
        let (engine, client, prefix) = self.place(path)?;
        let listed = engine.wait_for(async move {
            let (name, time) = (prefix.as_ref(), client.patience.total);
            client
                .repeated_within(name, time, engine, refused_write, || async {
                    let mut all = client.store.list(Some(&prefix)).take(most);
                    let mut found = Vec::new();
                    // Each page of a long list has the time of a request.
                    while let Some(one) = timeout(client.patience.stall, all.next())
                        .await
                        .map_err(|_| no_answer())?
                    {
                        found.push(one?);
                    }
                    Ok(found)
                })
                .await
                .map(|all| {
                    let inside = |meta: ObjectMeta| {
                        let parts: Vec<_> = meta.location.prefix_match(&prefix)?.collect();
                        let names: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
                        Some(Listed {
                            name: names.join("/"),
                            size: meta.size,
                            tag: plain_tag(meta.e_tag),
                        })
                    };
                    all.into_iter().filter_map(inside).collect()
                })
        });
        listed
            .flatten()
            .map_err(|failure| failed(path, "list", failure))
    }

    /// Removes objects below a path, by their names from there on.
    pub(crate) fn remove(&self, path: &Path, names: &[String]) -> Result<()> {
        let (engine, client, prefix) = self.place(path)?;
        let key = |name: &String| Key::parse(format!("{prefix}/{name}"));
        let keys: Vec<Key> = names
            .iter()
            .map(key)
            .collect::<Result<_, _>>()
            .map_err(|_| Error::unsupported(path, "a name below it is not valid"))?;
        let removed = engine.wait_for(async move { client.remove(&keys, engine).await });
        removed
            .flatten()
            .map_err(|failure| failed(path, "remove objects below", failure))
    }

    /// Returns what a request for the object at a path takes.
    pub(super) fn place(&self, path: &Path) -> Result<(&'static Engine, Arc<Client>, Key)> {
        let (engine, client) = self.client(path)?;
        Ok((engine, Arc::clone(client), Key::from(self.key(path)?)))
    }

    /// Returns the numbers of requests and of received bytes of this process.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn counts() -> (u64, u64) {
        running().map(Engine::counts).unwrap_or_default()
    }

    /// Returns the most bytes that were held since the last call.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn take_most_held() -> u64 {
        running().map_or(0, Engine::take_most_held)
    }

    fn client(&self, path: &Path) -> Result<(&'static Engine, &Arc<Client>)> {
        let engine = engine().map_err(Error::io("start threads for", path))?;
        let target = &self.0.target;
        let client = self.0.client.get_or_try_init(|| engine.clients.get(target));
        let client = client.map_err(|problem| Error::unsupported(path, problem))?;
        Ok((engine, client))
    }

    /// Returns the key of the object at a path.
    fn key(&self, path: &Path) -> Result<String> {
        let below = path
            .to_str()
            .and_then(|path| path.strip_prefix(&self.0.root));
        let key = below.and_then(|below| Key::from_url_path(below).ok());
        key.map(String::from)
            .ok_or_else(|| Error::unsupported(path, "its path is not valid"))
    }
}

fn no_answer() -> object_store::Error {
    object_store::Error::Generic {
        store: "list",
        source: "no answer came in time".into(),
    }
}

/// Returns the error for a path that cannot be read or written.
pub(super) fn failed(path: &Path, action: &'static str, failure: Failure) -> Error {
    match failure {
        Failure::Changed(what) => Error::InputModified {
            path: path.to_path_buf(),
            what,
        },
        Failure::NoRanges => Error::unsupported(
            path,
            "the server ignores ranges: it would send the whole object for each part of it. Copy the object, or set the \
             storage option allow_whole to true if the object is small",
        ),
        Failure::Taken => Error::Exists {
            path: path.to_path_buf(),
        },
        Failure::NoConditions => Error::unsupported(
            path,
            "the server cannot write an object on the condition that it does not exist yet, so that two runs could write \
             the same output without noticing: write to this machine, and copy it",
        ),
        Failure::ReadOnly => Error::unsupported(
            path,
            "nothing is written to web servers: write to an object store, or to this machine",
        ),
        Failure::Absent => Error::io(action, path)(io::ErrorKind::NotFound.into()),
        Failure::Length(size) => {
            let problem = format!("the object has {size} bytes");
            Error::io(action, path)(io::Error::new(io::ErrorKind::UnexpectedEof, problem))
        }
        Failure::Io(error) => {
            Error::io(action, path)(io::Error::new(error.kind(), error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::faulty::named;
    use super::*;

    #[test]
    fn a_read_may_have_more_bytes_than_its_prefetch() {
        let store = named("memory://longer");
        for n in 0..20 {
            store.plant(&format!("{n}"), &[n; 100]);
        }
        let place = Path::new("memory://longer");
        let (remote, _) = Remote::open(place, &StorageOptions::new(), None).unwrap();
        let length = |size| Error::unsupported(place, format!("{size} bytes"));
        for n in 0..20 {
            let path = place.join(n.to_string());
            remote.prefetch(&path, Part::Whole, 10, None);
            if n % 2 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            let read = |limit| remote.read(&path, Part::Whole, (limit, &length), None);
            assert_eq!(read(100).unwrap().unwrap().bytes, [n; 100][..]);
            assert!(read(99).unwrap_err().to_string().contains("100 bytes"));
        }
    }
}
