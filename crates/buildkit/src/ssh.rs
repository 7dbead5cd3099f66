//! Agents of ssh(1) at the client (`moby.sshforward.v1.SSH`).

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use dhow_engine::dhow_build::solve::Agent;
use tokio::runtime::Handle;

use crate::messages::session::CheckAgentRequest;
use crate::messages::{BytesMessage, Empty};
use crate::session::Session;

const CHECK: &str = "/moby.sshforward.v1.SSH/CheckAgent";
const FORWARD: &str = "/moby.sshforward.v1.SSH/ForwardAgent";

/// One that the client has.
struct ClientAgent {
    handle: Handle,
    session: Arc<Session>,
    id: String,
}

/// An agent by its id; `None` if the client has none of that name.
pub fn find(handle: &Handle, session: &Arc<Session>, id: &str) -> Option<Arc<dyn Agent>> {
    if !session.has(CHECK) {
        return None;
    }
    let request = CheckAgentRequest { id: id.to_owned() };
    handle.block_on(session.channel.unary::<Empty>(CHECK, &request)).ok()?;
    Some(Arc::new(ClientAgent { handle: handle.clone(), session: session.clone(), id: id.to_owned() }))
}

impl Agent for ClientAgent {
    fn serve(&self, connection: UnixStream) -> io::Result<()> {
        let metadata = [("buildkit.ssh.id", self.id.clone())];
        let stream = self.handle.block_on(self.session.channel.stream(FORWARD, &metadata));
        let (to, mut from) = stream.map_err(|status| io::Error::other(status.message))?.split();
        let Some(to) = to else { return Ok(()) };
        std::thread::scope(|scope| {
            let connection = &connection;
            scope.spawn(move || {
                let mut buffer = vec![0; 32 * 1024];
                while let Ok(length) = (&mut &*connection).read(&mut buffer) {
                    let message = BytesMessage { data: buffer[..length].to_vec() };
                    if length == 0 || !self.handle.block_on(to.send(&message)) {
                        break;
                    }
                }
                // Dropped, it says that nothing more comes.
                drop(to);
            });
            let mut received = || -> io::Result<()> {
                while let Some(message) =
                    self.handle.block_on(from.next::<BytesMessage>()).map_err(|status| io::Error::other(status.message))?
                {
                    (&mut &*connection).write_all(&message.data)?;
                }
                Ok(())
            };
            let done = received();
            let _ = connection.shutdown(Shutdown::Both);
            done
        })
    }
}
