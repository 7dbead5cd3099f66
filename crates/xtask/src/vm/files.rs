//! Files of this host, and the programs that make more of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Result;

pub fn find_program(name: &str) -> Option<PathBuf> {
    ["/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.exists())
}

/// Copies a file, following links, to a path below `root`; directories of that path that are links on this host are directories
/// there.
pub fn copy(from: &Path, root: &Path, to: &Path) -> Result {
    let to = root.join(to.strip_prefix("/").unwrap_or(to));
    if to.exists() {
        return Ok(());
    }
    make_directory(to.parent().unwrap_or(root))?;
    fs::copy(from, &to).map(drop).map_err(|error| format!("copy {} to {}: {error}", from.display(), to.display()))
}

pub fn make_directory(path: &Path) -> Result {
    fs::create_dir_all(path).map_err(|error| format!("create {}: {error}", path.display()))
}

pub fn remove(path: &Path) -> Result {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("remove {}: {error}", path.display())),
        _ => Ok(()),
    }
}

pub fn write(path: &Path, content: &str, mode: u32) -> Result {
    let written = fs::write(path, content).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)));
    written.map_err(|error| format!("write {}: {error}", path.display()))
}

pub fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| format!("{} is no text", path.display()))
}

/// Standard output of a program that must succeed.
pub fn shell(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("run {program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{program} {}: {}", args.join(" "), output.status)),
    }
}
