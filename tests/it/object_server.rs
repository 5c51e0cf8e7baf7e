//! A web server for objects on the loopback interface, which misbehaves on request.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::type_complexity,
    clippy::too_many_lines,
    clippy::case_sensitive_file_extension_comparisons,
    reason = "a test: small numbers, and a panic is a failure"
)]

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value as Json;

/// A misbehavior of one response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// 503 instead of the object.
    Unavailable,
    /// 429 instead of the object.
    TooMany,
    /// 500 instead of the object.
    Broken,
    /// The connection ends after so many bytes of the body.
    Reset(usize),
    /// No more bytes after so many of the body, but the connection stays.
    Stall(usize),
    /// A shorter body, with headers that fit it.
    Short,
    /// A different `ETag`, as if the object had been replaced.
    OtherTag,
    /// A shorter range than requested, honestly declared.
    Truncated,
    /// The bytes of a different range, honestly declared.
    Shifted,
    /// The whole object instead of a range.
    IgnoresRange,
    /// The connection ends before the status line.
    Silent,
}

impl Fault {
    pub(crate) const ALL: [Self; 13] = [
        Self::Unavailable,
        Self::TooMany,
        Self::Broken,
        Self::Reset(0),
        Self::Reset(100),
        Self::Stall(0),
        Self::Stall(50),
        Self::Short,
        Self::OtherTag,
        Self::Truncated,
        Self::Shifted,
        Self::IgnoresRange,
        Self::Silent,
    ];
}

/// A request that was answered.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<Range<u64>>,
    pub(crate) sent: u64,
    pub(crate) head: String,
}

/// A running server. Its threads end with the process.
pub(crate) struct Server {
    address: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    objects: Mutex<HashMap<String, (Arc<Vec<u8>>, u64)>>,
    log: Mutex<Vec<Request>>,
    latency: Mutex<Duration>,
    /// Faults of the next responses, in order; `None`: no fault.
    faults: Mutex<VecDeque<Option<Fault>>>,
    /// The largest number of requests at once so far, and the number now.
    at_once: Mutex<(usize, usize)>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || while state.answer(&stream).is_some() {});
            }
        });
        Self { address, state }
    }

    /// Returns the address of an object.
    pub(crate) fn url(&self, key: &str) -> String {
        format!("http://{}/{key}", self.address)
    }

    pub(crate) fn put(&self, key: &str, bytes: Vec<u8>) {
        let mut objects = self.state.objects.lock().unwrap();
        let version = objects.get(key).map_or(1, |(_, version)| version + 1);
        objects.insert(key.to_owned(), (Arc::new(bytes), version));
    }

    /// Serves the bytes of an object under another key, too.
    pub(crate) fn link(&self, key: &str, other: &str) {
        let mut objects = self.state.objects.lock().unwrap();
        let found = objects[key].clone();
        objects.insert(other.to_owned(), found);
    }

    pub(crate) fn remove(&self, key: &str) {
        self.state.objects.lock().unwrap().remove(key);
    }

    /// Serves a file, or all files of a folder.
    pub(crate) fn put_all(&self, key: &str, path: &Path) {
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                self.put_all(&format!("{key}/{name}"), &entry.path());
            }
        } else {
            self.put(key, fs::read(path).unwrap());
        }
    }

    /// Serves a Zarr of `counts` (z, y, x) copies of the volume at `path`, which is one write chunk. They take no memory.
    pub(crate) fn put_tiled(&self, key: &str, path: &Path, counts: [u64; 3]) {
        self.put_all(key, path);
        let document = path.join("0/zarr.json");
        let mut document: Json = serde_json::from_slice(&fs::read(document).unwrap()).unwrap();
        for (axis, count) in counts.into_iter().enumerate() {
            let length = document["shape"][axis].as_u64().unwrap();
            document["shape"][axis] = (length * count).into();
        }
        self.put(&format!("{key}/0/zarr.json"), document.to_string().into());
        // It may also have copies of all documents.
        self.remove(&format!("{key}/zarr.json"));
        let root = fs::read(path.join("zarr.json")).unwrap();
        let mut root: Json = serde_json::from_slice(&root).unwrap();
        root.as_object_mut()
            .unwrap()
            .remove("consolidated_metadata");
        self.put(&format!("{key}/zarr.json"), root.to_string().into());
        let name = |[z, y, x]: [u64; 3]| format!("{key}/0/c/{z}/{y}/{x}");
        for z in 0..counts[0] {
            for (y, x) in (0..counts[1]).flat_map(|y| (0..counts[2]).map(move |x| (y, x))) {
                self.link(&name([0; 3]), &name([z, y, x]));
            }
        }
    }

    pub(crate) fn set_latency(&self, latency: Duration) {
        *self.state.latency.lock().unwrap() = latency;
    }

    /// Sets the faults of the next responses.
    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        *self.state.faults.lock().unwrap() = faults.into_iter().collect();
    }

    /// Returns the requests since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.state.log.lock().unwrap())
    }

    /// Returns the largest number of requests at once since the last call.
    pub(crate) fn most_at_once(&self) -> usize {
        let mut at_once = self.state.at_once.lock().unwrap();
        std::mem::replace(&mut at_once.0, 0)
    }
}

