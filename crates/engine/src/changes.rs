//! What a container has changed in its image's files.

use dhow_api::container::Change;
use dhow_oci::Digest;
use dhow_store::ChangeKind;

use crate::{Container, Engine, Result};

impl Engine {
    /// The paths that a container has changed, added or deleted, in their order; of a deleted directory only the directory.
    pub fn changes(&self, reference: &str) -> Result<Vec<Change>> {
        let container = self.container(reference)?;
        let changes = self.store.changes(&container.record.layer, &self.chain(&container)?)?;
        let kind = |kind| match kind {
            ChangeKind::Modified => 0,
            ChangeKind::Added => 1,
            ChangeKind::Deleted => 2,
        };
        Ok(changes
            .into_iter()
            .map(|change| Change { path: format!("/{}", change.path.display()), kind: kind(change.kind) })
            .collect())
    }

    /// The layers of a container's image, from the bottom to the top.
    pub(crate) fn chain(&self, container: &Container) -> Result<Vec<Digest>> {
        Ok(self.store.image(&container.image_id)?.map(|image| image.chain).unwrap_or_default())
    }
}
