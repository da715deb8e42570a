//! `GET /metrics/export`: recorded operations as a plain body. All query parameters are optional:
//!
//! | name | value |
//! |---|---|
//! | `format` | `json_lines` (the default), `csv` or `prometheus` |
//! | `since` | an RFC 3339 time: only operations that ended then or later |
//! | `operation`, `machine`, `client`, `outcome` | only operations with this verb, machine, client name, outcome |
//!
//! The body is produced one page of records at a time, when the client has taken the previous one, so memory use does not depend on the
//! number of records. An error after the first page breaks the body off; a body that ends properly is complete.

use std::fmt::Write as _;
use std::io;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::{self, StreamExt as _};
use http::StatusCode;

use super::convert::time_ms;
use super::server::Server;
use crate::machine::MachineName;
use crate::metrics::{Export, HistoryFilter, OutcomeWord, RecordFormat, StoreError};

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

    fn media_type(self) -> &'static str {
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
    /// Only operations that ended at this time or later, in milliseconds since 1970.
    pub since_ms: Option<u64>,
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
        if let Some(ms) = self.since_ms {
            let _ = write!(target, "&since={}", time_ms(ms));
        }
        for (name, value) in [
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

    /// Parses the query of a request.
    fn parse(query: &str) -> Result<Self, String> {
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
                "since" => parsed.since_ms = Some(parse_time(&value)?),
                "operation" => parsed.operation = Some(value),
                "machine" => {
                    let name: Result<MachineName, _> = value.parse();
                    name.map_err(|error| format!("machine: {error}"))?;
                    parsed.machine = Some(value);
                }
                "client" => parsed.client = Some(value),
                "outcome" => parsed.outcome = Some(value),
                other => return Err(format!("unknown parameter '{other}'; give {PARAMETERS}")),
            }
        }
        Ok(parsed)
    }

    fn filter(self) -> Result<HistoryFilter, String> {
        let outcome = match self.outcome {
            None => None,
            Some(word) => Some(OutcomeWord::from_word(&word).ok_or_else(|| {
                let words = OutcomeWord::ALL.map(OutcomeWord::as_str).join(", ");
                format!("outcome: '{word}' is not one of {words}")
            })?),
        };
        Ok(HistoryFilter {
            since_ms: self.since_ms,
            until_ms: None,
            operation: self.operation,
            machine: self.machine,
            client: self.client,
            outcome,
        })
    }
}

/// Parses an RFC 3339 time to milliseconds since 1970.
fn parse_time(text: &str) -> Result<u64, String> {
    let time = text.parse::<jiff::Timestamp>().ok();
    time.and_then(|time| u64::try_from(time.as_millisecond()).ok())
        .ok_or_else(|| format!("since: '{text}' is not a time such as 2026-11-30T08:00:00Z"))
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

/// A started export.
pub(super) struct Answer<S> {
    pub(super) media_type: &'static str,
    /// Ends early with an error if the store fails.
    pub(super) body: S,
}

/// Why an export could not start.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

/// Starts an export. The first page has been read when this returns.
pub(super) async fn begin(
    server: &Server,
    query: Option<&str>,
) -> Result<Answer<impl Stream<Item = io::Result<Bytes>> + Send + use<>>, Refusal> {
    let bad = |message| Refusal {
        status: StatusCode::BAD_REQUEST,
        message,
    };
    let query = ExportQuery::parse(query.unwrap_or_default()).map_err(bad)?;
    let format = query.format;
    let filter = query.filter().map_err(bad)?;
    let media_type = format.media_type();
    let records = match format {
        ExportFormat::JsonLines => RecordFormat::JsonLines,
        ExportFormat::Csv => RecordFormat::Csv,
        ExportFormat::Prometheus if filter != HistoryFilter::default() => {
            return Err(bad(
                "format: prometheus takes no filter; give json_lines or csv".into()
            ));
        }
        ExportFormat::Prometheus => {
            let page = server.metrics.prometheus_page().await;
            let page = stream::iter([Ok(Bytes::from(page))]);
            return Ok(Answer {
                media_type,
                body: page.left_stream(),
            });
        }
    };
    let mut export = server.metrics.export(records, filter);
    let first = export.next_chunk().await.map_err(|error| Refusal {
        status: StatusCode::SERVICE_UNAVAILABLE,
        message: error.to_string(),
    })?;
    let first = stream::iter(first.map(|chunk| Ok(Bytes::from(chunk))));
    Ok(Answer {
        media_type,
        body: first.chain(rest(export)).right_stream(),
    })
}

/// Returns the pages after the first.
fn rest(export: Export) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::unfold(Some(export), async |export| {
        let mut export = export?;
        match export.next_chunk().await {
            Ok(chunk) => Some((Ok(Bytes::from(chunk?)), Some(export))),
            Err(error) => Some((Err(broken_off(&error)), None)),
        }
    })
}

fn broken_off(error: &StoreError) -> io::Error {
    tracing::warn!(%error, "metrics export failed");
    io::Error::other(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_round_trips() {
        let all = ExportQuery {
            format: ExportFormat::Csv,
            since_ms: Some(1_796_000_000_123),
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
                "since=10m",
                "since: '10m' is not a time such as 2026-11-30T08:00:00Z",
            ),
            (
                "since=1969-01-01T00:00:00Z",
                "since: '1969-01-01T00:00:00Z' is not a time such as 2026-11-30T08:00:00Z",
            ),
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
        let refused = |query| {
            ExportQuery::parse(query)
                .and_then(ExportQuery::filter)
                .expect_err(query)
        };
        assert!(refused("machine=-x").starts_with("machine: "));
        assert_eq!(
            refused("outcome=odd"),
            "outcome: 'odd' is not one of succeeded, failed, cancelled, expired, interrupted, unknown"
        );
    }
}
