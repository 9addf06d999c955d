//! Export and import by HTTP.

use crate::context::Handlers;

/// Messages about transfers.
pub fn handlers() -> Handlers {
    Handlers::new()
}
