//! The files of the cases over HTTP: `cases/NAME/http/FILE` is `http://127.0.0.1:38765/NAME/FILE`.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

/// It stands in the Dockerfiles and in the records.
const ADDRESS: &str = "127.0.0.1:38765";

/// Serves until the process ends.
pub fn serve(cases: &'static Path) {
    let listener = TcpListener::bind(ADDRESS).unwrap_or_else(|error| panic!("the files of the cases need {ADDRESS}: {error}"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(cases, stream));
        }
    });
}

fn answer(cases: &Path, mut stream: TcpStream) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let request = lines.next()?;
    lines.find(String::is_empty)?;
    let mut words = request.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let file = path.split('?').next()?.strip_prefix('/')?.split_once('/');
    let content = file.filter(|(_, file)| !file.contains("..")).and_then(|(name, file)| {
        std::fs::read(cases.join(name).join("http").join(file)).ok() // A directory cannot be read.
    });
    let (status, content) = match content {
        Some(content) => ("200 OK\r\nLast-Modified: Sun, 09 Sep 2001 01:46:40 GMT", content),
        None => ("404 Not Found", b"not found\n".to_vec()),
    };
    let length = content.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").ok()?;
    if method != "HEAD" {
        stream.write_all(&content).ok()?;
    }
    Some(())
}
