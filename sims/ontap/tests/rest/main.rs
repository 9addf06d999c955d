//! The simulated cluster as others see it: NetApp's own Python client, curl, QEMU.

mod blocks;
mod sdk;
mod space;
mod tools;
mod trouble;
