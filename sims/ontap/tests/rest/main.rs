//! The simulated cluster as others see it: NetApp's own Python client, curl, QEMU.

mod restart;
mod sdk;
mod tools;
