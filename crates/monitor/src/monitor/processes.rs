//! The processes: their output to the log and to who is attached, and their ends.

use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::{EXIT, INIT, Monitor, OUTPUT, take_buffer};
use crate::client::Role;
use crate::log::Stream;
use crate::process::Process;

/// How long the status of a process that another one traces is left alone.
const HELD: Duration = Duration::from_millis(100);

impl Monitor {
    /// Puts a process in its place and watches it.
    pub(super) fn watch(&mut self, index: usize, mut process: Process) {
        let token = |kind: u64| epoll::EventData::new_u64(kind | index as u64);
        let _ = epoll::add(&self.epoll, &process.pidfd, token(EXIT), epoll::EventFlags::IN);
        for (number, kind) in OUTPUT.iter().enumerate() {
            if let Some(output) = &process.outputs[number] {
                process.watched[number] = epoll::add(&self.epoll, output, token(*kind), epoll::EventFlags::IN).is_ok();
            }
        }
        self.processes[index] = Some(process);
    }

    /// Moves one chunk of a process's output to the log and to who is attached; `false` when there was none.
    pub(super) fn read_output(&mut self, index: usize, number: usize) -> bool {
        let Some(process) = self.processes.get_mut(index).and_then(Option::as_mut) else { return false };
        let mut buffer = take_buffer(&mut self.buffer);
        let Some(bytes) = process.read(number, &mut buffer) else {
            self.buffer = buffer;
            return false;
        };
        if bytes.is_empty() {
            self.close_output(index, number);
            self.buffer = buffer;
            return false;
        }
        let stream = if number == 0 { Stream::Stdout } else { Stream::Stderr };
        let probed =
            self.prober.as_ref().and_then(|prober| prober.running.as_ref()).is_some_and(|running| running.process == index);
        if let Some(prober) = self.prober.as_mut().filter(|_| probed) {
            prober.take_output(bytes);
        }
        if index == INIT
            && let Some(forwarder) = &mut self.forwarder
        {
            forwarder.append(stream, bytes);
        }
        if index == INIT
            && let Some(log) = &mut self.log
        {
            // A full disk must not stop the container: the output still reaches who is attached.
            let _ = log.append(stream, bytes);
        }
        let length = bytes.len() as u32;
        let header = [number as u8 + 1, 0, 0, 0, (length >> 24) as u8, (length >> 16) as u8, (length >> 8) as u8, length as u8];
        let header: &[u8] = if process.tty { &[] } else { &header };
        for client in self.clients.iter_mut().flatten() {
            if let Role::Streams { process, attach, .. } = &client.role
                && *process == index
                && (if number == 0 { attach.stdout } else { attach.stderr })
            {
                client.write(header, bytes);
            }
        }
        self.buffer = buffer;
        true
    }

    pub(super) fn close_output(&mut self, index: usize, number: usize) {
        let Some(process) = self.processes.get_mut(index).and_then(Option::as_mut) else { return };
        if let Some(output) = process.outputs[number].take()
            && process.watched[number]
        {
            let _ = epoll::delete(&self.epoll, &output);
            process.watched[number] = false;
        }
        let stream = if number == 0 { Stream::Stdout } else { Stream::Stderr };
        if index == INIT
            && let Some(forwarder) = &mut self.forwarder
        {
            forwarder.flush(stream);
        }
        if index == INIT
            && let Some(log) = &mut self.log
        {
            let _ = log.flush(stream);
        }
        if process.is_over() {
            self.process_over(index);
        }
    }

    /// Tells who is attached to a process that nothing more comes.
    pub(super) fn finish_streams(&mut self, index: usize) {
        for client in self.clients.iter_mut().flatten() {
            if matches!(&client.role, Role::Streams { process, .. } if *process == index) {
                client.role = Role::Done;
            }
        }
    }

    pub(super) fn process_exited(&mut self, index: usize) {
        let Some(process) = self.processes.get_mut(index).and_then(Option::as_mut) else { return };
        let _ = epoll::delete(&self.epoll, &process.pidfd);
        let code = dhow_runtime::launch::try_reap(&process.pidfd);
        process.held_until = code.is_none().then(|| Instant::now() + HELD);
        let Some(code) = code else { return };
        process.exit_code = Some(code);
        // What it wrote last is in the pipes; a process it left behind may hold them open for ever.
        for number in 0..2 {
            while self.read_output(index, number) {}
            self.close_output(index, number);
        }
    }

    /// Asks for what was held.
    pub(super) fn held_timers(&mut self, now: Instant) {
        for index in 0..self.processes.len() {
            let held = self.processes[index].as_ref().and_then(|process| process.held_until);
            if held.is_some_and(|until| until <= now) {
                self.process_exited(index);
            }
        }
    }

    /// A process has ended and its streams are at their ends.
    pub(super) fn process_over(&mut self, index: usize) {
        let Some(process) = self.processes[index].take() else { return };
        if process.input_watched
            && let Some(stdin) = &process.stdin
        {
            let _ = epoll::delete(&self.epoll, stdin);
        }
        let code = process.exit_code.unwrap_or(255);
        match process.exec {
            None => self.container_exited(code),
            Some(config) => {
                self.event("exec_die", &[("execID", config.id.clone()), ("exitCode", code.to_string())]);
                if let Some(exec) = self.execs.iter_mut().find(|exec| exec.config.id == config.id) {
                    exec.running = false;
                    exec.pid = 0;
                    exec.exit_code = Some(code);
                }
                self.finish_streams(index);
                if self.is_probe(index) {
                    self.probe_over(code);
                }
            }
        }
    }
}
