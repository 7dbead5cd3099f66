//! What files define, as far as it has come to values. Each is evaluated when it is first asked for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use hcl_edit::Span;
use hcl_edit::expr::{Expression, FuncCall};
use hcl_edit::visit::{Visit, visit_func_call};

use crate::Lookup;
use crate::entry::{Attestation, Cache, Entry, Output, Secret, Ssh, entries};
use crate::evaluate::{Evaluated, Function, Names, Scope, evaluate, kind_of};
use crate::fault::Fault;
use crate::functions::{self, record};
use crate::source::{Attribute, Block, Body};
use crate::target::{Group, Target};
use crate::value::{Kind, Number, Value, set};

/// A variable, as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Variable {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// Something that is evaluated once.
enum Known {
    /// It is being evaluated: who asks now goes in circles.
    Begun,
    Value(Value),
}

/// A block, with what its matrix gives it.
struct Instance<'a> {
    block: &'a Block,
    name: String,
    matrix: Vec<(String, Value)>,
}

pub(crate) struct Definition<'a> {
    builtins: &'a BTreeMap<String, String>,
    lookup: Lookup<'a>,
    variables: BTreeMap<&'a str, &'a Block>,
    attributes: BTreeMap<&'a str, &'a Attribute>,
    functions: BTreeMap<&'a str, Function>,
    instances: Vec<Instance<'a>>,
    values: RefCell<BTreeMap<String, Known>>,
    parts: RefCell<BTreeMap<(usize, String), Known>>,
}

/// What all files come to.
#[derive(Debug, Default)]
pub(crate) struct Defined {
    pub groups: Vec<Group>,
    pub targets: Vec<Target>,
    pub variables: Vec<Variable>,
}

const BLOCKS: [&str; 2] = ["group", "target"];
/// As many targets as one may stand for.
const MOST_CELLS: usize = 4096;

/// How an attribute of a block is read; `None` of what is passed over.
fn kind_of_attribute(block: &str, name: &str) -> Option<Read> {
    let texts = || Read::As(Kind::list(Kind::String));
    let map = || Read::As(Kind::map(Kind::String));
    Some(match (block, name) {
        (_, "name") => Read::Name,
        (_, "description") => Read::As(Kind::String),
        ("group", "targets") => texts(),
        ("group", _) => return None,
        (_, "context" | "dockerfile" | "dockerfile-inline" | "target" | "network" | "shm-size" | "call") => {
            Read::As(Kind::String)
        }
        (_, "inherits" | "annotations" | "tags" | "platforms" | "no-cache-filter" | "ulimits" | "entitlements") => texts(),
        (_, "contexts" | "args" | "labels" | "extra-hosts") => map(),
        (_, "pull" | "no-cache") => Read::As(Kind::Bool),
        (_, "output") => Read::With(normal::<Output>),
        (_, "cache-from" | "cache-to") => Read::With(normal::<Cache>),
        (_, "attest") => Read::With(normal::<Attestation>),
        (_, "secret") => Read::With(normal::<Secret>),
        (_, "ssh") => Read::With(normal::<Ssh>),
        _ => return None,
    })
}

enum Read {
    Name,
    As(Kind),
    With(fn(&Value) -> Result<Value, String>),
}

/// Entries in one form.
fn normal<T: Entry>(value: &Value) -> Result<Value, String> {
    let read: Vec<T> = entries(value)?;
    Ok(Value::Tuple(read.iter().map(Entry::value).collect()))
}

