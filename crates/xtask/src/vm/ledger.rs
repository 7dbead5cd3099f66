//! What a task tells of what it does, apart from the console: its lines arrive in their order, and what has arrived stays when the
//! machine is killed.

use std::fs;
use std::path::{Path, PathBuf};

use super::Result;

/// The machine's second serial line, `/dev/ttyS1`, which QEMU writes to a file.
pub struct Ledger {
    path: PathBuf,
    option: String,
}

impl Ledger {
    /// An empty one.
    pub fn new(directory: &Path) -> Result<Ledger> {
        let path = directory.join("ledger");
        fs::write(&path, "").map_err(|error| format!("write {}: {error}", path.display()))?;
        let option = format!("file:{}", path.display());
        Ok(Ledger { path, option })
    }

    /// What QEMU is told.
    pub fn options(&self) -> [&str; 2] {
        ["-serial", &self.option]
    }

    /// Whole lines that were told until now.
    pub fn lines(&self) -> Result<Vec<String>> {
        let bytes = fs::read(&self.path).map_err(|error| format!("read {}: {error}", self.path.display()))?;
        let told = String::from_utf8_lossy(&bytes).into_owned();
        let whole = told.rfind('\n').map(|end| &told[..end]).unwrap_or_default();
        Ok(whole.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect())
    }
}
