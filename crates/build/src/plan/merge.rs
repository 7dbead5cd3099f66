//! Steps that are the same are done once: those of several stages, and those of the plans for several platforms, as stages that run
//! on the builder's own platform are.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hasher};

use super::{Action, FileAction, Mounted, Plan, Source, Step, StepId};

/// One plan of all results. The first one says what there is to be known besides.
pub(super) fn merge(plans: Vec<Plan>) -> Plan {
    let mut all = Plan::default();
    let mut known: HashMap<u64, Vec<StepId>> = HashMap::new();
    for (number, plan) in plans.into_iter().enumerate() {
        if number == 0 {
            (all.outline, all.epoch) = (plan.outline, plan.epoch);
        }
        // Where each of its steps is among all.
        let mut places: Vec<StepId> = Vec::with_capacity(plan.steps.len());
        for mut step in plan.steps {
            step.base = step.base.map(|base| places[base]);
            sources(&mut step.action, &mut |id| *id = places[*id]);
            let alike = known.entry(fingerprint(&step)).or_default();
            let place = alike.iter().copied().find(|id| is_same(&all.steps[*id], &step)).unwrap_or_else(|| {
                alike.push(all.steps.len());
                all.steps.push(step);
                all.steps.len() - 1
            });
            places.push(place);
        }
        all.results.extend(plan.results.into_iter().map(|mut result| {
            result.last = result.last.map(|last| places[last]);
            result
        }));
    }
    all
}

/// Whether two steps come to the same whatever they are called.
fn is_same(one: &Step, other: &Step) -> bool {
    one.base == other.base && one.no_cache == other.no_cache && one.action == other.action
}

fn fingerprint(step: &Step) -> u64 {
    struct Text(DefaultHasher);
    impl Write for Text {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.write(text.as_bytes());
            Ok(())
        }
    }
    let mut text = Text(DefaultHasher::new());
    // It does not fail: writing does not.
    let _ = write!(text, "{:?} {:?}", step.base, step.action);
    text.0.finish()
}

/// Changes the numbers of the steps that an action takes files from.
fn sources(action: &mut Action, change: &mut dyn FnMut(&mut StepId)) {
    let mut of_source = |source: &mut Source| {
        if let Source::Step(Some(id)) = source {
            change(id);
        }
    };
    match action {
        Action::Image { .. } | Action::Directory(_) => {}
        Action::Run(command) => {
            for mount in &mut command.mounts {
                match &mut mount.what {
                    Mounted::Bind { source, .. } | Mounted::Cache { source, .. } => of_source(source),
                    Mounted::Tmpfs { .. } | Mounted::Secret(_) | Mounted::Ssh(_) => {}
                }
            }
        }
        Action::Files(actions) | Action::Link(actions) => {
            for action in actions {
                match action {
                    FileAction::Copy(copy) => of_source(&mut copy.source),
                    FileAction::Directory { .. } => {}
                }
            }
        }
    }
}
