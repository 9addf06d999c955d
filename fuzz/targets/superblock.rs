#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tanada_fuzz::superblock::run(input));
