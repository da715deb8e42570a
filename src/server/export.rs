//! `GET /metrics/export`: recorded operations as a plain body. The query is an [`ExportQuery`].
//!
//! The body is produced one page of records at a time, when the client has taken the previous one, so memory use does not depend on the
//! number of records. An error after the first page breaks the body off; a body that ends properly is complete.

use std::io;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::{self, StreamExt as _};
use http::StatusCode;
use orbd_proto::export::{ExportFormat, ExportQuery};

use super::context::Server;
use crate::metrics::{Export, HistoryFilter, OutcomeWord, RecordFormat, StoreError};
use orbd_host::machine::MachineName;

/// Checks the filters of a query and converts them.
fn filter(query: ExportQuery) -> Result<HistoryFilter, String> {
    let outcome = match query.outcome {
        None => None,
        Some(word) => Some(OutcomeWord::from_word(&word).ok_or_else(|| {
            let words = OutcomeWord::ALL.map(OutcomeWord::as_str).join(", ");
            format!("outcome: '{word}' is not one of {words}")
        })?),
    };
    if let Some(machine) = &query.machine {
        let name: Result<MachineName, _> = machine.parse();
        name.map_err(|error| format!("machine: {error}"))?;
    }
    Ok(HistoryFilter {
        since_ms: query.since.as_deref().map(parse_time).transpose()?,
        until_ms: None,
        operation: query.operation,
        machine: query.machine,
        client: query.client,
        outcome,
    })
}

/// Parses an RFC 3339 time to milliseconds since 1970.
fn parse_time(text: &str) -> Result<u64, String> {
    let time = text.parse::<jiff::Timestamp>().ok();
    time.and_then(|time| u64::try_from(time.as_millisecond()).ok())
        .ok_or_else(|| format!("since: '{text}' is not a time such as 2026-11-30T08:00:00Z"))
}

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
    let filter = filter(query).map_err(bad)?;
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
    fn invalid_filter_error_names_the_parameter_and_accepted_values() {
        let refused = |query: &str| ExportQuery::parse(query).and_then(filter).expect_err(query);
        for since in ["10m", "1969-01-01T00:00:00Z"] {
            assert_eq!(
                refused(&format!("since={since}")),
                format!("since: '{since}' is not a time such as 2026-11-30T08:00:00Z")
            );
        }
        assert!(refused("machine=-x").starts_with("machine: "));
        assert_eq!(
            refused("outcome=odd"),
            "outcome: 'odd' is not one of succeeded, failed, cancelled, expired, interrupted, unknown"
        );
    }
}
