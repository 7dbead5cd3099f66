//! From text to nodes.

use std::iter::Peekable;
use std::str::Chars;

use serde_json::Value;

use super::functions::FUNCTIONS;
use super::{Node, Operand, Pipeline, Result};

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

pub(super) fn parse(text: &str) -> Result<Vec<Node>> {
    let mut parser = Parser { pieces: split(text)?.into_iter().peekable() };
    match parser.nodes()? {
        (nodes, None) => Ok(nodes),
        (_, Some(word)) => Err(format!("template: :1: unexpected {{{{{word}}}}}")),
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
