//! `tanada store grow`: gives a served store more space.

use std::ffi::OsString;

use anyhow::bail;
use tanada_blockd_api::{Answer, Command};

use crate::ask::Client;
use crate::options;

pub(crate) fn run(args: Vec<OsString>) -> anyhow::Result<()> {
    let options = options::grow(args)?;
    let mut client = Client::connect(&options.runtime_dir)?;
    client.ask(Command::GrowStore { size: options.size_bytes })?;
    match client.ask(Command::StoreStat)? {
        Answer::Store(stat) => println!("the store has {} bytes, {} of them free", stat.physical, stat.free),
        other => bail!("blockd answered {other:?}"),
    }
    Ok(())
}
