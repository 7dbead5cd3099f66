//! Symbolic modes of files, as chmod(1) has them: `u=rwX,go=rX`, `+x`, `g-w`.

/// A list of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbolic {
    /// As it was written.
    text: String,
    changes: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    /// Of the nine bits those of the classes; all where none was named.
    classes: u32,
    operator: char,
    bits: Bits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Bits {
    /// Permissions of one class, set-id and sticky bits, and whether `X` was among them.
    Plain { permissions: u32, special: u32, x_if: bool },
    /// What another class has: its shift.
    Of(u32),
}

const USER: u32 = 0o700;
const GROUP: u32 = 0o070;
const OTHER: u32 = 0o007;

impl Symbolic {
    /// `None` for what is no mode.
    pub fn parse(text: &str) -> Option<Symbolic> {
        let mut changes = Vec::new();
        for clause in text.split(',') {
            let end = clause.find(['+', '-', '='])?;
            let mut classes = 0;
            for class in clause[..end].chars() {
                classes |= match class {
                    'u' => USER,
                    'g' => GROUP,
                    'o' => OTHER,
                    'a' => USER | GROUP | OTHER,
                    _ => return None,
                };
            }
            if classes == 0 {
                classes = USER | GROUP | OTHER;
            }
            let mut rest = &clause[end..];
            while let Some(operator) = rest.chars().next() {
                let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |end| end + 1);
                let bits = match &rest[1..end] {
                    "u" => Bits::Of(6),
                    "g" => Bits::Of(3),
                    "o" => Bits::Of(0),
                    letters => {
                        let (mut permissions, mut special, mut x_if) = (0, 0, false);
                        for letter in letters.chars() {
                            match letter {
                                'r' => permissions |= 4,
                                'w' => permissions |= 2,
                                'x' => permissions |= 1,
                                'X' => x_if = true,
                                's' => special |= (classes & USER) << 3 & 0o4000 | (classes & GROUP) << 7 & 0o2000,
                                't' => special |= 0o1000,
                                _ => return None,
                            }
                        }
                        Bits::Plain { permissions, special, x_if }
                    }
                };
                changes.push(Change { classes, operator, bits });
                rest = &rest[end..];
            }
        }
        Some(Symbolic { text: text.to_owned(), changes })
    }

    /// The mode of a file that had another.
    pub fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        let mut mode = mode & 0o7777;
        for change in &self.changes {
            let (permissions, special) = match &change.bits {
                Bits::Plain { permissions, special, x_if } => {
                    let x = *x_if && (is_directory || mode & 0o111 != 0);
                    (permissions | u32::from(x), *special)
                }
                Bits::Of(shift) => (mode >> shift & 7, 0),
            };
            let bits = ((permissions * 0o111) & change.classes) | special;
            match change.operator {
                '+' => mode |= bits,
                '-' => mode &= !bits,
                _ => {
                    let mut cleared = change.classes;
                    if !is_directory {
                        cleared |= (change.classes & USER) << 3 & 0o4000 | (change.classes & GROUP) << 7 & 0o2000;
                    }
                    mode = mode & !cleared | bits;
                }
            }
        }
        mode
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes() {
        for (text, before, is_directory, after) in [
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, true, 0o755),
            ("u=rwX,go=rX", 0o711, false, 0o755),
            ("+x", 0o644, false, 0o755),
            ("g-r,o=", 0o644, false, 0o600),
            ("u+s", 0o755, false, 0o4755),
            ("g+s,+t", 0o755, true, 0o3755),
            ("go=u", 0o750, false, 0o777),
            ("a=r", 0o4755, false, 0o444),
            ("u=rw+x", 0o000, false, 0o700),
        ] {
            assert_eq!(Symbolic::parse(text).unwrap().apply(before, is_directory), after, "{text}");
        }
        for bad in ["", "x", "u~r", "q+r", "u+q", "644"] {
            assert!(Symbolic::parse(bad).is_none(), "{bad}");
        }
    }
}
