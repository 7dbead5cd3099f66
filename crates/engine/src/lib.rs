//! The domain: containers, images, volumes, networks, exec and events as one typed [`Engine`].
//!
//! Several engines may work on one data root at once. **Invariant:** no state lives only in an engine's memory; an engine
//! never forks and never changes its process's own state. What runs, runs under a monitor, and is reached through it.
//! Nothing here speaks HTTP or prints. Calls block; those that may take long hand out a socket or run on a callback.
//!
//! A container's configuration is kept in the API's own form (`dhow_api::config`), as clients sent it, and is parsed into
//! typed pieces before anything acts on it.

#![recursion_limit = "256"]

mod apparmor;
mod archive;
mod budget;
mod build;
mod bundled;
mod cdi;
mod changes;
mod check;
mod commit;
mod container;
mod create;
mod dependencies;
mod error;
mod events;
mod exec;
mod filter;
mod health;
mod host;
mod image;
mod inspect;
mod instructions;
mod lifecycle;
mod limits;
mod link;
mod links;
mod list;
mod logs;
mod mounts;
mod names;
mod nest;
mod network;
mod platforms;
mod ports;
mod propagation;
mod prune;
mod pull;
mod push;
mod rebuild;
mod reconcile;
mod registries;
mod remove;
mod security;
mod settings;
mod signal;
mod spec;
mod stats;
mod system;
mod top;
pub use dhow_oci::units;
mod update;
mod users;
mod volumes;
mod wait;

pub use archive::{PathStat, PutOptions};
pub use budget::Budget;
pub use build::{
    Allowed, Annotation, BuildDirectory, BuildLimits, BuildLog, BuildRequest, Built, CacheFilter, CachePlace, CacheSource,
    CacheTarget, Cancel, ClientPlace, Content, Context as BuildContext, Described, HistoryRecord, ImageForm, Journal,
    LayoutImage, LayoutImages, LayoutSource, NewBlob, NewRecord, Noted, Output as BuildOutput, Place as BuildPlace, Provenance,
    PruneBuilds, RecordedFailure, RecordedResult, Solved, Squash, StepCounts, Take, is_own_frontend, scanner_of, vertex,
};
pub use bundled::BUNDLED;
pub use commit::CommitOptions;
pub use container::{Container, ContainerId};
pub use create::{Created, NewContainer};
pub use dhow_build;
pub use dhow_monitor::events::Event;
pub use dhow_monitor::protocol::ExecConfig;
pub use dhow_monitor::protocol::Runtime;
pub use dhow_network::address::Subnet;
pub use dhow_network::home::is_elsewhere as is_of_ordinary_user;
pub use dhow_network::ports::Policy;
pub use dhow_registry::{Credentials, Hosts};
pub use dhow_store::Limits;
pub use dhow_store::{ArchiveLayout, Compression, CopyOptions, LoadProgress, Packer, copy_into};
pub use dhow_sys::root::Root;
pub use dhow_sys::socket::unread;
pub use error::{Error, Kind, Result};
pub use events::EventQuery;
pub use exec::ExecStarted;
pub use filter::Filters;
pub use health::ON_FAILURE;
pub use host::supported_platforms;
pub use lifecycle::{AttachOptions, detach_keys};
pub use link::{Spare, collect_children, program_path};
pub use list::ListQuery;
pub use logs::drivers::check as check_log;
pub use logs::{LogQuery, LogSink};
pub use names::random_id;
pub use network::extra_host;
pub use prune::{DiskQuery, PruneQuery};
pub use pull::{LayerEvent, PullEvent, PullRequest, Step};
pub use push::{PushEvent, PushLayer, PushRequest, PushStep};
pub use rebuild::Rebuilt;
pub use settings::{BindOwnership, ContainerDefaults, DefaultNetwork, OWN_RUNTIMES, Pool, Settings};
pub use signal::parse_signal;
pub use system::Figures;
pub use users::remap;
pub use wait::{Condition, Waiting};

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use dhow_store::{Paths, Store};

/// The version of this engine.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub struct Engine {
    settings: RwLock<Arc<Settings>>,
    pub(crate) store: Store,
    /// Not state: whatever is in it, nothing is lost with it.
    spare: Mutex<Option<Spare>>,
}

impl Engine {
    /// Opens a data root. It need not exist yet.
    pub fn open(settings: Settings) -> Result<Engine> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::new(
                Kind::Forbidden,
                "the engine must run as root: run the command with sudo, or talk to a running daemon with -H",
            ));
        }
        let absolute =
            |path: &Path| std::path::absolute(path).map_err(|error| Error::invalid(format!("path {}: {error}", path.display())));
        let paths = Paths::new(&absolute(&settings.data_root)?, &absolute(&settings.exec_root)?);
        dhow_network::home::find(&paths.exec);
        link::keep_program();
        let store = Store::open(paths)?;
        store.paths.create_exec()?;
        store.set_limits(settings.layers);
        store.set_driver(settings.storage_driver);
        Ok(Engine { settings: RwLock::new(Arc::new(settings)), store, spare: Mutex::default() })
    }

    pub fn settings(&self) -> Arc<Settings> {
        // A thread that panicked holding it has left it as it was.
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes new settings, for what is done from now on. The roots stay.
    ///
    /// # Errors
    /// The storage driver that is wanted does not work here: nothing is taken.
    pub fn reload(&self, settings: Settings) -> Result<()> {
        settings.storage_driver.map_or(Ok(()), |driver| self.store.works(driver))?;
        let (data_root, exec_root) = (self.settings().data_root.clone(), self.settings().exec_root.clone());
        self.store.set_limits(settings.layers);
        self.store.set_driver(settings.storage_driver);
        let new = Arc::new(Settings { data_root, exec_root, ..settings });
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = new;
        self.reloaded();
        Ok(())
    }

    /// How new containers get their files.
    ///
    /// # Errors
    /// The driver that is wanted does not work here.
    pub fn storage_driver(&self) -> Result<dhow_store::Driver> {
        Ok(self.store.driver()?)
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.store.paths
    }
}
