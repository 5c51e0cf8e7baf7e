//! A guard against SIGBUS. The system sends this signal when a page of a mapped file cannot be read, because the file
//! was truncated or the disk failed.
//!
//! While a range is [`AddressWatch`]ed, a fault in it maps a page of zeros in place of the lost page and sets the range's
//! flag, which is checked after copying. Every other SIGBUS goes to the previous handler. The handler uses only atomics
//! and async-signal-safe calls, so it works on any thread and in a forked child.

use std::ffi::c_int;
use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use libc::{c_void, sigaction, siginfo_t};

/// Ranges per table; further tables are added when all are taken.
const SLOTS: usize = 256;

/// A slot for a watched range.
#[derive(Debug)]
struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    /// The end address; 0 while nothing is watched.
    end: AtomicUsize,
    /// Whether a page of the range was lost.
    lost: AtomicBool,
}

/// A table of watched ranges. It is never freed, because a handler may be reading it.
#[derive(Debug)]
struct Table {
    slots: [Slot; SLOTS],
    next: AtomicPtr<Table>,
}

impl Table {
    const fn new() -> Self {
        Self {
            slots: [const {
                Slot {
                    taken: AtomicBool::new(false),
                    start: AtomicUsize::new(0),
                    end: AtomicUsize::new(0),
                    lost: AtomicBool::new(false),
                }
            }; SLOTS],
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }
}

static FIRST: Table = Table::new();

/// Iterates over all tables.
fn tables() -> impl Iterator<Item = &'static Table> {
    std::iter::successors(Some(&FIRST), |table| {
        let next = table.next.load(Ordering::Acquire);
        // SAFETY: it is null, or a table that was leaked.
        unsafe { next.as_ref() }
    })
}

/// The previous SIGBUS action; leaked, because a handler may be reading it.
static BEFORE: AtomicPtr<sigaction> = AtomicPtr::new(ptr::null_mut());

/// The thread that is forwarding a signal, to detect one that comes back and would loop forever.
static PASSING: AtomicUsize = AtomicUsize::new(0);

/// Whether a signal was forwarded. A previous handler that wants to end the process restores the handler before it and
/// sends the signal again.
static PASSED: AtomicBool = AtomicBool::new(false);

/// Bytes per page.
static PAGE: AtomicUsize = AtomicUsize::new(4096);

/// A watch on a range of addresses, until it is dropped.
#[derive(Debug)]
pub(super) struct AddressWatch(&'static Slot);

impl AddressWatch {
    /// Watches a range to which a file is mapped.
    ///
    /// # Errors
    ///
    /// Returns an error if the system refuses a handler for SIGBUS.
    pub(super) fn new(range: &Range<*const u8>) -> io::Result<Self> {
        // SAFETY: a query without preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        PAGE.store(usize::try_from(page).unwrap_or(4096), Ordering::Relaxed);
        let slot = free_slot();
        slot.lost.store(false, Ordering::Relaxed);
        slot.start.store(range.start.addr(), Ordering::Relaxed);
        slot.end.store(range.end.addr(), Ordering::Release);
        let watch = Self(slot);
        ensure()?;
        Ok(watch)
    }

    /// Returns `true` if any page of the range was lost since the watch began.
    pub(super) fn lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }
}

impl Drop for AddressWatch {
    fn drop(&mut self) {
        self.0.end.store(0, Ordering::Release);
        self.0.taken.store(false, Ordering::Release);
    }
}

/// Ensures that our handler is installed. Others replace it, such as the workers of `PyTorch`'s `DataLoader` when they
/// start.
///
/// # Errors
///
/// Returns an error if the system refuses the handler.
pub(super) fn ensure() -> io::Result<()> {
    // SAFETY: `sigaction` is plain data, for which all zeros is a valid value.
    let mut current: sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: this only queries the current action.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut current) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let ours = handler as *const () as usize;
    if current.sa_sigaction == ours {
        return Ok(());
    }
    // SAFETY: it is null, or was leaked.
    let before = unsafe { BEFORE.load(Ordering::Acquire).as_ref() };
    let same = |before: &sigaction| {
        (before.sa_sigaction, before.sa_flags) == (current.sa_sigaction, current.sa_flags)
    };
    if !before.is_some_and(same) {
        BEFORE.store(Box::into_raw(Box::new(current)), Ordering::Release);
    }
    // SAFETY: as above.
    let mut action: sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ours;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler does only what is allowed in a signal handler.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Returns a slot that no other watch uses, and marks it as taken.
