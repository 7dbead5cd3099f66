//! An engine for an ordinary user, who is root of namespaces of his own.
//!
//! What is to be an engine [`enter`]s a user namespace in which the user's number is 0 and the ranges that subuid(5) and subgid(5) give
//! him are the others, and a mount namespace of its own. All his engines and monitors are in that one user namespace; the [`keeper`], a
//! process that is there as long as one of them is, lets others in. It also holds the network namespace in which the bridges are
//! ([`dhow_network::home`]), and gives that a way out (by `pasta`).
//!
//! Engines and monitors stay in the host's network namespace: they pull images, publish ports and ask name servers as any program
//! of the user does, and a container with the host's network has the host's.

pub mod doctor;
mod enter;
pub mod keeper;
mod ranges;
mod uplink;

use std::io;

pub use enter::enter;

/// Why an ordinary user cannot have an engine, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum RootlessError {
    #[error("{what}: {source}")]
    Kernel {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "user {user} has no ids for containers: there is no line for him in {file}. An administrator gives him some: \
         {}",
        ranges::command_for(user)
    )]
    NoRanges { user: String, file: &'static str },
    #[error("{program} is missing, which gives a user namespace its ids: install {package}")]
    NoHelper { program: &'static str, package: &'static str },
    #[error("{program} gave the user namespace no ids: {why}")]
    Refused { program: &'static str, why: String },
    #[error("{} is another user's, or others may write to it: remove it, or set XDG_RUNTIME_DIR", directory.display())]
    NotHis { directory: std::path::PathBuf },
    #[error("make a user namespace: {source}{}", remedy().map(|remedy| format!("; an administrator allows them: {remedy}")).unwrap_or_default())]
    NoUserNamespace { source: io::Error },
}

pub type Result<T, E = RootlessError> = std::result::Result<T, E>;

trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| RootlessError::Kernel { what: what(), source: error.into() })
    }
}

/// What lets users make user namespaces, as a command of an administrator, where that is known.
fn remedy() -> Option<String> {
    // Debian's own, AppArmor's (Ubuntu 24.04), the kernel's.
    let settings = [
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
    ];
    let is_so = |(path, value, _): &&(&str, &str, &str)| std::fs::read_to_string(path).is_ok_and(|now| now.trim() == *value);
    settings.iter().find(is_so).map(|(_, _, command)| (*command).to_owned())
}