impl<'a> Definition<'a> {
    /// Evaluates all that is defined.
    pub fn read(bodies: &'a [Body], builtins: &'a BTreeMap<String, String>, lookup: Lookup<'a>) -> Result<Defined, Fault> {
        let mut definition = Definition {
            builtins,
            lookup,
            variables: BTreeMap::new(),
            attributes: BTreeMap::new(),
            functions: BTreeMap::new(),
            instances: Vec::new(),
            values: RefCell::default(),
            parts: RefCell::default(),
        };
        let is_reserved = |name: &str| BLOCKS.contains(&name) || builtins.contains_key(name);
        let blocks = || bodies.iter().flat_map(|body| &body.blocks);
        for block in blocks().filter(|block| block.kind == "variable") {
            let label = label(block)?;
            if !is_reserved(label) {
                definition.variables.insert(label, block);
            }
        }
        for attribute in bodies.iter().flat_map(|body| &body.attributes) {
            let name = attribute.name.as_str();
            if !is_reserved(name) && name != "function" {
                definition.attributes.insert(name, attribute);
            }
        }
        for block in blocks().filter(|block| block.kind == "function") {
            definition.functions.insert(label(block)?, function(block)?);
        }
        definition.check_functions()?;
        let variables = definition.variables()?;
        definition.validate()?;
        let mut renamed: Vec<(String, Vec<String>)> = Vec::new();
        for block in blocks().filter(|block| BLOCKS.contains(&block.kind.as_str())) {
            let made = definition.instances_of(block)?;
            let names: Vec<String> = made.iter().map(|instance| instance.name.clone()).collect();
            if names != block.labels && !names.is_empty() {
                match renamed.iter_mut().find(|(label, _)| *label == block.labels[0]) {
                    Some((_, known)) => known.extend(names),
                    None => renamed.push((block.labels[0].clone(), names)),
                }
            }
            definition.instances.extend(made);
        }
        let (mut groups, mut targets) = (Vec::<Group>::new(), Vec::<Target>::new());
        for index in 0..definition.instances.len() {
            match definition.instances[index].block.kind.as_str() {
                "group" => {
                    let group = definition.group(index)?;
                    match groups.iter_mut().find(|known| known.name == group.name) {
                        Some(known) => *known = group,
                        None => groups.push(group),
                    }
                }
                _ => {
                    let target = definition.target(index)?;
                    match targets.iter_mut().find(|known| known.name == target.name) {
                        Some(known) => known.merge(target),
                        None => targets.push(target),
                    }
                }
            }
        }
        for name in definition.attributes.keys().copied() {
            definition.variable(name)?;
        }
        for (name, names) in renamed {
            // One that is declared stays.
            if !groups.iter().any(|known| known.name == name) {
                groups.push(Group { name, targets: names, ..Group::default() });
            }
        }
        Ok(Defined { groups, targets, variables })
    }

    fn scope<'s>(&'s self, file: usize, locals: &'s [(String, Value)]) -> Scope<'s> {
        Scope { names: self, file, locals }
    }

    /// What an attribute comes to, where these names count besides.
    fn value_of(&self, attribute: &Attribute, locals: &[(String, Value)]) -> Evaluated {
        let value = evaluate(&attribute.value, &self.scope(attribute.places, locals));
        value.map_err(|fault| fault.at(attribute.file, attribute.span.clone()))
    }

