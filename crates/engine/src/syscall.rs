//! The system calls that no crate covers: ioctls of fscrypt and of loop devices, a mount namespace of our own, the priority of reads and writes,
//! descriptors and signals of a process that begins.
//!
//! The only place in the project where `unsafe` is allowed. Layouts: `include/uapi/linux/fscrypt.h` and `loop.h`.
#![expect(unsafe_code, reason = "system calls that no crate covers")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use zeroize::Zeroize;

/// What the kernel calls a key: a hash of it, computed by the kernel.
pub(crate) type KeyIdentifier = [u8; 16];

/// Whether the kernel holds a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyStatus {
    /// It does not.
    Absent,
    /// It does.
    Present,
    /// The key is gone, but open files still hold what was derived from it.
    IncompletelyRemoved,
}

/// What the kernel says of an encrypted folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// `FSCRYPT_MODE_*` of the contents.
    pub(crate) contents_mode: u8,
    /// `FSCRYPT_MODE_*` of the names.
    pub(crate) filenames_mode: u8,
    /// The key's name.
    pub(crate) identifier: KeyIdentifier,
}

const KEY_SPEC_TYPE_IDENTIFIER: u32 = 2;
const MODE_AES_256_XTS: u8 = 1;
const MODE_AES_256_CTS: u8 = 4;
const FLAGS_PAD_32: u8 = 3;

#[repr(C)]
struct KeySpecifier {
    kind: u32,
    reserved: u32,
    identifier: [u8; 32],
}

#[repr(C)]
struct AddKey {
    specifier: KeySpecifier,
    raw_size: u32,
    key_id: u32,
    reserved: [u32; 8],
    raw: [u8; 64],
}

#[repr(C)]
struct RemoveKey {
    specifier: KeySpecifier,
    removal_status_flags: u32,
    reserved: [u32; 5],
}

#[repr(C)]
struct GetKeyStatus {
    specifier: KeySpecifier,
    reserved: [u32; 6],
    status: u32,
    status_flags: u32,
    user_count: u32,
    out_reserved: [u32; 13],
}

#[repr(C)]
struct PolicyV2 {
    version: u8,
    contents_mode: u8,
    filenames_mode: u8,
    flags: u8,
    log2_data_unit_size: u8,
    reserved: [u8; 3],
    identifier: KeyIdentifier,
}

#[repr(C)]
struct GetPolicy {
    size: u64,
    policy: PolicyV2,
}

const FS_IOC_GET_ENCRYPTION_POLICY_EX: u64 = 0xc009_6616;
const FS_IOC_SET_ENCRYPTION_POLICY: u64 = 0x800c_6613;
const FS_IOC_ADD_ENCRYPTION_KEY: u64 = 0xc050_6617;
const FS_IOC_REMOVE_ENCRYPTION_KEY: u64 = 0xc040_6618;
const FS_IOC_GET_ENCRYPTION_KEY_STATUS: u64 = 0xc080_661a;

fn specifier(identifier: &KeyIdentifier) -> KeySpecifier {
    let mut specifier = KeySpecifier { kind: KEY_SPEC_TYPE_IDENTIFIER, reserved: 0, identifier: [0; 32] };
    specifier.identifier[..16].copy_from_slice(identifier);
    specifier
}

