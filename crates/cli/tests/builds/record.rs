//! The text that says what a build did: `expect` of a case. What the client printed is put in a common form first.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

/// A title and its lines.
pub type Section = (&'static str, Vec<String>);

/// Characters of a line that are kept.
const WIDTH: usize = 400;

/// The whole record of a build.
pub fn record(status: i32, sections: &[Section]) -> String {
    let mut text = format!("exit: {status}\n");
    for (title, lines) in sections.iter().filter(|(_, lines)| !lines.is_empty()) {
        writeln!(text, "{title}:").unwrap();
        for line in lines {
            let line: String = line.chars().take(WIDTH).collect();
            writeln!(text, "{}{line}", if line.is_empty() { "" } else { "  " }).unwrap();
        }
    }
    text
}

/// What the client printed without what differs from run to run.
pub fn normal(text: &str, context: &Path) -> String {
    let name = context.file_name().unwrap().to_string_lossy();
    let text = text.replace("\r\n", "\n").replace(&*context.to_string_lossy(), "CONTEXT").replace(&*name, "CONTEXT");
    // Which of the two comes is a race in the client.
    let text = text.replace("failed to run Build function: ", "failed to solve: ").replace("dhow build", "docker buildx build");
    let text = replaced(&text, "\x1b[", |rest| {
        let length = rest.find(|c: char| !c.is_ascii_digit() && c != ';')?;
        rest[length..].starts_with('m').then(|| (length + 1, String::new()))
    });
    let text = replaced(&text, "sha256:", |rest| {
        let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        (digits >= 64).then(|| (64, "sha256:DIGEST".to_owned()))
    });
    let text = replaced(&text, "ref ", |rest| {
        let (id, rest) = rest.split_once("::")?;
        let length = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let is_id = id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        is_id.then(|| (id.len() + "::".len() + length, "ref ID::ID".to_owned()))
    });
    let text = replaced(&text, "lookup ", |rest| {
        let (host, rest) = rest.split_once(" on ")?;
        let length = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let matches = !host.contains(char::is_whitespace) && rest[length..].starts_with(":53");
        matches.then(|| (host.len() + " on ".len() + length + ":53".len(), format!("lookup {host} on DNS")))
    });
    text.split('\n').map(without_mounts).collect::<Vec<_>>().join("\n")
}

/// A line without where BuildKit mounts what it copies to.
fn without_mounts(line: &str) -> String {
    let words = line.split_inclusive(char::is_whitespace);
    let word = |word: &str| {
        let mount = word.find("/merged/").filter(|_| word.contains("/overlay2/")).map(|at| at + "/merged".len());
        let mount = mount.or_else(|| {
            let at = word.find("/buildkit-mount")? + "/buildkit-mount".len();
            Some(at + word[at..].find('/')?)
        });
        let start = word.find('/').unwrap_or_default();
        mount.map_or_else(|| word.to_owned(), |end| format!("{}{}", &word[..start], &word[end..]))
    };
    words.map(word).collect()
}

/// Replaces what begins with `start`, where `end` gives the length of what follows it and the text for both.
fn replaced(text: &str, start: &str, end: impl Fn(&str) -> Option<(usize, String)>) -> String {
    let (mut result, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once(start) {
        result += before;
        let (length, new) = end(after).unwrap_or_else(|| (0, start.to_owned()));
        result += &new;
        rest = &after[length..];
    }
    result + rest
}

/// The excerpt of the Dockerfile, if there is one, and `ERROR:` with all that follows.
pub fn errors(stderr: &str) -> Vec<String> {
    let lines: Vec<&str> = stderr.trim_end_matches('\n').split('\n').collect();
    let Some(error) = lines.iter().position(|line| line.starts_with("ERROR:")) else {
        let others: Vec<&str> = lines.iter().filter(|line| !line.starts_with('#')).map(|line| line.trim_end()).collect();
        return others.join("\n").trim_matches('\n').lines().map(str::to_owned).collect();
    };
    let is_place = |line: &str| line.rsplit_once(':').is_some_and(|(_, number)| number.parse::<u32>().is_ok());
    let excerpt = (1..error).rev().find(|&at| lines[at] == "--------------------" && is_place(lines[at - 1]));
    let start = excerpt.map_or(error, |at| at - 1);
    lines[start..].iter().map(|line| line.trim_end().replace('\r', "\\r")).collect()
}

/// `Rule: text (line N)` of each warning, by line.
pub fn warnings(stderr: &str) -> Vec<String> {
    let warning = |line: &str| {
        let text = line.strip_prefix(" - ")?;
        let (rule, _) = text.split_once(": ")?;
        let (_, number) = text.strip_suffix(')')?.rsplit_once(" (line ")?;
        let is_word = rule.chars().all(|c| c.is_alphanumeric() || c == '_');
        is_word.then_some((number.parse::<u32>().ok()?, text.to_owned()))
    };
    let mut warnings: Vec<_> = stderr.lines().filter_map(warning).collect();
    warnings.sort();
    warnings.into_iter().map(|(_, text)| text).collect()
}

/// What the steps printed that run programs, by stage and number.
pub fn output(stderr: &str) -> Vec<String> {
    let mut names: Vec<(&str, &str)> = Vec::new();
    let mut printed: Vec<(&str, &str, Vec<String>)> = Vec::new();
    for (step, rest) in stderr.split('\n').filter_map(of_step) {
        let name = names.iter().find(|(known, _)| *known == step).map(|(_, name)| *name);
        if let (None, true) = (name, runs_a_program(rest)) {
            names.push((step, rest));
        } else if let (Some(name), Some(line)) = (name, timed(rest)) {
            let line = line.trim_end().replace('\r', "\\r");
            match printed.iter_mut().find(|(known, ..)| *known == step) {
                Some((_, _, lines)) => lines.push(line),
                None => printed.push((step, name, vec![line])),
            }
        }
    }
    printed.sort_by_key(|(_, name, _)| order(name));
    let shown = |(_, name, lines): (_, &str, Vec<String>)| {
        let lines: Vec<String> = lines.iter().map(|line| format!("  {line}")).collect();
        std::iter::once(name.to_owned()).chain(lines)
    };
    printed.into_iter().flat_map(shown).collect()
}

/// The steps of the Dockerfile that came from the cache.
pub fn cached(stderr: &str) -> Vec<String> {
    let lines: Vec<(&str, &str)> = stderr.lines().filter_map(of_step).collect();
    let named = |step: &str| lines.iter().filter(|(known, _)| *known == step).find(|(_, rest)| place(rest).is_some());
    let mut found = Vec::new();
    for (step, _) in lines.iter().filter(|(_, rest)| *rest == "CACHED") {
        let name = named(step).map(|(_, name)| *name);
        found.extend(name.filter(|name| !name.contains("] FROM ")).map(str::to_owned));
    }
    found.sort();
    found
}

/// Number and text of a line `#N …` of plain progress.
fn of_step(line: &str) -> Option<(&str, &str)> {
    let (step, rest) = line.strip_prefix('#')?.split_once(' ')?;
    (!step.is_empty() && step.bytes().all(|byte| byte.is_ascii_digit())).then_some((step, rest))
}

fn runs_a_program(name: &str) -> bool {
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let mut parts = name.split("] ").skip(1);
    let runs = |part: &str| part.strip_prefix("ONBUILD ").unwrap_or(part).strip_prefix("RUN").is_some_and(ends);
    name.starts_with('[') && parts.any(runs)
}

/// What follows `SECONDS `.
fn timed(rest: &str) -> Option<&str> {
    let (time, line) = rest.split_once(' ').unwrap_or((rest, ""));
    let (seconds, fraction) = time.split_once('.')?;
    let number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    (number(seconds) && number(fraction)).then_some(line)
}

/// Stage and number of a step named `[STAGE N/M] …`.
fn place(name: &str) -> Option<(&str, u32)> {
    let (place, _) = name.strip_prefix('[')?.split_once(']')?;
    let (stage, numbers) = place.rsplit_once(' ').unwrap_or(("", place));
    let (number, all) = numbers.split_once('/')?;
    all.parse::<u32>().ok()?;
    Some((stage, number.parse().ok()?))
}

fn order(name: &str) -> (String, u32) {
    let (stage, number) = place(name).unwrap_or((name, 0));
    (stage.to_owned(), number)
}

/// What the client printed to standard output: a JSON document anew, anything else as it is.
pub fn standard_output(stdout: &str) -> Vec<String> {
    let Ok(mut document) = serde_json::from_str::<Value>(stdout) else {
        return stdout.lines().map(|line| line.trim_end().to_owned()).collect();
    };
    for source in document.get_mut("sources").and_then(Value::as_array_mut).into_iter().flatten() {
        source.as_object_mut().map(|source| source.remove("definition"));
    }
    pretty(document).split('\n').map(str::to_owned).collect()
}

/// JSON with sorted keys and one blank of indent.
pub fn pretty(mut document: Value) -> String {
    document.sort_all_objects();
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    document.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter)).unwrap();
    String::from_utf8(text).unwrap()
}
