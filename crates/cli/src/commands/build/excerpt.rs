//! The lines of a Dockerfile that something is about, with those around them (BuildKit, `solver/errdefs`).

use std::fmt::Write as _;

use dhow_engine::dhow_build::dockerfile::Lines;

use crate::output::tell;

/// Lines that are shown besides those that it is about.
const AROUND_ONE: usize = 4;
const AROUND_SEVERAL: usize = 2;
const RULE: &str = "--------------------\n";

/// The excerpt, or nothing where no line is known.
pub(in crate::commands) fn text(ranges: &[Lines], name: &str, file: &[u8]) -> String {
    let source = String::from_utf8_lossy(file);
    let lines: Vec<&str> = source.split('\n').collect();
    let Some(first) = ranges.iter().map(|range| range.first).min() else { return String::new() };
    let last = ranges.iter().map(|range| range.last.max(range.first)).max().unwrap_or(first).min(lines.len());
    if first < 1 || first > lines.len() {
        return String::new();
    }
    let (mut start, mut end) = (first, last);
    let around = if start == end { AROUND_ONE } else { AROUND_SEVERAL };
    let mut shown = 0;
    while shown < around {
        if start > 1 {
            start -= 1;
            shown += 1;
        }
        if end < lines.len() {
            end += 1;
            shown += 1;
        }
        shown += 1;
    }
    let mut text = format!("{name}:{first}\n{RULE}");
    for number in start..=end {
        let is_meant = ranges.iter().any(|range| (range.first..=range.last.max(range.first)).contains(&number));
        let mark = if is_meant { ">>>" } else { "   " };
        let _ = writeln!(text, " {number:3} | {mark} {}", lines[number - 1]);
    }
    text + RULE
}

pub(super) fn show(ranges: &[Lines], name: &str, file: &[u8]) {
    ranges.iter().for_each(|range| tell(&text(std::slice::from_ref(range), name, file)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_around_are_shown_as_far_as_there_are_any() {
        let lines = |first, last| Lines { first, last };
        let file = b"FROM scratch\nRUN a\nRUN b\nRUN c\nRUN d\nRUN e\n";
        let expected =
            "D:1\n--------------------\n   1 | >>> FROM scratch\n   2 |     RUN a\n   3 |     RUN b\n--------------------\n";
        assert_eq!(text(&[lines(1, 1)], "D", file), expected);
        let middle = text(&[lines(3, 3)], "D", file);
        assert!(middle.contains("   1 |     FROM scratch") && middle.contains("   5 |     RUN d"), "{middle}");
        let several = text(&[lines(3, 4)], "D", file);
        assert!(several.contains(">>> RUN c") && several.contains("   2 |     RUN a") && several.contains("   5 |     RUN d"));
        assert_eq!(text(&[], "D", file), "");
        assert_eq!(text(&[lines(99, 99)], "D", file), "");
    }
}