    /// Functions call others that there are, and none calls itself.
    fn check_functions(&self) -> Result<(), Fault> {
        fn walk<'d>(
            definition: &'d Definition<'_>,
            name: &'d str,
            path: &mut Vec<&'d str>,
            done: &mut BTreeSet<&'d str>,
        ) -> Result<(), String> {
            let Some(function) = definition.functions.get(name) else { return Ok(()) };
            if path.contains(&name) {
                return Err(format!("function cycle not allowed for {name}"));
            }
            if !done.insert(name) {
                return Ok(());
            }
            path.push(name);
            for called in calls(&function.result) {
                match definition.functions.get_key_value(called.as_str()) {
                    Some((called, _)) => walk(definition, called, path, done)?,
                    None if functions::exists(&called) => {}
                    None => return Err(format!("function {called:?} does not exist")),
                }
            }
            path.pop();
            Ok(())
        }
        let mut done = BTreeSet::new();
        for (name, function) in &self.functions {
            let wrong = |why: String| Fault::new("Invalid expression", why).at(function.file, function.result.span());
            walk(self, name, &mut Vec::new(), &mut done).map_err(wrong)?;
        }
        Ok(())
    }

    fn variables(&self) -> Result<Vec<Variable>, Fault> {
        let mut all = Vec::new();
        for (name, block) in &self.variables {
            let wrong = |fault: Fault| fault.at(block.file, block.span.clone());
            let value = self.variable(name).map_err(wrong)?.unwrap_or(Value::Null);
            let described = block.body.attribute("description");
            let description = described.map(|attribute| self.value_of(attribute, &[])).transpose()?;
            let kind = self.kind_of_variable(block)?;
            let shown = match (&value, &kind) {
                (Value::Null, _) => None,
                (Value::String(text), _) => Some(text.clone()),
                (value, None) if value.kind().is_primitive() => value.text(),
                (value, _) => Some(crate::json::compact(&value.json())),
            };
            all.push(Variable {
                name: (*name).to_owned(),
                description: description.and_then(|value| value.text()).unwrap_or_default(),
                kind: kind.map(|kind| kind.to_string()).unwrap_or_default(),
                value: shown,
            });
        }
        Ok(all)
    }

    /// The kind that a variable is declared to have.
    fn kind_of_variable(&self, block: &Block) -> Result<Option<Kind>, Fault> {
        let Some(attribute) = block.body.attribute("type") else { return Ok(None) };
        match attribute.verbatim(&attribute.value) {
            Ok(Expression::Null(_)) => Ok(None),
            Err(why) => Err(Fault::new("Invalid type specification", why).at(attribute.file, attribute.span.clone())),
            Ok(written) => kind_of(&written).map(Some).map_err(|fault| fault.at(attribute.file, attribute.span.clone())),
        }
    }

    /// What is to hold of variables does.
    fn validate(&self) -> Result<(), Fault> {
        for block in self.variables.values() {
            for rule in block.body.blocks.iter().filter(|block| block.kind == "validation") {
                let attribute = |name: &str| {
                    let missing = || {
                        Fault::new(
                            "Missing required argument",
                            format!("The argument {name:?} is required, but no definition was found."),
                        )
                    };
                    rule.body.attribute(name).ok_or_else(|| missing().at(rule.file, rule.span.clone()))
                };
                let condition = attribute("condition")?;
                let at = |fault: Fault| fault.at(rule.file, condition.span.clone());
                let value = self.value_of(condition, &[])?;
                const RESULT: &str = "Invalid condition result";
                if value == Value::Null {
                    return Err(at(Fault::new(RESULT, "Condition expression must return either true or false, not null.")));
                }
                let holds = value
                    .convert(&Kind::Bool)
                    .map_err(|why| at(Fault::new(RESULT, format!("Invalid condition result value: {why}"))))?;
                if holds != Value::Bool(true) {
                    let message = rule.body.attribute("error_message").map(|message| self.value_of(message, &[])).transpose()?;
                    let said = message.and_then(|message| message.text());
                    let said = said.unwrap_or_else(|| "This check failed, but has an invalid error message.".to_owned());
                    return Err(at(Fault::new("Validation failed", said)));
                }
            }
        }
        Ok(())
    }

    /// The blocks that one stands for: one, or as many as its matrix has cells.
    fn instances_of(&self, block: &'a Block) -> Result<Vec<Instance<'a>>, Fault> {
        let label = label(block)?;
        let wrong = |why: String| Fault::new("Invalid name", why).at(block.file, block.span.clone());
        check_name(label).map_err(wrong)?;
        let (matrix, naming) = (block.body.attribute("matrix"), block.body.attribute("name"));
        if block.kind == "group" {
            if matrix.is_some() {
                return Err(wrong("matrix is not supported for groups".to_owned()));
            }
            if naming.is_some() {
                return Err(wrong("name is not supported for groups".to_owned()));
            }
        }
        let Some(matrix) = matrix else {
            if naming.is_some() {
                return Err(wrong("name requires matrix".to_owned()));
            }
            return Ok(vec![Instance { block, name: label.to_owned(), matrix: Vec::new() }]);
        };
        let axes = self.value_of(matrix, &[])?;
        let axes = axes.attributes().ok_or_else(|| wrong("matrix must be a map".to_owned()))?;
        let mut cells: Vec<Vec<(String, Value)>> = vec![Vec::new()];
        for (axis, values) in axes {
            let values: Vec<Value> = match (values.elements(), values.attributes()) {
                (Some(values), _) => values.to_vec(),
                (None, Some(values)) => values.values().cloned().collect(),
                (None, None) => return Err(wrong("matrix values must be a list".to_owned())),
            };
            if cells.len().saturating_mul(values.len()) > MOST_CELLS {
                return Err(wrong(format!("the matrix has more than {MOST_CELLS} cells")));
            }
            let cell = |value: &Value| {
                cells.iter().map(|cell| [cell.as_slice(), &[(axis.clone(), value.clone())]].concat()).collect::<Vec<_>>()
            };
            cells = values.iter().flat_map(cell).collect();
        }
        let mut made: Vec<Instance<'a>> = Vec::new();
        for matrix in cells {
            let name = match naming {
                None => label.to_owned(),
                Some(naming) => {
                    let value = self.value_of(naming, &matrix)?;
                    value.text().ok_or_else(|| wrong("string required".to_owned()))?
                }
            };
            check_name(&name).map_err(wrong)?;
            if made.iter().any(|known| known.name == name) {
                return Err(wrong(format!("duplicate name {name:?}")));
            }
            made.push(Instance { block, name, matrix });
        }
        Ok(made)
    }

    /// An attribute of a block as it is to be: null where it is not said.
    fn part(&self, index: usize, name: &str) -> Result<Option<Value>, Fault> {
        let Instance { block, name: block_name, matrix } = &self.instances[index];
        let Some(read) = kind_of_attribute(&block.kind, name) else { return Ok(None) };
        if matches!(read, Read::Name) {
            return Ok(Some(Value::String(block_name.clone())));
        }
        let Some(attribute) = block.body.attribute(name) else {
            return Ok(Some(if name == "description" { "".into() } else { Value::Null }));
        };
        let key = (index, name.to_owned());
        match self.parts.borrow().get(&key) {
            Some(Known::Value(value)) => return Ok(Some(value.clone())),
            Some(Known::Begun) => {
                let why = format!("reference cycle not allowed for {}.{block_name}.{name}", block.kind);
                return Err(Fault::new("Invalid expression", why));
            }
            None => {}
        }
        self.parts.borrow_mut().insert(key.clone(), Known::Begun);
        let value = self.value_of(attribute, matrix).inspect_err(|_| drop(self.parts.borrow_mut().remove(&key)))?;
        let made = match read {
            // These are never null; others are as if they were not there.
            Read::With(_) if value == Value::Null => Err("null value is not allowed".to_owned()),
            _ if value == Value::Null && name == "description" => Err("null value is not allowed".to_owned()),
            _ if value == Value::Null => Ok(value),
            Read::As(Kind::List(_)) if value.elements().is_some_and(|values| values.contains(&Value::Null)) => {
                Err("null value is not allowed".to_owned())
            }
            Read::As(_)
                if name == "contexts"
                    && value.attributes().is_some_and(|values| values.values().any(|value| *value == Value::Null)) =>
            {
                Err("null value is not allowed".to_owned())
            }
            Read::As(kind) => value.convert(&kind),
            Read::With(read) => read(&value),
            Read::Name => Ok(value),
        };
        let unsuitable = |why: String| Fault::new("Unsuitable value type", format!("Unsuitable value: {why}"));
        let value = made.map_err(|why| unsuitable(why).at(attribute.file, attribute.span.clone()))?;
        self.parts.borrow_mut().insert(key, Known::Value(value.clone()));
        Ok(Some(value))
    }

    fn group(&self, index: usize) -> Result<Group, Fault> {
        let part = |name: &str| self.part(index, name).map(Option::unwrap_or_default);
        let block = self.instances[index].block;
        if block.body.attribute("targets").is_none() {
            let missing =
                Fault::new("Missing required argument", "The argument \"targets\" is required, but no definition was found.");
            return Err(missing.at(block.file, block.span.clone()));
        }
        Ok(Group {
            name: self.instances[index].name.clone(),
            description: text(part("description")?).unwrap_or_default(),
            targets: texts(part("targets")?).unwrap_or_default(),
        })
    }

    fn target(&self, index: usize) -> Result<Target, Fault> {
        let part = |name: &str| self.part(index, name).map(Option::unwrap_or_default);
        fn list<T: Entry>(value: Value) -> Option<Vec<T>> {
            (value != Value::Null).then(|| entries(&value).unwrap_or_default())
        }
        let truth = |value: Value| if let Value::Bool(value) = value { Some(value) } else { None };
        Ok(Target {
            name: self.instances[index].name.clone(),
            description: text(part("description")?).unwrap_or_default(),
            inherits: texts(part("inherits")?).unwrap_or_default(),
            annotations: texts(part("annotations")?),
            attest: list(part("attest")?),
            context: text(part("context")?),
            contexts: pairs(part("contexts")?).into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
            dockerfile: text(part("dockerfile")?),
            dockerfile_inline: text(part("dockerfile-inline")?),
            args: pairs(part("args")?),
            labels: pairs(part("labels")?),
            tags: texts(part("tags")?),
            cache_from: list(part("cache-from")?),
            cache_to: list(part("cache-to")?),
            target: text(part("target")?),
            secrets: list(part("secret")?),
            ssh: list(part("ssh")?),
            platforms: texts(part("platforms")?),
            outputs: list(part("output")?),
            pull: truth(part("pull")?),
            no_cache: truth(part("no-cache")?),
            network: text(part("network")?),
            no_cache_filter: texts(part("no-cache-filter")?),
            shm_size: text(part("shm-size")?),
            ulimits: texts(part("ulimits")?),
            call: text(part("call")?),
            entitlements: texts(part("entitlements")?),
            extra_hosts: pairs(part("extra-hosts")?),
            is_linked: false,
        })
    }

    /// Evaluates a variable, or an attribute of a file that is as good as one.
    fn resolve(&self, name: &str) -> Result<Option<Value>, Fault> {
        let (attribute, block) = (self.attributes.get(name).copied(), self.variables.get(name).copied());
        let Some(block) = block else { return attribute.map(|attribute| self.value_of(attribute, &[])).transpose() };
        let kind = if attribute.is_some() { None } else { self.kind_of_variable(block)? };
        let invalid = |why: String| Fault::new("Invalid value", why).at(block.file, block.span.clone());
        let default = match attribute.or_else(|| block.body.attribute("default")) {
            None => None,
            Some(attribute) => {
                let value = self.value_of(attribute, &[])?;
                let wanted = kind.clone().unwrap_or(Kind::Any);
                let converted = value.convert(&wanted);
                Some(
                    converted
                        .map_err(|why| invalid(format!("invalid type {wanted} for variable {name} default value: {why}")))?,
                )
            }
        };
        let Some((given, is_json)) = self.given(name, kind.is_some()) else {
            return Ok(Some(default.unwrap_or_else(|| if kind.is_some() { Value::Null } else { "".into() })));
        };
        let value = match (&kind, &default) {
            (Some(kind), _) if is_json => {
                let document: Result<serde_json::Value, _> = serde_json::from_str(&given);
                let read =
                    document.map_err(|error| error.to_string()).and_then(|document| Value::from_json(&document).convert(kind));
                read.map_err(|why| format!("failed to convert variable {name} from JSON: {why}"))
            }
            (Some(kind @ (Kind::List(_) | Kind::Set(_) | Kind::Tuple(_) | Kind::Map(_))), _) => {
                of_record(name, &given, kind).map_err(|why| format!("failed to convert variable {name} from CSV: {why}"))
            }
            (Some(kind), _) if kind.is_primitive() => primitive(name, &given, kind),
            (Some(Kind::Any), _) => Err(format!("unsupported type dynamic for variable {name}")),
            (Some(kind), _) => Err(format!("unsupported type {kind} for variable {name}")),
            (None, None | Some(Value::Null)) => Ok(given.into()),
            (None, Some(default)) if default.kind().is_primitive() => primitive(name, &given, &default.kind()),
            (None, Some(default)) => Err(format!("unsupported type {} for variable {name}", default.kind())),
        };
        value.map(Some).map_err(invalid)
    }

    /// What a variable is given from outside, and whether as JSON: under its name with `_JSON` behind.
    fn given(&self, name: &str, prefers_json: bool) -> Option<(String, bool)> {
        let plain = (self.lookup)(name);
        if plain.is_none() || prefers_json {
            let other = format!("{name}_JSON");
            if !self.variables.contains_key(other.as_str())
                && !self.builtins.contains_key(&other)
                && let Some(json) = (self.lookup)(&other)
            {
                return Some((json, true));
            }
        }
        plain.map(|plain| (plain, false))
    }
}

