//! Connections to stores: the scheme of an address, credentials, and a record of each response.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::multipart::MultipartStore;
use object_store::{ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use url::{Position, Url};

use super::client::{Client, Patience, SEEN};
use super::options::StorageOptions;
use super::profile;

/// What a client connects to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    /// The address of the bucket or the server, with secrets.
    pub(super) base: String,
    pub(super) options: StorageOptions,
}

impl Target {
    /// Returns what distinguishes servers that have buckets of the same name: endpoints and accounts, which are no secrets.
    pub(super) fn server(&self) -> String {
        let of_server = |name: &str| name.contains("endpoint") || name.contains("account_name");
        let given = self.options.iter().filter(|(name, _)| of_server(name));
        let given = given.map(|(name, value)| format!("{name}={value}"));
        let variables = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"].into_iter();
        let set =
            variables.filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)));
        given.chain(set).collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The clients of a process. Volumes of one bucket share its connections.
#[derive(Debug, Default)]
pub(super) struct Clients(Mutex<HashMap<Target, Weak<Client>>>);

impl Clients {
    /// Returns the client of a target.
    pub(super) fn get(&self, target: &Target) -> Result<Arc<Client>, String> {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(target).and_then(Weak::upgrade) {
            return Ok(client);
        }
        clients.retain(|_, client| client.strong_count() > 0);
        let client = Arc::new(connect(target)?);
        clients.insert(target.clone(), Arc::downgrade(&client));
        Ok(client)
    }
}

/// Splits an address into its target and the key of the object, without secrets.
pub(super) fn split(address: &str, options: &StorageOptions) -> Result<(Target, String), String> {
    let url = Url::parse(address).map_err(|error| format!("it is not a valid address: {error}"))?;
    let key = percent_decoded(url.path().trim_matches('/'))?;
    let base = match url.scheme() {
        "http" | "https" => {
            let query = url
                .query()
                .map(|query| format!("?{query}"))
                .unwrap_or_default();
            format!("{}{query}", &url[..Position::BeforePath])
        }
        _ => url[..Position::BeforePath].to_owned(),
    };
    Ok((
        Target {
            base,
            options: options.clone(),
        },
        key,
    ))
}

fn percent_decoded(path: &str) -> Result<String, String> {
    let key = object_store::path::Path::from_url_path(path);
    key.map(String::from)
        .map_err(|_| "its path is not valid".to_owned())
}

fn connect(target: &Target) -> Result<Client, String> {
    // Without this, the TLS library panics. If the program has chosen an implementation, that one is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut options = target.options.clone();
    let seconds = |options: &mut StorageOptions, name: &str, otherwise: Duration| match options
        .take(name)
    {
        None => Ok(otherwise),
        Some(value) => value
            .parse()
            .ok()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .filter(|time| !time.is_zero())
            .ok_or_else(|| format!("storage option {name} must be a number of seconds above 0")),
    };
    let usual = Patience::default();
    let patience = Patience {
        stall: seconds(&mut options, "stall_timeout", usual.stall)?,
        total: seconds(&mut options, "retry_timeout", usual.total)?,
    };
    let allow_whole = flag(&mut options, "allow_whole")?;
    let (store, multipart) = store(&target.base, options)?;
    let scheme = target
        .base
        .split_once("://")
        .map_or("", |(scheme, _)| scheme);
    Ok(Client {
        store,
        multipart,
        patience,
        allow_whole,
        has_suffixes: !["az", "abfs", "abfss"].contains(&scheme),
    })
}

/// Removes a flag from the options.
fn flag(options: &mut StorageOptions, name: &str) -> Result<bool, String> {
    match options
        .take(name)
        .as_deref()
        .map(str::to_ascii_lowercase)
        .as_deref()
    {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1") => Ok(true),
        Some(_) => Err(format!("storage option {name} must be true or false")),
    }
}

/// Sets the options of a builder: first those of the environment and the profile, then those that were given.
macro_rules! configured {
    ($builder:expr, $options:expr, $key:ty, $names:expr) => {{
        let mut builder = $builder;
        for (name, value) in $options.iter() {
            let names: &[(&str, &str)] = &$names;
            let own = names.iter().find(|(alias, _)| *alias == name);
            let own = own.map_or(name, |(_, own)| *own);
            let key: $key = own
                .parse()
                .map_err(|_| format!("storage option {name} is not known for this store"))?;
            builder = builder.with_config(key, value);
        }
        builder
    }};
}

/// A store for whole objects, and for objects that are written in parts, unless it is only read.
pub(super) type Both = (Arc<dyn ObjectStore>, Option<Arc<dyn MultipartStore>>);

/// Returns a store as one for whole objects and one for parts.
fn both<S: ObjectStore + MultipartStore>(store: S) -> Both {
    let store = Arc::new(store);
    (Arc::clone(&store) as _, Some(store))
}

