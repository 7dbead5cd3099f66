//! Storage drivers: how a container gets a root of its own from its image's layers, and how it is told what has changed in it.
//!
//! Layers are unpacked once, in overlayfs's form, whatever the driver: two drivers put a writable layer above them
//! ([`layered`]), two make one tree of them and a copy of that for each container ([`trees`]). A container keeps the driver that
//! it was made by, so the setting only says what becomes of new ones.

mod layered;
mod merge;
mod trees;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::PoisonError;

use dhow_oci::Digest;
use dhow_sys::tree::{Content, Copier, open_directory};
use serde::{Deserialize, Serialize};

pub use layered::disk_usage;

use crate::{Context, Packer, Result, Store, StoreError};

/// Puts a layer, in overlayfs's form, over a tree; its files are copied, or shared where the file system can.
pub(crate) fn merge(layer: &OwnedFd, tree: &OwnedFd) -> io::Result<()> {
    // What was mounted may be nothing but a path.
    let tree = open_directory(tree, c".")?;
    merge::merge(&mut Copier::new(tree.as_fd(), Content::Own), layer, &tree)
}

/// The storage drivers, by docker's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// The kernel's overlayfs.
    #[default]
    Overlay2,
    /// A copy of the whole image for each container; shares blocks where the file system can.
    Vfs,
    /// A snapshot of the image for each container.
    Btrfs,
    /// Overlayfs by a program, for where the kernel's cannot be.
    FuseOverlayfs,
}

/// All, the one that is to be preferred first.
pub const DRIVERS: [Driver; 4] = [Driver::Overlay2, Driver::Btrfs, Driver::FuseOverlayfs, Driver::Vfs];