impl Names for Definition<'_> {
    fn variable(&self, name: &str) -> Result<Option<Value>, Fault> {
        if let Some(text) = self.builtins.get(name) {
            return Ok(Some(text.as_str().into()));
        }
        match self.values.borrow().get(name) {
            Some(Known::Value(value)) => return Ok(Some(value.clone())),
            Some(Known::Begun) => return Err(Fault::new("Invalid expression", format!("variable cycle not allowed for {name}"))),
            None => {}
        }
        self.values.borrow_mut().insert(name.to_owned(), Known::Begun);
        let value = self.resolve(name).inspect_err(|_| drop(self.values.borrow_mut().remove(name)))?;
        match &value {
            Some(value) => self.values.borrow_mut().insert(name.to_owned(), Known::Value(value.clone())),
            None => self.values.borrow_mut().remove(name),
        };
        Ok(value)
    }

    fn block(&self, kind: &str, name: &str, attribute: Option<&str>) -> Option<Result<Option<Value>, Fault>> {
        if !BLOCKS.contains(&kind) {
            return None;
        }
        // Of several the last one counts, and it alone.
        let found = self.instances.iter().rposition(|instance| instance.block.kind == kind && instance.name == name);
        let Some(index) = found else {
            let missing = format!("There is no {kind} named {name:?}.");
            return Some(Err(Fault::new("Unsupported attribute", missing)));
        };
        Some(match attribute {
            Some(attribute) => self.part(index, attribute),
            None => {
                let known =
                    self.instances[index].block.body.attributes.iter().map(|attribute| attribute.name.as_str()).chain(["name"]);
                let parts = known.filter_map(|name| Some((name.to_owned(), self.part(index, name).transpose()?)));
                parts.map(|(name, value)| value.map(|value| (name, value))).collect::<Result<_, _>>().map(Value::Object).map(Some)
            }
        })
    }

    fn function(&self, name: &str) -> Option<&Function> {
        self.functions.get(name)
    }
}