fn store(base: &str, mut options: StorageOptions) -> Result<Both, String> {
    let client = ClientOptions::new()
        .with_allow_http(true)
        .with_timeout_disabled()
        .with_connect_timeout(Duration::from_secs(5))
        .with_pool_idle_timeout(Duration::from_secs(30));
    let retry = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    let anonymous = flag(&mut options, "anon")? | flag(&mut options, "anonymous")?;
    // The messages of the builders may contain values of options.
    let failed = |error: object_store::Error| {
        let text = error.to_string();
        let secret = options
            .iter()
            .any(|(_, value)| value.len() > 3 && text.contains(value));
        if secret {
            "its storage options are not valid".to_owned()
        } else {
            text
        }
    };
    let scheme = base.split_once("://").map_or("", |(scheme, _)| scheme);
    Ok(match scheme {
        "s3" | "s3a" => {
            let builder = s3(base, &options, anonymous)?
                .with_client_options(client)
                .with_retry(retry)
                .with_http_connector(Recorder)
                .with_allow_http(true);
            both(builder.build().map_err(failed)?)
        }
        "gs" | "gcs" => {
            let builder = GoogleCloudStorageBuilder::from_env();
            let base = base.replacen("gcs://", "gs://", 1);
            let builder = configured!(
                builder,
                options,
                GoogleConfigKey,
                [("token", "service_account")]
            )
            .with_url(base)
            .with_client_options(client)
            .with_retry(retry)
            .with_http_connector(Recorder);
            let builder = if anonymous {
                builder.with_skip_signature(true)
            } else {
                builder
            };
            both(builder.build().map_err(failed)?)
        }
        "az" | "abfs" | "abfss" => {
            let builder = MicrosoftAzureBuilder::from_env();
            let builder = configured!(builder, options, AzureConfigKey, [])
                .with_url(base)
                .with_client_options(client)
                .with_retry(retry)
                .with_http_connector(Recorder)
                .with_allow_http(true);
            let builder = if anonymous {
                builder.with_skip_signature(true)
            } else {
                builder
            };
            both(builder.build().map_err(failed)?)
        }
        "http" | "https" => {
            let mut client = client;
            for (name, value) in options.iter() {
                let key: ClientConfigKey = name
                    .parse()
                    .map_err(|_| format!("storage option {name} is not known for this store"))?;
                client = client.with_config(key, value);
            }
            let builder = HttpBuilder::new()
                .with_url(base)
                .with_client_options(client)
                .with_retry(retry)
                .with_http_connector(Recorder);
            let store = builder.build();
            let store = store.map_err(|_| "its address is not valid".to_owned())?;
            (Arc::new(store), None)
        }
        #[cfg(test)]
        "memory" => super::faulty::store(base),
        _ => return Err("its scheme is not s3, gs, az, http or https".to_owned()),
    })
}

/// Returns the builder of an S3 store, with its credentials, region and endpoint.
fn s3(base: &str, options: &StorageOptions, anonymous: bool) -> Result<AmazonS3Builder, String> {
    let mut builder = AmazonS3Builder::from_env();
    if !anonymous {
        for (name, value) in profile::settings() {
            // The environment takes precedence.
            let variable = format!(
                "AWS_{}",
                name.trim_start_matches("aws_").to_ascii_uppercase()
            );
            let key = name.parse::<AmazonS3ConfigKey>();
            if let (Ok(key), Err(_)) = (key, std::env::var(variable)) {
                builder = builder.with_config(key, value);
            }
        }
    }
    let names = [
        ("key", "access_key_id"),
        ("secret", "secret_access_key"),
        ("endpoint", "endpoint_url"),
        ("region_name", "region"),
        ("session_token", "token"),
    ];
    let builder = configured!(builder, options, AmazonS3ConfigKey, names).with_url(base);
    Ok(if anonymous {
        builder.with_skip_signature(true)
    } else {
        builder
    })
}

/// Connects as usual, and records the responses.
#[derive(Debug)]
struct Recorder;

impl HttpConnector for Recorder {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Recorded(inner)))
    }
}

#[derive(Debug)]
struct Recorded(HttpClient);

#[async_trait]
impl HttpService for Recorded {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let seen = SEEN.try_with(Arc::clone).ok();
        if let Some(seen) = &seen {
            seen.sent.store(true, Ordering::Relaxed);
            seen.status.store(0, Ordering::Relaxed);
        }
        let response = self.0.execute(request).await?;
        if let Some(seen) = &seen {
            seen.status
                .store(response.status().as_u16(), Ordering::Relaxed);
            let wait = response.headers().get("retry-after");
            let wait = wait.and_then(|wait| wait.to_str().ok()?.parse().ok());
            seen.retry_after.store(wait.unwrap_or(0), Ordering::Relaxed);
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_split_into_target_and_key() {
        let split = |address: &str| {
            let (target, key) = split(address, &StorageOptions::new()).unwrap();
            (target.base, key)
        };
        let of = |base: &str, key: &str| (base.to_owned(), key.to_owned());
        assert_eq!(
            split("s3://bucket/a/b.zarr/"),
            of("s3://bucket", "a/b.zarr")
        );
        assert_eq!(
            split("https://me:pw@host:81/a%20b.nii?sig=x"),
            of("https://me:pw@host:81?sig=x", "a b.nii")
        );
    }

    #[test]
    fn options_that_no_store_has_are_refused_without_their_values() {
        for base in ["s3://b", "gs://b", "az://b", "https://h"] {
            let target = Target {
                base: base.to_owned(),
                options: StorageOptions::new().with("sekret", "hush"),
            };
            let problem = connect(&target).unwrap_err();
            assert!(
                problem.contains("sekret") && !problem.contains("hush"),
                "{base}: {problem}"
            );
        }
    }
}
