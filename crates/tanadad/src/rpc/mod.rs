//! XenAPI calls: who may call what, and what happens then.
//!
//! ```text
//!  http ──(method, params)──▶ dispatch ──▶ session ▶ role ▶ arity ▶ types ▶ task ──▶ handler (ops, transfer)
//!                                │                                                └─▶ implicit (the table itself)
//!                                └─ system.*, logins: no session
//! ```

pub mod methods;
pub mod session;
pub mod task;