fn free_slot() -> &'static Slot {
    let free = |slot: &&Slot| {
        let free = slot
            .taken
            .compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed);
        free.is_ok()
    };
    loop {
        if let Some(slot) = tables().flat_map(|table| &table.slots).find(free) {
            return slot;
        }
        let last = tables().last().unwrap_or(&FIRST);
        let more = Box::into_raw(Box::new(Table::new()));
        let added =
            last.next
                .compare_exchange(ptr::null_mut(), more, Ordering::AcqRel, Ordering::Relaxed);
        if added.is_err() {
            // SAFETY: another thread was faster, and no other thread has seen this table.
            drop(unsafe { Box::from_raw(more) });
        }
    }
}

/// Handles a SIGBUS.
extern "C" fn handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes a valid siginfo, which describes a fault or the sender.
    let (address, code) = unsafe { ((*info).si_addr().addr(), (*info).si_code) };
    let is_fault = code > 0;
    let watched = |slot: &&Slot| {
        let end = slot.end.load(Ordering::Acquire);
        (slot.start.load(Ordering::Relaxed)..end).contains(&address)
    };
    let slot = tables().flat_map(|table| &table.slots).find(watched);
    if let Some(slot) = slot.filter(|_| is_fault) {
        // The flag comes first: a reader that sees the zeros must see it too.
        slot.lost.store(true, Ordering::Release);
        if zeros_at(address) {
            return;
        }
    }
    pass_on(signal, info, context);
}

#[cfg(not(target_vendor = "apple"))]
use libc::__errno_location as errno_location;
#[cfg(target_vendor = "apple")]
use libc::__error as errno_location;

/// Maps a page of zeros over the page of an address. Returns `true` on success.
fn zeros_at(address: usize) -> bool {
    let page = PAGE.load(Ordering::Relaxed);
    let start = ptr::with_exposed_provenance_mut(address & !(page - 1));
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: `errno` belongs to this thread. The page is in a mapped range that is only ever copied from.
    unsafe {
        let errno = *errno_location();
        let mapped = libc::mmap(start, page, libc::PROT_READ, flags, -1, 0);
        *errno_location() = errno;
        mapped != libc::MAP_FAILED
    }
}

/// Passes a signal that is not ours to the previous handler.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: it is null, or was leaked.
    let before = unsafe { BEFORE.load(Ordering::Acquire).as_ref() };
    #[allow(
        clippy::cast_possible_truncation,
        clippy::unnecessary_cast,
        reason = "an address, or a number of as many bits"
    )]
    // SAFETY: a query without preconditions.
    let thread = unsafe { libc::pthread_self() } as usize;
    let action = before.map_or(libc::SIG_DFL, |before| before.sa_sigaction);
    // SAFETY: the system passes a valid siginfo.
    let sent = unsafe { (*info).si_code } <= 0;
    let again = sent && PASSED.load(Ordering::Acquire);
    let circle = again || PASSING.load(Ordering::Acquire) == thread;
    if circle || action == libc::SIG_DFL || action == libc::SIG_IGN {
        // SAFETY: the default action ends the process, as it would have without us. A fault recurs on return; a sent
        // signal must be sent again.
        unsafe {
            if action == libc::SIG_IGN && sent {
                return;
            }
            libc::signal(signal, libc::SIG_DFL);
            if sent {
                libc::raise(signal);
            }
        }
        return;
    }
    PASSED.store(true, Ordering::Release);
    PASSING.store(thread, Ordering::Release);
    let with_info = before.is_some_and(|before| before.sa_flags & libc::SA_SIGINFO != 0);
    // SAFETY: the address is that of an installed handler, of the kind that its flags declare.
    unsafe {
        if with_info {
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                std::mem::transmute(action);
            handler(signal, info, context);
        } else {
            let handler: extern "C" fn(c_int) = std::mem::transmute(action);
            handler(signal);
        }
    }
    PASSING.store(0, Ordering::Release);
}
