//! Go's `text/template`, as far as `--format` needs it: fields, pipelines, functions, `if`, `range`, `with`, variables,
//! trimming. Values are JSON.
//!
//! The functions are Docker's (`json`, `join`, `split`, `lower`, `upper`, `title`, `pad`, `truncate`, `println`) and Go's own
//! (`len`, `index`, `slice`, `print`, `printf`, comparisons, `and`, `or`, `not`). Error texts begin as Go's do.

use std::cmp::Ordering;
use std::iter::Peekable;
use std::str::Chars;

use serde_json::{Value, json};

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

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Text(String),
    Number(Value),
    Symbol(&'static str),
    Space,
}

impl Template {
    pub fn parse(text: &str) -> Result<Template> {
        let mut parser = Parser { pieces: split(text)?.into_iter().peekable() };
        let (nodes, end) = parser.nodes()?;
        match end {
            None => Ok(Template { nodes }),
            Some(word) => Err(format!("template: :1: unexpected {{{{{word}}}}}")),
        }
    }

    pub fn execute(&self, dot: &Value) -> Result<String> {
        let mut run = Run { out: String::new(), variables: vec![("$".to_owned(), dot.clone())] };
        run.nodes(&self.nodes, dot)?;
        Ok(run.out)
    }
}

enum Piece {
    Text(String),
    Action(String),
}

/// Text and actions, with `{{-` and `-}}` applied.
fn split(text: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    while !rest.is_empty() {
        let start = rest.find("{{").unwrap_or(rest.len());
        let mut plain = &rest[..start];
        if trim_next {
            plain = plain.trim_start();
        }
        rest = &rest[start..];
        let Some(action) = rest.strip_prefix("{{") else {
            pieces.push(Piece::Text(plain.to_owned()));
            break;
        };
        let trim_before = action.starts_with("- ") || action.starts_with("-\n");
        let action = if trim_before { &action[1..] } else { action };
        pieces.push(Piece::Text(if trim_before { plain.trim_end() } else { plain }.to_owned()));
        let end = end_of_action(action).ok_or_else(|| "template: :1: unclosed action".to_owned())?;
        let mut inside = &action[..end];
        rest = &action[end + 2..];
        trim_next = inside.ends_with(" -");
        if trim_next {
            inside = &inside[..inside.len() - 1];
        }
        let inside = inside.trim();
        if !inside.starts_with("/*") {
            pieces.push(Piece::Action(inside.to_owned()));
        }
    }
    Ok(pieces)
}

/// Where `}}` is, outside of strings.
fn end_of_action(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut quote = None;
    let mut at = 0;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(b'"'), b'\\') => at += 1,
            (Some(open), byte) if open == byte => quote = None,
            (None, byte @ (b'"' | b'`')) => quote = Some(byte),
            (None, b'}') if bytes.get(at + 1) == Some(&b'}') => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

struct Parser<I: Iterator<Item = Piece>> {
    pieces: Peekable<I>,
}

