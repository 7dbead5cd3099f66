//! A small file system below an engine's data root, which can be filled.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use dhow_testkit::{Sandbox, text};

const MEGABYTES: u64 = 96;
/// Bytes.
const LAST: u64 = 6 << 20;

/// An ext4 without blocks kept for root, mounted over a sandbox's data root, whose content it has.
pub struct Disk {
    data: PathBuf,
}

impl Disk {
    pub fn below(sandbox: &Sandbox) -> Disk {
        let [image, before, data] = [sandbox.path("disk.img"), sandbox.path("before"), sandbox.data_root()];
        File::create(&image).and_then(|file| file.set_len(MEGABYTES << 20)).unwrap();
        let [image, before, at] = [&image, &before, &data].map(|path| path.to_str().unwrap());
        must("mkfs.ext4", &["-q", "-m", "0", "-b", "4096", image]);
        fs::rename(at, before).unwrap();
        fs::create_dir(at).unwrap();
        must("mount", &["-o", "loop", image, at]);
        must("cp", &["-a", &format!("{before}/."), at]);
        Disk { data }
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        let line = must("stat", &["-f", "-c", "%a %S", self.data.to_str().unwrap()]);
        let (blocks, size) = line.split_once(' ').unwrap();
        blocks.parse::<u64>().unwrap() * size.trim().parse::<u64>().unwrap()
    }

    /// Fills it but for so many bytes.
    pub fn leave(&self, room: u64) {
        let filler = self.filler();
        // The last part by writing: of what is set aside for the file system's own use nothing can be had beforehand.
        must("fallocate", &["-l", &self.free().saturating_sub(LAST).to_string(), filler.to_str().unwrap()]);
        let mut file = File::options().append(true).open(&filler).unwrap();
        for piece in [vec![0; 64 << 10], vec![0; 4096]] {
            while file.write_all(&piece).is_ok() {}
        }
        file.sync_all().unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(room)).unwrap();
        file.sync_all().unwrap();
    }

    /// Gives back what it was filled with.
    pub fn empty(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.data.join("lost+found/filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.data).output();
    }
}

fn must(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}
