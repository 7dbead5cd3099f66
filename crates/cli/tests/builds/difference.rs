//! Two texts, line by line.

use std::fmt::Write;

/// Equal lines shown around those that differ.
const AROUND: usize = 2;
/// Lines of a difference that are shown.
const SHOWN: usize = 60;

/// What is only in `expected` with `-`, what is only in `got` with `+`.
pub fn difference(expected: &str, got: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), got.lines().collect());
    // The length of what both have in common from each pair of lines on.
    let mut common = vec![vec![0_u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] = if a[i] == b[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            lines.push((' ', a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', a[i]));
            i += 1;
        } else {
            lines.push(('+', b[j]));
            j += 1;
        }
    }
    let near =
        |at: usize| lines[at.saturating_sub(AROUND)..lines.len().min(at + AROUND + 1)].iter().any(|(mark, _)| *mark != ' ');
    let kept: Vec<usize> = (0..lines.len()).filter(|&at| near(at)).collect();
    let mut text = String::new();
    for (number, &at) in kept.iter().enumerate().take(SHOWN) {
        if number == 0 || kept[number - 1] + 1 != at {
            writeln!(text, "  @ line {}", at + 1).unwrap();
        }
        writeln!(text, "  {}{}", lines[at].0, lines[at].1).unwrap();
    }
    if kept.len() > SHOWN {
        writeln!(text, "  … and {} lines more", kept.len() - SHOWN).unwrap();
    }
    text
}
