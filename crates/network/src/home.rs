//! Where the host's side of networks is: bridges, rules, ways out. For root that is the network namespace that its engine runs in. An
//! ordinary user has no rights there: his are in a network namespace of his own, which his keeper (crate `rootless`) holds, while
//! engines and monitors stay where they are. There they publish ports by sockets and ask name servers, as any program does.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dhow_sys::netlink::Socket;
use dhow_sys::{clone, process, socket};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::nft::{self, Expression, Family, Transaction};
use crate::{Context, Result};

/// The keeper's socket, below the exec root: of messages, each with one descriptor at most.
pub const SOCKET: &str = "keeper.sock";
/// What the keeper sends first, with its user namespace.
pub const USERS: &[u8] = b"U";
/// The question for the network namespace; the answer is the same, why there is no way out of it (nothing if there is one), and it.
pub const NETWORK: &[u8] = b"N";
/// The longest message.
pub const LONGEST: usize = 4096;

/// A keeper that says nothing for so long is none.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to a keeper, which stays as long as one is held.
#[derive(Debug)]
pub struct Keeper {
    exec_root: PathBuf,
    connection: OwnedFd,
    /// The user namespace that the user is root of.
    pub users: OwnedFd,
    network: OnceLock<OwnedFd>,
}

impl Keeper {
    /// # Errors
    /// `NotFound` and `ConnectionRefused` where there is none, `UnexpectedEof` where one is about to go.
    pub fn connect(exec_root: &Path) -> io::Result<Keeper> {
        let connection = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (address, _directory) = socket::address_in(exec_root, SOCKET)?;
        rustix::net::connect(&connection, &address)?;
        let (told, users) = hear(&connection)?;
        match users {
            Some(users) if told == USERS => {
                Ok(Keeper { exec_root: exec_root.to_owned(), connection, users, network: OnceLock::new() })
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Whether it lives: it hangs up when it ends, and says nothing unasked.
    fn is_alive(&self) -> bool {
        matches!(socket::wait_readable(&self.connection, Duration::ZERO), Ok(false))
    }

    /// Asks for the network namespace, which is made for the first one. Why there is no way out of it, if there is none.
    fn ask(&self) -> io::Result<Option<String>> {
        socket::send(&self.connection, NETWORK, &[])?;
        let (told, namespace) = hear(&self.connection)?;
        let text = told.strip_prefix(NETWORK).ok_or(io::ErrorKind::UnexpectedEof)?;
        let text = String::from_utf8_lossy(text).into_owned();
        match namespace {
            Some(namespace) => drop(self.network.get_or_init(|| namespace)),
            None => return Err(io::Error::other(text)),
        }
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    fn network(&self) -> io::Result<&OwnedFd> {
        if self.network.get().is_none() {
            self.ask()?;
        }
        self.network.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn hear(connection: &OwnedFd) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    if !socket::wait_readable(connection, PATIENCE)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let (mut message, mut descriptors) = (vec![0; LONGEST], Vec::new());
    let length = socket::receive(connection, &mut message, &mut descriptors)?;
    message.truncate(length);
    Ok((message, descriptors.pop()))
}

/// Starts a keeper for the user namespace that the process is in, and for this network namespace if there is one.
pub type Revive = fn(&Path, Option<&OwnedFd>) -> io::Result<()>;

static KEEPER: Mutex<Option<Arc<Keeper>>> = Mutex::new(None);
static REVIVE: OnceLock<Revive> = OnceLock::new();

fn held() -> MutexGuard<'static, Option<Arc<Keeper>>> {
    // Whoever panicked with it has replaced it as a whole, or not at all.
    KEEPER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts the host's side of this process's networks where the keeper has it.
pub fn adopt(keeper: Keeper) {
    *held() = Some(Arc::new(keeper));
}

/// How a keeper that was killed is replaced. For engines: monitors wait until one does it.
pub fn revive_with(revive: Revive) {
    let _ = REVIVE.set(revive);
}

/// The same as [`adopt`] with the keeper of an exec root, if this process is in its user namespace. Returns whether the host's side of
/// networks is elsewhere now.
pub fn find(exec_root: &Path) -> bool {
    if process::is_in_user_namespace()
        && !is_elsewhere()
        && let Ok(keeper) = Keeper::connect(exec_root)
        && is_own(&keeper)
    {
        adopt(keeper);
    }
    is_elsewhere()
}

/// Whether a keeper's user namespace is this process's.
fn is_own(keeper: &Keeper) -> bool {
    let number = |file: rustix::io::Result<rustix::fs::Stat>| file.map(|stat| (stat.st_dev, stat.st_ino)).ok();
    let theirs = number(rustix::fs::fstat(&keeper.users));
    theirs.is_some() && theirs == number(rustix::fs::stat("/proc/self/ns/user"))
}

/// The keeper, or the one that has come in its place. Where there is none to be had what the old one has given is what there is.
fn keeper() -> Option<Arc<Keeper>> {
    let mut held = held();
    let known = held.clone()?;
    if known.is_alive() {
        return Some(known);
    }
    let network = known.network.get();
    let connect = || Keeper::connect(&known.exec_root).ok().filter(is_own);
    let found = connect().or_else(|| {
        REVIVE.get().and_then(|revive| revive(&known.exec_root, network).ok())?;
        connect()
    });
    match found {
        Some(keeper) => {
            if let Some(network) = network.and_then(|network| network.try_clone().ok()) {
                let _ = keeper.network.set(network);
            }
            let keeper = Arc::new(keeper);
            *held = Some(keeper.clone());
            Some(keeper)
        }
        None => Some(known),
    }
}

/// Sees to it that there is a keeper, if this process has one, before another one is started that needs it.
pub fn ensure() {
    drop(keeper());
}

/// Makes a new network namespace ready to be the host's side of a user's networks: its loopback device is up, and it answers no packet
/// that belongs to no connection. There are versions of `pasta` that send such in the middle of one, which the answer would end.
pub fn prepare(network: &OwnedFd) -> Result<()> {
    const TABLE: &str = "dhow-uplink";
    /// `NF_CT_STATE_INVALID_BIT`, and the state's length.
    const INVALID: u32 = 1;
    crate::isolate(network)?;
    let guard = || {
        let mut transaction = Transaction::begin(Family::Inet, TABLE);
        transaction.fresh_table();
        transaction.base_chain("input", "filter", nft::HOOK_INPUT, 0);
        // ct state invalid drop
        let rule = [
            Expression::Conntrack { key: nft::CT_STATE, register: 1 },
            Expression::Mask { mask: INVALID.to_ne_bytes().to_vec() },
            Expression::Compare { operator: 1, value: vec![0; 4] },
            Expression::Drop,
        ];
        transaction.rule("input", &rule);
        transaction.commit(&Socket::netfilter()?)
    };
    in_thread(Some(network), guard).and_then(|done| done).context(|| "set up the user's network namespace".to_owned())
}

/// Whether the host's side of networks is not in the namespace that this process is in.
pub fn is_elsewhere() -> bool {
    held().is_some()
}

/// Why networks have no way out, if that is so.
pub fn fault() -> Result<Option<String>> {
    let Some(keeper) = keeper() else { return Ok(None) };
    keeper.ask().context(|| "find the user's network namespace".to_owned())
}

/// Does something where the host's side of networks is. A thread of its own enters that: it is not to be left again for the namespace of
/// the host by who is not root there.
pub fn within<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    match keeper() {
        None => Ok(work()),
        Some(keeper) => in_thread(Some(keeper.network()?), work),
    }
}

/// Does something in a network namespace, a new one if none is given, on a thread that ends there.
pub(crate) fn in_thread<T: Send>(namespace: Option<&OwnedFd>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let work = || {
        match namespace {
            Some(namespace) => process::set_namespace(namespace.as_fd(), clone::NEW_NETWORK as i32)?,
            None => process::unshare(clone::NEW_NETWORK as i32)?,
        }
        Ok(work())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A socket of the host's side.
pub(crate) fn route() -> io::Result<Socket> {
    within(Socket::route)?
}

/// The same for the packet filter.
pub(crate) fn netfilter() -> io::Result<Socket> {
    within(Socket::netfilter)?
}
