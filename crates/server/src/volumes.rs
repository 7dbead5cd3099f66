//! `/volumes`

use std::sync::Arc;

use dhow_api::Version;
use dhow_api::volume::{CreateVolume, VolumeList};
use dhow_engine::{Engine, Result};
use hyper::StatusCode;

use crate::answer::{self, Answer};
use crate::request::Call;
use crate::route::{blocking, quick};

pub(crate) async fn list(engine: Arc<Engine>, call: Call) -> Result<Answer> {
    let filters = call.filters()?;
    let volumes = quick(move || engine.volumes(&filters)).await?;
    Ok(answer::json(StatusCode::OK, &VolumeList { volumes, warnings: None }))
}

pub(crate) async fn create(engine: Arc<Engine>, mut call: Call) -> Result<Answer> {
    let mut new: CreateVolume = call.json(true).await?;
    let scope = call.scope.clone();
    let volume = quick(move || {
        if let Some(scope) = scope {
            scope.limit_volume(&engine, &mut new)?;
        }
        engine.create_volume(new)
    })
    .await?;
    Ok(answer::json(StatusCode::CREATED, &volume))
}

pub(crate) async fn inspect(engine: Arc<Engine>, name: &str) -> Result<Answer> {
    let name = name.to_owned();
    let volume = quick(move || engine.volume(&name)).await?;
    Ok(answer::json(StatusCode::OK, &volume))
}

pub(crate) async fn remove(engine: Arc<Engine>, name: &str, call: Call) -> Result<Answer> {
    let (name, force) = (name.to_owned(), call.parameters.is("force"));
    blocking(move || engine.remove_volume(&name, force)).await?;
    Ok(answer::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn prune(engine: Arc<Engine>, call: Call) -> Result<Answer> {
    let mut query = crate::system::prune_query(&call)?;
    if call.version < Version(1, 42) {
        // Volumes with names went too.
        query.filters.0.insert("all".to_owned(), vec!["true".to_owned()]);
    }
    let pruned = blocking(move || engine.prune_volumes(&query)).await?;
    crate::system::pruned(&call, pruned.volumes_deleted.iter().flatten(), &pruned)
}
