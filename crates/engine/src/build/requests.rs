//! What is asked of a Dockerfile besides builds (`--call`, `--check`): checks, outline and targets, as documents of BuildKit's
//! `frontend/subrequests`.

use std::fmt::Write as _;

use base64::Engine as _;
use dhow_build::dockerfile::{self, Checks, Lines, Stage};
use dhow_build::plan::{Outline, OutlineSecret};
use dhow_build::progress::{BuildError, Progress};
use serde_json::{Map, Value, json};

use super::BuildRequest;
use crate::Engine;

/// Of the documents.
const VERSION: &str = "1.0.0";

/// The answer to a question about a Dockerfile.
#[derive(Clone, Debug)]
pub struct Described {
    pub document: Value,
    /// For people, where clients do not make it of the document themselves.
    pub text: String,
    pub version: &'static str,
}

impl Engine {
    /// Answers `frontend.lint`, `frontend.outline`, `frontend.targets` and `frontend.subrequests.describe`; `None` to what is not
    /// known.
    ///
    /// # Errors
    /// The Dockerfile is wrong, or one of its base images is not to be had. What is wrong is part of what the checks say.
    pub fn describe_build(
        &self,
        wanted: &str,
        request: &BuildRequest<'_>,
        progress: &dyn Progress,
    ) -> Result<Option<Described>, BuildError> {
        let (document, text) = match wanted {
            "frontend.lint" => (lint(self, request, progress), String::new()),
            "frontend.outline" => {
                let plan = self.plan_build(request, progress, &mut Vec::new())?;
                (outline(&plan.outline, request.file), String::new())
            }
            "frontend.targets" => {
                let parsed = dockerfile::parse(request.file, &mut Checks::none())?;
                (targets(&parsed.stages, request.file), String::new())
            }
            "frontend.subrequests.describe" => described(),
            _ => return Ok(None),
        };
        Ok(Some(Described { document, text, version: VERSION }))
    }
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
fn lint(engine: &Engine, request: &BuildRequest<'_>, progress: &dyn Progress) -> Value {
    let mut findings = Vec::new();
    let planned = engine.plan_build(request, progress, &mut findings);
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
