//! Files that are truncated while they are mapped. Anything that may end the process runs in a child process of this
//! program.

use std::ffi::c_int;
use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use libc::{c_void, sigaction, siginfo_t};

use super::{KEPT_BYTES, KEPT_MAPS, KeptRoom, Lost, MAX_KEPT_MAPS, Map};

const LENGTH: usize = 1 << 20;

/// Returns the byte at `at`; never 0.
fn byte(at: usize) -> u8 {
    u8::try_from(at * 31 % 251 + 1).unwrap()
}

fn file() -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&(0..LENGTH).map(byte).collect::<Vec<u8>>())
        .unwrap();
    file
}

/// Copies from all over the file until a page is lost, and checks every byte.
fn read_until_lost(map: &Map, seed: usize, begun: &AtomicUsize) {
    let mut at = seed * 4096 * 7 % LENGTH;
    loop {
        let copied = map.read(|bytes| bytes[at..at + 512].to_vec());
        begun.fetch_add(1, Ordering::Relaxed);
        match copied {
            Ok(copied) => assert!(
                (at..).zip(&copied).all(|(at, &found)| found == byte(at)),
                "another byte than the file's, and no error"
            ),
            Err(Lost) => return,
        }
        at = (at + 4096 * 97) % LENGTH;
    }
}

#[test]
fn a_file_truncated_under_its_readers_is_an_error_and_never_other_bytes() {
    for threads in [1, 4] {
        for round in 0..200 {
            let file = file();
            let map = Map::new(&file).unwrap();
            let begun = AtomicUsize::new(0);
            thread::scope(|scope| {
                for thread in 0..threads {
                    let (map, begun) = (&map, &begun);
                    scope.spawn(move || read_until_lost(map, round + thread, begun));
                }
                while begun.load(Ordering::Relaxed) < round {
                    thread::yield_now();
                }
                file.set_len(0).unwrap();
            });
            // A lost page stays lost, even if the file grows back.
            file.set_len(LENGTH as u64).unwrap();
            assert_eq!(map.read(|bytes| black_box(bytes[0])), Err(Lost));
            // A different mapping is not affected.
            let other = Map::new(&self::file()).unwrap();
            assert_eq!(other.read(|bytes| bytes[77]), Ok(byte(77)));
        }
    }
}

#[test]
fn more_maps_than_a_table_holds_are_watched() {
    let files: Vec<File> = (0..600).map(|_| tempfile::tempfile().unwrap()).collect();
    let maps: Vec<Map> = files
        .iter()
        .map(|file| {
            file.set_len(8192).unwrap();
            Map::new(file).unwrap()
        })
        .collect();
    for (n, (file, map)) in files.iter().zip(&maps).enumerate().rev() {
        if n % 3 == 0 {
            file.set_len(0).unwrap();
        }
        let expected = if n % 3 == 0 { Err(Lost) } else { Ok(0) };
        assert_eq!(map.read(|bytes| black_box(bytes[5000])), expected, "{n}");
    }
}

/// An action of a child process. Returns its exit code, if the process lives that long.
type Deed = fn() -> i32;

const DEEDS: [(&str, Deed); 7] = [
    ("sent again", || {
        install(put_back_and_send_again);
        let _guarded = Map::new(&file()).unwrap();
        foreign_fault()
    }),
    ("foreign fault", || {
        let file = file();
        let _guarded = Map::new(&file).unwrap();
        foreign_fault()
    }),
    ("sent", || {
        // SAFETY: sets the default action, without a handler.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        let _guarded = Map::new(&file()).unwrap();
        // SAFETY: ends this process, or calls its handler.
        unsafe { libc::raise(libc::SIGBUS) }
    }),
    ("handled elsewhere", || {
        install(seven);
        let _guarded = Map::new(&file()).unwrap();
        foreign_fault()
    }),
    ("replaced", || {
        let file = file();
        let map = Map::new(&file).unwrap();
        install(seven);
        file.set_len(0).unwrap();
        i32::from(map.read(|bytes| black_box(bytes[9000])) != Err(Lost))
    }),
    ("forked", || {
        let file = file();
        let map = Map::new(&file).unwrap();
        // SAFETY: the child touches only existing memory, and ends at once.
        let child = unsafe { libc::fork() };
        if child == 0 {
            file.set_len(0).unwrap();
            let lost = map.read(|bytes| black_box(bytes[9000])) == Err(Lost);
            // SAFETY: ends this process.
            unsafe { libc::_exit(i32::from(!lost)) }
        }
        let mut status = 1;
        // SAFETY: `status` is a valid target.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        status
    }),
    ("in a circle", || {
        let _guarded = Map::new(&file()).unwrap();
        install(back_to_us);
        let other = Map::new(&file()).unwrap();
        assert_eq!(other.read(|bytes| bytes[0]), Ok(byte(0)));
        foreign_fault()
    }),
];

