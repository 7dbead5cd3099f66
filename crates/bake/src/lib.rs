//! Bake definitions: which builds there are, what each is given, and which of them need others (buildx, "Bake file reference").
//!
//! Files come in, in HCL or JSON; targets come out. Nothing is read from the disk here and nothing built. Values and functions
//! are go-cty's, with these differences: fractions have 53 bits, characters are code points, and `rsadecrypt` is refused.

mod definition;
mod entitlements;
mod entry;
mod evaluate;
mod fault;
mod functions;
mod json;
mod overrides;
mod selection;
mod source;
mod target;
mod template;
mod value;

use std::collections::BTreeMap;

pub use definition::Variable;
pub use entitlements::{Asked, Grants, Needs};
pub use entry::{Attestation, Cache, Output, Secret, Ssh};
pub use fault::{BakeError, ErrorPlace};
pub use functions::record;
pub use selection::Selection;
pub use source::Source;
pub use target::{Group, Target};

/// What values that depend on each other may take of the stack.
const STACK: usize = 256 << 20;

/// What variables are given from outside: the command line, the environment.
pub type Lookup<'a> = &'a (dyn Fn(&str) -> Option<String> + Sync);

/// What files define.
#[derive(Debug, Default)]
pub struct Bake {
    pub groups: Vec<Group>,
    pub targets: Vec<Target>,
    pub variables: Vec<Variable>,
}

impl Bake {
    /// Reads files as one definition: what is said later counts. `builtins` are variables that no file can set, `lookup`
    /// has what others are set to from outside.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or an expression that comes to nothing, with its place.
    pub fn read(sources: &[Source], builtins: &BTreeMap<String, String>, lookup: Lookup<'_>) -> Result<Bake, BakeError> {
        // Definitions may ask for much before they are found to ask for too much.
        let read = || Bake::of(sources, builtins, lookup);
        std::thread::scope(|scope| {
            let reader = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, read);
            let reader = reader.map_err(|error| BakeError::new(format!("begin to read the definition: {error}")))?;
            reader.join().unwrap_or_else(|_| Err(BakeError::new("reading the definition ended by itself")))
        })
    }

    fn of(sources: &[Source], builtins: &BTreeMap<String, String>, lookup: Lookup<'_>) -> Result<Bake, BakeError> {
        let place = |file: usize| sources.get(file).map(|source| (source.name.as_str(), source.text.as_str()));
        let bodies = sources.iter().enumerate().map(|(file, source)| source::parse(source, file));
        let bodies = bodies.collect::<Result<Vec<_>, _>>().map_err(|fault| fault.told(place))?;
        let defined = definition::Definition::read(&bodies, builtins, lookup).map_err(|fault| fault.told(place))?;
        let mut groups = defined.groups;
        for group in &mut groups {
            group.targets = selection::unique(std::mem::take(&mut group.targets));
        }
        Ok(Bake { groups, targets: defined.targets, variables: defined.variables })
    }
}
