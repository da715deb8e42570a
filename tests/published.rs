//! The published protocol: `proto/openrpc.json` matches the code.

/// Returns whether committed files are to be rewritten instead of compared.
#[expect(
    clippy::disallowed_methods,
    reason = "an option of the test run, not configuration"
)]
pub(crate) fn is_blessing() -> bool {
    std::env::var_os("ORBD_BLESS").is_some()
}

/// Fails when the committed document differs from the code. `ORBD_BLESS=1` rewrites it.
#[test]
fn committed_openrpc_document_matches_the_code() {
    let path = programs::root().join("proto/openrpc.json");
    let mut generated =
        serde_json::to_string_pretty(&orbd_proto::openrpc::document()).expect("a document is JSON");
    generated.push('\n');
    if is_blessing() {
        std::fs::write(&path, &generated).expect("the document is written");
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "proto/openrpc.json differs from the code; ORBD_BLESS=1 cargo test published rewrites it"
    );
}
