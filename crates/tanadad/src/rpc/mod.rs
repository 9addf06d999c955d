//! XenAPI calls: who may call what, and what happens then.
//!
//! ```text
//!  http ──(method, params)──▶ dispatch ──▶ session ▶ role ▶ arity ▶ types ▶ task ──▶ handler (ops, transfer)
//!                                │                                                └─▶ implicit (the table itself)
//!                                └─ system.*, logins: no session
//! ```

pub mod builtin;
pub mod coverage;
pub mod dispatch;
pub mod event;
pub mod filter;
pub mod implicit;
pub mod login;
pub mod messages;
pub mod methods;
pub mod roles;
pub mod session;
pub mod settings;
pub mod setup;
pub mod task;

#[cfg(test)]
mod tests;
