//! Certificates and keys in PEM files, for both ends of a TLS connection. Errors are what is wrong with the file.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// At least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|error| text(&error))?;
    if found.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(found) }
}

/// The certificates as those of authorities.
pub fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

pub fn key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| text(&error))
}

fn text(error: &Error) -> String {
    match error {
        Error::Io(error) if error.kind() == std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        Error::NoItemsFound => "there is none in it".to_owned(),
        other => other.to_string(),
    }
}
