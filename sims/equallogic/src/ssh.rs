//! The group manager over SSH: password logins, shells with and without a terminal, single commands, several channels
//! on a connection.
//!
//! Each channel has a task of its own, which feeds a [`Session`] and does what it says. A channel counts as a session
//! from its shell or command on; over the limit it gets one line and is closed without a prompt.

use std::borrow::Cow;
use std::future::pending;
use std::net::{Shutdown, SocketAddr, TcpStream as StdStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use russh::keys::PrivateKey;
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session as Connection, run_stream};
use russh::{Channel, ChannelId, ChannelMsg, MethodKind, MethodSet, Preferred, Pty, cipher, kex, mac};
use sim_target::faults::Action;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::spawn_blocking;

use crate::cli::{CliError, Reply, Session, Step};
use crate::front::{After, Front, Ran};

const FULL: &[u8] = b"Maximum number of CLI sessions reached. Try again later.\r\n";

/// Serves connections until the task is dropped.
pub async fn serve(listener: TcpListener, key: PrivateKey, legacy: bool, front: Arc<Front>) {
    let preferred = match legacy {
        true => Preferred {
            kex: Cow::Borrowed(&[kex::DH_G14_SHA1]),
            cipher: Cow::Borrowed(&[cipher::AES_256_CBC]),
            mac: Cow::Borrowed(&[mac::HMAC_SHA1]),
            ..Preferred::default()
        },
        false => Preferred::default(),
    };
    let config = Arc::new(Config {
        methods: MethodSet::from(&[MethodKind::Password][..]),
        auth_rejection_time: Duration::from_millis(300),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        inactivity_timeout: None,
        preferred,
        nodelay: true,
        ..Config::default()
    });
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (config, front) = (Arc::clone(&config), Arc::clone(&front));
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, peer, config, front).await {
                        tracing::debug!(%peer, %error, "an SSH connection ended");
                    }
                });
            }
            Err(error) => tracing::warn!(%error, "accepting an SSH connection failed"),
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, config: Arc<Config>, front: Arc<Front>) -> Result<()> {
    let stream = stream.into_std().context("the connection's socket")?;
    let wire = Arc::new(stream.try_clone().context("the connection's socket")?);
    if !front.connected(&wire) {
        return Ok(());
    }
    let stream = TcpStream::from_std(stream).context("the connection's socket")?;
    stream.set_nodelay(true).context("the connection's socket")?;
    tracing::debug!(%peer, "an SSH connection began");
    let handler = Guest { front, wire, account: String::new() };
    run_stream(config, stream, handler).await?.await?;
    Ok(())
}

/// One connection.
struct Guest {
    front: Arc<Front>,
    /// The socket, to be cut.
    wire: Arc<StdStream>,
    account: String,
}

impl Handler for Guest {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Self::Error> {
        match self.front.faults.take("login") {
            Some(Action::DropBefore | Action::DropAfter) => return Err(russh::Error::Disconnect),
            Some(Action::DelayMs(time)) => tokio::time::sleep(Duration::from_millis(time)).await,
            Some(Action::FailBefore(_) | Action::FailAfter(_)) => return Ok(Auth::reject()),
            _ => {}
        }
        if !self.front.admits(user, password) {
            return Ok(Auth::reject());
        }
        self.account = user.to_string();
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Connection,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        let desk = Desk {
            front: Arc::clone(&self.front),
            wire: Arc::clone(&self.wire),
            account: self.account.clone(),
            channel,
        };
        tokio::spawn(desk.serve());
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        connection: &mut Connection,
    ) -> Result<(), Self::Error> {
        connection.channel_success(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, connection: &mut Connection) -> Result<(), Self::Error> {
        connection.channel_success(channel)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _: &[u8],
        connection: &mut Connection,
    ) -> Result<(), Self::Error> {
        connection.channel_success(channel)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        connection: &mut Connection,
    ) -> Result<(), Self::Error> {
        connection.channel_failure(channel)
    }
}

/// One channel. Ends when its client does, its session does, or a fault cuts the wire.
struct Desk {
    front: Arc<Front>,
    wire: Arc<StdStream>,
    account: String,
    channel: Channel<Msg>,
}

impl Desk {
    async fn serve(mut self) {
        let Some(mut session) = self.begin().await else { return };
        let Some(slot) = self.front.enter() else {
            // Whoever closed already does not want to be told.
            let _ = self.channel.data_bytes(FULL).await;
            let _ = self.channel.eof().await;
            let _ = self.channel.close().await;
            return;
        };
        let mut events = self.front.events();
        if self.converse(&mut session, &mut events).await {
            let _ = self.channel.exit_status(0).await;
            let _ = self.channel.eof().await;
            let _ = self.channel.close().await;
        }
        drop(slot);
    }

