//! Patterns of paths: Go's `filepath.Match`, `**` besides, and lists of them as `.dockerignore` has.

/// A compiled pattern. It is matched against all states that can be reached at once: no pattern takes long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Char(char),
    /// `?`: anything but a slash.
    Any,
    /// `*`: as many as there are.
    Many,
    /// `[a-z]`, and whether all others are meant.
    Class(Vec<(char, char)>, bool),
    /// `**/`: any number of directories. [`Piece::Inside`] follows.
    Directories,
    Inside,
    /// `**` at the end.
    Everything,
}

/// A pattern that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub struct BadPattern;

impl Pattern {
    /// As `filepath.Match` reads it: `*` and `?` stop at slashes, and `**` is no more than `*`.
    pub fn glob(text: &str) -> Result<Pattern, BadPattern> {
        Pattern::compile(text, false)
    }

    /// With `**` for any number of directories.
    pub fn deep(text: &str) -> Result<Pattern, BadPattern> {
        Pattern::compile(text, true)
    }

    fn compile(text: &str, deep: bool) -> Result<Pattern, BadPattern> {
        let mut pieces = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '*' if deep && chars.next_if_eq(&'*').is_some() => {
                    chars.next_if_eq(&'/');
                    match chars.peek() {
                        None => pieces.push(Piece::Everything),
                        Some(_) => pieces.extend([Piece::Directories, Piece::Inside]),
                    }
                }
                '*' => pieces.push(Piece::Many),
                '?' => pieces.push(Piece::Any),
                '[' => {
                    let negated = chars.next_if_eq(&'^').is_some();
                    let mut ranges = Vec::new();
                    loop {
                        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
                            break;
                        }
                        let mut one = || match chars.next() {
                            Some('\\') => chars.next().ok_or(BadPattern),
                            None | Some('-' | ']') => Err(BadPattern),
                            Some(c) => Ok(c),
                        };
                        let low = one()?;
                        let high = if chars.next_if_eq(&'-').is_some() {
                            match chars.next() {
                                Some('\\') => chars.next().ok_or(BadPattern)?,
                                None | Some('-' | ']') => return Err(BadPattern),
                                Some(c) => c,
                            }
                        } else {
                            low
                        };
                        ranges.push((low, high));
                    }
                    pieces.push(Piece::Class(ranges, negated));
                }
                '\\' => pieces.push(Piece::Char(chars.next().ok_or(BadPattern)?)),
                c => pieces.push(Piece::Char(c)),
            }
        }
        Ok(Pattern { pieces })
    }

    /// Whether the whole text is matched.
    pub fn matches(&self, text: &str) -> bool {
        if let Some(plain) = self.plain() {
            return plain.eq(text.chars());
        }
        self.run(text).last() == Some(&true)
    }

    /// Whether a path below this directory may be matched: so far nothing speaks against it.
    pub fn may_match_below(&self, directory: &str) -> bool {
        self.run(&format!("{directory}/")).contains(&true)
    }

    fn plain(&self) -> Option<impl Iterator<Item = char> + '_> {
        let is_plain = self.pieces.iter().all(|piece| matches!(piece, Piece::Char(_)));
        is_plain.then(|| {
            self.pieces.iter().filter_map(|piece| match piece {
                Piece::Char(c) => Some(*c),
                _ => None,
            })
        })
    }

    /// The states that are reached when the text has been read; the last one is the end of the pattern.
    fn run(&self, text: &str) -> Vec<bool> {
        let mut states = vec![false; self.pieces.len() + 1];
        states[0] = true;
        self.close(&mut states);
        for c in text.chars() {
            let mut next = vec![false; states.len()];
            for state in (0..self.pieces.len()).filter(|state| states[*state]) {
                match &self.pieces[state] {
                    Piece::Char(wanted) => next[state + 1] |= *wanted == c,
                    Piece::Any => next[state + 1] |= c != '/',
                    Piece::Many => next[state] |= c != '/',
                    Piece::Class(ranges, negated) => {
                        let is_in = ranges.iter().any(|(low, high)| (*low..=*high).contains(&c));
                        next[state + 1] |= is_in != *negated && c != '/';
                    }
                    Piece::Inside => {
                        next[state] = true;
                        next[state + 1] |= c == '/';
                    }
                    Piece::Everything => next[state] = true,
                    Piece::Directories => {}
                }
            }
            self.close(&mut next);
            states = next;
            if !states.contains(&true) {
                break;
            }
        }
        states
    }

    /// Adds the states that are reached without reading anything.
    fn close(&self, states: &mut [bool]) {
        for state in 0..self.pieces.len() {
            if !states[state] {
                continue;
            }
            match self.pieces[state] {
                Piece::Many | Piece::Everything => states[state + 1] = true,
                Piece::Directories => {
                    states[state + 1] = true;
                    states[state + 2] = true;
                }
                _ => {}
            }
        }
    }
}

/// Whether a text has wildcards.
pub fn has_wildcards(text: &str) -> bool {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => drop(chars.next()),
            _ => {}
        }
    }
    false
}

