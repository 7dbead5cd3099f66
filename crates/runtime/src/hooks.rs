//! Programs that the spec wants run at points of a container's life (runtime-spec, config.md#posix-platform-hooks).

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};

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

/// How a process ended, in the words of Go's `os/exec` for what is usual.
fn in_words(status: ExitStatus) -> String {
    let signal = match status.signal() {
        None => return format!("exit status {}", status.code().unwrap_or_default()),
        Some(6) => "aborted".to_owned(),
        Some(9) => "killed".to_owned(),
        Some(11) => "segmentation fault".to_owned(),
        Some(15) => "terminated".to_owned(),
        Some(31) => "bad system call".to_owned(),
        Some(number) => format!("signal {number}"),
    };
    format!("signal: {signal}")
}

/// The end of what a hook has written.
fn last_words(said: &File) -> String {
    const LENGTH: u64 = 2048;
    let end = said.metadata().map_or(0, |file| file.len());
    let length = end.min(LENGTH);
    let mut bytes = vec![0; length as usize];
    let read = said.read_exact_at(&mut bytes, end - length);
    read.map(|()| String::from_utf8_lossy(&bytes).trim().to_owned()).unwrap_or_default()
}

fn run_one(hook: &Hook, state: &[u8]) -> Result<()> {
    let failed = |why: String| RuntimeError::Init(format!("error running hook {}: {why}", hook.path));
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|variable| variable.split_once('=')));
    // What it says is for whoever is told that it failed, and not for the container's output.
    let said =
        memfd_create("hook", MemfdFlags::CLOEXEC).map(File::from).context(|| "make room for a hook's output".to_owned())?;
    let copy = || said.try_clone().map(Stdio::from).context(|| "hold a hook's output".to_owned());
    command.stdin(Stdio::piped()).stdout(copy()?).stderr(copy()?);
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    if let Some(mut input) = child.stdin.take() {
        // A hook need not read its input.
        let _ = input.write_all(state);
    }
    let deadline = Instant::now() + hook.timeout.map_or(PATIENCE, Duration::from_secs);
    loop {
        match child.try_wait().context(|| format!("wait for hook {}", hook.path))? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(failed(format!("{}, output: {}", in_words(status), last_words(&said)))),
            None if Instant::now() >= deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed("it ran out of time".to_owned()));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}
