//! `tanada-synth FILE STORE_GIB VOLUME_GIB[:GENERATIONS:CHANGES]...`: a large store from nothing, see `tanada_sim::synth`.
//! Volume n gets the UUID with that number, from 1 on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use tanada_sim::synth::{Sink, SynthOptions, SynthVolume, synthesize};
use tanada_units::{GIB, Uuid};

struct FileSink(File);

impl Sink for FileSink {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
}

fn main() -> ExitCode {
    match make(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(mapped) => {
            println!("{mapped} bytes mapped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("tanada-synth: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make(arguments: &[String]) -> io::Result<u64> {
    let usage = || io::Error::other("FILE STORE_GIB VOLUME_GIB[:GENERATIONS:CHANGES]... is accepted");
    let [path, store_gib, volumes @ ..] = arguments else { return Err(usage()) };
    let number = |text: &str| text.parse::<u64>().map_err(|_| usage());
    let volume = |(n, text): (usize, &String)| {
        let words: Vec<u64> = text.split(':').map(number).collect::<io::Result<_>>()?;
        let (size, generations, changes) = match words[..] {
            [size] => (size, 0, 0),
            [size, generations, changes] => (size, generations, changes),
            _ => return Err(usage()),
        };
        Ok(SynthVolume { uuid: Uuid::from_u128(n as u128 + 1), size: size * GIB, generations, changes })
    };
    let device_bytes = number(store_gib)? * GIB;
    let file = File::create(path)?;
    file.set_len(device_bytes)?;
    let options = SynthOptions {
        store: Uuid::from_u128(0x5717),
        device_bytes,
        journal_bytes: None,
        volumes: volumes.iter().enumerate().map(volume).collect::<io::Result<_>>()?,
        seed: 1,
    };
    let mapped = synthesize(&options, &mut FileSink(file.try_clone()?))?;
    file.sync_all()?;
    Ok(mapped)
}
