//! Where an image comes from, as an attestation: SLSA provenance in its versions 0.2 and 1, with the parameters that BuildKit's
//! build type has (BuildKit, `docs/attestations/slsa-provenance.md`).

use std::collections::BTreeSet;

use base64::Engine as _;
use dhow_build::plan::Options;
use dhow_build::solve::Material;
use dhow_oci::attestation::Attestation;
use dhow_oci::{Platform, time};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::history::{attributes, without_passwords};

/// How an attestation of provenance is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// Arguments, labels and the Dockerfile are in it (`mode=max`).
    pub all: bool,
    /// As SLSA 1 has it.
    pub is_version_1: bool,
    pub builder_id: String,
    pub reproducible: bool,
}

impl Provenance {
    /// From `true`, `false`, or `mode=max,version=v1` and more; `None` where none is wanted.
    ///
    /// # Errors
    /// What is wrong with it, for the user.
    pub fn parse(text: &str) -> Result<Option<Provenance>, String> {
        match text {
            "false" | "0" => return Ok(None),
            "true" | "1" | "" => return Ok(Some(Provenance::default())),
            _ => {}
        }
        let mut provenance = Provenance::default();
        for field in text.split(',') {
            let (key, value) = field.split_once('=').unwrap_or((field, ""));
            let is_true = || match value {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(format!("failed to parse {key} flag \"{value}\"")),
            };
            match (key, value) {
                ("mode", "min") => provenance.all = false,
                ("mode", "max" | "full") => provenance.all = true,
                ("mode", other) => return Err(format!("invalid mode \"{other}\"")),
                ("version", "v1") => provenance.is_version_1 = true,
                ("version", "v0.2") => provenance.is_version_1 = false,
                ("version", other) => return Err(format!("invalid SLSA provenance version \"{other}\"")),
                ("builder-id", id) => id.clone_into(&mut provenance.builder_id),
                ("reproducible", _) => provenance.reproducible = is_true()?,
                ("disabled", _) if is_true()? => return Ok(None),
                // Which outputs have it: images alone do here.
                ("disabled" | "inline-only", _) => drop(is_true()?),
                // What BuildKit does not know it does not mind either.
                _ => {}
            }
        }
        Ok(Some(provenance))
    }
}

/// What is to be told of a build.
#[derive(Clone, Debug, Default)]
pub(super) struct Circumstances {
    pub file: Vec<u8>,
    pub file_name: String,
    pub options: Options,
    /// Names of secrets and agents that its commands were given.
    pub secrets: BTreeSet<String>,
    pub agents: BTreeSet<String>,
    /// Unix nanoseconds.
    pub started: i64,
    pub finished: i64,
    pub materials: BTreeSet<Material>,
    /// Names the build.
    pub id: String,
}

impl Circumstances {
    pub(super) fn attest(&self, how: &Provenance, platform: &Platform) -> Attestation {
        let predicate = if how.is_version_1 { self.version_1(how, platform) } else { self.version_0_2(how, platform) };
        let version = if how.is_version_1 { "v1" } else { "v0.2" };
        // The text of a document is one.
        let predicate = RawValue::from_string(predicate.to_string()).unwrap_or_default();
        Attestation { predicate_type: format!("https://slsa.dev/provenance/{version}"), predicate }
    }

    fn version_0_2(&self, how: &Provenance, platform: &Platform) -> Value {
        json!({
            "builder": { "id": how.builder_id },
            "buildType": "https://mobyproject.org/buildkit@v1",
            "materials": self.materials(),
            "invocation": {
                "configSource": { "entryPoint": self.file_name },
                "parameters": self.parameters(how, platform),
                "environment": { "platform": Platform::host().to_string() },
            },
            "metadata": {
                "buildInvocationID": self.id,
                "buildStartedOn": time::format(self.started),
                "buildFinishedOn": time::format(self.finished),
                "completeness": { "parameters": how.all, "environment": true, "materials": false },
                "reproducible": how.reproducible,
                "https://mobyproject.org/buildkit@v1#metadata": self.metadata(how),
            },
        })
    }

