//! Where the host's side of networks is: bridges, rules, ways out. For root that is the network namespace that its engine runs in. An
//! ordinary user has no rights there: his are in a network namespace of his own, which his keeper (crate `rootless`) holds, while
//! engines and monitors stay where they are. There they publish ports by sockets and ask name servers, as any program does.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use dhow_sys::netlink::Socket;
use dhow_sys::{process, socket};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::nft::{self, Expression, Family, Transaction};
use crate::{Context, Result};

/// `CLONE_NEWNET`
const NEW_NETWORK: i32 = 0x4000_0000;

/// The keeper's socket, below the exec root: of messages, each with one descriptor at most.
pub const SOCKET: &str = "keeper.sock";
/// What the keeper sends first, with its user namespace.
pub const USERS: &[u8] = b"U";
/// The question for the network namespace; the answer is the same, why there is no way out of it (nothing if there is one), and it.
pub const NETWORK: &[u8] = b"N";
/// The longest message.
pub const LONGEST: usize = 4096;

/// A connection to a keeper, which stays as long as one is held.
#[derive(Debug)]
pub struct Keeper {
    connection: OwnedFd,
    /// The user namespace that the user is root of.
    pub users: OwnedFd,
    network: OnceLock<(OwnedFd, Option<String>)>,
}

impl Keeper {
    /// # Errors
    /// `NotFound` and `ConnectionRefused` where there is none, `UnexpectedEof` where one is about to go.
    pub fn connect(exec_root: &Path) -> io::Result<Keeper> {
        let connection = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // A Unix address holds 107 bytes: the long path is replaced by a descriptor of the directory.
        let directory = rustix::fs::open(exec_root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let path = dhow_sys::root::descriptor_path(directory.as_fd()).join(SOCKET);
        rustix::net::connect(&connection, &SocketAddrUnix::new(path)?)?;
        let (told, users) = hear(&connection)?;
        match users {
            Some(users) if told == USERS => Ok(Keeper { connection, users, network: OnceLock::new() }),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The network namespace, which is made when the first one asks, and why there is no way out of it, if there is none.
    fn network(&self) -> io::Result<&(OwnedFd, Option<String>)> {
        if let Some(network) = self.network.get() {
            return Ok(network);
        }
        socket::send(&self.connection, NETWORK, &[])?;
        let (told, namespace) = hear(&self.connection)?;
        let fault = told.strip_prefix(NETWORK).map(|fault| String::from_utf8_lossy(fault).into_owned());
        let network = namespace.zip(fault).ok_or(io::ErrorKind::UnexpectedEof)?;
        let fault = Some(network.1).filter(|fault| !fault.is_empty());
        Ok(self.network.get_or_init(|| (network.0, fault)))
    }
}

fn hear(connection: &OwnedFd) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let (mut message, mut descriptors) = (vec![0; LONGEST], Vec::new());
    let length = socket::receive(connection, &mut message, &mut descriptors)?;
    message.truncate(length);
    Ok((message, descriptors.pop()))
}

static KEEPER: OnceLock<Keeper> = OnceLock::new();

/// Puts the host's side of this process's networks where the keeper has it. Once there, it stays.
pub fn adopt(keeper: Keeper) {
    let _ = KEEPER.set(keeper);
}

/// The same with the keeper of an exec root, if this process is in its user namespace.
pub fn find(exec_root: &Path) {
    let number = |file: rustix::io::Result<rustix::fs::Stat>| file.map(|stat| (stat.st_dev, stat.st_ino)).ok();
    if !process::is_in_user_namespace() || is_elsewhere() {
        return;
    }
    if let Ok(keeper) = Keeper::connect(exec_root)
        && number(rustix::fs::fstat(&keeper.users))
            .is_some_and(|theirs| number(rustix::fs::stat("/proc/self/ns/user")) == Some(theirs))
    {
        adopt(keeper);
    }
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
    KEEPER.get().is_some()
}

/// Why networks have no way out, if that is so.
pub fn fault() -> Result<Option<String>> {
    let Some(keeper) = KEEPER.get() else { return Ok(None) };
    keeper.network().map(|(_, fault)| fault.clone()).context(|| "find the user's network namespace".to_owned())
}

/// Does something where the host's side of networks is. A thread of its own enters that: it is not to be left again for the namespace of
/// the host by who is not root there.
pub fn within<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    match KEEPER.get() {
        None => Ok(work()),
        Some(keeper) => in_thread(Some(&keeper.network()?.0), work),
    }
}

/// Does something in a network namespace, a new one if none is given, on a thread that ends there.
pub(crate) fn in_thread<T: Send>(namespace: Option<&OwnedFd>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let work = || {
        match namespace {
            Some(namespace) => process::set_namespace(namespace.as_fd(), NEW_NETWORK)?,
            None => process::unshare(NEW_NETWORK)?,
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
