//! Which stage needs which: by `COPY --from` and by the `from` of a mount. A name that no stage has is an image, which gets a state
//! of its own.

use std::collections::BTreeSet;

use super::planner::Planner;
use super::state::{Planned, State};
use crate::dockerfile::{self, DockerfileError, Instruction, Kind, Lines, Result, Stage, Variables};

impl Planner<'_> {
    /// Finds what instructions take files from.
    pub(super) fn link(&mut self) -> Result<()> {
        let mut index = 0;
        while index < self.states.len() {
            let instructions = std::mem::take(&mut self.states[index].stage.instructions);
            for instruction in instructions {
                let planned = self.linked(index, instruction, false)?;
                self.states[index].instructions.push(planned);
            }
            index += 1;
        }
        self.check_circles()?;
        // Each mount has a source to BuildKit, if an empty one, and where there is more than one thing they have names.
        let has_mounts = |state: &State| {
            state.instructions.iter().any(|one| matches!(&one.instruction.kind, Kind::Run(run) if !run.mounts.is_empty()))
        };
        if let [only] = &mut self.states[..]
            && !has_mounts(only)
        {
            only.name.clear();
        }
        for state in &mut self.states {
            state.counter.stage.clone_from(&state.name);
        }
        Ok(())
    }

    pub(super) fn linked(&mut self, index: usize, instruction: Instruction, is_trigger: bool) -> Result<Planned> {
        let lines = instruction.lines;
        let mut sources = Vec::new();
        match &instruction.kind {
            Kind::Copy(files) if !files.from.is_empty() => {
                let expanded = self.lexer.word(&files.from, &Variables::default())?;
                if expanded.text != files.from {
                    return Err(DockerfileError::new(
                        "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
                    ));
                }
                let source = match files.from.parse::<i64>() {
                    Ok(number) => {
                        let known = usize::try_from(number).ok().filter(|index| *index < self.states.len());
                        known.ok_or_else(|| DockerfileError::new(format!("invalid stage index {number}")))?
                    }
                    Err(_) => self.stage_or_image(&files.from, lines),
                };
                sources.push(Some(source));
            }
            Kind::Run(run) => {
                for text in &run.mounts {
                    let from = dockerfile::mount::fields(text)?.iter().find_map(|field| {
                        let (key, value) = field.split_once('=')?;
                        key.eq_ignore_ascii_case("from").then(|| value.to_owned())
                    });
                    sources.push(from.filter(|from| !from.is_empty()).map(|from| self.stage_or_image(&from, lines)));
                }
            }
            _ => {}
        }
        self.states[index].needs.extend(sources.iter().flatten().map(|source| (*source, lines)));
        Ok(Planned { instruction, sources, is_trigger })
    }

    fn stage_or_image(&mut self, name: &str, lines: Lines) -> usize {
        match self.names.get(&name.to_lowercase()) {
            Some(index) => *index,
            None => self.add(image_of_stage(name, lines)),
        }
    }

    fn check_circles(&self) -> Result<()> {
        /// 1: on the way, 2: done.
        fn visit(states: &[State], index: usize, marks: &mut [u8], way: &mut Vec<Lines>) -> Option<usize> {
            marks[index] = 1;
            for (next, lines) in &states[index].needs {
                way.push(*lines);
                match marks[*next] {
                    0 => {
                        if let Some(found) = visit(states, *next, marks, way) {
                            return Some(found);
                        }
                    }
                    1 => return Some(index),
                    _ => {}
                }
                way.pop();
            }
            marks[index] = 2;
            None
        }
        let mut marks = vec![0; self.states.len()];
        for index in 0..self.states.len() {
            let mut way = Vec::new();
            if marks[index] == 0 && visit(&self.states, index, &mut marks, &mut way).is_some() {
                let message = format!("circular dependency detected on stage: {}", self.states[index].name);
                return Err(DockerfileError { message, lines: way });
            }
        }
        Ok(())
    }

    pub(super) fn reachable(&self, target: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut left = vec![target];
        while let Some(index) = left.pop() {
            if found.insert(index) {
                left.extend(self.states[index].base);
                left.extend(self.states[index].needs.iter().map(|(next, _)| *next));
            }
        }
        found
    }
}

fn image_of_stage(name: &str, lines: Lines) -> State {
    let stage = Stage {
        name: String::new(),
        base: name.to_owned(),
        platform: String::new(),
        keyword: String::new(),
        code: String::new(),
        lines,
        comments: Vec::new(),
        instructions: Vec::new(),
    };
    State { is_image: true, ..State::of(stage) }
}
