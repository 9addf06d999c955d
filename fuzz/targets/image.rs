#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tanada_fuzz::image::run(input));
