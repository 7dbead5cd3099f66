//! The terminal's side of a container's streams: raw mode, window size, and bytes moved both ways.

use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

use dhow_api::client::Client;
use dhow_api::frame::{Demultiplexer, Stream};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use crate::failure::{Failure, Result};

/// Standard input in another mode until dropped.
pub struct Raw(Termios);

impl Raw {
    pub fn enter() -> Option<Raw> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Raw(before))
    }
}

/// Standard input without an echo until dropped.
pub fn hidden() -> Option<Raw> {
    let before = tcgetattr(std::io::stdin()).ok()?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(std::io::stdin(), OptionalActions::Now, &hidden).ok()?;
    Some(Raw(before))
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// How a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The other side closed the stream.
    Closed,
    /// The user typed the detach keys.
    Detached,
}

/// What to connect.
pub struct Session {
    pub tty: bool,
    /// Pass standard input on.
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub detach_keys: Vec<u8>,
}

/// Moves bytes until the stream ends or the user detaches.
pub async fn run(session: Session, upgraded: Upgraded) -> Result<End> {
    let (from, to) = tokio::io::split(TokioIo::new(upgraded));
    let raw = if session.tty && session.stdin { Raw::enter() } else { None };
    let output = receive(&session, from);
    let end = if session.stdin {
        let keys = if session.tty { session.detach_keys.clone() } else { Vec::new() };
        tokio::select! {
            ended = output => ended.map(|()| End::Closed),
            detached = send(to, keys) => detached,
        }
    } else {
        // Held, not shut down: the other side would take that for the end of a user's input.
        let ended = output.await;
        drop(to);
        ended.map(|()| End::Closed)
    };
    drop(raw);
    end
}

async fn receive(session: &Session, mut from: ReadHalf<TokioIo<Upgraded>>) -> Result {
    let mut buffer = vec![0; 16 * 1024];
    let mut demultiplexer = Demultiplexer::default();
    let (mut stdout, mut stderr) = (std::io::stdout().lock(), std::io::stderr().lock());
    loop {
        let length = match from.read(&mut buffer).await {
            Ok(0) => break,
            Ok(length) => length,
            // The engine died: what it had sent has been shown.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => return Err(error.into()),
        };
        let bytes = &buffer[..length];
        if session.tty {
            stdout.write_all(bytes)?;
            stdout.flush()?;
        } else {
            let mut failed = Ok(());
            let mut system = Vec::new();
            let fed = demultiplexer.feed(bytes, |stream, piece| {
                let written = match stream {
                    Stream::Stderr if session.stderr => stderr.write_all(piece),
                    Stream::Stdout | Stream::Stdin if session.stdout => stdout.write_all(piece),
                    Stream::System => {
                        system.extend_from_slice(piece);
                        Ok(())
                    }
                    _ => Ok(()),
                };
                failed = std::mem::replace(&mut failed, Ok(())).and(written);
            });
            fed.map_err(|error| Failure::new(error.to_string()))?;
            failed?;
            stdout.flush()?;
            if !system.is_empty() {
                return Err(Failure::new(format!("error from daemon in stream: {}", String::from_utf8_lossy(&system))));
            }
        }
        // Grows with the traffic.
        if length == buffer.len() && length < 256 * 1024 {
            buffer.resize(length * 4, 0);
        }
    }
    Ok(())
}

/// Passes standard input on; returns only when the user detaches.
async fn send(mut to: WriteHalf<TokioIo<Upgraded>>, keys: Vec<u8>) -> Result<End> {
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(4);
    // A thread of its own: a read of a terminal cannot be taken back, and the process ends without waiting for it.
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin();
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length) = stdin.read(&mut buffer) {
            if length == 0 || sender.blocking_send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut matched = 0;
    while let Some(bytes) = receiver.recv().await {
        let (passed, complete) = if keys.is_empty() { (bytes, false) } else { dhow_monitor::detach(&keys, &mut matched, &bytes) };
        if complete {
            return Ok(End::Detached);
        }
        if to.write_all(&passed).await.is_err() {
            break;
        }
        let _ = to.flush().await;
    }
    let _ = to.shutdown().await;
    std::future::pending().await
}

/// Rows and columns of the terminal on standard output or input.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Tells the engine the terminal's size, now and whenever it changes, until dropped.
pub fn follow_size(client: &Client, path: String) -> tokio::task::JoinHandle<()> {
    let client = client.clone();
    tokio::spawn(async move {
        let changes = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change());
        // Right after the start the process may not be there yet.
        for attempt in 0..5u32 {
            if resize(&client, &path).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10 << attempt)).await;
        }
        if let Ok(mut changes) = changes {
            while changes.recv().await.is_some() {
                resize(&client, &path).await;
            }
        }
    })
}

async fn resize(client: &Client, path: &str) -> bool {
    match size() {
        Some((rows, columns)) => client.post(&format!("{path}/resize?h={rows}&w={columns}")).await.is_ok(),
        None => true,
    }
}

/// Passes the signals that this process gets on to a container, until dropped.
pub fn forward_signals(client: &Client, id: String) -> tokio::task::JoinHandle<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let client = client.clone();
    tokio::spawn(async move {
        let (sender, mut receiver) = mpsc::channel::<i32>(16);
        // SIGCHLD, SIGPIPE, SIGURG and SIGWINCH are this process's own.
        for number in [1, 2, 3, 10, 12, 14, 15, 18, 20, 21, 22] {
            let Ok(mut stream) = signal(SignalKind::from_raw(number)) else { continue };
            let sender = sender.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    if sender.send(number).await.is_err() {
                        return;
                    }
                }
            });
        }
        let mut impatient = 0;
        while let Some(number) = receiver.recv().await {
            let _ = client.post(&format!("/containers/{id}/kill?signal={number}")).await;
            impatient += u32::from(matches!(number, 2 | 15));
            if impatient >= 3 {
                tell!("\ngot 3 SIGTERM/SIGINTs, forcefully exiting");
                std::process::exit(1);
            }
        }
    })
}

/// Docker's check of `-t`: a terminal cannot be made of a pipe.
pub fn check_tty(stdin: bool, tty: bool) -> Result {
    if tty && stdin && !std::io::stdin().is_terminal() {
        return Err(Failure::new("the input device is not a TTY"));
    }
    Ok(())
}