impl Driver {
    pub fn name(self) -> &'static str {
        match self {
            Driver::Overlay2 => "overlay2",
            Driver::Vfs => "vfs",
            Driver::Btrfs => "btrfs",
            Driver::FuseOverlayfs => "fuse-overlayfs",
        }
    }

    fn implementation(self) -> &'static dyn StorageDriver {
        match self {
            Driver::Overlay2 => &layered::Layered::Kernel,
            Driver::Vfs => &trees::Trees::Copies,
            Driver::Btrfs => &trees::Trees::Snapshots,
            Driver::FuseOverlayfs => &layered::Layered::Program,
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Driver {
    type Err = String;

    /// By docker's names; overlayfs goes by those of its older driver and of its image store, too.
    fn from_str(name: &str) -> Result<Driver, String> {
        let known = DRIVERS.into_iter().find(|driver| driver.name() == name);
        let known = known.or_else(|| matches!(name, "overlay" | "overlayfs").then_some(Driver::Overlay2));
        known.ok_or_else(|| format!("there is no storage driver {name:?}: {} are there", DRIVERS.map(Driver::name).join(", ")))
    }
}

/// What a storage driver does.
trait StorageDriver: Sync {
    /// # Errors
    /// Why containers cannot have roots in this directory, which is empty.
    fn probe(&self, directory: &Path) -> io::Result<()>;

    /// Makes a container's root over an image's layers, in an empty directory, which will be the container's.
    fn create(&self, store: &Store, directory: &Path, id: &str, chain: &[Digest]) -> Result<Mountable>;

    /// What the container has changed in its image's files, in their order.
    fn changes(&self, store: &Store, root: &Mountable, chain: &[Digest]) -> Result<Vec<Change>>;

    /// Bytes of the files that the container has made or changed.
    fn size(&self, store: &Store, root: &Mountable, chain: &[Digest]) -> Result<u64>;

    /// Packs what the container has changed as a layer.
    fn pack(&self, store: &Store, root: &Mountable, chain: &[Digest], out: &mut dyn Write) -> Result<()>;

    /// An image's files, to be mounted and read.
    fn image(&self, store: &Store, chain: &[Digest]) -> Result<ImageFiles>;

    /// Whether a container's files may be limited.
    fn has_limits(&self) -> bool;

    /// `GraphDriver.Data` of a container, in docker's words.
    fn details(&self, root: &Mountable) -> Option<BTreeMap<String, String>>;

    /// `DriverStatus` of `info`, in docker's words.
    fn status(&self, backing_file_system: &str) -> Vec<(&'static str, String)>;
}

/// What is needed to mount a container's root: directories relative to the layers' own directory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Mountable {
    #[serde(default)]
    pub driver: Driver,
    pub directory: PathBuf,
    /// The layers below, from the top to the bottom; none of a driver that makes one tree.
    pub lower: Vec<String>,
    /// The writable layer, or the whole tree.
    pub upper: String,
    /// Empty for a tree.
    pub work: String,
}

impl Mountable {
    /// The directories that must be there.
    pub fn parts(&self) -> impl Iterator<Item = PathBuf> {
        let names = self.lower.iter().chain([&self.upper, &self.work]).filter(|name| !name.is_empty());
        names.map(|name| self.directory.join(name))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    Modified,
    Added,
    Deleted,
}

/// A path that differs from the image's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Below the root, without a slash before it.
    pub path: PathBuf,
    pub kind: ChangeKind,
    /// Bytes of a file that is new or changed.
    pub size: u64,
}

/// An image's files.
#[derive(Clone, Debug)]
pub enum ImageFiles {
    /// Directories that overlayfs shows as one, from the top to the bottom.
    Layers(Vec<PathBuf>),
    Tree(PathBuf),
}

/// The file that says overlayfs works in the data root.
const PROVEN: &str = "overlayfs-works";

impl Store {
    /// Which driver new containers get; the best that works if `None`.
    pub fn set_driver(&self, driver: Option<Driver>) {
        *self.driver.lock().unwrap_or_else(PoisonError::into_inner) = driver;
    }

    /// The driver of new containers.
    ///
    /// # Errors
    /// [`StoreError::NoDriver`] when the wanted one does not work here.
    pub fn driver(&self) -> Result<Driver> {
        let wanted = *self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        match wanted {
            Some(driver) => self.works(driver).map(|()| driver),
            None => {
                let works = |driver: &Driver| self.works(*driver).inspect_err(|error| tracing::warn!("{error}")).is_ok();
                // Copying takes no more than a file system has.
                Ok(DRIVERS.into_iter().find(works).unwrap_or(Driver::Vfs))
            }
        }
    }

    /// The driver of a new container over these layers: those that were unpacked where no overlay can be are not for overlayfs.
    pub(crate) fn driver_for(&self, chain: &[Digest]) -> Result<Driver> {
        let driver = self.driver()?;
        let is_marked = |directory: &PathBuf| directory.with_file_name(crate::layer::MARKS_ARE_FILES).exists();
        match driver {
            Driver::Overlay2 if self.directories(chain).iter().any(is_marked) => {
                tracing::warn!(
                    "layers that were unpacked where no overlay can be are copied: remove their images and pull them again"
                );
                Ok(Driver::Vfs)
            }
            driver => Ok(driver),
        }
    }

    /// The driver's name, for who only wants to know that: one that does not work is told, too.
    pub fn driver_shown(&self) -> Driver {
        let wanted = *self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.or_else(|| self.driver().ok()).unwrap_or_default()
    }

    /// # Errors
    /// [`StoreError::NoDriver`]: why a driver does not work here.
    pub fn works(&self, driver: Driver) -> Result<()> {
        let proven = self.paths.data.join(PROVEN);
        if driver == Driver::Overlay2 && proven.exists() {
            return Ok(());
        }
        let (directory, _lock) = crate::layer::claim(&self.paths.layers(), crate::layer::TEMPORARY)?;
        let probed = driver.implementation().probe(&directory);
        let _ = dhow_sys::root::remove_all(&directory);
        probed.map_err(|source| StoreError::NoDriver { driver, source })?;
        if driver == Driver::Overlay2 {
            std::fs::write(&proven, "").context(|| format!("create {}", proven.display()))?;
        }
        Ok(())
    }

    /// What a container has changed in the files of its image, in the order of their paths.
    pub fn changes(&self, root: &Mountable, chain: &[Digest]) -> Result<Vec<Change>> {
        root.driver.implementation().changes(self, root, chain)
    }

    /// Bytes of the files that a container has made or changed.
    pub fn written(&self, root: &Mountable, chain: &[Digest]) -> Result<u64> {
        root.driver.implementation().size(self, root, chain)
    }

    /// Packs what a container has changed, as a layer's tar.
    pub fn pack_changes(&self, root: &Mountable, chain: &[Digest], out: &mut dyn Write) -> Result<()> {
        root.driver.implementation().pack(self, root, chain, out)
    }

    /// An image's files, for a mount of them that cannot be written to.
    pub fn image_files(&self, chain: &[Digest]) -> Result<ImageFiles> {
        self.driver_for(chain)?.implementation().image(self, chain)
    }

    pub(crate) fn create_root(&self, driver: Driver, directory: &Path, id: &str, chain: &[Digest]) -> Result<Mountable> {
        driver.implementation().create(self, directory, id, chain)
    }
}

impl Driver {
    /// Whether a root takes its time.
    pub(crate) fn copies(self) -> bool {
        matches!(self, Driver::Vfs | Driver::Btrfs)
    }

    pub(crate) fn has_limits(self) -> bool {
        self.implementation().has_limits()
    }

    /// `GraphDriver.Data` of a container, in docker's words; `None` where docker has none.
    pub fn details(self, root: &Mountable) -> Option<BTreeMap<String, String>> {
        self.implementation().details(root)
    }

    /// `DriverStatus` of `info`, in docker's words.
    pub fn status(self, backing_file_system: &str) -> Vec<(&'static str, String)> {
        self.implementation().status(backing_file_system)
    }
}

/// What went wrong with the files of a container.
fn about(root: &Mountable) -> impl Fn() -> String + '_ {
    move || format!("compare the files of {} with the image's", root.directory.join(&root.upper).display())
}

fn finish(packer: Packer<&mut dyn Write>) -> io::Result<()> {
    packer.finish().map(drop)
}
