//! A stand-in for the agent of a guest, on a unix socket as QEMU shows it: what qemu-ga answers in Windows guests of all
//! editions and in Linux guests, and everything that is known to go wrong with it.
//!
//! ```text
//!  host --bytes--> [port: one client, a queue] --commands--> [guest: one at a time] --replies--> whoever is connected now
//!                                                             |
//!                   guest clock (scaled, or moved by hand) ---+--> holds writes; lapses by itself on Windows
//! ```
//! - What it does follows from one [`Scenario`]; [`named`] lists those that tests and people ask for most.
//! - The port behaves as a virtio port does: a second client waits without a word, a command that was read runs to its end
//!   though its client has gone, and its reply goes to the next client.
//! - **The agent's flag and the state of the file systems are two things** ([`Facts::says_frozen`], [`Facts::is_held`]), as
//!   in a real guest: a hold that lapsed leaves the flag, an agent that died leaves the hold.
//! - Nothing waits in real time unless the scenario asks for it: ten seconds of a Windows guest cost what the scenario's
//!   clock makes of them.
//!
//! What it does not do: run hooks or VSS (it knows their outcome), freeze anything, tell the truth about a real Windows.
//! Words and orders are those of qemu-ga 7.2 and 10.0 as documented; nobody compared them with a running Windows here.

mod agent;
mod clock;
mod edition;
mod exec;
mod guest;
mod named;
mod port;
mod scenario;
mod words;
mod writers;

pub use agent::{Agent, Facts};
pub use edition::Edition;
pub use named::{Named, named};
pub use scenario::{AgentVersion, Freeze, Hook, Language, Os, Port, Scenario, Thaw, Writer};
pub use words::*;
