//! The data plane of one store: starting, serving, ending.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;
use tanada_blockd_api::{Greeting, PROTOCOL_MAJOR};
use tanada_engine::EngineConfig;
use uuid::Uuid;

use crate::control::{self, Inbox, Message, Sender};
use crate::kept::KeptFile;
use crate::listen;
use crate::options::{self, BlockdOptions};
use crate::shell::attachments::{self, Saver};
use crate::shell::scrub::Scrubs;
use crate::shell::{Books, Shell};
use crate::signals::{Signals, Wake};
use crate::store_file::StoreFile;

/// Segments of a sparse store file that are written ahead of use: 32 MiB, or a second of small writes.
const PREPARE_SEGMENTS: usize = 8;

pub(crate) fn run(args: Vec<OsString>) -> anyhow::Result<()> {
    let options = options::blockd(args)?;
    let mut ready = Ready::new(options.ready_fd);
    let result = serve(&options, &mut ready);
    if let Err(error) = &result {
        ready.tell(&format!("error: {error:#}"));
    }
    result
}

fn serve(options: &BlockdOptions, ready: &mut Ready) -> anyhow::Result<()> {
    // Before any thread exists, so that all of them leave these signals to the one that waits for them.
    let signals = Signals::block(&[libc::SIGTERM, libc::SIGINT]).context("block signals")?;
    let listeners = listen::listeners(&options.runtime_dir)?;
    let inbox = Inbox::new().context("create the queue of commands")?;
    let is_serving = Arc::new(AtomicBool::new(false));
    watch_signals(signals, inbox.sender(), Arc::clone(&is_serving))?;
    let store = StoreFile::open(&options.store)?;
    store.lock()?;
    let size = store.size_bytes().with_context(|| format!("size of {}", options.store.display()))?;
    let (kept_file, kept) = KeptFile::open(&options.runtime_dir)?;
    let defaults = EngineConfig::new(size);
    let config = EngineConfig {
        relayout_bytes_per_second: options.relayout_bytes_per_second.unwrap_or(defaults.relayout_bytes_per_second),
        kept: Some(kept),
        device_can_grow: store.can_grow,
        prepare_segments: if store.can_grow { PREPARE_SEGMENTS } else { 0 },
        memory_bytes: options.memory_bytes,
        seed: Uuid::new_v4().as_u64_pair().0,
        ..defaults
    };
    let rows = load_attachments(&options.runtime_dir);
    let saver = Saver::start(&options.runtime_dir).context("start a thread")?;
    let sender = inbox.sender();
    let state_dir = options.state_dir.as_ref().unwrap_or(&options.runtime_dir);
    let scrubs = Scrubs::new(state_dir, options.schedule).context("start a thread")?;
    let books = Books { saver, rows, scrubs };
    let (mut shell, report) = Shell::open(store, config, kept_file, options.spin, listeners.nbd, inbox, books)?;
    tracing::info!(
        store = %report.store,
        incarnation = report.incarnation,
        checkpoint = report.checkpoint,
        records = report.records_replayed,
        verified = report.blocks_verified,
        kept = report.kept_blocks,
        "open: {}",
        options.store.display()
    );
    let greeting = Greeting {
        protocol_major: PROTOCOL_MAJOR,
        store: report.store,
        incarnation: report.incarnation,
        pid: std::process::id(),
    };
    control::serve(listeners.control, greeting, shell.clients(), sender).context("start a thread")?;
    is_serving.store(true, Ordering::Release);
    ready.tell("ready");
    shell.run()
}

/// A table that cannot be read must not keep the store closed: whoever attached asks again.
fn load_attachments(runtime_dir: &Path) -> Vec<attachments::TableRow> {
    attachments::load(runtime_dir).unwrap_or_else(|error| {
        tracing::error!("the attachments of the process before are lost: {error:#}");
        Vec::new()
    })
}

/// Turns the first signal into a clean end; before anything is served there is nothing to end.
fn watch_signals(signals: Signals, sender: Sender, is_serving: Arc<AtomicBool>) -> anyhow::Result<()> {
    let watch = move || {
        while let Ok(wake) = signals.wait(None, None) {
            match wake {
                Wake::Signal(_) if is_serving.load(Ordering::Acquire) => sender.send(Message::Shutdown),
                Wake::Signal(_) => std::process::exit(0),
                Wake::Readable | Wake::Timeout => {}
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(watch).context("start a thread")?;
    Ok(())
}

/// Whom to tell, once, how the start went.
pub(crate) struct Ready {
    pipe: Option<File>,
}

impl Ready {
    pub(crate) fn new(fd: Option<i32>) -> Ready {
        // SAFETY: the parent gave this descriptor to this process for this use; it is taken once, here.
        Ready { pipe: fd.filter(|fd| *fd > 2).map(|fd| unsafe { File::from_raw_fd(fd) }) }
    }

    pub(crate) fn tell(&mut self, text: &str) {
        if let Some(mut pipe) = self.pipe.take() {
            // A parent that has gone away does not matter.
            let _ = writeln!(pipe, "{}", text.replace('\n', " "));
        }
    }
}
