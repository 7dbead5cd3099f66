//! One machine: QEMU, its disks and its console.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::root::Root;
use super::{Bench, Result};

/// All that QEMU can emulate, but for the exchange of 16 bytes, which it gets wrong now and then (QEMU 7.2, seen with Linux 6.12).
const CPU: &str = "max,cx16=off";
/// One thread for both processors. With one each a processor may meet code in the state in which another has just replaced it:
/// the kernel, which replaces its own at each static key, dies of that (`Oops: int3`).
const ACCELERATOR: &str = "tcg,thread=single";
/// What a task may take of memory, MiB.
const MEMORY: u32 = 2048;

/// A disk; the machine has them as `/dev/vda`, `/dev/vdb` and so on.
pub enum Disk {
    /// Keeps what is written to it, while this host stays up.
    Kept(PathBuf),
    /// As it was before, at each boot.
    Scratch(PathBuf),
    /// Keeps what is written; and what was written, in which order, and when the machine asked for it to be safe, is in a log
    /// ([`super::write_log`]).
    Logged { image: PathBuf, log: PathBuf },
}

/// A machine that runs. It ends with this value.
pub struct Machine {
    process: Child,
    console: Option<BufReader<ChildStdout>>,
}

impl Machine {
    /// Boots the kernel with `words` added to its command line.
    pub fn boot(bench: &Bench, root: &Root, disks: &[Disk], words: &[&str]) -> Result<Machine> {
        Machine::boot_with(bench, root, disks, words, &[])
    }

    /// As [`Machine::boot`], with more options of QEMU.
    pub fn boot_with(bench: &Bench, root: &Root, disks: &[Disk], words: &[&str], options: &[&str]) -> Result<Machine> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", ACCELERATOR, "-cpu", CPU, "-smp", "2", "-m", &MEMORY.to_string()]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
        for (number, disk) in disks.iter().enumerate() {
            match disk {
                Disk::Kept(image) | Disk::Scratch(image) => {
                    let snapshot = if matches!(disk, Disk::Scratch(_)) { "on" } else { "off" };
                    let image = image.display();
                    let drive = format!("file={image},if=none,id=disk{number},format=raw,cache=unsafe,snapshot={snapshot}");
                    command.arg("-drive").arg(drive);
                    // In the order of the disks: QEMU adds those of `if=virtio` after all others.
                    command.arg("-device").arg(format!("virtio-blk-pci,drive=disk{number}"));
                }
                Disk::Logged { image, log } => {
                    let file =
                        |name: &str, path: &PathBuf| format!("driver=file,filename={},node-name={name}{number}", path.display());
                    let logged = format!(
                        "driver=blklogwrites,file=image{number},log=log{number},node-name=logged{number},\
                         log-super-update-interval=1"
                    );
                    for node in [file("image", image), file("log", log), logged] {
                        command.arg("-blockdev").arg(node);
                    }
                    command.arg("-device").arg(format!("virtio-blk-pci,drive=logged{number},write-cache=on"));
                }
            }
        }
        command.arg("-kernel").arg(&bench.kernel.image).arg("-initrd").arg(&root.initial);
        command.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 {}", words.join(" "))).args(options);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|error| {
            format!("start qemu-system-x86_64: {error}; apt-get install --no-install-recommends qemu-system-x86")
        })?;
        println!("booting Linux {}", bench.kernel.version);
        let console = process.stdout.take().ok_or("the machine has no console")?;
        Ok(Machine { process, console: Some(BufReader::new(console)) })
    }

    /// The next line of its console; `None` when it is down.
    pub fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        match self.console.as_mut()?.read_until(b'\n', &mut line) {
            Ok(length) if length > 0 => Some(String::from_utf8_lossy(&line).trim_end().to_owned()),
            _ => None,
        }
    }

    /// From now on its console goes to a file, whose path is the answer.
    pub fn keep_console(&mut self, path: &Path) -> Result<PathBuf> {
        let mut file = File::create(path).map_err(|error| format!("create {}: {error}", path.display()))?;
        if let Some(mut console) = self.console.take() {
            std::thread::spawn(move || std::io::copy(&mut console, &mut file));
        }
        Ok(path.to_owned())
    }

    /// Waits until it is down.
    pub fn wait(&mut self) -> Result {
        self.process.wait().map(drop).map_err(|error| format!("wait for the machine: {error}"))
    }

    /// Takes its power away.
    pub fn cut(&mut self) -> Result {
        self.process.kill().map_err(|error| format!("kill the machine: {error}"))?;
        self.wait()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