impl<I: Iterator<Item = Piece>> Parser<I> {
    /// Nodes up to the end or to an action that ends a block, which is returned.
    fn nodes(&mut self) -> Result<(Vec<Node>, Option<String>)> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let action = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(action) => action,
            };
            let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((&action, ""));
            match word {
                "if" => {
                    let mut branches = Vec::new();
                    let mut condition = pipeline(rest)?;
                    let otherwise = loop {
                        let (body, end) = self.nodes()?;
                        branches.push((condition, body));
                        match end.as_deref() {
                            Some("end") => break Vec::new(),
                            Some("else") => break self.until_end()?,
                            Some(other) => match other.strip_prefix("else if ") {
                                Some(next) => condition = pipeline(next)?,
                                None => return Err(format!("template: :1: unexpected {{{{{other}}}}}")),
                            },
                            None => return Err("template: :1: unexpected EOF".to_owned()),
                        }
                    };
                    nodes.push(Node::If(branches, otherwise));
                }
                "range" | "with" => {
                    let head = pipeline(rest)?;
                    let (body, end) = self.nodes()?;
                    let otherwise = match end.as_deref() {
                        Some("end") => Vec::new(),
                        Some("else") => self.until_end()?,
                        _ => return Err("template: :1: unexpected EOF".to_owned()),
                    };
                    nodes.push(if word == "range" {
                        Node::Range(head, body, otherwise)
                    } else {
                        Node::With(head, body, otherwise)
                    });
                }
                "end" | "else" => return Ok((nodes, Some(action.clone()))),
                _ => nodes.push(Node::Print(pipeline(&action)?)),
            }
        }
        Ok((nodes, None))
    }

    fn until_end(&mut self) -> Result<Vec<Node>> {
        match self.nodes()? {
            (nodes, Some(end)) if end == "end" => Ok(nodes),
            _ => Err("template: :1: unexpected EOF".to_owned()),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            c if c.is_whitespace() => {
                chars.next();
                if tokens.last() != Some(&Token::Space) {
                    tokens.push(Token::Space);
                }
            }
            '.' => {
                chars.next();
                tokens.push(Token::Field(fields(&mut chars)));
            }
            '$' => {
                chars.next();
                let name = format!("${}", word(&mut chars));
                let path = if chars.peek() == Some(&'.') {
                    chars.next();
                    fields(&mut chars)
                } else {
                    vec![]
                };
                tokens.push(Token::Variable(name, path));
            }
            '"' | '`' => {
                chars.next();
                tokens.push(Token::Text(string(&mut chars, c)?));
            }
            '(' => symbol(&mut chars, &mut tokens, "("),
            ')' => {
                symbol(&mut chars, &mut tokens, ")");
                // Fields of a parenthesis: (index . 0).Name
                if chars.peek() == Some(&'.') {
                    chars.next();
                    tokens.push(Token::Symbol("."));
                    tokens.push(Token::Field(fields(&mut chars)));
                }
            }
            '|' => symbol(&mut chars, &mut tokens, "|"),
            ',' => symbol(&mut chars, &mut tokens, ","),
            '=' => symbol(&mut chars, &mut tokens, "="),
            ':' => {
                chars.next();
                if chars.next() != Some('=') {
                    return Err("template: :1: expected :=".to_owned());
                }
                tokens.push(Token::Symbol(":="));
            }
            c if c.is_ascii_digit() || c == '-' || c == '+' => {
                let mut number = String::from(c);
                chars.next();
                while let Some(&c) = chars.peek().filter(|c| c.is_ascii_digit() || **c == '.') {
                    number.push(c);
                    chars.next();
                }
                let value = number.parse::<i64>().map(Value::from).or_else(|_| number.parse::<f64>().map(Value::from));
                tokens.push(Token::Number(value.map_err(|_| format!("template: :1: bad number syntax: \"{number}\""))?));
            }
            c if c.is_alphabetic() || c == '_' => tokens.push(Token::Word(word(&mut chars))),
            other => return Err(format!("template: :1: unexpected {other:?} in command")),
        }
    }
    Ok(tokens)
}

fn symbol(chars: &mut Peekable<Chars<'_>>, tokens: &mut Vec<Token>, symbol: &'static str) {
    chars.next();
    tokens.push(Token::Symbol(symbol));
}

fn word(chars: &mut Peekable<Chars<'_>>) -> String {
    let mut word = String::new();
    while let Some(&c) = chars.peek().filter(|c| c.is_alphanumeric() || **c == '_') {
        word.push(c);
        chars.next();
    }
    word
}

/// `A.B.C` behind a dot; empty for the dot alone.
fn fields(chars: &mut Peekable<Chars<'_>>) -> Vec<String> {
    let mut path = Vec::new();
    loop {
        let name = word(chars);
        if name.is_empty() {
            return path;
        }
        path.push(name);
        if chars.peek() != Some(&'.') {
            return path;
        }
        chars.next();
    }
}

fn string(chars: &mut Peekable<Chars<'_>>, quote: char) -> Result<String> {
    let mut text = String::new();
    loop {
        match chars.next() {
            None => return Err("template: :1: unterminated quoted string".to_owned()),
            Some(c) if c == quote => return Ok(text),
            Some('\\') if quote == '"' => match chars.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some('r') => text.push('\r'),
                Some(other) => text.push(other),
                None => {}
            },
            Some(c) => text.push(c),
        }
    }
}

fn pipeline(text: &str) -> Result<Pipeline> {
    let tokens = tokens(text)?;
    let mut at = 0;
    let parsed = parse_pipeline(&tokens, &mut at)?;
    if at < tokens.len() {
        return Err("template: :1: unexpected \")\" in operand".to_owned());
    }
    Ok(parsed)
}

