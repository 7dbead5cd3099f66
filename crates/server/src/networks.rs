//! `/networks`

use std::sync::Arc;

use dhow_api::Version;
use dhow_api::network::{ConnectNetwork, CreateNetwork, CreatedNetwork, DisconnectNetwork};
use dhow_engine::{Engine, Result};
use hyper::StatusCode;

use crate::answer::{self, Answer};
use crate::request::Call;
use crate::route::{blocking, quick};
use crate::shape::V52;

pub(crate) async fn list(engine: Arc<Engine>, call: Call) -> Result<Answer> {
    let filters = call.filters()?;
    let networks = quick(move || engine.networks(&filters)).await?;
    Ok(answer::json(StatusCode::OK, &networks))
}

pub(crate) async fn create(engine: Arc<Engine>, mut call: Call) -> Result<Answer> {
    let mut new: CreateNetwork = call.json(false).await?;
    if let Some(scope) = &call.scope {
        scope.limit_network(&mut new)?;
    }
    let id = quick(move || engine.create_network(new)).await?;
    Ok(answer::json(StatusCode::CREATED, &CreatedNetwork { id, warning: String::new() }))
}

pub(crate) async fn inspect(engine: Arc<Engine>, name: &str, call: &Call) -> Result<Answer> {
    let name = name.to_owned();
    let scope = call.scope.clone();
    let mut network = quick(move || {
        let mut network = engine.network(&name)?;
        if let Some(scope) = scope {
            scope.show(&engine, &mut network);
        }
        Ok(network)
    })
    .await?;
    if call.version < V52 {
        network.status = None;
    }
    Ok(answer::json(StatusCode::OK, &network))
}

pub(crate) async fn remove(engine: Arc<Engine>, name: &str) -> Result<Answer> {
    let name = name.to_owned();
    quick(move || engine.remove_network(&name)).await?;
    Ok(answer::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn connect(engine: Arc<Engine>, name: &str, mut call: Call) -> Result<Answer> {
    let name = name.to_owned();
    let mut request: ConnectNetwork = call.json(false).await?;
    let mut settings = request.endpoint_config.unwrap_or_default();
    let (scope, legacy) = (call.scope.clone(), call.version < Version(1, 54));
    quick(move || {
        if let Some(scope) = scope {
            request.container = scope.member(&engine, &request.container)?;
        }
        // A running container's was passed over before.
        if legacy && engine.container(&request.container).is_ok_and(|container| container.is_running()) {
            settings.mac_address = String::new();
        }
        engine.connect(&name, &request.container, settings)
    })
    .await?;
    Ok(answer::empty(StatusCode::OK))
}

pub(crate) async fn disconnect(engine: Arc<Engine>, name: &str, mut call: Call) -> Result<Answer> {
    let name = name.to_owned();
    let mut request: DisconnectNetwork = call.json(false).await?;
    let scope = call.scope.clone();
    quick(move || {
        if let Some(scope) = scope {
            request.container = scope.member(&engine, &request.container)?;
        }
        engine.disconnect(&name, &request.container, request.force)
    })
    .await?;
    Ok(answer::empty(StatusCode::OK))
}

/// Our own: who can reach the published ports of a container, or of all.
pub(crate) async fn audit(engine: Arc<Engine>, call: Call) -> Result<Answer> {
    let container = call.parameters.optional("container").map(str::to_owned);
    let audited = blocking(move || engine.audit_ports(container.as_deref())).await?;
    Ok(answer::json(StatusCode::OK, &audited))
}

pub(crate) async fn prune(engine: Arc<Engine>, call: Call) -> Result<Answer> {
    let query = crate::system::prune_query(&call)?;
    let pruned = blocking(move || engine.prune_networks(&query)).await?;
    crate::system::pruned(&call, pruned.networks_deleted.iter().flatten(), &pruned)
}
