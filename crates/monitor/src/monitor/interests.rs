//! What epoll is asked for: only what can go on, so that a slow reader holds back its writer.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;

use super::{CLIENT, INIT, INPUT, Monitor, OUTPUT, SIGKILL};
use crate::client::{MAX_BACKLOG, Role};
use crate::protocol::Attach;

impl Monitor {
    /// Asks epoll for what can go on, and drops clients that are done.
    pub(super) fn update_interests(&mut self) {
        let mut blocked = vec![[false; 2]; self.processes.len()];
        let mut promised = false;
        for index in 0..self.clients.len() {
            self.update_client(index, &mut blocked, &mut promised);
        }
        if !self.over {
            // A promise lasts as long as its connection.
            self.removal_promised = promised;
        }
        for (index, blocked) in blocked.iter().enumerate() {
            self.update_process(index, *blocked);
        }
    }

    /// `blocked` learns which streams of which process this client cannot take more of, `promised` whether it has promised
    /// to remove the container.
    fn update_client(&mut self, index: usize, blocked: &mut [[bool; 2]], promised: &mut bool) {
        let takes_input = match self.clients[index].as_ref().map(|client| &client.role) {
            Some(Role::Streams { process, attach, .. }) => self.takes_input(*process, attach),
            _ => true,
        };
        let Some(client) = &mut self.clients[index] else { return };
        let done = matches!(client.role, Role::Done) && client.backlog() == 0;
        if client.dead || done {
            if done {
                client.finish();
            }
            let _ = epoll::delete(&self.epoll, client.as_fd());
            let waited = !done && matches!(client.role, Role::WaitExit { .. } | Role::WaitStopped { .. });
            self.clients[index] = None;
            if waited && self.setup.tied {
                // Nobody wants what comes of it.
                let _ = self.signal(SIGKILL);
            }
            return;
        }
        match &client.role {
            Role::WaitExit { remove } | Role::WaitStopped { remove } => *promised |= *remove,
            Role::Streams { process, attach, .. } if client.backlog() > MAX_BACKLOG => {
                if let Some(blocked) = blocked.get_mut(*process) {
                    blocked[0] |= attach.stdout;
                    blocked[1] |= attach.stderr;
                }
            }
            _ => {}
        }
        let wanted = (takes_input && !client.input_closed, client.backlog() > 0);
        if wanted != client.interest {
            let mut flags = epoll::EventFlags::empty();
            flags.set(epoll::EventFlags::IN, wanted.0);
            flags.set(epoll::EventFlags::OUT, wanted.1);
            client.interest = wanted;
            let data = epoll::EventData::new_u64(CLIENT | index as u64);
            let _ = epoll::modify(&self.epoll, client.as_fd(), data, flags);
        }
    }

    /// Whether more of a client's input can be taken. What arrives before the start waits in the socket.
    fn takes_input(&self, process: usize, attach: &Attach) -> bool {
        match self.processes.get(process).and_then(Option::as_ref) {
            Some(process) => process.input.len() < 64 * 1024,
            None => !(process == INIT && attach.stdin && !self.over),
        }
    }

    fn update_process(&mut self, index: usize, blocked: [bool; 2]) {
        let Some(process) = &mut self.processes[index] else { return };
        for (number, kind) in OUTPUT.iter().enumerate() {
            if let Some(output) = &process.outputs[number] {
                let event = (kind | index as u64, epoll::EventFlags::IN);
                watch_while(&self.epoll, output, event, !blocked[number], &mut process.watched[number]);
            }
        }
        if let Some(stdin) = &process.stdin {
            let event = (INPUT | index as u64, epoll::EventFlags::OUT);
            watch_while(&self.epoll, stdin, event, !process.input.is_empty(), &mut process.input_watched);
        }
    }
}

/// Adds the descriptor to epoll or takes it out, where `wanted` differs from `watched`.
fn watch_while(epoll: &OwnedFd, fd: &OwnedFd, (token, flags): (u64, epoll::EventFlags), wanted: bool, watched: &mut bool) {
    if wanted != *watched {
        let changed = match wanted {
            true => epoll::add(epoll, fd, epoll::EventData::new_u64(token), flags),
            false => epoll::delete(epoll, fd),
        };
        if changed.is_ok() {
            *watched = wanted;
        }
    }
}