fn parse_pipeline(tokens: &[Token], at: &mut usize) -> Result<Pipeline> {
    let mut variables = Vec::new();
    let mut assign = false;
    // `$x :=`, `$x =`, `$k, $v :=`
    let declares = tokens[*at..]
        .iter()
        .take_while(|token| !matches!(token, Token::Symbol("|" | "(" | ")")))
        .any(|token| matches!(token, Token::Symbol(":=" | "=")));
    if declares {
        loop {
            match tokens.get(*at) {
                Some(Token::Variable(name, path)) if path.is_empty() => variables.push(name.clone()),
                Some(Token::Space | Token::Symbol(",")) => {}
                Some(Token::Symbol(symbol @ (":=" | "="))) => {
                    assign = *symbol == "=";
                    *at += 1;
                    break;
                }
                _ => return Err("template: :1: bad variable declaration".to_owned()),
            }
            *at += 1;
        }
    }
    let mut commands = vec![Vec::new()];
    while let Some(token) = tokens.get(*at) {
        *at += 1;
        let operand = match token {
            Token::Space => continue,
            Token::Symbol("|") => {
                commands.push(Vec::new());
                continue;
            }
            Token::Symbol(")") => {
                *at -= 1;
                break;
            }
            Token::Symbol("(") => {
                let nested = parse_pipeline(tokens, at)?;
                if tokens.get(*at) != Some(&Token::Symbol(")")) {
                    return Err("template: :1: unclosed left paren".to_owned());
                }
                *at += 1;
                let nested = Operand::Nested(nested);
                match (tokens.get(*at), tokens.get(*at + 1)) {
                    (Some(Token::Symbol(".")), Some(Token::Field(path))) => {
                        *at += 2;
                        Operand::Field(Box::new(Some(nested)), path.clone())
                    }
                    _ => nested,
                }
            }
            Token::Symbol(other) => return Err(format!("template: :1: unexpected \"{other}\" in operand")),
            Token::Field(path) if path.is_empty() => Operand::Dot,
            Token::Field(path) => Operand::Field(Box::new(None), path.clone()),
            Token::Variable(name, path) if path.is_empty() => Operand::Variable(name.clone()),
            Token::Variable(name, path) => Operand::Field(Box::new(Some(Operand::Variable(name.clone()))), path.clone()),
            Token::Text(text) => Operand::Value(Value::String(text.clone())),
            Token::Number(number) => Operand::Value(number.clone()),
            Token::Word(word) => match word.as_str() {
                "true" => Operand::Value(Value::Bool(true)),
                "false" => Operand::Value(Value::Bool(false)),
                "nil" => Operand::Value(Value::Null),
                name if FUNCTIONS.contains(&name) => Operand::Function(name.to_owned()),
                name => return Err(format!("template: :1: function \"{name}\" not defined")),
            },
        };
        if let Some(command) = commands.last_mut() {
            command.push(operand);
        }
    }
    if commands.iter().any(Vec::is_empty) {
        return Err("template: :1: missing value for command".to_owned());
    }
    Ok(Pipeline { variables, assign, commands })
}

const FUNCTIONS: [&str; 26] = [
    "json", "join", "split", "lower", "upper", "title", "pad", "truncate", "println", "print", "printf", "len", "index", "slice",
    "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "html", "urlquery", "table",
];

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

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// A value as Go's `%v` prints it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(inner).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let mut fields: Vec<String> = fields.iter().map(|(key, value)| format!("{key}:{}", inner(value))).collect();
            fields.sort();
            format!("map[{}]", fields.join(" "))
        }
        other => other.to_string(),
    }
}

fn inner(value: &Value) -> String {
    if value.is_null() { "<nil>".to_owned() } else { shown(value) }
}

