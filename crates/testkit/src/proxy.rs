//! A proxy that knows one host.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

pub struct Proxy {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Leads who asks for `name` to `target`, and nobody else anywhere; ends with the process.
    ///
    /// # Panics
    /// There is no free port.
    pub fn start(name: &'static str, target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let seen = heads.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let seen = seen.clone();
                std::thread::spawn(move || serve(client, name, target, &seen));
            }
        });
        Proxy { address, heads }
    }

    /// Heads of the first requests of connections, since the last look.
    pub fn seen(&self) -> Vec<String> {
        std::mem::take(&mut *self.heads.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn serve(mut client: TcpStream, name: &str, target: SocketAddr, seen: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let is_tunnel = text.starts_with("CONNECT ");
    let is_known = text.contains(&format!("//{name}")) || text.starts_with(&format!("CONNECT {name}:"));
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    if !is_known {
        return client.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n");
    }
    let mut server = TcpStream::connect(target)?;
    // Servers understand addresses in full, too (RFC 9112, 3.2.2).
    match is_tunnel {
        true => client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?,
        false => server.write_all(&head)?,
    }
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let copied = io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    copied.map(drop)
}
