//! Content digests: the algorithm, a colon and lower-case hex digits (image-spec, descriptor.md).

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a digest is computed by. SHA-256 is what there is where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    #[default]
    Sha256,
    Sha512,
}

impl Algorithm {
    pub const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    pub fn parse(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// The digest of some content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid digest '{0}': expected sha256: and 64 lower-case hexadecimal digits, or sha512: and 128")]
pub struct InvalidDigest(String);

impl Digest {
    /// The SHA-256 of some content.
    pub fn of(content: &[u8]) -> Digest {
        Digest::by(Algorithm::Sha256, content)
    }

    pub fn by(algorithm: Algorithm, content: &[u8]) -> Digest {
        let mut hasher = Hasher::by(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// The SHA-256 of all that a reader has left.
    pub fn of_all(reader: impl std::io::Read) -> std::io::Result<Digest> {
        Digest::of_all_by(Algorithm::Sha256, reader)
    }

    pub fn of_all_by(algorithm: Algorithm, mut reader: impl std::io::Read) -> std::io::Result<Digest> {
        let mut hasher = Hasher::by(algorithm);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(hasher.finish()),
                length => hasher.update(&buffer[..length]),
            }
        }
    }

    pub fn algorithm(&self) -> Algorithm {
        match self {
            Digest::Sha256(_) => Algorithm::Sha256,
            Digest::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The bytes that the digits stand for.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Digest::Sha256(bytes) => bytes,
            Digest::Sha512(bytes) => bytes,
        }
    }

    /// The hex digits, without the algorithm: their number tells it.
    pub fn hex(&self) -> String {
        hex(self.bytes())
    }

    /// The first 12 hex digits, as lists show them.
    pub fn short(&self) -> String {
        hex(&self.bytes()[..6])
    }

    /// A digest by its hex digits alone, which are 64 or 128.
    pub fn from_hex(text: &str) -> Option<Digest> {
        match text.len() {
            64 => Some(Digest::Sha256(bytes_of(text)?)),
            128 => Some(Digest::Sha512(bytes_of(text)?)),
            _ => None,
        }
    }
}

fn bytes_of<const LENGTH: usize>(text: &str) -> Option<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)] as char, DIGITS[usize::from(byte & 15)] as char]).collect()
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Digest, InvalidDigest> {
        let parsed = text.split_once(':').and_then(|(algorithm, digits)| {
            let algorithm = Algorithm::parse(algorithm)?;
            Digest::from_hex(digits).filter(|digest| digest.algorithm() == algorithm)
        });
        parsed.ok_or_else(|| InvalidDigest(text.to_owned()))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a [`Digest`] of content that arrives in pieces.
#[derive(Clone)]
pub struct Hasher {
    algorithm: Algorithm,
    context: ring::digest::Context,
}

impl Hasher {
    /// By SHA-256.
    pub fn new() -> Hasher {
        Hasher::by(Algorithm::Sha256)
    }

    pub fn by(algorithm: Algorithm) -> Hasher {
        let context = ring::digest::Context::new(match algorithm {
            Algorithm::Sha256 => &ring::digest::SHA256,
            Algorithm::Sha512 => &ring::digest::SHA512,
        });
        Hasher { algorithm, context }
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    pub fn finish(self) -> Digest {
        let computed = self.context.finish();
        let bytes = computed.as_ref();
        match self.algorithm {
            Algorithm::Sha256 => Digest::Sha256(sized(bytes)),
            Algorithm::Sha512 => Digest::Sha512(sized(bytes)),
        }
    }
}

fn sized<const LENGTH: usize>(bytes: &[u8]) -> [u8; LENGTH] {
    let mut sized = [0; LENGTH];
    sized.copy_from_slice(bytes);
    sized
}

impl Default for Hasher {
    fn default() -> Hasher {
        Hasher::new()
    }
}

/// Hands on what is written, hashed and counted.
pub struct Hashing<W> {
    pub out: W,
    pub hasher: Hasher,
    /// Bytes that were written.
    pub size: u64,
}

impl<W> Hashing<W> {
    /// By SHA-256.
    pub fn new(out: W) -> Hashing<W> {
        Hashing { out, hasher: Hasher::new(), size: 0 }
    }
}

impl<W: io::Write> io::Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.out.write(bytes)?;
        self.hasher.update(&bytes[..length]);
        self.size += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The chain ID of a stack of layers (image-spec, config.md): the first diff ID, then the digest of `"CHAIN DIFF"`.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => *diff_id,
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
        });
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_form_parses() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse(), Ok(Digest::of(b"")));
        let long = Digest::by(Algorithm::Sha512, b"");
        assert_eq!((long.to_string().parse(), long.short().as_str()), (Ok(long), "cf83e1357eef"));
        for bad in [
            "",
            "sha256:",
            "sha512:00",
            &empty.replace("256", "512"),
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &empty.to_uppercase(),
            &empty[..70],
            &format!("{empty}0"),
            "sha256:../../etc/passwd",
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
