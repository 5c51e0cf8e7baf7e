//! Requests that write: single puts, large objects in parts, and removals.
//!
//! A put is repeated as a read is. An object that must not exist yet is put on that condition; a repetition can then
//! find the object of its own first attempt, which only the writer can recognize, by its content.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path as Key;
use object_store::{
    Attribute, AttributeValue, Attributes, PutMode, PutOptions, PutPayload, PutResult,
};

use super::client::{Client, Seen, Setback, Watcher, refusal, said};
use super::object::{Failure, plain_tag};

/// Objects of more bytes are written in parts.
pub(super) const LARGEST_PUT: usize = 64 << 20;

/// The bytes of a part.
const PART: usize = 16 << 20;

/// The parts of an object that are on their way at once.
const PARTS_AT_ONCE: usize = 4;

/// The slowest upload that is not given up, in bytes per second. No answer arrives before the last byte was sent.
const SLOWEST: u64 = 256 << 10;

/// The name of the metadata entry that marks an object. All stores allow names of letters alone.
const MARK: &str = "voxpatchrun";

/// Keys that are removed together.
const REMOVED_AT_ONCE: usize = 1000;

impl Client {
    /// Returns the time that a request with a body of so many bytes may take.
    fn body_time(&self, bytes: usize) -> Duration {
        self.patience.stall + Duration::from_secs(bytes as u64 / SLOWEST)
    }

    /// Writes an object that must not exist, with a mark if there is one. [`Failure::Taken`] if it does.
    pub(super) async fn create(
        &self,
        key: &Key,
        bytes: Bytes,
        mark: Option<String>,
        watcher: &dyn Watcher,
    ) -> Result<(), Failure> {
        let mut options = PutOptions::from(PutMode::Create);
        let entry = |mark: String| (Attribute::Metadata(MARK.into()), AttributeValue::from(mark));
        options.attributes = mark.map(entry).into_iter().collect();
        let put = self.put_once(key, bytes, options, watcher).await;
        put.map(|_| ())
    }

    /// Returns the mark of an object, if it has one.
    pub(super) async fn mark(
        &self,
        key: &Key,
        watcher: &dyn Watcher,
    ) -> Result<Option<String>, Failure> {
        let found: Attributes = self.look(key, watcher).await?.attributes;
        let mark = found.get(&Attribute::Metadata(MARK.into()));
        Ok(mark.map(|mark| mark.as_ref().to_owned()))
    }

    /// Writes an object, or replaces it. Returns its entity tag, if the server has one.
    pub(super) async fn put(
        &self,
        key: &Key,
        bytes: Bytes,
        watcher: &dyn Watcher,
    ) -> Result<Option<String>, Failure> {
        if bytes.len() > LARGEST_PUT {
            return self.put_parts(key, bytes, watcher).await;
        }
        let put = self
            .put_once(key, bytes, PutOptions::default(), watcher)
            .await;
        put.map(|done| plain_tag(done.e_tag))
    }

    async fn put_once(
        &self,
        key: &Key,
        bytes: Bytes,
        options: PutOptions,
        watcher: &dyn Watcher,
    ) -> Result<PutResult, Failure> {
        let time = self.body_time(bytes.len());
        let judge: fn(&object_store::Error, &Seen) -> Setback = match options.mode {
            PutMode::Create => refused_condition,
            _ => refused_write,
        };
        let payload = PutPayload::from(bytes);
        self.repeated_within(key.as_ref(), time, watcher, judge, || {
            self.store.put_opts(key, payload.clone(), options.clone())
        })
        .await
    }

    /// Writes a large object. It appears when all of its parts are there.
    async fn put_parts(
        &self,
        key: &Key,
        bytes: Bytes,
        watcher: &dyn Watcher,
    ) -> Result<Option<String>, Failure> {
        let Some(store) = &self.multipart else {
            return Err(Failure::ReadOnly);
        };
        let name = key.as_ref();
        let stall = self.patience.stall;
        let id = self
            .repeated_within(name, stall, watcher, refused_write, || {
                store.create_multipart(key)
            })
            .await?;
        let count = bytes.len().div_ceil(PART);
        let parts = stream::iter(0..count).map(|n| {
            let part = bytes.slice(n * PART..bytes.len().min((n + 1) * PART));
            let (id, time) = (&id, self.body_time(part.len()));
            async move {
                self.repeated_within(name, time, watcher, refused_write, || {
                    store.put_part(key, id, n, part.clone().into())
                })
                .await
            }
        });
        let parts: Result<Vec<_>, Failure> = parts.buffered(PARTS_AT_ONCE).try_collect().await;
        let done = match parts {
            Ok(parts) => {
                self.repeated_within(name, stall, watcher, refused_write, || {
                    store.complete_multipart(key, &id, parts.clone())
                })
                .await
            }
            Err(failure) => Err(failure),
        };
        let failure = match done {
            Ok(done) => return Ok(plain_tag(done.e_tag)),
            Err(failure) => failure,
        };
        // The answer to a first request that completed the object may be lost.
        if let Ok(found) = self.head(key, watcher).await
            && found.size == bytes.len() as u64
        {
            return Ok(plain_tag(found.etag));
        }
        // What cannot be removed takes space until the store's rules for unfinished uploads remove it.
        let _ = tokio::time::timeout(stall, store.abort_multipart(key, &id)).await;
        Err(failure)
    }

    /// Removes objects. One that does not exist is removed already.
    pub(super) async fn remove(&self, keys: &[Key], watcher: &dyn Watcher) -> Result<(), Failure> {
        for some in keys.chunks(REMOVED_AT_ONCE) {
            let request = || async {
                let keys: Vec<_> = some.iter().cloned().map(Ok).collect();
                let mut removed = self.store.delete_stream(stream::iter(keys).boxed());
                while let Some(one) = removed.next().await {
                    match one {
                        Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            };
            let time = self.body_time(some.len() << 10);
            self.repeated_within("", time, watcher, refused_write, request)
                .await?;
        }
        Ok(())
    }
}

/// Returns what a failed request to write, or for what is there, means.
pub(super) fn refused_write(error: &object_store::Error, seen: &Seen) -> Setback {
    let not_done = matches!(
        error,
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }
    );
    match seen.status() {
        _ if not_done => Setback::Final(Failure::ReadOnly),
        // The bucket does not exist, or an upload is unknown.
        404 | 410 => Setback::Final(said(io::ErrorKind::NotFound, seen, error)),
        // Another request for the same object is running.
        409 => Setback::Again(said(io::ErrorKind::Other, seen, error)),
        // The body took too long.
        400 if error.to_string().contains("RequestTimeout") => {
            Setback::Again(said(io::ErrorKind::TimedOut, seen, error))
        }
        _ => refusal(error, seen, false),
    }
}

/// Returns what a failed request to write a new object means.
fn refused_condition(error: &object_store::Error, seen: &Seen) -> Setback {
    match (error, seen.status()) {
        // With S3, 409 means that another request for the object is running; with Azure, that it exists.
        (object_store::Error::AlreadyExists { .. }, status)
            if status != 409 || error.to_string().contains("BlobAlreadyExists") =>
        {
            Setback::Final(Failure::Taken)
        }
        (object_store::Error::NotImplemented { .. }, _) | (_, 405 | 501) => {
            Setback::Final(Failure::NoConditions)
        }
        _ => refused_write(error, seen),
    }
}
