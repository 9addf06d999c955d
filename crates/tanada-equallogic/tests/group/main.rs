//! The driver on a simulated group, over SSH and iSCSI.

mod access;
mod faults;
mod firmware;
mod sr;
mod together;
mod verbs;
mod world;
