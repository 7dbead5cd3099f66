//! What clients ask a frontend for besides builds: the engine's documents, as BuildKit's gateway hands them out.

use std::collections::HashMap;

use dhow_engine::{BuildRequest, Engine};
use serde_json::json;

use crate::grpc::{Status, UNKNOWN};
use crate::messages::Any;
use crate::messages::frontend::BridgeResult;
use crate::status::{self, Teller};

pub fn answer(engine: &Engine, wanted: &str, request: &BuildRequest<'_>, teller: &Teller) -> Result<BridgeResult, Status> {
    let failed = |error: dhow_engine::dhow_build::progress::BuildError| status::status(&error, request.file_name, request.file);
    let Some(answer) = engine.describe_build(wanted, request, teller).map_err(failed)? else {
        let detail = Any {
            type_url: "github.com/moby/buildkit/errdefs.Subrequest+json".to_owned(),
            value: json!({ "name": wanted }).to_string().into_bytes(),
        };
        return Err(Status { code: UNKNOWN, message: format!("unsupported request {wanted}"), details: vec![detail] });
    };
    let bytes = serde_json::to_vec_pretty(&answer.document).unwrap_or_default();
    let mut metadata = HashMap::from([
        ("result.json".to_owned(), bytes),
        ("result.txt".to_owned(), answer.text.into_bytes()),
        ("version".to_owned(), answer.version.as_bytes().to_vec()),
    ]);
    if wanted == "frontend.lint" {
        // What has been found makes the client fail (BuildKit, `frontend/subrequests/lint`).
        let has_found = ["warnings", "buildError"].iter().any(|key| match &answer.document[*key] {
            serde_json::Value::Array(all) => !all.is_empty(),
            other => !other.is_null(),
        });
        metadata.insert("result.statuscode".to_owned(), if has_found { b"1" } else { b"0" }.to_vec());
    }
    Ok(BridgeResult { metadata, ..BridgeResult::default() })
}
