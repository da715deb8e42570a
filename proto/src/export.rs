//! Path and query of `GET /metrics/export`, which answers with a plain body instead of JSON-RPC. All query parameters are optional:
//!
//! | name | value |
//! |---|---|
//! | `format` | `json_lines` (the default), `csv` or `prometheus` |
//! | `since` | an RFC 3339 time: only operations that ended then or later |
//! | `operation`, `machine`, `client`, `outcome` | only operations with this verb, machine, client name, outcome |

use std::fmt::Write as _;

/// Path of the request.
pub const PATH: &str = "/metrics/export";

/// Names of the parameters, for messages.
const PARAMETERS: &str = "format, since, operation, machine, client or outcome";

/// Format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExportFormat {
    /// One JSON object per line.
    #[default]
    JsonLines,
    /// Comma-separated values with a header.
    Csv,
    /// Counters and percentiles in the Prometheus text format. It takes no filter.
    Prometheus,
}

impl ExportFormat {
    const ALL: [Self; 3] = [Self::JsonLines, Self::Csv, Self::Prometheus];

    /// Returns the name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JsonLines => "json_lines",
            Self::Csv => "csv",
            Self::Prometheus => "prometheus",
        }
    }

    /// Returns the media type of the body.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::JsonLines => "application/jsonl; charset=utf-8",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Format and filters of an export.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportQuery {
    /// Format of the body.
    pub format: ExportFormat,
    /// Only operations that ended at this RFC 3339 time or later.
    pub since: Option<String>,
    /// Only this operation, such as `start`.
    pub operation: Option<String>,
    /// Only the machine with this name.
    pub machine: Option<String>,
    /// Only clients with this name.
    pub client: Option<String>,
    /// Only this outcome, such as `failed`.
    pub outcome: Option<String>,
}

impl ExportQuery {
    /// Returns path and query of the request.
    pub fn target(&self) -> String {
        let mut target = format!("{PATH}?format={}", self.format.as_str());
        for (name, value) in [
            ("since", &self.since),
            ("operation", &self.operation),
            ("machine", &self.machine),
            ("client", &self.client),
            ("outcome", &self.outcome),
        ] {
            if let Some(value) = value {
                let _ = write!(target, "&{name}={}", encode(value));
            }
        }
        target
    }

    /// Parses the query of a request. The values of filters are not checked. The error is a sentence that names the parameter.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value =
                decode(value).ok_or_else(|| format!("{name}: '{value}' is not percent-encoded UTF-8"))?;
            match name {
                "format" => {
                    parsed.format = ExportFormat::ALL
                        .into_iter()
                        .find(|format| format.as_str() == value)
                        .ok_or_else(|| format!("format: '{value}' is not json_lines, csv or prometheus"))?;
                }
                "since" => parsed.since = Some(value),
                "operation" => parsed.operation = Some(value),
                "machine" => parsed.machine = Some(value),
                "client" => parsed.client = Some(value),
                "outcome" => parsed.outcome = Some(value),
                other => return Err(format!("unknown parameter '{other}'; give {PARAMETERS}")),
            }
        }
        Ok(parsed)
    }
}

/// Percent-encodes all bytes that are not unreserved in URLs.
fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

/// Reverses [`encode`]. Returns `None` for an incomplete escape or invalid UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let (digits, tail) = rest.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits).ok()?;
            // `from_str_radix` accepts a sign.
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_round_trips() {
        let all = ExportQuery {
            format: ExportFormat::Csv,
            since: Some("2026-11-30T08:00:00.123Z".into()),
            operation: Some("run".into()),
            machine: Some("web".into()),
            client: Some("a&b=c %+ä".into()),
            outcome: Some("failed".into()),
        };
        for query in [all, ExportQuery::default()] {
            let target = query.target();
            assert!(target.bytes().all(|byte| byte.is_ascii_graphic()), "{target}");
            let (path, text) = target.split_once('?').expect("a query");
            assert_eq!(path, PATH);
            assert_eq!(ExportQuery::parse(text), Ok(query));
        }
    }

    #[test]
    fn invalid_query_error_names_the_parameter_and_accepted_values() {
        for (query, expected) in [
            ("format=xml", "format: 'xml' is not json_lines, csv or prometheus"),
            (
                "limit=5",
                "unknown parameter 'limit'; give format, since, operation, machine, client or outcome",
            ),
            ("client=%4", "client: '%4' is not percent-encoded UTF-8"),
            ("client=%+4", "client: '%+4' is not percent-encoded UTF-8"),
            ("client=%FF", "client: '%FF' is not percent-encoded UTF-8"),
        ] {
            assert_eq!(ExportQuery::parse(query), Err(expected.into()));
        }
    }
}