fn ioctl<T>(file: &File, request: u64, argument: &mut T) -> io::Result<()> {
    // SAFETY: each request is paired with the structure that the kernel expects for it, which lives and is writable
    // for the whole call; the descriptor is open as long as `file` is borrowed.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), request as _, std::ptr::from_mut(argument)) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the kernel a key for the file system on which `place` lies. Adding it again changes nothing.
pub(crate) fn add_key(place: &File, key: &[u8; 64]) -> io::Result<KeyIdentifier> {
    let mut argument =
        AddKey { specifier: specifier(&[0; 16]), raw_size: 64, key_id: 0, reserved: [0; 8], raw: [0; 64] };
    // Copied once, to where it is wiped.
    argument.raw.copy_from_slice(key);
    let answer = ioctl(place, FS_IOC_ADD_ENCRYPTION_KEY, &mut argument);
    argument.raw.zeroize();
    answer?;
    let mut identifier = [0; 16];
    identifier.copy_from_slice(&argument.specifier.identifier[..16]);
    Ok(identifier)
}

/// Takes a key out of the kernel. True when nothing of it is left, false while open files still hold some of it.
pub(crate) fn remove_key(place: &File, identifier: &KeyIdentifier) -> io::Result<bool> {
    let mut argument =
        RemoveKey { specifier: specifier(identifier), removal_status_flags: 0, reserved: [0; 5] };
    match ioctl(place, FS_IOC_REMOVE_ENCRYPTION_KEY, &mut argument) {
        Ok(()) => Ok(argument.removal_status_flags == 0),
        // ENOKEY: it was not there.
        Err(absent) if absent.raw_os_error() == Some(libc::ENOKEY) => Ok(true),
        Err(other) => Err(other),
    }
}

/// Asks the kernel whether it holds a key.
pub(crate) fn key_status(place: &File, identifier: &KeyIdentifier) -> io::Result<KeyStatus> {
    let mut argument = GetKeyStatus {
        specifier: specifier(identifier),
        reserved: [0; 6],
        status: 0,
        status_flags: 0,
        user_count: 0,
        out_reserved: [0; 13],
    };
    ioctl(place, FS_IOC_GET_ENCRYPTION_KEY_STATUS, &mut argument)?;
    match argument.status {
        1 => Ok(KeyStatus::Absent),
        2 => Ok(KeyStatus::Present),
        3 => Ok(KeyStatus::IncompletelyRemoved),
        other => Err(io::Error::other(format!("unknown key status {other}"))),
    }
}

/// Makes an empty folder encrypted with a key that the kernel holds: AES-256-XTS for contents, AES-256-CTS for names.
pub(crate) fn set_policy(folder: &File, identifier: KeyIdentifier) -> io::Result<()> {
    let mut policy = PolicyV2 {
        version: 2,
        contents_mode: MODE_AES_256_XTS,
        filenames_mode: MODE_AES_256_CTS,
        flags: FLAGS_PAD_32,
        log2_data_unit_size: 0,
        reserved: [0; 3],
        identifier,
    };
    ioctl(folder, FS_IOC_SET_ENCRYPTION_POLICY, &mut policy)
}

/// How a folder is encrypted, as the kernel says. Also a locked folder tells.
pub(crate) fn policy(folder: &File) -> io::Result<Policy> {
    let mut argument = GetPolicy {
        size: size_of::<PolicyV2>() as u64,
        policy: PolicyV2 {
            version: 0,
            contents_mode: 0,
            filenames_mode: 0,
            flags: 0,
            log2_data_unit_size: 0,
            reserved: [0; 3],
            identifier: [0; 16],
        },
    };
    ioctl(folder, FS_IOC_GET_ENCRYPTION_POLICY_EX, &mut argument)?;
    let PolicyV2 { version, contents_mode, filenames_mode, identifier, .. } = argument.policy;
    if version != 2 {
        return Err(io::Error::other("the folder has an encryption policy of another version"));
    }
    Ok(Policy { contents_mode, filenames_mode, identifier })
}

/// `struct loop_config` with the `struct loop_info64` in it.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

const LOOP_CLR_FD: u64 = 0x4c01;
const LOOP_CONFIGURE: u64 = 0x4c0a;
const LOOP_CTL_GET_FREE: u64 = 0x4c82;

/// The number of a loop device that nobody uses, at this moment. It is made where there was none.
pub(crate) fn free_loop_device(control: &File) -> io::Result<u32> {
    // SAFETY: the request takes no argument; the descriptor is open as long as `control` is borrowed.
    let answer = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _, 0) };
    u32::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// Attaches a file to a loop device (Linux 5.8), which frees itself with its last user and reads and writes past the page cache
/// where the file can. The path is for those who list devices.
pub(crate) fn attach_loop_device(device: &File, file: &File, path: &Path) -> io::Result<()> {
    const AUTO_CLEAR: u32 = 4;
    const DIRECT: u32 = 16;
    let mut config = LoopConfig {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size: 0,
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: AUTO_CLEAR | DIRECT,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
        reserved: [0; 8],
    };
    // It ends with a zero, also where it is shortened.
    for (kept, byte) in config.file_name[..63].iter_mut().zip(path.as_os_str().as_bytes()) {
        *kept = *byte;
    }
    ioctl(device, LOOP_CONFIGURE, &mut config)
}

/// Frees a loop device, or lets it free itself where it is in use.
pub(crate) fn detach_loop_device(device: &File) -> io::Result<()> {
    // SAFETY: the request takes no argument; the descriptor is open as long as `device` is borrowed.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD as _, 0) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the process a mount namespace of its own. Only for a process that has one thread.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: the call takes no pointer and changes nothing that Rust relies on.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads and writes of this thread wait for those of others, as long as this lives and where the disk's scheduler heeds
/// that (ioprio_set(2)).
#[derive(Debug)]
pub(crate) struct LowPriority(());

impl LowPriority {
    pub(crate) fn of_this_thread() -> Self {
        // Best effort, the last of its eight levels. One that is not heeded costs speed only.
        set_priority((2 << 13) | 7);
        Self(())
    }
}

impl Drop for LowPriority {
    fn drop(&mut self) {
        set_priority(0);
    }
}

fn set_priority(value: libc::c_int) {
    const WHO_PROCESS: libc::c_int = 1;
    const THIS_THREAD: libc::c_int = 0;
    // SAFETY: the call takes numbers only and changes nothing that Rust relies on.
    let _ = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, THIS_THREAD, value) };
}

