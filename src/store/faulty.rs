//! Stores in memory that fail as a test tells them to: `memory://NAME`.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::client::SEEN;
use super::connect::Both;

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The server answers with this status.
    Status(u16),
    /// The request is carried out, and the answer is lost.
    LostAnswer,
    /// No answer comes.
    Stall,
    /// A put ignores its condition.
    NoConditions,
}

/// A rule that says what goes wrong: for the name of the request, the key, and the number of the request of this name.
type Rule = Box<dyn Fn(&str, &str, u64) -> Option<Fault> + Send + Sync>;

/// A store in memory.
pub(crate) struct Faulty {
    inner: Arc<InMemory>,
    rule: Mutex<Option<Arc<Rule>>>,
    counts: Mutex<HashMap<String, u64>>,
    /// The most puts at once.
    pub(crate) most: AtomicU64,
    running: AtomicU64,
}

static STORES: Mutex<Option<HashMap<String, Arc<Faulty>>>> = Mutex::new(None);

/// Returns the store at `memory://NAME`, which the first call makes.
pub(crate) fn named(base: &str) -> Arc<Faulty> {
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    let stores = stores.get_or_insert_default();
    let new = || {
        Arc::new(Faulty {
            inner: Arc::default(),
            rule: Mutex::default(),
            counts: Mutex::default(),
            most: AtomicU64::new(0),
            running: AtomicU64::new(0),
        })
    };
    Arc::clone(stores.entry(base.to_owned()).or_insert_with(new))
}

/// Returns the store at `memory://NAME` with the objects of another: what goes wrong with one does not go wrong with the
/// other. So each of several processes can fail on its own.
pub(crate) fn shared(base: &str, other: &Faulty) -> Arc<Faulty> {
    let store = Arc::new(Faulty {
        inner: Arc::clone(&other.inner),
        rule: Mutex::default(),
        counts: Mutex::default(),
        most: AtomicU64::new(0),
        running: AtomicU64::new(0),
    });
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    let stores = stores.get_or_insert_default();
    stores.insert(base.to_owned(), Arc::clone(&store));
    store
}

pub(super) fn store(base: &str) -> Both {
    let store = named(base);
    (Arc::clone(&store) as _, Some(store))
}

impl Faulty {
    /// Sets what goes wrong from now on.
    pub(crate) fn fail(
        &self,
        rule: impl Fn(&str, &str, u64) -> Option<Fault> + Send + Sync + 'static,
    ) {
        *self.rule.lock().unwrap() = Some(Arc::new(Box::new(rule)));
        self.counts.lock().unwrap().clear();
    }

    /// Nothing goes wrong any more.
    pub(crate) fn heal(&self) {
        *self.rule.lock().unwrap() = None;
    }

