//! Docker's multiplexed streams: `[stream, 0, 0, 0, length (u32, big-endian)]` and the bytes, again and again.

/// Which stream a frame belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    Stdin,
    Stdout,
    Stderr,
    /// An error of the server itself.
    System,
}

/// The header of a frame.
pub fn header(stream: Stream, length: u32) -> [u8; 8] {
    let [a, b, c, d] = length.to_be_bytes();
    [stream as u8, 0, 0, 0, a, b, c, d]
}

/// Takes frames apart as bytes arrive, in whatever pieces.
#[derive(Default)]
pub struct Demultiplexer {
    header: Vec<u8>,
    stream: Option<Stream>,
    left: usize,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("Unrecognized input header: {0}")]
pub struct UnknownStream(u8);

impl Demultiplexer {
    /// Calls `sink` for each piece of a stream in `bytes`.
    pub fn feed(&mut self, mut bytes: &[u8], mut sink: impl FnMut(Stream, &[u8])) -> Result<(), UnknownStream> {
        while !bytes.is_empty() {
            if let Some(stream) = self.stream.filter(|_| self.left > 0) {
                let (piece, rest) = bytes.split_at(self.left.min(bytes.len()));
                sink(stream, piece);
                self.left -= piece.len();
                bytes = rest;
                continue;
            }
            let (piece, rest) = bytes.split_at((8 - self.header.len()).min(bytes.len()));
            self.header.extend_from_slice(piece);
            bytes = rest;
            if let [number, _, _, _, a, b, c, d] = self.header[..] {
                self.stream = Some(match number {
                    0 => Stream::Stdin,
                    1 => Stream::Stdout,
                    2 => Stream::Stderr,
                    3 => Stream::System,
                    other => return Err(UnknownStream(other)),
                });
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                self.header.clear();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let mut wire = Vec::new();
        for (stream, text) in [(Stream::Stdout, "hello"), (Stream::Stderr, ""), (Stream::Stderr, "oh"), (Stream::Stdout, "!")] {
            wire.extend(header(stream, text.len() as u32));
            wire.extend(text.as_bytes());
        }
        for size in 1..=wire.len() {
            let (mut out, mut error) = (Vec::new(), Vec::new());
            let mut demultiplexer = Demultiplexer::default();
            for piece in wire.chunks(size) {
                let sink = |stream, bytes: &[u8]| {
                    if stream == Stream::Stdout { out.extend_from_slice(bytes) } else { error.extend_from_slice(bytes) }
                };
                demultiplexer.feed(piece, sink).unwrap();
            }
            assert_eq!((out.as_slice(), error.as_slice()), (&b"hello!"[..], &b"oh"[..]), "{size}");
        }
        assert_eq!(Demultiplexer::default().feed(&[9; 8], |_, _| {}), Err(UnknownStream(9)));
    }
}
