//! Suggestions for misspelt names.

/// Returns the known name closest to a misspelt one; `None` if none is close enough to be the likely intention.
pub fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let key = key.to_ascii_lowercase().replace('-', "_");
    known
        .map(|name| (distance(&key, name), name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len() / 5)
        .map(|(_, name)| name)
}

/// Returns the Levenshtein distance: how many characters to insert, remove or replace to turn one text into the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (done, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = done + 1;
        for (at, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}