    /// Waits until the client asks for a shell or a command.
    async fn begin(&mut self) -> Option<Session> {
        let mut size = (0, 0);
        loop {
            let session = match self.channel.wait().await? {
                ChannelMsg::RequestPty { col_width, row_height, .. } => {
                    size = (col_width as usize, row_height as usize);
                    continue;
                }
                ChannelMsg::RequestShell { .. } => Session::shell(&self.front.view(&self.account)),
                ChannelMsg::Exec { command, .. } => Session::exec(&String::from_utf8_lossy(&command)),
                ChannelMsg::Close => return None,
                _ => continue,
            };
            let mut session = session;
            session.resize(size.0, size.1);
            return Some(session);
        }
    }

    /// Says whether the channel is still there to be closed.
    async fn converse(&mut self, session: &mut Session, events: &mut broadcast::Receiver<String>) -> bool {
        let mut half = false;
        let mut wrong_prompt = false;
        loop {
            let mut view = self.front.view(&self.account);
            if wrong_prompt {
                view.prompt = format!("{}-member2", view.prompt);
            }
            match session.step(&view) {
                Step::Write(bytes) if half => {
                    let _ = self.channel.data_bytes(bytes[..bytes.len() / 2].to_vec()).await;
                    return self.cut().await;
                }
                Step::Write(bytes) => {
                    if self.channel.data_bytes(bytes).await.is_err() {
                        return false;
                    }
                }
                Step::Run(request) => {
                    let (front, account) = (Arc::clone(&self.front), self.account.clone());
                    let work = spawn_blocking(move || front.run(&account, &request)).await;
                    let Ran { result, after } = work.unwrap_or_else(|error| broken(&error.to_string()));
                    match after {
                        After::Cut => return self.cut().await,
                        After::CutMidway => half = true,
                        After::Hang => return self.hang().await,
                        After::WrongPrompt => wrong_prompt = true,
                        After::Answer => {}
                    }
                    let mut view = self.front.view(&self.account);
                    if wrong_prompt {
                        view.prompt = format!("{}-member2", view.prompt);
                    }
                    while let Ok(event) = events.try_recv() {
                        session.notify(event);
                    }
                    session.finished(result, &view);
                }
                Step::Idle => {
                    if !self.wait(session, events, view.settings.idle_logout).await {
                        return true;
                    }
                }
                Step::Close => return true,
            }
        }
    }

    /// Takes in what comes next; false ends the session.
    async fn wait(&mut self, session: &mut Session, events: &mut broadcast::Receiver<String>, logout: bool) -> bool {
        let idle = async {
            match logout {
                true => tokio::time::sleep(self.front.idle).await,
                false => pending().await,
            }
        };
        tokio::select! {
            message = self.channel.wait() => match message {
                Some(ChannelMsg::Data { data }) => session.input(&data),
                Some(ChannelMsg::WindowChange { col_width, row_height, .. }) => {
                    session.resize(col_width as usize, row_height as usize);
                }
                Some(ChannelMsg::Close | ChannelMsg::Eof) | None => return false,
                Some(_) => {}
            },
            event = events.recv() => match event {
                Ok(event) => session.notify(event),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return false,
            },
            () = idle => {
                let _ = self.channel.data_bytes(&b"\r\nSession logged out: it was idle.\r\n"[..]).await;
                return false;
            }
        }
        true
    }

    /// Answers nothing until the client has gone.
    async fn hang(&mut self) -> bool {
        while !matches!(self.channel.wait().await, Some(ChannelMsg::Close) | None) {}
        false
    }

    /// Ends the connection under the client's feet.
    async fn cut(&self) -> bool {
        // What was written before gets its chance to leave.
        tokio::task::yield_now().await;
        let _ = self.wire.shutdown(Shutdown::Both);
        false
    }
}

fn broken(error: &str) -> Ran {
    let result: Result<Reply, CliError> = Err(CliError::refused(format!("Internal error: {error}")));
    Ran { result, after: After::Answer }
}
