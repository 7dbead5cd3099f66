//! Who is connected: their requests and their input.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;
use rustix::net::SocketFlags;

use super::{CLIENT, INIT, Monitor, take_buffer};
use crate::client::{Client, Role, detach};
use crate::log::Writer;
use crate::protocol::{FailureKind, Reply, Request, take};

impl Monitor {
    pub(super) fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC;
        while let Some(Ok(socket)) = self.listener.as_ref().map(|listener| rustix::net::accept_with(listener, flags)) {
            // The directory keeps others out already; this keeps out who was passed a descriptor.
            if dhow_sys::socket::peer_uid(&socket).is_ok_and(|uid| uid == 0 || uid == rustix::process::getuid().as_raw()) {
                self.add_client(socket);
            }
        }
    }

    pub(super) fn add_client(&mut self, socket: OwnedFd) {
        let index = self.clients.iter().position(Option::is_none).unwrap_or_else(|| {
            self.clients.push(None);
            self.clients.len() - 1
        });
        let client = Client::new(socket);
        if epoll::add(&self.epoll, &client, epoll::EventData::new_u64(CLIENT | index as u64), epoll::EventFlags::IN).is_ok() {
            self.clients[index] = Some(client);
        }
    }

    pub(super) fn client_ready(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index).and_then(Option::as_mut) else { return };
        client.flush();
        if !client.interest.0 || client.input_closed {
            // A hang-up is reported whatever was asked for: without this the loop would spin on it.
            client.dead |= is_hung_up(client);
            return;
        }
        let mut buffer = take_buffer(&mut self.buffer);
        let read = client.read(&mut buffer);
        match read {
            Ok(None) => {}
            Ok(Some(0)) => self.client_input_ended(index),
            Ok(Some(length)) => self.client_input(index, &buffer[..length]),
            Err(_) => client.dead = true,
        }
        self.buffer = buffer;
    }

    pub(super) fn client_input_ended(&mut self, index: usize) {
        let Some(client) = &mut self.clients[index] else { return };
        client.input_closed = true;
        match &client.role {
            Role::Streams { process, attach, .. } => {
                let (process, stdin) = (*process, attach.stdin);
                let once = process != INIT || self.setup.stdin_once;
                if let Some(process) = self.processes.get_mut(process).and_then(Option::as_mut)
                    && stdin
                    && once
                {
                    process.input_ends = true;
                    process.feed();
                }
            }
            _ => client.dead = true,
        }
    }

    pub(super) fn client_input(&mut self, index: usize, bytes: &[u8]) {
        let Some(client) = &mut self.clients[index] else { return };
        match &mut client.role {
            Role::New => {
                client.input.extend_from_slice(bytes);
                match take::<Request>(&mut client.input) {
                    Ok(None) => {}
                    Ok(Some(request)) => {
                        let rest = std::mem::take(&mut client.input);
                        self.request(index, request);
                        if !rest.is_empty() {
                            self.client_input(index, &rest);
                        }
                    }
                    Err(error) => {
                        client.reply(&Reply::failed(FailureKind::Invalid, error.to_string()));
                        client.role = Role::Done;
                    }
                }
            }
            Role::Streams { process, attach, matched } if attach.stdin => {
                let number = *process;
                let Some(process) = self.processes.get_mut(number).and_then(Option::as_mut) else { return };
                if process.tty && !attach.detach_keys.is_empty() {
                    let (passed, complete) = detach(&attach.detach_keys, matched, bytes);
                    process.input.extend_from_slice(&passed);
                    if complete {
                        client.role = Role::Done;
                        let action = if number == INIT { "detach" } else { "exec_detach" };
                        self.event(action, &[]);
                    }
                } else {
                    process.input.extend_from_slice(bytes);
                }
                if let Some(process) = self.processes.get_mut(number).and_then(Option::as_mut) {
                    process.feed();
                }
            }
            _ => {}
        }
    }

    pub(super) fn answer(&mut self, index: usize, reply: &Reply) {
        if let Some(client) = &mut self.clients[index] {
            client.reply(reply);
            client.role = Role::Done;
        }
    }

    pub(super) fn fail(&mut self, index: usize, kind: FailureKind, message: impl Into<String>) {
        self.answer(index, &Reply::failed(kind, message));
    }

    pub(super) fn request(&mut self, index: usize, request: Request) {
        let id = self.setup.id.clone();
        let not_running = || format!("container {id} is not running");
        match request {
            Request::Start(_) | Request::Attach(_) | Request::Root if self.over => {
                self.fail(index, FailureKind::Ending, format!("container {id} has just ended"));
            }
            Request::Start(start) => self.start_requested(index, *start),
            Request::Stop { signal, timeout } => {
                if self.is_alive() {
                    // First, because a container between two restarts has stopped at once.
                    self.set_role(index, Role::WaitStopped { remove: false });
                    self.begin_stop(signal, timeout);
                } else {
                    self.answer(index, &Reply { exit_code: self.state.exit_code, ..Reply::default() });
                }
            }
            Request::Kill { signal } => match self.user_signal(signal) {
                Ok(()) => self.answer(index, &Reply::default()),
                Err(_) => self.fail(index, FailureKind::Conflict, not_running()),
            },
            Request::Pause => match self.freeze(true) {
                Ok(()) => self.answer(index, &Reply::default()),
                Err((kind, message)) => self.fail(index, kind, message),
            },
            Request::Unpause => match self.freeze(false) {
                Ok(()) => self.answer(index, &Reply::default()),
                Err((kind, message)) => self.fail(index, kind, message),
            },
            Request::Wait { next } => {
                let remove = self.setup.auto_remove;
                if next || self.is_alive() {
                    self.removal_promised |= remove;
                    // Also of one that is about to be restarted: it does not run for a moment (as dockerd).
                    self.set_role(index, Role::WaitExit { remove });
                } else {
                    self.answer(index, &Reply { exit_code: self.state.exit_code, ..Reply::default() });
                }
            }
            Request::Attach(attach) => {
                let log_size = self.log.as_ref().map_or(0, Writer::size);
                if let Some(client) = &mut self.clients[index] {
                    client.reply(&Reply { log_size, ..Reply::default() });
                    client.role = Role::Streams { process: INIT, attach, matched: 0 };
                }
            }
            Request::Resize { rows, columns } => match self.resize(INIT, rows, columns) {
                Ok(()) => self.answer(index, &Reply::default()),
                Err(()) => self.fail(index, FailureKind::Conflict, not_running()),
            },
            Request::ExecCreate(config) => self.exec_create(index, *config),
            Request::ExecStart { id, attach, rows, columns } => self.exec_start(index, &id, attach, rows, columns),
            Request::ExecInspect { id } => match self.exec_state(&id) {
                Some(state) => self.answer(index, &Reply { exec: Some(state), ..Reply::default() }),
                None => self.fail(index, FailureKind::NotFound, format!("No such exec instance: {id}")),
            },
            Request::ExecResize { id, rows, columns } => {
                let process = self.exec_process(&id);
                match process.map(|process| self.resize(process, rows, columns)) {
                    Some(Ok(())) => self.answer(index, &Reply::default()),
                    _ => self.fail(index, FailureKind::NotFound, format!("No such exec instance: {id}")),
                }
            }
            Request::Abandon => {
                if self.is_alive() {
                    return self.fail(index, FailureKind::Conflict, "container is running".to_owned());
                }
                if !self.over {
                    // Whoever attached or waits for a start that will not come learns it now.
                    self.finish_streams(INIT);
                    self.tell_waiting(true);
                    self.over = true;
                    self.removal_promised = true;
                }
                self.answer(index, &Reply::default());
            }
            Request::Root => {
                if self.root.is_none()
                    && let Err(failed) = self.mount_root()
                {
                    return self.fail(index, FailureKind::Internal, failed.message);
                }
                if let (Some(client), Some(root)) = (&mut self.clients[index], &self.root) {
                    // A running container's monitor needs the claim for itself, to start it again.
                    let all = [root.fd.as_fd(), root.claim.as_fd()];
                    client.send_descriptors(if self.root_used { &all[..1] } else { &all });
                    client.role = Role::Root;
                }
            }
            Request::Connect(endpoint) => match self.connect(*endpoint) {
                Ok(()) => self.answer(index, &Reply::default()),
                Err((kind, message)) => self.fail(index, kind, message),
            },
            Request::Disconnect { network } => match self.disconnect(&network) {
                Ok(()) => self.answer(index, &Reply::default()),
                Err((kind, message)) => self.fail(index, kind, message),
            },
            Request::Update { name, restart } => {
                if let Some(name) = name {
                    self.rename(name);
                }
                if let Some(restart) = restart {
                    self.setup.restart = restart;
                }
                self.answer(index, &Reply::default());
            }
        }
    }

    pub(super) fn set_role(&mut self, index: usize, role: Role) {
        if let Some(client) = &mut self.clients[index] {
            client.role = role;
        }
    }
}

/// Whether the other end has closed both directions.
fn is_hung_up(client: &Client) -> bool {
    let mut fds = [rustix::event::PollFd::new(client, rustix::event::PollFlags::OUT)];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    let polled = rustix::event::poll(&mut fds, Some(&now));
    polled.is_ok() && fds[0].revents().intersects(rustix::event::PollFlags::HUP | rustix::event::PollFlags::ERR)
}
