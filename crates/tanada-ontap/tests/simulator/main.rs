//! The driver over the simulated array: real iSCSI, real blocks. The simulator refuses whatever ONTAP's reference does not
//! know (strict), which the array made of memory does not.

mod array;
mod concurrency;
mod conformance;
mod data;
mod faults;
