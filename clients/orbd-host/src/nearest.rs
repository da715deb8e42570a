//! Suggestions for misspelt names.

/// Returns the known name closest to a misspelt one; `None` if none is close enough to be the likely intention.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    known
        .map(|known| (distance(&name, &known.to_lowercase()), known))
        .min()
        .filter(|(distance, known)| *distance <= 1 + known.len() / 5)
        .map(|(_, known)| known)
}

/// Returns how many characters to insert, remove, replace or swap with the next one to turn one text into the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let replaced = above[j] + usize::from(a != b);
            let mut least = replaced.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == to[j - 1] && from[i - 1] == *b {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_likely_intentions_are_suggested() {
        let check = |name: &str, expected: Option<&str>| {
            let known = ["web", "db", "ubuntu", "staging-web"];
            assert_eq!(nearest(name, known.into_iter()), expected, "{name}");
        };
        check("wev", Some("web"));
        check("wbe", Some("web"));
        check("Web", Some("web"));
        check("we", Some("web"));
        check("ubunto", Some("ubuntu"));
        check("ubutnu", Some("ubuntu"));
        check("stagin-wbe", Some("staging-web"));
        check("mail", None);
        check("", None);
    }
}