    fn version_1(&self, how: &Provenance, platform: &Platform) -> Value {
        json!({
            "buildDefinition": {
                "buildType": "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md",
                "externalParameters": {
                    "configSource": { "path": self.file_name },
                    "request": self.parameters(how, platform),
                },
                "internalParameters": { "builderPlatform": Platform::host().to_string() },
                "resolvedDependencies": self.materials(),
            },
            "runDetails": {
                "builder": { "id": how.builder_id },
                "metadata": {
                    "invocationId": self.id,
                    "startedOn": time::format(self.started),
                    "finishedOn": time::format(self.finished),
                    "buildkit_metadata": self.metadata(how),
                    "buildkit_completeness": { "request": how.all, "resolvedDependencies": false },
                    "buildkit_reproducible": how.reproducible,
                },
            },
        })
    }

    fn materials(&self) -> Vec<Value> {
        let described =
            |material: &Material| json!({ "uri": material.uri, "digest": { material.algorithm.as_str(): material.digest } });
        self.materials.iter().map(described).collect()
    }

    /// What the builder was asked for. Values that may be secret to somebody are there only if all is wanted.
    fn parameters(&self, how: &Provenance, platform: &Platform) -> Value {
        let mut args = without_passwords(attributes(&self.options, &self.file_name));
        if let Some(platforms) = args.get_mut("platform") {
            *platforms = platform.to_string();
        }
        let mut parameters = json!({
            "frontend": "dockerfile.v0", "locals": [{ "name": "context" }, { "name": "dockerfile" }],
        });
        if how.all {
            for (key, names) in [("secrets", &self.secrets), ("ssh", &self.agents)] {
                if !names.is_empty() {
                    parameters[key] = names.iter().map(|id| json!({ "id": id, "optional": true })).collect();
                }
            }
        }
        if !how.all {
            args.retain(|key, _| !key.starts_with("build-arg:") && !key.starts_with("label:"));
        }
        parameters["args"] = json!(args);
        parameters
    }

    fn metadata(&self, how: &Provenance) -> Value {
        let mut metadata = Map::new();
        if how.all {
            let data = base64::engine::general_purpose::STANDARD.encode(&self.file);
            let info = json!({ "filename": self.file_name, "language": "Dockerfile", "data": data });
            metadata.insert("source".to_owned(), json!({ "infos": [info] }));
        }
        Value::Object(metadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(Provenance::parse("false"), Ok(None));
        assert_eq!(Provenance::parse("true"), Ok(Some(Provenance::default())));
        assert_eq!(Provenance::parse("mode=max,disabled=true"), Ok(None));
        let all = Provenance { all: true, is_version_1: true, builder_id: "https://x".to_owned(), reproducible: true };
        assert_eq!(Provenance::parse("mode=max,version=v1,builder-id=https://x,reproducible=true"), Ok(Some(all)));
        let usage = Provenance { all: true, ..Provenance::default() };
        assert_eq!(Provenance::parse("mode=full,capture-usage=true,provenance=x"), Ok(Some(usage)));
        for bad in ["mode=most", "version=2", "reproducible=perhaps"] {
            assert!(Provenance::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn arguments_are_told_only_if_all_is_wanted() {
        let options = Options { build_args: [("TOKEN".to_owned(), "abc".to_owned())].into(), ..Options::default() };
        let told =
            Circumstances { file: b"FROM x".to_vec(), file_name: "Dockerfile".to_owned(), options, ..Circumstances::default() };
        for (is_version_1, all) in [(false, false), (false, true), (true, false), (true, true)] {
            let how = Provenance { all, is_version_1, ..Provenance::default() };
            let text = told.attest(&how, &Platform::host()).predicate.to_string();
            assert_eq!((text.contains("abc"), text.contains("RlJPTSB4")), (all, all), "{text}");
        }
    }
}
