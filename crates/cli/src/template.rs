//! Go's `text/template`, as far as `--format` needs it: fields, pipelines, functions, `if`, `range`, `with`, variables,
//! trimming. Values are JSON.
//!
//! The functions are Docker's (`json`, `join`, `split`, `lower`, `upper`, `title`, `pad`, `truncate`, `println`) and Go's own
//! (`len`, `index`, `slice`, `print`, `printf`, comparisons, `and`, `or`, `not`). Error texts begin as Go's do.

mod functions;
mod parse;

use serde_json::{Value, json};

use self::functions::{call, shown, truth};

type Result<T> = std::result::Result<T, String>;

pub struct Template {
    nodes: Vec<Node>,
}

enum Node {
    Text(String),
    Print(Pipeline),
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    Range(Pipeline, Vec<Node>, Vec<Node>),
    With(Pipeline, Vec<Node>, Vec<Node>),
}

/// Commands whose results feed each other; names that the result is bound to.
struct Pipeline {
    variables: Vec<String>,
    assign: bool,
    commands: Vec<Vec<Operand>>,
}

enum Operand {
    Value(Value),
    Dot,
    /// Fields from the dot, a variable or a parenthesis.
    Field(Box<Option<Operand>>, Vec<String>),
    Variable(String),
    Function(String),
    Nested(Pipeline),
}

impl Template {
    pub fn parse(text: &str) -> Result<Template> {
        Ok(Template { nodes: parse::parse(text)? })
    }

    pub fn execute(&self, dot: &Value) -> Result<String> {
        let mut run = Run { out: String::new(), variables: vec![("$".to_owned(), dot.clone())] };
        run.nodes(&self.nodes, dot)?;
        Ok(run.out)
    }
}

struct Run {
    out: String,
    variables: Vec<(String, Value)>,
}

