//! Turns: several builds that come to the same step at the same moment do it once.
//!
//! Whoever does a step has a lock on `EXEC/steps/KEY`. The file goes with the turn; one that a killed builder left is locked by
//! nobody, and the next one takes it, or [`Store::sweep_turns`].

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dhow_oci::Digest;
use rustix::fs::FlockOperation;

use crate::{Context, Result, Store};

/// Between two looks whether a turn is over.
const WAIT: Duration = Duration::from_millis(10);

/// A step is this builder's to do, until this is dropped.
#[derive(Debug)]
pub struct Turn {
    path: PathBuf,
    _lock: File,
    /// Another one had it before.
    pub is_second: bool,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // While it is locked, nobody else has the name.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether an open file is still what its name stands for.
fn is_named(file: &File, path: &Path) -> bool {
    let own = file.metadata().map(|meta| (meta.dev(), meta.ino()));
    let named = fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    matches!((own, named), (Ok(own), Ok(named)) if own == named)
}

fn try_lock(file: &File) -> bool {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

impl Store {
    fn turns(&self) -> PathBuf {
        self.paths.exec.join("steps")
    }

    /// Waits until nobody else does the step of this key; `None` when that is given up. `waits` is called once, before the first
    /// wait.
    pub fn take_turn(&self, key: &Digest, is_over: &dyn Fn() -> bool, waits: &dyn Fn()) -> Result<Option<Turn>> {
        let path = self.turns().join(key.hex());
        let what = || format!("lock {}", path.display());
        let open = || File::options().create(true).append(true).open(&path);
        let mut is_second = false;
        loop {
            let file = match open() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::DirBuilder::new().recursive(true).mode(0o700).create(self.turns()).context(what)?;
                    open()
                }
                file => file,
            };
            let file = file.context(what)?;
            if try_lock(&file) {
                if is_named(&file, &path) {
                    return Ok(Some(Turn { path, _lock: file, is_second }));
                }
                continue;
            }
            if is_over() {
                return Ok(None);
            }
            if !std::mem::replace(&mut is_second, true) {
                waits();
            }
            std::thread::sleep(WAIT);
        }
    }

    /// Removes what killed builders left of their turns.
    pub(crate) fn sweep_turns(&self) {
        for entry in fs::read_dir(self.turns()).into_iter().flatten().flatten() {
            let path = entry.path();
            if let Ok(file) = File::open(&path)
                && try_lock(&file)
                && is_named(&file, &path)
            {
                let _ = fs::remove_file(&path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::Paths;

    #[test]
    fn a_step_has_one_builder_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(Paths::new(&root.path().join("data"), &root.path().join("run"))).unwrap();
        let key = Digest::of(b"step");
        let (inside, most, waited) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let turn = store.take_turn(&key, &|| false, &|| {
                            waited.fetch_add(1, Ordering::SeqCst);
                        });
                        let turn = turn.unwrap().unwrap();
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(1));
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(turn);
                    }
                });
            }
        });
        assert_eq!(most.load(Ordering::SeqCst), 1);
        assert!(waited.load(Ordering::SeqCst) > 0);
        assert_eq!(fs::read_dir(store.turns()).unwrap().count(), 0);

        // Given up; and other keys are others' turns.
        let held = store.take_turn(&key, &|| false, &|| ()).unwrap().unwrap();
        assert!(store.take_turn(&key, &|| true, &|| ()).unwrap().is_none());
        assert!(store.take_turn(&Digest::of(b"other"), &|| true, &|| ()).unwrap().is_some());
        // What is locked is not swept; what a killed builder left is.
        store.sweep_turns();
        assert!(held.path.exists());
        fs::write(store.turns().join("left"), "").unwrap();
        store.sweep_turns();
        assert_eq!(fs::read_dir(store.turns()).unwrap().count(), 1);
    }
}