/// Has every descriptor but the first three closed when this process becomes another program (close_range(2), Linux 5.11).
pub(crate) fn close_on_exec() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the call takes numbers only, and closes nothing of this program.
    let answer =
        unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives this process and its children an empty session keyring in place of the one that came with who started Chitin
/// (session-keyring(7)).
///
/// # Errors
///
/// Where the kernel has keyrings and gives none. That a container's own filter refuses the call is no error, since then nobody
/// inside reaches any; neither is that the user has as many keys as he may have, since the filter of the sandbox lets no call to
/// keyrings pass.
pub(crate) fn leave_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: no name is given, so the kernel reads nothing of ours and makes a keyring without one.
    let answer = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0_usize) };
    let cause = io::Error::last_os_error();
    match cause.raw_os_error() {
        _ if answer != -1 => Ok(()),
        Some(libc::ENOSYS | libc::EPERM | libc::EACCES | libc::EDQUOT) => Ok(()),
        _ => Err(cause),
    }
}

/// Closes every descriptor but the first three (close_range(2), Linux 5.9). Only for a process that has opened nothing yet.
pub(crate) fn close_inherited() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the call takes numbers only. Nothing in this process has opened what it closes.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
}

/// Has every signal ignored that ends a process from outside and can be ignored. Not SIGCHLD: ends of children are waited for.
pub(crate) fn ignore_signals() {
    let ending = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGPWR,
        libc::SIGPIPE,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
    ];
    for signal in ending.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        // SAFETY: no function of ours is called by the kernel, and nothing here relies on these signals.
        let _ = unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Makes a call by its number with three arguments, and says only how it went. For calls that are expected to be refused before
/// the kernel looks at them; in a process that does nothing else.
pub(crate) fn attempt(number: libc::c_long, arguments: [libc::c_int; 3]) -> Result<(), libc::c_int> {
    let [first, second, third] = arguments.map(libc::c_long::from);
    // SAFETY: the arguments beside these are zero, so no call gets a pointer into our memory. One that goes through all the same
    // may change this process, which has nothing to lose and ends.
    let answer = unsafe { libc::syscall(number, first, second, third, 0_usize, 0_usize, 0_usize) };
    if answer == -1 { Err(io::Error::last_os_error().raw_os_error().unwrap_or_default()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel calls this thread's session keyring.
    fn session_keyring() -> libc::c_long {
        const GET_KEYRING_ID: libc::c_int = 0;
        const OF_THE_SESSION: libc::c_int = -3;
        // SAFETY: the call takes numbers only.
        unsafe { libc::syscall(libc::SYS_keyctl, GET_KEYRING_ID, OF_THE_SESSION, 1) }
    }

    #[test]
    fn a_session_s_keyring_is_left_behind() {
        // Each thread has its own; so nothing of the test's program changes.
        let asked = std::thread::spawn(|| {
            let before = session_keyring();
            leave_session_keyring().unwrap();
            (before, session_keyring())
        });
        let (before, after) = asked.join().unwrap();
        if before == -1 {
            return crate::skipped::skipped("this kernel has no keyrings");
        }
        assert!(after != -1 && before != after, "{before} {after}");
    }

    #[test]
    fn structures_have_the_kernel_s_sizes() {
        // The size is part of each ioctl number (bits 16 to 29).
        let size = |request: u64| ((request >> 16) & 0x3fff) as usize;
        assert_eq!(size_of::<AddKey>() - 64, size(FS_IOC_ADD_ENCRYPTION_KEY));
        assert_eq!(size_of::<RemoveKey>(), size(FS_IOC_REMOVE_ENCRYPTION_KEY));
        assert_eq!(size_of::<GetKeyStatus>(), size(FS_IOC_GET_ENCRYPTION_KEY_STATUS));
        assert_eq!(size_of::<PolicyV2>(), 24);
        // The kernel writes no more than `size` says, whatever the number says (`u8[9]`).
        assert_eq!(size_of::<GetPolicy>(), 32);
        // Their numbers tell no size; `loop_info64` has 232 bytes.
        assert_eq!(size_of::<LoopConfig>(), 4 + 4 + 232 + 64);
        assert_eq!(std::mem::offset_of!(LoopConfig, flags), 8 + 52);
    }
}
