//! The data plane from outside: real processes, judged by QEMU, libnbd and fio, and by a client of our own where a test
//! must know exactly what was acknowledged.

mod control;
mod death;
mod failing;
mod limits;
mod medium;
mod queue;
mod scrub;
mod space;
mod support;
mod witnesses;