impl State {
    /// Answers one request; `None` if the connection has ended.
    fn answer(&self, stream: &TcpStream) -> Option<()> {
        let mut lines = BufReader::with_capacity(1, stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if lines.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        {
            let mut at_once = self.at_once.lock().unwrap();
            at_once.1 += 1;
            at_once.0 = at_once.0.max(at_once.1);
        }
        let done = self.respond(stream, &head);
        self.at_once.lock().unwrap().1 -= 1;
        done
    }

    fn respond(&self, mut stream: &TcpStream, head: &str) -> Option<()> {
        let mut words = head.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let path = target.split('?').next()?.trim_start_matches('/').to_owned();
        let found = self.objects.lock().unwrap().get(&path).cloned();
        let latency = *self.latency.lock().unwrap();
        thread::sleep(latency);
        let fault = self.faults.lock().unwrap().pop_front().flatten();
        let header = |name: &str| {
            let lower = head.to_ascii_lowercase();
            let line = lower
                .lines()
                .find(|line| line.starts_with(name))
                .map(str::to_owned);
            line.map(|line| line[name.len()..].trim().to_owned())
        };
        let wanted = header("range: bytes=");
        let mut note = Request {
            method: method.to_owned(),
            path,
            range: None,
            sent: 0,
            head: head.to_owned(),
        };
        let plain = |status: &str| {
            format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nRetry-After: 0\r\n\r\n")
        };
        let Some((bytes, version)) = found else {
            self.log.lock().unwrap().push(note);
            return stream.write_all(plain("404 Not Found").as_bytes()).ok();
        };
        let length = bytes.len() as u64;
        let range = wanted.as_ref().and_then(|wanted| range(wanted, length));
        note.range.clone_from(&range);
        match fault {
            Some(Fault::Silent) => {
                self.log.lock().unwrap().push(note);
                let _ = stream.shutdown(Shutdown::Both);
                return None;
            }
            Some(Fault::Unavailable | Fault::TooMany | Fault::Broken) => {
                self.log.lock().unwrap().push(note);
                let status = match fault {
                    Some(Fault::Broken) => "500 Oops",
                    Some(Fault::TooMany) => "429 Too Many Requests",
                    _ => "503 Slow Down",
                };
                return stream.write_all(plain(status).as_bytes()).ok();
            }
            _ => {}
        }
        if wanted.is_some() && range.is_none() {
            self.log.lock().unwrap().push(note);
            return stream
                .write_all(plain("416 Range Not Satisfiable").as_bytes())
                .ok();
        }
        let mut given = range.clone();
        match (fault, &mut given) {
            (Some(Fault::IgnoresRange), given) => *given = None,
            (Some(Fault::Truncated), Some(range)) => range.end = range.start.max(range.end - 1),
            (Some(Fault::Shifted), Some(range)) if range.start > 0 => {
                *range = range.start - 1..range.end - 1;
            }
            _ => {}
        }
        let own = given.clone().unwrap_or(0..length);
        let at = |n: u64| usize::try_from(n).unwrap();
        let mut body = &bytes[at(own.start)..at(own.end)];
        if fault == Some(Fault::Short) {
            body = &body[..body.len() / 2];
        }
        let tag = if fault == Some(Fault::OtherTag) {
            version + 1000
        } else {
            version
        };
        let status = match &given {
            Some(range) => format!(
                "206 Partial Content\r\nContent-Range: bytes {}-{}/{length}",
                range.start,
                range.end.saturating_sub(1)
            ),
            None => "200 OK".to_owned(),
        };
        let declared = if method == "HEAD" {
            length as usize
        } else {
            body.len()
        };
        let top = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {declared}\r\nETag: \"v{tag}\"\r\n\
             Last-Modified: Sun, 01 Nov 2026 00:00:00 GMT\r\nAccept-Ranges: bytes\r\n\r\n"
        );
        if method == "HEAD" {
            body = &[];
        }
        let cut = match fault {
            Some(Fault::Reset(n) | Fault::Stall(n)) if method != "HEAD" => {
                Some(n.min(body.len() / 2))
            }
            _ => None,
        };
        let sent = &body[..cut.unwrap_or(body.len())];
        note.sent = sent.len() as u64;
        self.log.lock().unwrap().push(note);
        stream.write_all(top.as_bytes()).ok()?;
        stream.write_all(sent).ok()?;
        match (fault, cut) {
            (Some(Fault::Stall(_)), Some(_)) => {
                // Until the client gives up and closes.
                let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
                let _ = stream.read(&mut [0]);
                None
            }
            (_, Some(_)) => {
                let _ = stream.shutdown(Shutdown::Both);
                None
            }
            _ => Some(()),
        }
    }
}

/// Parses the value of a `Range` header; `None` if nothing of it is inside `length` bytes.
fn range(text: &str, length: u64) -> Option<Range<u64>> {
    let (start, end) = text.split_once('-')?;
    let range = if start.is_empty() {
        length.saturating_sub(end.parse().ok()?)..length
    } else {
        let last = end
            .parse::<u64>()
            .map_or(length, |end| end.saturating_add(1));
        start.parse().ok()?..last.min(length)
    };
    (range.start < range.end).then_some(range)
}