/// The functions that an expression calls.
fn calls(expression: &Expression) -> Vec<String> {
    struct Calls(Vec<String>);
    impl Visit for Calls {
        fn visit_func_call(&mut self, call: &FuncCall) {
            self.0.push(call.name.name.as_str().to_owned());
            visit_func_call(self, call);
        }
    }
    let mut found = Calls(Vec::new());
    found.visit_expr(expression);
    found.0
}

fn label(block: &Block) -> Result<&str, Fault> {
    match block.labels.as_slice() {
        [label] => Ok(label),
        labels => {
            let shown = labels.join(" ");
            Err(Fault::new("Invalid block", format!("invalid block label: [{shown}]")).at(block.file, block.span.clone()))
        }
    }
}

/// What a target or a group may be called.
fn check_name(name: &str) -> Result<(), String> {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    match !name.is_empty() && name.bytes().all(is_fit) {
        true => Ok(()),
        false => Err("only \"[a-zA-Z0-9_-]+\" are allowed".to_owned()),
    }
}

fn function(block: &Block) -> Result<Function, Fault> {
    let name = block.labels[0].as_str();
    let wrong =
        |why: &str| Fault::new("Invalid function", format!("{why} not allowed for {name}")).at(block.file, block.span.clone());
    let result = block.body.attribute("result").ok_or_else(|| wrong("empty result"))?;
    let parameters = block.body.attribute("params").ok_or_else(|| wrong("empty params"))?;
    let no_name = |place: &Expression| {
        Fault::new("Invalid param element", "Each parameter name must be an identifier.").at(block.file, place.span())
    };
    let parameter = |attribute: &Attribute, written: &Expression| match attribute.verbatim(written) {
        Ok(Expression::Variable(name)) => Ok(name.as_str().to_owned()),
        _ => Err(no_name(written)),
    };
    let Expression::Array(names) = &parameters.value else { return Err(no_name(&parameters.value)) };
    Ok(Function {
        parameters: names.iter().map(|name| parameter(parameters, name)).collect::<Result<_, _>>()?,
        variadic: block.body.attribute("variadic_params").map(|attribute| parameter(attribute, &attribute.value)).transpose()?,
        result: result.value.clone(),
        file: result.places,
    })
}

