//! What a disk keeps when its power goes: all that it had said to be safe, and of the rest some or nothing.
//!
//! QEMU's `blklogwrites` writes down every write and every flush of a disk in the format of Linux's dm-log-writes
//! (Documentation/admin-guide/device-mapper/log-writes.rst): a superblock, then one sector for each entry, followed by its data;
//! all numbers are little-endian.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Result;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FORCED: u64 = 2;
const DISCARD: u64 = 4;

/// What was kept.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Writes that were safe.
    pub safe: usize,
    /// Writes after the last flush: those that reached the disk in whole or in part, and those that did not.
    pub lucky: usize,
    pub lost: usize,
}

struct Entry {
    /// Byte on the disk, and in the log where the data begins.
    to: u64,
    from: u64,
    length: u64,
    forced: bool,
    discard: bool,
}

/// Brings `image`, which is the disk as it was when the log began, to what a disk could hold after a power cut. `chance` is asked
/// for numbers below its argument.
pub fn replay(log: &Path, image: &Path, mut chance: impl FnMut(u64) -> u64) -> Result<Kept> {
    let open = |path: &Path, write: bool| {
        OpenOptions::new().read(true).write(write).open(path).map_err(|error| format!("open {}: {error}", path.display()))
    };
    let (log_file, image_file) = (open(log, false)?, open(image, true)?);
    let (entries, safe) = read(&log_file).map_err(|error| format!("read {}: {error}", log.display()))?;
    let mut kept = Kept::default();
    let mut buffer = Vec::new();
    for (number, entry) in entries.iter().enumerate() {
        let whole = entry.length;
        // A write that is cut off ends with some sector.
        let length = match number < safe || entry.forced {
            true => whole,
            false => match chance(4) {
                0 | 1 => 0,
                2 => whole,
                _ => chance(whole / 512 + 1) * 512,
            },
        };
        match (number < safe, length) {
            (true, _) => kept.safe += 1,
            (false, 0) if whole > 0 => kept.lost += 1,
            (false, _) => kept.lucky += 1,
        }
        if length == 0 {
            continue;
        }
        let size = usize::try_from(length).map_err(|_| "a write of the log is too long".to_owned())?;
        buffer.clear();
        buffer.resize(size, 0);
        let mut moved = Ok(());
        if !entry.discard {
            moved = log_file.read_exact_at(&mut buffer, entry.from);
        }
        moved
            .and_then(|()| image_file.write_all_at(&buffer, entry.to))
            .map_err(|error| format!("write {length} bytes of {} to {}: {error}", log.display(), image.display()))?;
    }
    Ok(kept)
}

/// The writes of a log in their order, and how many of them the last flush made safe.
fn read(log: &File) -> std::io::Result<(Vec<Entry>, usize)> {
    let number = |bytes: &[u8], at: usize| {
        let mut value = [0; 8];
        value.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(value)
    };
    let invalid = |why: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, why.to_owned());
    let mut head = [0; 32];
    log.read_exact_at(&mut head, 0)?;
    if number(&head, 0) != MAGIC {
        return Err(invalid("it is no log of writes"));
    }
    let count = number(&head, 16);
    let sector = u64::from(u32::from_le_bytes([head[24], head[25], head[26], head[27]]));
    if sector < 32 {
        return Err(invalid("its sectors are too small"));
    }
    let (mut entries, mut safe, mut at) = (Vec::new(), 0, sector);
    for _ in 0..count {
        let mut entry = [0; 32];
        log.read_exact_at(&mut entry, at)?;
        let (to, sectors, flags) = (number(&entry, 0), number(&entry, 8), number(&entry, 16));
        at += sector;
        // A flush is written down before the write that it came with.
        if flags & FLUSH != 0 {
            safe = entries.len();
        }
        let (discard, length) = (flags & DISCARD != 0, sectors * sector);
        if length > 0 {
            entries.push(Entry { to: to * sector, from: at, length, forced: flags & FORCED != 0, discard });
        }
        if !discard {
            at += length;
        }
    }
    Ok((entries, safe))
}

#[cfg(test)]
mod tests {

    use super::*;

    /// A log of (flags, sector, byte that the one sector is full of).
    fn log(entries: &[(u64, u64, Option<u8>)]) -> Vec<u8> {
        let sector = |numbers: &[u64]| {
            let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            bytes.resize(512, 0);
            bytes
        };
        let mut log = sector(&[MAGIC, 1, entries.len() as u64, 512]);
        for (flags, to, byte) in entries {
            log.extend(sector(&[*to, u64::from(byte.is_some()), *flags, 0]));
            log.extend(byte.map(|byte| vec![byte; 512]).unwrap_or_default());
        }
        log
    }

    #[test]
    fn what_was_flushed_is_kept_and_the_rest_is_a_matter_of_luck() {
        let directory = std::env::temp_dir().join(format!("dhow-write-log-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (log_path, image) = (directory.join("log"), directory.join("image"));
        let writes = [(0, 0, Some(1)), (0, 1, Some(2)), (FLUSH, 0, None), (0, 0, Some(3)), (FORCED, 2, Some(4)), (0, 3, Some(5))];
        std::fs::write(&log_path, log(&writes)).unwrap();
        let after = |luck: u64| {
            std::fs::write(&image, vec![0; 2048]).unwrap();
            let kept = replay(&log_path, &image, |_| luck).unwrap();
            let bytes = std::fs::read(&image).unwrap();
            (kept, [bytes[0], bytes[512], bytes[1024], bytes[1536]])
        };
        assert_eq!(after(0), (Kept { safe: 2, lucky: 1, lost: 2 }, [1, 2, 4, 0]));
        assert_eq!(after(2), (Kept { safe: 2, lucky: 3, lost: 0 }, [3, 2, 4, 5]));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
