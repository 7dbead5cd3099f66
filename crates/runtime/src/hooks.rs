//! Programs that the spec wants run at points of a container's life (runtime-spec, config.md#posix-platform-hooks).

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::spec::{Hook, Spec, State};
use crate::{Context, Result, RuntimeError};

/// Time of a hook that names none: who waits for it serves nobody else.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether the runtime must run hooks while init waits.
pub(crate) fn has_runtime_hooks(spec: &Spec) -> bool {
    spec.hooks.as_ref().is_some_and(|hooks| !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty())
}

/// `prestart` and `createRuntime`, in the runtime's own namespaces.
pub(crate) fn run_runtime_hooks(spec: &Spec, id: &str, pid: i32, bundle: &Path) -> Result<()> {
    let hooks = spec.hooks.as_ref();
    run(hooks.map(|hooks| hooks.prestart.as_slice()), spec, id, ("creating", pid), bundle)?;
    run(hooks.map(|hooks| hooks.create_runtime.as_slice()), spec, id, ("creating", pid), bundle)
}

/// Runs hooks in order, each with the state's status and process (0 for none) on its input; the first that fails ends it.
pub fn run(hooks: Option<&[Hook]>, spec: &Spec, id: &str, (status, pid): (&str, i32), bundle: &Path) -> Result<()> {
    let Some(hooks) = hooks.filter(|hooks| !hooks.is_empty()) else { return Ok(()) };
    let state = State {
        oci_version: spec.oci_version.clone(),
        id: id.to_owned(),
        status: status.to_owned(),
        pid,
        bundle: bundle.to_string_lossy().into_owned(),
        annotations: spec.annotations.clone(),
    };
    let state = serde_json::to_vec(&state).map_err(|error| RuntimeError::State(format!("encode the state: {error}")))?;
    hooks.iter().try_for_each(|hook| run_one(hook, &state))
}

fn run_one(hook: &Hook, state: &[u8]) -> Result<()> {
    let failed = |why: String| RuntimeError::Init(format!("error running hook {}: {why}", hook.path));
    let mut command = Command::new(&hook.path);
    use std::os::unix::process::CommandExt;
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|variable| variable.split_once('=')));
    let mut child = command.stdin(Stdio::piped()).spawn().map_err(|error| failed(error.to_string()))?;
    if let Some(mut input) = child.stdin.take() {
        // A hook need not read its input.
        let _ = input.write_all(state);
    }
    let deadline = Instant::now() + hook.timeout.map_or(PATIENCE, Duration::from_secs);
    loop {
        match child.try_wait().context(|| format!("wait for hook {}", hook.path))? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(failed(status.to_string())),
            None if Instant::now() >= deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed("it ran out of time".to_owned()));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}
