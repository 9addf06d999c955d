use crate::rpc::coverage::render;
use crate::testing::TestDaemon;

/// `docs/xenapi-coverage.md` says what the handlers say.
#[tokio::test]
async fn the_coverage_page_is_up_to_date() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/xenapi-coverage.md");
    let page = render(&TestDaemon::new(crate::run::handlers()).daemon.methods);
    if std::env::var_os("TANADA_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(
        written == page,
        "docs/xenapi-coverage.md is out of date: TANADA_WRITE_DOCS=1 cargo test -p tanadad coverage"
    );
}
