//! Packages of Debian's, unpacked and not installed: the kernel, and programs that this host need not have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Result;
use super::files::{make_directory, remove, shell, text, write};

/// A kernel.
pub struct Kernel {
    pub image: PathBuf,
    /// `lib/modules/VERSION`
    pub modules: PathBuf,
    pub version: String,
}

impl Kernel {
    /// That of a release, or of the one that this host takes its packages from.
    pub fn get(directory: &Path, suite: Option<&str>) -> Result<Kernel> {
        let source = Source::of(directory, suite)?;
        let package = match source.kernel() {
            Ok(package) => package,
            // The lists of packages may be old, or not there.
            Err(_) => {
                source.update()?;
                source.kernel()?
            }
        };
        let unpacked = directory.join(&package);
        if !unpacked.join("boot").is_dir() && source.unpack(&package, &unpacked).is_err() {
            // A list that is older than what the mirror has.
            source.update()?;
            source.unpack(&package, &unpacked)?;
        }
        let version = package.trim_start_matches("linux-image-").to_owned();
        let modules = unpacked.join(if unpacked.join("usr/lib/modules").is_dir() { "usr/lib" } else { "lib" });
        let modules = modules.join("modules").join(&version);
        // Busybox loads none that are compressed.
        let directory = text(&modules)?;
        shell("sh", &["-c", &format!("find '{directory}' -name '*.ko.xz' -print0 | xargs -0 --no-run-if-empty xz -d")])?;
        let base = modules.ancestors().nth(3).unwrap_or(&unpacked);
        shell("depmod", &["--basedir", text(base)?, &version])?;
        Ok(Kernel { image: unpacked.join("boot").join(format!("vmlinuz-{version}")), modules, version })
    }

    /// Files of a module and of those that it needs, in the order in which they are loaded.
    pub fn files_of(&self, module: &str) -> Result<Vec<PathBuf>> {
        let list = self.modules.join("modules.dep");
        let list = fs::read_to_string(&list).map_err(|error| format!("read {}: {error}", list.display()))?;
        let is_it = |file: &str| Path::new(file).file_stem().and_then(|name| name.to_str()) == Some(module);
        let line = list.lines().find_map(|line| {
            let (file, needed) = line.split_once(':')?;
            is_it(file).then(|| (file.to_owned(), needed.to_owned()))
        });
        // What is built in needs no file.
        let Some((file, needed)) = line else { return Ok(Vec::new()) };
        Ok(needed.split_whitespace().rev().chain([file.as_str()]).map(|file| self.modules.join(file)).collect())
    }
}

/// The files of a package of the host's own release, unpacked below `directory`.
pub fn package(directory: &Path, name: &str) -> Result<PathBuf> {
    let source = Source::of(directory, None)?;
    let unpacked = directory.join(name);
    if !unpacked.is_dir() && source.unpack(name, &unpacked).is_err() {
        source.update()?;
        source.unpack(name, &unpacked)?;
    }
    Ok(unpacked)
}

/// Where packages come from.
struct Source {
    /// Options of apt that make it look at another release than the host's.
    options: Vec<String>,
    directory: PathBuf,
}

impl Source {
    fn of(directory: &Path, suite: Option<&str>) -> Result<Source> {
        let mut options = Vec::new();
        if let Some(suite) = suite {
            let own = directory.join(format!("apt-{suite}"));
            make_directory(&own.join("lists/partial"))?;
            let list = own.join("sources.list");
            write(&list, &format!("deb {} {suite} main\n", Source::mirror()?), 0o644)?;
            for (name, value) in [
                ("Dir::Etc::sourcelist", text(&list)?),
                ("Dir::Etc::sourceparts", "-"),
                ("Dir::State::lists", text(&own.join("lists"))?),
            ] {
                options.extend(["-o".to_owned(), format!("{name}={value}")]);
            }
        }
        Ok(Source { options, directory: directory.to_owned() })
    }

    /// Where this host takes Debian's packages from.
    fn mirror() -> Result<String> {
        let repositories = shell("apt-get", &["indextargets", "--format", "$(ORIGIN)|$(REPO_URI)", "Created-By: Packages"])?;
        let of_debian =
            repositories.lines().filter_map(|line| line.strip_prefix("Debian|")).find(|uri| !uri.contains("security"));
        of_debian.map(str::to_owned).ok_or_else(|| "apt has no repository of Debian's: run apt-get update".to_owned())
    }

    fn apt(&self, program: &str, args: &[&str]) -> Result<String> {
        let options = self.options.iter().map(String::as_str);
        shell(program, &options.chain(args.iter().copied()).collect::<Vec<_>>())
    }

    fn update(&self) -> Result {
        self.apt("apt-get", &["update", "-qq"]).map(drop)
    }

    fn kernel(&self) -> Result<String> {
        let depends = self.apt("apt-cache", &["depends", "linux-image-cloud-amd64"])?;
        let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let package = names.into_iter().find(|name| name.starts_with("linux-image-")).map(str::to_owned);
        package.ok_or_else(|| "apt knows no linux-image-cloud-amd64".to_owned())
    }

    fn unpack(&self, package: &str, to: &Path) -> Result {
        let temporary = self.directory.join("download");
        remove(&temporary)?;
        make_directory(&temporary)?;
        let mut command = Command::new("apt-get");
        command.args(&self.options).args(["download", "-qq", package]).current_dir(&temporary).stdin(Stdio::null());
        if !command.status().is_ok_and(|status| status.success()) {
            return Err(format!("apt-get download {package} failed"));
        }
        let archive = fs::read_dir(&temporary).ok().and_then(|mut entries| entries.next()?.ok());
        let archive = archive.ok_or_else(|| format!("apt-get download {package} left nothing"))?.path();
        // In its place only when it is whole.
        let half = self.directory.join("unpacked");
        remove(&half)?;
        shell("dpkg-deb", &["-x", text(&archive)?, text(&half)?])?;
        fs::rename(&half, to).map_err(|error| format!("rename {} to {}: {error}", half.display(), to.display()))
    }
}