    /// Returns the number of requests of a name since the rule was set.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.counts.lock().unwrap().get(name).copied().unwrap_or(0)
    }

    /// Returns all objects, by key.
    pub(crate) fn objects(&self) -> Vec<(String, Vec<u8>)> {
        let all = async {
            let listed: Vec<ObjectMeta> = self.inner.list(None).try_collect().await.unwrap();
            let mut found = Vec::new();
            for meta in listed {
                let got = self.inner.get_opts(&meta.location, GetOptions::default());
                let bytes = got.await.unwrap().bytes().await.unwrap();
                found.push((meta.location.to_string(), bytes.to_vec()));
            }
            found.sort();
            found
        };
        futures_util::FutureExt::now_or_never(all).expect("it is in memory")
    }

    /// Puts an object of a stranger.
    pub(crate) fn plant(&self, key: &str, bytes: &[u8]) {
        let key = Key::parse(key).unwrap();
        let payload = PutPayload::from(bytes.to_vec());
        let put = self.inner.put_opts(&key, payload, PutOptions::default());
        futures_util::FutureExt::now_or_never(put)
            .expect("it is in memory")
            .unwrap();
    }

    /// Removes an object, as a stranger does.
    pub(crate) fn unplant(&self, key: &str) {
        let key = Key::parse(key).unwrap();
        let keys = futures_util::stream::once(async move { Ok(key) });
        let removed = self.inner.delete_stream(keys.boxed());
        let removed = removed.try_collect::<Vec<_>>();
        futures_util::FutureExt::now_or_never(removed)
            .expect("it is in memory")
            .unwrap();
    }

    fn fault(&self, name: &str, key: &str) -> Option<Fault> {
        let mut counts = self.counts.lock().unwrap();
        let count = counts.entry(name.to_owned()).or_default();
        *count += 1;
        let count = *count;
        // A rule may wait.
        drop(counts);
        let rule = self.rule.lock().unwrap().clone();
        rule?(name, key, count)
    }

    /// Carries out a request, unless a fault prevents it.
    async fn with_fault<T>(
        &self,
        fault: Option<Fault>,
        request: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let failed = |status: u16| {
            let _ = SEEN.try_with(|seen| {
                seen.sent.store(true, Ordering::Relaxed);
                seen.status.store(status, Ordering::Relaxed);
            });
            Error::Generic {
                store: "memory",
                source: format!("a fault {status}").into(),
            }
        };
        match fault {
            Some(Fault::Status(status)) => return Err(failed(status)),
            Some(Fault::LostAnswer) => {
                let _ = request.await;
                return Err(failed(0));
            }
            Some(Fault::Stall) => std::future::pending().await,
            Some(Fault::NoConditions) | None => {}
        }
        request.await
    }
}

/// Returns a list that fails with a status.
fn failed_stream<T: Send + 'static>(status: u16) -> BoxStream<'static, Result<T>> {
    let _ = SEEN.try_with(|seen| {
        seen.sent.store(true, Ordering::Relaxed);
        seen.status.store(status, Ordering::Relaxed);
    });
    let error = Error::Generic {
        store: "memory",
        source: "a fault".into(),
    };
    futures_util::stream::once(async { Err(error) }).boxed()
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").finish_non_exhaustive()
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a faulty store")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        key: &Key,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(running, Ordering::Relaxed);
        let fault = self.fault("put", key.as_ref());
        if matches!(fault, Some(Fault::NoConditions)) {
            options = PutOptions::default();
        }
        let request = self.inner.put_opts(key, payload, options);
        let done = self.with_fault(fault, request).await;
        self.running.fetch_sub(1, Ordering::Relaxed);
        done
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        let fault = self.fault("get", key.as_ref());
        let request = self.inner.get_opts(key, options);
        let done = self.with_fault(fault, request).await;
        if let Err(Error::NotFound { .. }) = &done {
            let _ = SEEN.try_with(|seen| seen.status.store(404, Ordering::Relaxed));
        }
        done
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        match self.fault("delete", "") {
            Some(Fault::Status(status)) => failed_stream(status),
            _ => self.inner.delete_stream(keys),
        }
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.fault("list", prefix.map_or("", AsRef::as_ref)) {
            Some(Fault::Status(status)) => failed_stream(status),
            _ => self.inner.list(prefix),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl MultipartStore for Faulty {
    async fn create_multipart(&self, key: &Key) -> Result<MultipartId> {
        let fault = self.fault("create_multipart", key.as_ref());
        self.with_fault(fault, self.inner.create_multipart(key))
            .await
    }

    async fn put_part(
        &self,
        key: &Key,
        id: &MultipartId,
        n: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        let fault = self.fault("put_part", key.as_ref());
        self.with_fault(fault, self.inner.put_part(key, id, n, data))
            .await
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        let fault = self.fault("complete_multipart", key.as_ref());
        self.with_fault(fault, self.inner.complete_multipart(key, id, parts))
            .await
    }

    async fn abort_multipart(&self, key: &Key, id: &MultipartId) -> Result<()> {
        self.fault("abort_multipart", key.as_ref());
        self.inner.abort_multipart(key, id).await
    }
}
