//! Raw accesses that tell which signal they raised, instead of ending the process.

use std::cell::Cell;
use std::sync::Once;

/// The signal that an access raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Raised {
    /// SIGSEGV or SIGBUS.
    pub(crate) signal: i32,
    /// `si_code`.
    pub(crate) code: i32,
    /// `si_addr`.
    pub(crate) address: usize,
}

thread_local! {
    /// Where the access goes on if it raises a signal; 0 if none is under way.
    static RESUME: Cell<usize> = const { Cell::new(0) };
    static RAISED: Cell<Option<Raised>> = const { Cell::new(None) };
}

/// Loads a byte.
pub(crate) fn load(address: usize) -> Result<u8, Raised> {
    let mut value = 0;
    access(address, &mut value, false).map(|()| value)
}

/// Stores a byte.
pub(crate) fn store(address: usize, mut value: u8) -> Result<(), Raised> {
    access(address, &mut value, true)
}

/// The number of the signal that a load raises.
pub(crate) fn load_signal(address: usize) -> Option<i32> {
    load(address).err().map(|raised| raised.signal)
}

/// The number of the signal that a store raises.
pub(crate) fn store_signal(address: usize, value: u8) -> Option<i32> {
    store(address, value).err().map(|raised| raised.signal)
}

/// Must have run before Omnimap installs its own handlers: those pass on what is not theirs.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            // SAFETY: an all-zero sigaction is valid.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            // SAFETY: the handler has the signature that SA_SIGINFO asks for.
            assert_eq!(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) }, 0);
        }
    });
}

extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let resume = RESUME.get();
    if resume == 0 {
        // Not ours: it is repeated, and ends the process.
        // SAFETY: async-signal-safe.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel passes a valid siginfo.
    let details = unsafe { &*info };
    // SAFETY: a fault has an address.
    let address = unsafe { details.si_addr() } as usize;
    RAISED.set(Some(Raised { signal, code: details.si_code, address }));
    // SAFETY: the kernel passes a valid ucontext.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    #[cfg(target_arch = "x86_64")]
    {
        context.uc_mcontext.gregs[libc::REG_RIP as usize] = resume as i64;
    }
    #[cfg(target_arch = "aarch64")]
    {
        context.uc_mcontext.pc = resume as u64;
    }
}

#[cfg(target_arch = "x86_64")]
fn access(address: usize, value: &mut u8, stores: bool) -> Result<(), Raised> {
    RAISED.set(None);
    let resume = RESUME.with(Cell::as_ptr);
    // SAFETY: the access may fault: then the handler goes on at label 3. Nothing else is touched.
    unsafe {
        std::arch::asm!(
            "lea {here}, [rip + 3f]",
            "mov qword ptr [{resume}], {here}",
            "test {stores}, {stores}",
            "jnz 2f",
            "mov {byte}, byte ptr [{address}]",
            "jmp 3f",
            "2:",
            "mov byte ptr [{address}], {byte}",
            "3:",
            "mov qword ptr [{resume}], 0",
            here = out(reg) _,
            resume = in(reg) resume,
            stores = in(reg) usize::from(stores),
            address = in(reg) address,
            byte = inout(reg_byte) *value,
        );
    }
    RAISED.take().map_or(Ok(()), Err)
}

#[cfg(target_arch = "aarch64")]
fn access(address: usize, value: &mut u8, stores: bool) -> Result<(), Raised> {
    RAISED.set(None);
    let resume = RESUME.with(Cell::as_ptr);
    let mut byte = u64::from(*value);
    // SAFETY: the access may fault: then the handler goes on at label 3. Nothing else is touched.
    unsafe {
        std::arch::asm!(
            "adr {here}, 3f",
            "str {here}, [{resume}]",
            "cbnz {stores}, 2f",
            "ldrb {byte:w}, [{address}]",
            "b 3f",
            "2:",
            "strb {byte:w}, [{address}]",
            "3:",
            "str xzr, [{resume}]",
            here = out(reg) _,
            resume = in(reg) resume,
            stores = in(reg) usize::from(stores),
            address = in(reg) address,
            byte = inout(reg) byte,
        );
    }
    *value = byte as u8;
    RAISED.take().map_or(Ok(()), Err)
}
