//! What one build has come to as an input of another: targets of `docker buildx bake` that build upon each other.
//!
//! BuildKit gives out the graph of operations that a result is made of, and clients hand it on as it is. Here it is a graph of one
//! source, which says which result of which build is meant. It counts as long as that build goes on: clients end it after those that
//! build upon it.

use std::collections::HashMap;
use std::sync::Arc;

use dhow_engine::Engine;
use dhow_engine::dhow_build::plan::{BuiltContext, NamedContext};
use dhow_oci::Digest;
use prost::Message;

use crate::grpc::{INTERNAL, INVALID, Status, UNIMPLEMENTED, UNKNOWN};
use crate::messages::Empty;
use crate::messages::frontend::{Definition, Operation, OperationInput, Ref, SourceOperation};

/// Before the id of a result: `REFERENCE-NUMBER`, and of several platforms `/PLATFORM` behind.
const SCHEME: &str = "dhow-build://";

/// A reference to a result, which clients can hand on.
pub fn reference(id: String) -> Ref {
    let source = Operation { inputs: Vec::new(), source: Some(SourceOperation { identifier: format!("{SCHEME}{id}") }) };
    let source = source.encode_to_vec();
    let meant = OperationInput { digest: Digest::of(&source).to_string(), index: 0 };
    let metadata = HashMap::from([(meant.digest.clone(), Empty {})]);
    let last = Operation { inputs: vec![meant], source: None }.encode_to_vec();
    Ref { id, definition: Some(Definition { operations: vec![source, last], metadata }) }
}

/// The id of the result that a definition means.
fn id_of(definition: &Definition) -> Result<String, Status> {
    let mut sources = Vec::new();
    for bytes in &definition.operations {
        let operation = Operation::decode(bytes.as_slice());
        let operation = operation.map_err(|error| Status::new(INVALID, format!("decode an input of the build: {error}")))?;
        sources.extend(operation.source);
    }
    match sources.as_slice() {
        [SourceOperation { identifier }] if identifier.starts_with(SCHEME) => Ok(identifier[SCHEME.len()..].to_owned()),
        _ => Err(Status::new(UNIMPLEMENTED, "graphs of a client's own making (LLB) are not built by this engine")),
    }
}

/// The results that a client hands on, as contexts, by its keys.
pub async fn read(engine: &Arc<Engine>, inputs: &HashMap<String, Definition>) -> Result<HashMap<String, NamedContext>, Status> {
    let mut contexts = HashMap::new();
    for (key, definition) in inputs {
        let id = id_of(definition)?;
        let (result, platform) = id.split_once('/').map_or((id.as_str(), None), |(result, platform)| (result, Some(platform)));
        let gone = || Status::new(UNKNOWN, format!("the build that {key} is of has ended: build both again"));
        let build = result.rsplit_once('-').map(|(reference, _)| reference).ok_or_else(gone)?;
        let solved = crate::job::find(build).await?.solved(result).ok_or_else(gone)?;
        // buildx has the number of the machine before the target's name, and the platform behind.
        let name = key.split_once('-').map_or(key.as_str(), |(_, name)| name).split("::").next().unwrap_or_default();
        let (engine, key, name) = (engine.clone(), key.clone(), name.to_owned());
        let context = tokio::task::spawn_blocking(move || engine.built_context(&solved, &format!("target:{name}")));
        let context = context.await.map_err(|error| Status::new(INTERNAL, format!("a worker of the engine failed: {error}")))?;
        let context = match (context.map_err(|error| Status::new(UNKNOWN, error.message))?, platform) {
            (NamedContext::Built(built), Some(platform)) => {
                let own = built.images.iter().filter(|(of, _)| of.to_string() == platform);
                let images: Vec<_> = own.cloned().collect();
                if images.is_empty() {
                    return Err(gone());
                }
                NamedContext::Built(Arc::new(BuiltContext { images }))
            }
            (context, _) => context,
        };
        contexts.insert(key, context);
    }
    Ok(contexts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_known_by_what_was_given_out() {
        let given = reference("abc-0/linux/arm64".to_owned());
        let definition = given.definition.unwrap();
        assert_eq!(id_of(&definition).unwrap(), "abc-0/linux/arm64");
        // As clients find it: the last operation names the digest of the one that is meant.
        let last = Operation::decode(definition.operations[1].as_slice()).unwrap();
        assert_eq!(last.inputs[0].digest, Digest::of(&definition.operations[0]).to_string());
        let foreign = Operation {
            inputs: Vec::new(),
            source: Some(SourceOperation { identifier: "docker-image://docker.io/library/busybox".to_owned() }),
        };
        for operations in [vec![foreign.encode_to_vec()], Vec::new(), vec![vec![0xff]]] {
            assert!(id_of(&Definition { operations, ..Definition::default() }).is_err());
        }
    }
}
