//! What clients ask a frontend for besides builds (`--call`, `--check`): checks, outline and targets of a Dockerfile, as documents
//! of BuildKit's `frontend/subrequests`.

use std::collections::HashMap;
use std::fmt::Write as _;

use base64::Engine as _;
use dhow_engine::dhow_build::dockerfile::{self, Checks, Lines, Stage};
use dhow_engine::dhow_build::plan::{Outline, OutlineSecret};
use dhow_engine::{BuildRequest, Engine};
use serde_json::{Map, Value, json};

use crate::grpc::{Status, UNKNOWN};
use crate::messages::{Any, BridgeResult};
use crate::status::{self, Teller};

const VERSION: &str = "1.0.0";

pub fn answer(engine: &Engine, wanted: &str, request: &BuildRequest<'_>, teller: &Teller) -> Result<BridgeResult, Status> {
    let failed = |error: dhow_engine::dhow_build::progress::BuildError| status::status(&error, request.file_name, request.file);
    let (document, text) = match wanted {
        "frontend.lint" => (lint(engine, request, teller), String::new()),
        "frontend.outline" => {
            let plan = engine.plan_build(request, teller, &mut Vec::new()).map_err(failed)?;
            (outline(&plan.outline, request.file), String::new())
        }
        "frontend.targets" => {
            let parsed = dockerfile::parse(request.file, &mut Checks::none()).map_err(|error| failed(error.into()))?;
            (targets(&parsed.stages, request.file), String::new())
        }
        "frontend.subrequests.describe" => described(),
        other => {
            let detail = Any {
                type_url: "github.com/moby/buildkit/errdefs.Subrequest+json".to_owned(),
                value: json!({ "name": other }).to_string().into_bytes(),
            };
            let message = format!("unsupported request {other}");
            return Err(Status { code: UNKNOWN, message, details: vec![detail] });
        }
    };
    let bytes = serde_json::to_vec_pretty(&document).unwrap_or_default();
    let metadata = HashMap::from([
        ("result.json".to_owned(), bytes),
        ("result.txt".to_owned(), text.into_bytes()),
        ("version".to_owned(), VERSION.as_bytes().to_vec()),
    ]);
    Ok(BridgeResult { metadata, ..BridgeResult::default() })
}

fn location(lines: &Lines) -> Value {
    let ranges: Vec<Value> = (lines.first..=lines.last.max(lines.first))
        .map(|line| json!({ "start": { "line": line }, "end": { "line": line } }))
        .collect();
    json!({ "ranges": ranges })
}

fn encoded(file: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(file)
}

/// Without what is empty.
fn object(entries: Vec<(&str, Value)>) -> Value {
    let is_empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    let entries = entries.into_iter().filter(|(_, value)| !is_empty(value));
    Value::Object(entries.map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}

/// What the checks find in all stages, or in those that a target needs.
fn lint(engine: &Engine, request: &BuildRequest<'_>, teller: &Teller) -> Value {
    let mut findings = Vec::new();
    let planned = engine.plan_build(request, teller, &mut findings);
    let warnings: Vec<Value> = findings
        .iter()
        .map(|finding| {
            object(vec![
                ("ruleName", json!(finding.rule.name())),
                ("description", json!(finding.rule.description())),
                ("url", json!(finding.rule.url())),
                ("detail", json!(finding.message)),
                ("location", location(&finding.lines)),
            ])
        })
        .collect();
    let source = json!({ "filename": request.file_name, "language": "Dockerfile", "data": encoded(request.file) });
    let error = planned.err().map(|error| {
        let place = error.lines.first().map(location).unwrap_or_default();
        object(vec![("message", json!(error.message)), ("location", place)])
    });
    // Clients tell no warnings from no key.
    let mut document = json!({ "warnings": warnings, "sources": [source] });
    if let (Some(error), Some(document)) = (error, document.as_object_mut()) {
        document.insert("buildError".to_owned(), error);
    }
    document
}

fn outline(outline: &Outline, file: &[u8]) -> Value {
    let secret = |secret: &OutlineSecret| {
        object(vec![("name", json!(secret.id)), ("required", json!(secret.required)), ("location", location(&secret.lines))])
    };
    let arguments: Vec<Value> = outline
        .arguments
        .iter()
        .map(|argument| {
            object(vec![
                ("name", json!(argument.name)),
                ("description", json!(argument.description)),
                ("value", json!(argument.value)),
                ("location", location(&argument.lines)),
            ])
        })
        .collect();
    object(vec![
        ("name", json!(outline.name)),
        ("description", json!(outline.description)),
        ("args", Value::Array(arguments)),
        ("secrets", Value::Array(outline.secrets.iter().map(secret).collect())),
        ("ssh", Value::Array(outline.agents.iter().map(secret).collect())),
        ("sources", json!([encoded(file)])),
    ])
}

fn targets(stages: &[Stage], file: &[u8]) -> Value {
    let target = |(number, stage): (usize, &Stage)| {
        object(vec![
            ("name", json!(stage.name)),
            ("default", json!(number + 1 == stages.len())),
            ("description", json!(stage.description())),
            ("base", json!(stage.base)),
            ("platform", json!(stage.platform)),
            ("location", location(&stage.lines)),
        ])
    };
    json!({ "targets": stages.iter().enumerate().map(target).collect::<Vec<_>>(), "sources": [encoded(file)] })
}

fn described() -> (Value, String) {
    let all = [
        ("frontend.outline", "List all parameters current build target supports"),
        ("frontend.targets", "List all targets current build supports"),
        ("frontend.subrequests.describe", "List available subrequest types"),
    ];
    let names = json!([{ "name": "result.json" }, { "name": "result.txt" }]);
    let request = |(name, description): &(&str, &str)| {
        json!({
            "name": name, "version": VERSION, "type": "rpc", "description": description, "opts": null, "inputs": null,
            "metadata": names, "refs": null
        })
    };
    let mut text = "NAME                 VERSION DESCRIPTION\n".to_owned();
    for (name, description) in all {
        let name = name.trim_start_matches("frontend.");
        let _ = writeln!(text, "{name:<20} {VERSION:<7} {description}");
    }
    (Value::Array(all.iter().map(request).collect()), text)
}
