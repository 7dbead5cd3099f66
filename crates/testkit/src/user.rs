//! An ordinary user of the host, for tests: one that only the commands see which he runs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

/// His number on the host, of user and group.
pub const NUMBER: u32 = 70_001;
/// The first of the ids that are his to give away; there are 65,536.
pub const FIRST_ID: u32 = 2_000_000;

/// Has the host's files name him, shows him the binary under test and the device that `pasta` needs, which not every host lets all users
/// open, puts him into a cgroup that is his where there is cgroup v2 alone, and becomes him.
const SCRIPT: &str = r#"
set -e
home=$1 binary=$2
shift 2
for file in passwd subuid subgid; do mount --bind "$home/etc/$file" "/etc/$file"; done
[ -e /dev/net/tun ] || modprobe tun
mount --bind "$home/etc/tun" /dev/net/tun
mount --bind "$binary" "$home/etc/dhow"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  own="/sys/fs/cgroup/${home##*/}"
  mkdir -p "$own/session"
  for controller in memory pids cpu; do echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control; done
  chown -R 70001 "$own"
  echo $$ >"$own/session/cgroup.procs"
fi
# By its path: some shells have a lesser one of that name inside.
exec "$(which setpriv)" --reuid 70001 --regid 70001 --clear-groups \
  env -i PATH="$PATH" HOME="$home" XDG_RUNTIME_DIR="$home" TEST_PATIENCE="${TEST_PATIENCE:-20}" "$home/etc/dhow" "$@"
"#;

/// What must be there for him.
const PROGRAMS: [&str; 4] = ["newuidmap", "newgidmap", "pasta", "setpriv"];

/// A user whose home is the test's own directory.
pub(crate) struct User {
    home: PathBuf,
}

impl Drop for User {
    fn drop(&mut self) {
        let own = Path::new("/sys/fs/cgroup").join(self.home.file_name().unwrap_or_default());
        for directory in [own.join("session"), own] {
            let _ = fs::remove_dir(directory);
        }
    }
}

impl User {
    /// # Errors
    /// The program that is missing.
    pub fn new(home: &Path) -> Result<User, String> {
        let has = |program: &str| Command::new("which").arg(program).output().is_ok_and(|output| output.status.success());
        if let Some(missing) = PROGRAMS.into_iter().find(|program| !has(program)) {
            return Err(format!("{missing} is missing: apt-get install uidmap passt"));
        }
        let etc = home.join("etc");
        fs::create_dir(&etc).expect("a directory can be made");
        let passwd = fs::read_to_string("/etc/passwd").expect("a host has users");
        let line = format!("tester:x:{NUMBER}:{NUMBER}::{}:/bin/sh\n", home.display());
        fs::write(etc.join("passwd"), passwd + &line).expect("a file can be written");
        for name in ["subuid", "subgid"] {
            fs::write(etc.join(name), format!("tester:{FIRST_ID}:65536\n")).expect("a file can be written");
        }
        fs::write(etc.join("dhow"), "").expect("a file can be written");
        let made = Command::new("mknod").args(["-m", "666"]).arg(etc.join("tun")).args(["c", "10", "200"]).status();
        assert!(made.expect("mknod is there").success(), "the device can be made");
        chown(home, Some(NUMBER), Some(NUMBER)).expect("root gives files away");
        fs::set_permissions(home, fs::Permissions::from_mode(0o755)).expect("root changes modes");
        Ok(User { home: home.to_owned() })
    }

    /// A command of his that is the binary under test, on the host or in a network namespace.
    pub fn program(&self, namespace: Option<&str>, binary: &Path) -> Command {
        let script = ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"];
        let words: Vec<String> = match namespace {
            Some(path) => vec!["nsenter".to_owned(), format!("--net={path}")],
            None => Vec::new(),
        };
        let words: Vec<String> = words.into_iter().chain(script.map(str::to_owned)).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(&self.home).arg(binary);
        command
    }
}
