//! A guard against SIGBUS: what the system sends when a page of a mapped file cannot be had,
//! because the file was made shorter or the disk failed.
//!
//! While a range is [`Watch`]ed, a fault in it puts a page of zeros in the place of the one that
//! cannot be had and raises the range's flag, which whoever copies looks at afterwards. Every other
//! SIGBUS goes to whoever handled it before. The handler uses nothing but atomics and
//! calls that are safe in one, so it works on any thread and in a forked child.

use std::ffi::c_int;
use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use libc::{c_void, sigaction, siginfo_t};

/// Ranges of a table; further tables are added when all are taken.
const SLOTS: usize = 256;

/// A watched range, if it is taken.
#[derive(Debug)]
struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    /// 0 while nothing is watched.
    end: AtomicUsize,
    /// Whether a page of it could not be had.
    lost: AtomicBool,
}

/// Ranges that are watched; never freed, because a handler may be looking.
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

/// All tables.
fn tables() -> impl Iterator<Item = &'static Table> {
    std::iter::successors(Some(&FIRST), |table| {
        let next = table.next.load(Ordering::Acquire);
        // SAFETY: it is null, or a table that was leaked.
        unsafe { next.as_ref() }
    })
}

/// Who handled SIGBUS before; leaked, because a handler may be looking.
static BEFORE: AtomicPtr<sigaction> = AtomicPtr::new(ptr::null_mut());

/// The thread that is passing a signal on: one that comes back would go round for ever.
static PASSING: AtomicUsize = AtomicUsize::new(0);

/// Whether a signal was passed on: handlers that mean to end the process put the one before them
/// back and send the signal again.
static PASSED: AtomicBool = AtomicBool::new(false);

/// Bytes of a page.
static PAGE: AtomicUsize = AtomicUsize::new(4096);

/// A range of addresses that is watched until this is dropped.
#[derive(Debug)]
pub(super) struct Watch(&'static Slot);

impl Watch {
    /// Watches a range that a file is mapped to.
    ///
    /// # Errors
    ///
    /// If the system refuses a handler for SIGBUS.
    pub(super) fn new(range: &Range<*const u8>) -> io::Result<Self> {
        // SAFETY: a question to the system.
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

    /// Returns `true` if any page of the range could not be had since the watch began.
    pub(super) fn lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.end.store(0, Ordering::Release);
        self.0.taken.store(false, Ordering::Release);
    }
}

/// Sees to it that the handler is ours: others replace it, such as the workers of `PyTorch`'s
/// `DataLoader` when they start.
///
/// # Errors
///
/// If the system refuses it.
pub(super) fn ensure() -> io::Result<()> {
    // SAFETY: `sigaction` is plain data, for which zeros are a value.
    let mut current: sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: it asks, and changes nothing.
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
    // SAFETY: the handler keeps to what may be done in one.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A slot that nobody else has.
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
            // SAFETY: another thread was faster, and nobody has seen this one.
            drop(unsafe { Box::from_raw(more) });
        }
    }
}

/// What the system calls at a SIGBUS.
extern "C" fn handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the system hands over a siginfo, of a fault or of whoever sent the signal.
    let (address, code) = unsafe { ((*info).si_addr().addr(), (*info).si_code) };
    let is_fault = code > 0;
    let watched = |slot: &&Slot| {
        let end = slot.end.load(Ordering::Acquire);
        (slot.start.load(Ordering::Relaxed)..end).contains(&address)
    };
    let slot = tables().flat_map(|table| &table.slots).find(watched);
    if let Some(slot) = slot.filter(|_| is_fault) {
        // First the flag: who sees the zeros must see it too.
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

/// Puts a page of zeros where the address lies; whether that could be done.
fn zeros_at(address: usize) -> bool {
    let page = PAGE.load(Ordering::Relaxed);
    let start = ptr::with_exposed_provenance_mut(address & !(page - 1));
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: `errno` belongs to this thread; the page lies in a range that is mapped, and that is
    // only ever copied from.
    unsafe {
        let errno = *errno_location();
        let mapped = libc::mmap(start, page, libc::PROT_READ, flags, -1, 0);
        *errno_location() = errno;
        mapped != libc::MAP_FAILED
    }
}

/// Hands a signal that is not ours to whoever handled it before.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: it is null, or was leaked.
    let before = unsafe { BEFORE.load(Ordering::Acquire).as_ref() };
    #[allow(
        clippy::cast_possible_truncation,
        clippy::unnecessary_cast,
        reason = "an address, or a number of as many bits"
    )]
    // SAFETY: a question to the system.
    let thread = unsafe { libc::pthread_self() } as usize;
    let action = before.map_or(libc::SIG_DFL, |before| before.sa_sigaction);
    // SAFETY: the system hands over a siginfo.
    let sent = unsafe { (*info).si_code } <= 0;
    let again = sent && PASSED.load(Ordering::Acquire);
    let circle = again || PASSING.load(Ordering::Acquire) == thread;
    if circle || action == libc::SIG_DFL || action == libc::SIG_IGN {
        // SAFETY: the default ends the process, as it would have without us. A fault happens again
        // on return; a signal that was sent has to be sent again.
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
    // SAFETY: the address is that of a handler that the system was given, of the kind that its
    // flags say.
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