/// A text from outside as what a variable is.
fn primitive(name: &str, text: &str, kind: &Kind) -> Result<Value, String> {
    match kind {
        Kind::Bool => match crate::entry::truth(text) {
            Some(value) => Ok(Value::Bool(value)),
            None => Err(format!("failed to parse {name} as bool: strconv.ParseBool: parsing {text:?}: invalid syntax")),
        },
        Kind::Number => match Number::parse(text) {
            Some(number) => Ok(Value::Number(number)),
            None => Err(format!("failed to parse {name} as number: strconv.ParseFloat: parsing {text:?}: invalid syntax")),
        },
        Kind::String => Ok(text.into()),
        kind => Err(format!("{name} of type {kind} is not a primitive")),
    }
}

/// `a,b,c` as a list, and `a:1,b:2` as a map.
fn of_record(name: &str, text: &str, kind: &Kind) -> Result<Value, String> {
    let fields = if text.is_empty() { Err("EOF".to_owned()) } else { record(text, ',') };
    let (fields, _) = fields.map_err(|why| format!("failed to parse {text} as CSV: {why}"))?;
    let unsupported = || format!("unsupported type {kind} for CSV specification");
    let values = |of: &Kind| {
        let made = fields.iter().map(|field| primitive(name, field, of));
        made.collect::<Result<Vec<_>, _>>().map_err(|why| format!("failed to parse element of type {kind}: {why}"))
    };
    match kind {
        Kind::List(of) if of.is_primitive() => Ok(Value::List((**of).clone(), values(of)?)),
        Kind::Set(of) if of.is_primitive() => Ok(set((**of).clone(), values(of)?)),
        Kind::Tuple(kinds) if kinds.len() != fields.len() => {
            Err(format!("{kind} expects {} elements but only {} provided", kinds.len(), fields.len()))
        }
        Kind::Tuple(kinds) if kinds.iter().all(Kind::is_primitive) => {
            fields.iter().zip(kinds).map(|(field, kind)| primitive(name, field, kind)).collect::<Result<_, _>>().map(Value::Tuple)
        }
        Kind::Map(of) if of.is_primitive() => {
            let pair = |field: &String| {
                let (parts, _) =
                    record(field, ':').map_err(|why| format!("failed to parse {field} as k/v for variable {name}: {why}"))?;
                match <[String; 2]>::try_from(parts) {
                    Ok([key, value]) => Ok((key, primitive(name, &value, of)?)),
                    Err(parts) => Err(format!("expected one k/v pair but got {} pieces from {field}", parts.len())),
                }
            };
            fields.iter().map(pair).collect::<Result<_, _>>().map(|pairs| Value::Map((**of).clone(), pairs))
        }
        _ => Err(unsupported()),
    }
}

fn text(value: Value) -> Option<String> {
    value.text()
}

fn texts(value: Value) -> Option<Vec<String>> {
    value.elements().map(|values| values.iter().filter_map(Value::text).collect())
}

fn pairs(value: Value) -> BTreeMap<String, Option<String>> {
    let values = value.attributes().into_iter().flatten();
    values.map(|(name, value)| (name.clone(), value.text())).collect()
}