fn call(name: &str, args: Vec<Value>) -> Result<Value> {
    let wrong = || format!("wrong number of args for {name}: got {}", args.len());
    let text = |at: usize| args.get(at).map(shown).ok_or_else(wrong);
    let number =
        |at: usize| args.get(at).and_then(Value::as_i64).ok_or_else(|| format!("{name}: argument {} is not a number", at + 1));
    let compare = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.partial_cmp(&b),
        _ => match (a, b) {
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (a, b) if a == b => Some(Ordering::Equal),
            _ => None,
        },
    };
    let two = || match &args[..] {
        [a, b] => Ok(compare(a, b)),
        _ => Err(wrong()),
    };
    Ok(match name {
        "json" => {
            let value = args.first().ok_or_else(wrong)?;
            Value::String(serde_json::to_string(value).map_err(|error| error.to_string())?)
        }
        "lower" => Value::String(text(0)?.to_lowercase()),
        "upper" => Value::String(text(0)?.to_uppercase()),
        "title" => {
            let mut start = true;
            Value::String(
                text(0)?
                    .chars()
                    .map(|c| {
                        let c = if start { c.to_ascii_uppercase() } else { c };
                        start = c.is_whitespace();
                        c
                    })
                    .collect(),
            )
        }
        "split" => Value::Array(text(0)?.split(&text(1)?).map(|part| Value::String(part.to_owned())).collect()),
        "join" => {
            let items =
                args.first().and_then(Value::as_array).ok_or_else(|| "join: the first argument is not a list".to_owned())?;
            Value::String(items.iter().map(shown).collect::<Vec<_>>().join(&text(1)?))
        }
        "pad" => {
            let inside = text(0)?;
            if inside.is_empty() {
                Value::String(inside)
            } else {
                let spaces = |count: i64| " ".repeat(count.max(0) as usize);
                Value::String(format!("{}{inside}{}", spaces(number(1)?), spaces(number(2)?)))
            }
        }
        "truncate" => Value::String(text(0)?.chars().take(number(1)?.max(0) as usize).collect()),
        "println" => Value::String(args.iter().map(shown).collect::<Vec<_>>().join(" ") + "\n"),
        "print" | "html" | "urlquery" | "table" => Value::String(args.iter().map(shown).collect::<Vec<_>>().concat()),
        "printf" => Value::String(printf(&text(0)?, &args[1.min(args.len())..])),
        "len" => json!(match args.first().ok_or_else(wrong)? {
            Value::String(text) => text.len(),
            Value::Array(items) => items.len(),
            Value::Object(fields) => fields.len(),
            Value::Null => 0,
            _ => return Err("len of a value without a length".to_owned()),
        }),
        "index" => {
            let (first, keys) = args.split_first().ok_or_else(wrong)?;
            let mut value = first.clone();
            for key in keys {
                value = match (&value, key) {
                    (Value::Array(items), key) => {
                        let position = key.as_u64().ok_or("cannot index slice/array with this type")? as usize;
                        items
                            .get(position)
                            .cloned()
                            .ok_or_else(|| format!("error calling index: index out of range: {position}"))?
                    }
                    (Value::Object(fields), Value::String(key)) => fields.get(key).cloned().unwrap_or(Value::Null),
                    (Value::Null, _) => return Err("error calling index: index of untyped nil".to_owned()),
                    _ => return Err("error calling index: can't index item".to_owned()),
                };
            }
            value
        }
        "slice" => {
            let value = args.first().ok_or_else(wrong)?;
            let length = value.as_str().map(str::len).or_else(|| value.as_array().map(Vec::len)).ok_or_else(wrong)?;
            let bound = |at: usize, default: usize| if args.len() > at { number(at).map(|n| n as usize) } else { Ok(default) };
            let (from, to) = (bound(1, 0)?, bound(2, length)?);
            match value {
                Value::String(text) => {
                    Value::String(text.get(from..to).ok_or("error calling slice: index out of range")?.to_owned())
                }
                other => Value::Array(
                    other
                        .as_array()
                        .and_then(|items| items.get(from..to))
                        .ok_or("error calling slice: index out of range")?
                        .to_vec(),
                ),
            }
        }
        "eq" => {
            let (first, rest) = args.split_first().ok_or_else(wrong)?;
            Value::Bool(rest.iter().any(|other| compare(first, other) == Some(Ordering::Equal)))
        }
        "ne" => Value::Bool(two()? != Some(Ordering::Equal)),
        "lt" => Value::Bool(two()? == Some(Ordering::Less)),
        "le" => Value::Bool(matches!(two()?, Some(Ordering::Less | Ordering::Equal))),
        "gt" => Value::Bool(two()? == Some(Ordering::Greater)),
        "ge" => Value::Bool(matches!(two()?, Some(Ordering::Greater | Ordering::Equal))),
        "and" => args.iter().find(|value| !truth(value)).or(args.last()).cloned().ok_or_else(wrong)?,
        "or" => args.iter().find(|value| truth(value)).or(args.last()).cloned().ok_or_else(wrong)?,
        "not" => Value::Bool(!truth(args.first().ok_or_else(wrong)?)),
        other => return Err(format!("template: :1: function \"{other}\" not defined")),
    })
}

/// `%s %v %d %q %%` with width and `-`.
fn printf(format: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut args = args.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = String::new();
        while let Some(&c) = chars.peek().filter(|c| c.is_ascii_digit() || matches!(c, '-' | '.' | '+')) {
            flags.push(c);
            chars.next();
        }
        let verb = chars.next().unwrap_or('%');
        if verb == '%' {
            out.push('%');
            continue;
        }
        let text = match (verb, args.next()) {
            (_, None) => format!("%!{verb}(MISSING)"),
            ('q', Some(value)) => format!("{:?}", shown(value)),
            (_, Some(value)) => shown(value),
        };
        let width: usize = flags.trim_start_matches('-').split('.').next().and_then(|text| text.parse().ok()).unwrap_or(0);
        out += &if flags.starts_with('-') { format!("{text:<width$}") } else { format!("{text:>width$}") };
    }
    out
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
