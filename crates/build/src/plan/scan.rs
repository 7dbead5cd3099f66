//! Scans: a program of an image of its own looks through the files of a result, and writes down what it has found (BuildKit,
//! `docs/attestations/sbom-protocol.md`).

use super::{Action, BaseImage, Command, CommandMount, FileAction, Mounted, Plan, Source, Step};
use crate::dockerfile::instruction::{Network, Security};

/// Where a scanner finds the files.
const FILES: &str = "/run/src/core/sbom";
/// Where it writes what it has found, a statement in each file.
pub const FOUND: &str = "/run/out";

impl Plan {
    /// Has a result looked through by a scanner, which runs on this host.
    pub fn scan(&mut self, result: usize, scanner: &BaseImage, tells_platform: bool) {
        let Some(planned) = self.results.get(result) else { return };
        let platform = planned.platform.to_string();
        let of_platform = if tells_platform { format!("[{platform}] ") } else { String::new() };
        let name = format!("{of_platform}generating sbom using {}", scanner.reference);
        let last = planned.last;
        let execution = scanner.config.config.clone().unwrap_or_default();
        let mut env = execution.env.unwrap_or_default();
        env.extend([
            format!("BUILDKIT_SCAN_SOURCE={FILES}"),
            "BUILDKIT_SCAN_SOURCE_EXTRAS=/run/src/extras/".to_owned(),
            format!("BUILDKIT_SCAN_DESTINATION={FOUND}/"),
        ]);
        let files = CommandMount {
            target: FILES.to_owned(),
            read_only: true,
            what: Mounted::Bind { source: Source::Step(last), path: "/".to_owned() },
        };
        let command = Command {
            args: execution.entrypoint.into_iter().flatten().chain(execution.cmd.into_iter().flatten()).collect(),
            env,
            proxies: Vec::new(),
            directory: if execution.working_dir.is_empty() { "/".to_owned() } else { execution.working_dir },
            user: execution.user,
            hostname: String::new(),
            script: None,
            mounts: vec![files],
            network: Network::Default,
            security: Security::Sandbox,
            devices: Vec::new(),
            platform: scanner.config.platform(),
        };
        let place = FileAction::Directory { path: FOUND.to_owned(), mode: 0o755, owner: String::new() };
        let mut base = None;
        if !scanner.chain.is_empty() {
            let action = Action::Image { reference: scanner.reference.clone(), chain: scanner.chain.clone() };
            base = Some(self.add(format!("{of_platform}FROM {}", scanner.reference), base, action));
        }
        base = Some(self.add(format!("{name}: prepare"), base, Action::Files(vec![place])));
        let scan = self.add(name, base, Action::Run(Box::new(command)));
        self.scans.push((result, scan));
    }

    fn add(&mut self, name: String, base: Option<usize>, action: Action) -> usize {
        self.steps.push(Step { name, lines: Vec::new(), base, action, no_cache: false });
        self.steps.len() - 1
    }
}