impl Run {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<()> {
        for node in nodes {
            match node {
                Node::Text(text) => self.out += text,
                Node::Print(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        self.out += &shown(&value);
                    }
                }
                Node::If(branches, otherwise) => {
                    let depth = self.variables.len();
                    let mut chosen = otherwise;
                    for (condition, body) in branches {
                        if truth(&self.pipeline(condition, dot)?) {
                            chosen = body;
                            break;
                        }
                    }
                    self.nodes(chosen, dot)?;
                    self.variables.truncate(depth);
                }
                Node::With(head, body, otherwise) => {
                    let depth = self.variables.len();
                    let value = self.pipeline(head, dot)?;
                    if truth(&value) {
                        self.nodes(body, &value)?
                    } else {
                        self.nodes(otherwise, dot)?
                    }
                    self.variables.truncate(depth);
                }
                Node::Range(head, body, otherwise) => self.range(head, body, otherwise, dot)?,
            }
        }
        Ok(())
    }

    fn range(&mut self, head: &Pipeline, body: &[Node], otherwise: &[Node], dot: &Value) -> Result<()> {
        let depth = self.variables.len();
        let value = self.commands(head, dot)?;
        let items: Vec<(Value, Value)> = match value {
            Value::Array(items) => items.into_iter().enumerate().map(|(number, item)| (json!(number), item)).collect(),
            Value::Object(fields) => {
                // Go visits the keys of a map in order.
                let mut fields: Vec<_> = fields.into_iter().collect();
                fields.sort_by(|a, b| a.0.cmp(&b.0));
                fields.into_iter().map(|(key, item)| (Value::String(key), item)).collect()
            }
            Value::Null => Vec::new(),
            Value::Number(number) => (0..number.as_i64().unwrap_or(0)).map(|number| (json!(number), json!(number))).collect(),
            other => return Err(format!("range can't iterate over {}", shown(&other))),
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, item) in items {
            match &head.variables[..] {
                [value] => self.variables.push((value.clone(), item.clone())),
                [name, value] => self.variables.extend([(name.clone(), key), (value.clone(), item.clone())]),
                _ => {}
            }
            self.nodes(body, &item)?;
            self.variables.truncate(depth);
        }
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value> {
        let value = self.commands(pipeline, dot)?;
        if let [name] = &pipeline.variables[..] {
            let existing = self.variables.iter_mut().rev().find(|(known, _)| known == name);
            match existing.filter(|_| pipeline.assign) {
                Some((_, old)) => *old = value.clone(),
                None => self.variables.push((name.clone(), value.clone())),
            }
        }
        Ok(value)
    }

    fn commands(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value> {
        let mut last: Option<Value> = None;
        for command in &pipeline.commands {
            let Some((head, rest)) = command.split_first() else { continue };
            let mut args: Vec<Value> = rest.iter().map(|operand| self.operand(operand, dot)).collect::<Result<_>>()?;
            args.extend(last.take());
            last = Some(match head {
                Operand::Function(name) => call(name, args)?,
                Operand::Field(base, path) if !args.is_empty() => {
                    // A method with arguments; docker's rows have one.
                    let base = match &**base {
                        Some(operand) => self.operand(operand, dot)?,
                        None => dot.clone(),
                    };
                    method(&base, path, &args)?
                }
                operand if args.is_empty() => self.operand(operand, dot)?,
                _ => return Err("can't give argument to non-function".to_owned()),
            });
        }
        Ok(last.unwrap_or(Value::Null))
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value> {
        match operand {
            Operand::Value(value) => Ok(value.clone()),
            Operand::Dot => Ok(dot.clone()),
            Operand::Variable(name) => self
                .variables
                .iter()
                .rev()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone())
                .ok_or_else(|| format!("template: :1: undefined variable \"{name}\"")),
            Operand::Function(name) => call(name, vec![]),
            Operand::Nested(pipeline) => self.pipeline(pipeline, dot),
            Operand::Field(base, path) => {
                let base = match &**base {
                    Some(operand) => self.operand(operand, dot)?,
                    None => dot.clone(),
                };
                lookup(&base, path)
            }
        }
    }
}

/// Fields of an object. A missing one is an error, which names it as Go does.
fn lookup(base: &Value, path: &[String]) -> Result<Value> {
    let mut value = base;
    for (depth, name) in path.iter().enumerate() {
        let shown_path = format!(".{}", path[..=depth].join("."));
        value = match value {
            Value::Object(fields) => fields.get(name).ok_or_else(|| {
                format!("template: :1:2: executing \"\" at <{shown_path}>: map has no entry for key \"{name}\"")
            })?,
            Value::Null => {
                return Err(format!(
                    "template: :1:2: executing \"\" at <{shown_path}>: nil pointer evaluating interface {{}}.{name}"
                ));
            }
            _ => {
                return Err(format!(
                    "template: :1:2: executing \"\" at <{shown_path}>: can't evaluate field {name} in type interface {{}}"
                ));
            }
        };
    }
    Ok(value.clone())
}

/// `.Label "key"`
fn method(base: &Value, path: &[String], args: &[Value]) -> Result<Value> {
    match (path, args) {
        ([name], [Value::String(key)]) if name == "Label" => {
            let labels = base.get("Labels").and_then(Value::as_str).unwrap_or_default();
            let found = labels.split(',').find_map(|label| label.split_once('=').filter(|(name, _)| name == key));
            Ok(Value::String(found.map_or(String::new(), |(_, value)| value.to_owned())))
        }
        _ => Err(format!(
            "template: :1:2: executing \"\" at <.{}>: can't call method/function with {} results",
            path.join("."),
            args.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(template: &str, value: Value) -> Result<String> {
        Template::parse(template)?.execute(&value)
    }

    #[test]
    fn templates_give_what_go_gives() {
        let value = json!({"Name": "/web", "State": {"Running": true, "Pid": 7}, "List": ["a", "b"], "Map": {"y": 2, "x": 1}, "Empty": [], "Nil": null, "Labels": "a=b,c=d"});
        let cases = [
            ("{{.Name}}", "/web"),
            ("{{.State.Running}} {{.State.Pid}}", "true 7"),
            ("{{json .List}}", "[\"a\",\"b\"]"),
            ("{{range .List}}<{{.}}>{{end}}", "<a><b>"),
            ("{{range $i, $v := .List}}{{$i}}={{$v}} {{end}}", "0=a 1=b "),
            ("{{range $k, $v := .Map}}{{$k}}:{{$v}},{{end}}", "x:1,y:2,"),
            ("{{range .Empty}}x{{else}}none{{end}}", "none"),
            ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
            ("{{if eq .State.Pid 8}}a{{else if gt .State.Pid 5}}b{{else}}c{{end}}", "b"),
            ("{{with .State}}{{.Pid}}{{end}}", "7"),
            ("{{.List}} {{.Map}}", "[a b] map[x:1 y:2]"),
            ("{{.Nil}}", "<no value>"),
            ("{{upper .Name | printf \"%s!\"}}", "/WEB!"),
            ("{{join .List \"-\"}} {{len .List}} {{index .List 1}} {{index .Map \"x\"}}", "a-b 2 b 1"),
            ("a {{- .Name -}} b", "a/webb"),
            ("{{slice .Name 1}} {{truncate .Name 2}} {{pad .Name 1 1}}|", "web /w  /web |"),
            ("{{$x := .Name}}{{$x}}{{/* comment */}}", "/web"),
            ("{{(index .List 0)}} {{.Label \"c\"}}", "a d"),
            ("{{and true .Name}} {{or .Empty \"x\"}} {{not .Nil}}", "/web x true"),
            ("{{title \"hello you\"}} {{split \"a:b\" \":\"}}", "Hello You [a b]"),
            ("{{printf \"%-5s|%3d\" \"ab\" 7}}", "ab   |  7"),
        ];
        for (template, expected) in cases {
            assert_eq!(run(template, value.clone()).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn errors_are_told() {
        let error = |template: &str| run(template, json!({"A": 1})).unwrap_err();
        assert!(error("{{.Foo}}").contains("map has no entry for key \"Foo\""));
        assert!(error("{{.A.B}}").contains("can't evaluate field B"));
        assert!(error("{{nosuch .}}").contains("function \"nosuch\" not defined"));
        assert!(error("{{.A").contains("unclosed action"));
        assert!(error("{{if .A}}").contains("unexpected EOF"));
        assert!(error("{{end}}").contains("unexpected {{end}}"));
    }
}
