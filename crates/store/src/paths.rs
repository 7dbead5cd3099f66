//! Where everything lies: the data root, which survives a reboot, and the exec root, which does not.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::{Context, Result};

/// The two roots and what is where below them.
#[derive(Clone, Debug)]
pub struct Paths {
    /// `/var/lib/dhow`
    pub data: PathBuf,
    /// `/run/dhow`
    pub exec: PathBuf,
}

impl Paths {
    pub fn new(data: &Path, exec: &Path) -> Paths {
        Paths { data: data.to_owned(), exec: exec.to_owned() }
    }

    /// Layers and writable layers, one directory each.
    pub fn layers(&self) -> PathBuf {
        self.data.join("layers")
    }

    /// Blobs that layers came in, by the digits of their digests, whose number tells by what algorithm they are.
    pub fn blobs(&self) -> PathBuf {
        self.data.join("blobs/sha256")
    }

    /// What is known of the files of builds' contexts, one list each.
    pub fn contexts(&self) -> PathBuf {
        self.data.join("contexts")
    }

    /// What is kept of builds, one directory each.
    pub fn history(&self) -> PathBuf {
        self.data.join("history")
    }

    /// What somebody is at work on, one directory each.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.data.join("tmp")
    }

    /// A container's logs, `hosts`, `hostname`, `resolv.conf` and last state.
    pub fn container(&self, id: &str) -> PathBuf {
        self.data.join("containers").join(id)
    }

    /// A running container's lock, socket and state.
    pub fn run(&self, id: &str) -> PathBuf {
        self.exec.join("containers").join(id)
    }

    /// All [`Paths::run`] directories.
    pub fn runs(&self) -> PathBuf {
        self.exec.join("containers")
    }

    /// The names in all networks.
    pub fn neighbours(&self) -> PathBuf {
        self.exec.join("networks")
    }

    /// All volumes' directories.
    pub fn volumes(&self) -> PathBuf {
        self.data.join("volumes")
    }

    /// A volume's content.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.volumes().join(name).join("_data")
    }

    /// The event log of this boot.
    pub fn events(&self) -> PathBuf {
        self.exec.join("events.jsonl")
    }

    /// Makes the directories of both roots. Nothing in them is for others to read.
    pub fn create(&self) -> Result<()> {
        let make = |path: &Path, mode: u32| {
            std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).context(|| format!("create {}", path.display()))
        };
        make(&self.data, 0o710)?;
        for name in ["layers", "blobs/sha256", "containers", "volumes", "tmp"] {
            make(&self.data.join(name), 0o710)?;
        }
        spread(&self.layers());
        self.create_exec()
    }

    /// Makes the exec root, which is gone after each boot.
    pub fn create_exec(&self) -> Result<()> {
        let path = self.runs();
        std::fs::DirBuilder::new().recursive(true).mode(0o710).create(&path).context(|| format!("create {}", path.display()))
    }
}

/// Tells ext4 that what is in a directory does not belong together (`chattr +T`): layers that are unpacked at once are put apart,
/// and away from where others have just been removed, for whose inodes it would search long (`recently_deleted`).
fn spread(directory: &Path) {
    let told = std::fs::File::open(directory).map_err(|_| rustix::io::Errno::NOENT).and_then(|directory| {
        let flags = rustix::fs::ioctl_getflags(&directory)?;
        rustix::fs::ioctl_setflags(&directory, flags | rustix::fs::IFlags::TOPDIR)
    });
    if let Err(error) = told {
        tracing::debug!("spread {}: {error}", directory.display());
    }
}