type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

static THEIRS: AtomicUsize = AtomicUsize::new(0);
static CALLED: AtomicBool = AtomicBool::new(false);

extern "C" fn seven(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: ends this process.
    unsafe { libc::_exit(7) }
}

/// Forwards all signals, because none of them are its own.
extern "C" fn back_to_us(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    assert!(!CALLED.swap(true, Ordering::Relaxed), "once is enough");
    // SAFETY: the system reported this as a handler.
    let before: Handler = unsafe { std::mem::transmute(THEIRS.load(Ordering::Relaxed)) };
    before(signal, info, context);
}

/// Ends the process like Python's faulthandler: it restores the previous action, which is ours by now,
/// and sends the signal again.
extern "C" fn put_back_and_send_again(signal: c_int, _: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: ends this process, or calls its handler.
    unsafe { libc::raise(signal) };
}

fn install(handler: Handler) {
    // SAFETY: plain data, and a handler that does almost nothing.
    unsafe {
        let (mut new, mut old): (sigaction, sigaction) = (std::mem::zeroed(), std::mem::zeroed());
        new.sa_sigaction = handler as *const () as usize;
        new.sa_flags = libc::SA_SIGINFO;
        assert_eq!(
            libc::sigaction(libc::SIGBUS, &raw const new, &raw mut old),
            0
        );
        THEIRS.store(old.sa_sigaction, Ordering::Relaxed);
    }
}

/// Causes a fault in a mapping that is not ours.
fn foreign_fault() -> i32 {
    let file = file();
    // SAFETY: the file is truncated, and the bytes that are read are not used.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    file.set_len(0).unwrap();
    i32::from(black_box(map[9000]))
}

/// Runs the action of a child process; this is not a test.
#[test]
#[ignore = "done by other tests' children"]
fn child() {
    let Ok(name) = std::env::var("VOXPATCH_DEED") else {
        return;
    };
    // SAFETY: only prevents a core dump when this process ends.
    unsafe {
        libc::setrlimit(
            libc::RLIMIT_CORE,
            &libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            },
        )
    };
    let (_, deed) = DEEDS.iter().find(|(deed, _)| *deed == name).unwrap();
    std::process::exit(deed());
}

fn outcome(deed: &str) -> ExitStatus {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "volume::mmap::tests::child", "--ignored"])
        .env("VOXPATCH_DEED", deed)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..600 {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        thread::sleep(Duration::from_millis(100));
    }
    child.kill().unwrap();
    panic!("{deed}: no end");
}

#[test]
fn a_signal_that_is_not_ours_does_what_it_did_before() {
    assert_eq!(outcome("foreign fault").signal(), Some(libc::SIGBUS));
    assert_eq!(outcome("sent").signal(), Some(libc::SIGBUS));
    assert_eq!(outcome("handled elsewhere").code(), Some(7));
    assert_eq!(outcome("sent again").signal(), Some(libc::SIGBUS));
    assert_eq!(outcome("in a circle").signal(), Some(libc::SIGBUS));
}

#[test]
fn a_handler_that_others_replaced_is_restored_and_a_forked_child_has_it() {
    assert_eq!(outcome("replaced").code(), Some(0));
    assert_eq!(outcome("forked").code(), Some(0));
}

#[test]
fn maps_keep_their_pages_as_long_as_all_of_them_fit() {
    let file = file();
    let map = |limit| Map::new(&file).unwrap().keeping_if_it_fits(limit);
    let bytes = LENGTH as u64;
    let kept = || KEPT_BYTES.load(Ordering::Relaxed);
    assert!(!map(0).keeps() && !map(bytes - 1).keeps());
    let maps: Vec<Map> = (0..20).map(|_| map(1 << 50)).collect();
    assert!(maps.iter().all(Map::keeps));
    let with_them = kept();
    assert!(with_them >= 20 * bytes);
    assert!(!map(20 * bytes).keeps(), "the others take all of it");
    drop(maps);
    // Maps of other tests are small.
    assert!(kept() <= with_them - 10 * bytes);
}

#[test]
fn too_many_maps_take_no_room() {
    let counts = || [&KEPT_BYTES, &KEPT_MAPS].map(|count| count.load(Ordering::Relaxed));
    assert!(KeptRoom::take(1 << 40, MAX_KEPT_MAPS + 1, u64::MAX).is_none());
    let room = KeptRoom::take(1 << 40, MAX_KEPT_MAPS / 2, u64::MAX).unwrap();
    assert!(counts()[0] >= 1 << 40);
    assert!(KeptRoom::take(1, MAX_KEPT_MAPS / 2 + 1, u64::MAX).is_none());
    drop(room);
    assert!(counts()[0] < 1 << 40 && counts()[1] < MAX_KEPT_MAPS / 2);
}
