//! Formats an error together with its causes as one line, for messages and the log.
//!
//! An error's `Display` covers only its own part, and its cause is its `source`. Code that shows an error joins them with these
//! functions.

use std::error::Error;

/// Returns an error followed by its causes, separated by `: `.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    append_causes(&mut text, error);
    text
}

/// Appends the causes of an error, each preceded by `: `, but not the error itself.
pub fn append_causes(text: &mut String, error: &dyn Error) {
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{says}")]
    struct Step {
        says: &'static str,
        source: Option<Box<Step>>,
    }

    fn step(says: &'static str, source: Option<Step>) -> Step {
        let source = source.map(Box::new);
        Step { says, source }
    }

    #[test]
    fn causes_follow_the_error_in_order() {
        let error = step("no start", Some(step("no file", Some(step("no room", None)))));
        assert_eq!(error_chain(&error), "no start: no file: no room");
        let mut text = "sorry".to_owned();
        append_causes(&mut text, &error);
        assert_eq!(text, "sorry: no file: no room");
        assert_eq!(error_chain(&step("alone", None)), "alone");
    }
}
