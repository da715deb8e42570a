//! The published protocol: `proto/openrpc.json` says what the code does.

use std::path::Path;

/// Says whether committed files are to be rewritten instead of compared.
#[expect(
    clippy::disallowed_methods,
    reason = "a wish of whoever runs the tests, not configuration"
)]
pub(crate) fn is_blessing() -> bool {
    std::env::var_os("ORBD_BLESS").is_some()
}

/// Fails when the committed document differs from the code. `ORBD_BLESS=1` rewrites it.
#[test]
fn the_committed_description_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/openrpc.json");
    let mut generated =
        serde_json::to_string_pretty(&orbd::rpc::openrpc::document()).expect("a document is JSON");
    generated.push('\n');
    if is_blessing() {
        std::fs::write(&path, &generated).expect("the document is written");
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "proto/openrpc.json is not what the code says; ORBD_BLESS=1 cargo test published rewrites it"
    );
}