/// A path without `.`, `..`, doubled and trailing slashes, as Go's `path.Clean`.
pub fn clean(path: &str) -> String {
    let is_absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&"..") | None if !is_absolute => parts.push(".."),
                _ => drop(parts.pop()),
            },
            part => parts.push(part),
        }
    }
    match (is_absolute, parts.join("/")) {
        (true, path) => format!("/{path}"),
        (false, path) if path.is_empty() => ".".to_owned(),
        (false, path) => path,
    }
}

/// What of a tree is left out: the last pattern that matches a path, or a directory that it is in, decides.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    /// Without what negates it.
    text: String,
    pattern: Pattern,
    is_exception: bool,
}

impl Ignore {
    /// Reads a file like `.dockerignore`.
    ///
    /// # Errors
    /// A pattern that cannot be read.
    pub fn parse(bytes: &[u8]) -> Result<Ignore, String> {
        Ignore::of(&Ignore::lines(bytes))
    }

    /// The patterns of such a file, each cleaned.
    pub fn lines(bytes: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)).into_owned();
        let line = |line: &str| {
            if line.starts_with('#') {
                return None;
            }
            let line = line.trim();
            let (mark, pattern) = line.strip_prefix('!').map_or(("", line), |pattern| ("!", pattern.trim()));
            if line.is_empty() {
                return None;
            }
            let pattern = if pattern.is_empty() { String::new() } else { clean(pattern) };
            let pattern = if pattern.len() > 1 { pattern.trim_start_matches('/') } else { &pattern };
            Some(format!("{mark}{pattern}"))
        };
        text.lines().filter_map(line).collect()
    }

    /// # Errors
    /// A pattern that cannot be read.
    pub fn of(patterns: &[String]) -> Result<Ignore, String> {
        let mut rules = Vec::new();
        for text in patterns {
            let text = text.trim();
            if text.is_empty() {
                continue;
            }
            let (is_exception, rest) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
            if rest.is_empty() {
                return Err("illegal exclusion pattern: \"!\"".to_owned());
            }
            let rest = clean(rest);
            let pattern = Pattern::deep(&rest).map_err(|error| error.to_string())?;
            rules.push(Rule { text: rest, pattern, is_exception });
        }
        Ok(Ignore { rules })
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether some patterns take others back.
    pub fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|rule| rule.is_exception)
    }

    /// Whether all of the root is left out.
    pub fn leaves_out_all(&self) -> bool {
        self.rules.iter().any(|rule| !rule.is_exception && matches!(rule.text.as_str(), "*" | "**" | "**/*"))
    }

    /// Whether a path, relative to the root, is left out.
    pub fn matches(&self, path: &str) -> bool {
        let mut is_out = false;
        for rule in &self.rules {
            if rule.is_exception != is_out {
                // It would change nothing.
                continue;
            }
            let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
            if rule.pattern.matches(path) || parents.into_iter().any(|parent| rule.pattern.matches(parent)) {
                is_out = !rule.is_exception;
            }
        }
        is_out
    }

    /// Whether something below a directory that is left out may be taken back.
    pub fn may_except_below(&self, directory: &str) -> bool {
        self.rules.iter().any(|rule| rule.is_exception && rule.pattern.may_match_below(directory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, expected) in [
            ("abc", "abc", true),
            ("*", "a/b", false),
            ("a*/b", "abc/b", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("*.txt", "x.txt", true),
        ] {
            assert_eq!(Pattern::glob(pattern).unwrap().matches(text), expected, "{pattern} {text}");
        }
        for bad in ["[", "[a", "[]a]", "a\\", "[-]", "[a-]"] {
            assert!(Pattern::glob(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn any_number_of_directories() {
        for (pattern, text, expected) in [
            ("**", "a/b/c", true),
            ("**/x", "x", true),
            ("**/x", "a/b/x", true),
            ("**/x", "ax", false),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/c/d/b", true),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("**/*.go", "a/b.go", true),
            ("a**/b", "ax/b", true),
        ] {
            assert_eq!(Pattern::deep(pattern).unwrap().matches(text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn ignore_files() {
        let of = |text: &str| Ignore::parse(text.as_bytes()).unwrap();
        let ignore = of("\u{feff}# no\n*.md\n!README.md\n /dir/ \n");
        assert!(ignore.matches("a.md") && !ignore.matches("README.md") && ignore.matches("dir/x/y"));
        assert!(!ignore.matches("sub/a.md"));
        let ignore = of("*\n!a/b\n");
        assert!(ignore.matches("a") && !ignore.matches("a/b") && !ignore.matches("a/b/c") && ignore.matches("c"));
        assert!(ignore.may_except_below("a") && !ignore.may_except_below("c") && ignore.leaves_out_all());
        let ignore = of("a\n!a/x\na/x/y\n");
        assert!(ignore.matches("a/z") && !ignore.matches("a/x") && ignore.matches("a/x/y"));
        assert!(Ignore::parse(b"!\n").is_err() && Ignore::parse(b"[\n").is_err());
        // An exception in front of everything is none.
        assert!(of("!a\na\n").matches("a"));
    }

    #[test]
    fn cleaning() {
        for (path, expected) in
            [("", "."), ("/", "/"), ("a//b/", "a/b"), ("/../a", "/a"), ("a/../../b", "../b"), ("./a/.", "a"), ("..", "..")]
        {
            assert_eq!(clean(path), expected, "{path}");
        }
    }
}
