//! Where registries are, and which of them are trusted without certificates.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dhow_oci::reference::DEFAULT_DOMAIN;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::anybody::Anybody;
use crate::proxy::Proxies;
use crate::{Error, Result};

/// The host that serves the images of the default domain.
const HUB: &str = "registry-1.docker.io";
/// Where distributions keep the certificates of authorities; the first that there is. `SSL_CERT_FILE` comes before them.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What is configured about registries.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// `host[:port]`, or a network `10.0.0.0/8`: their certificates are not looked at, and plain HTTP will do. What is on this
    /// host's loopback is among them, as with dockerd.
    pub insecure: Vec<String>,
    /// By domain, `http[s]://host[:port]`: asked first, as nobody in particular, for what is pulled.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Directories with a directory for each `host[:port]`: authorities in `*.crt`, the client's own in `*.cert` and `*.key`.
    pub certificates: Vec<PathBuf>,
    pub proxies: Proxies,
}

impl Default for Hosts {
    fn default() -> Hosts {
        let certificates = ["/etc/dhow/certs.d", "/etc/docker/certs.d"].map(PathBuf::from).to_vec();
        Hosts { insecure: Vec::new(), mirrors: BTreeMap::new(), certificates, proxies: Proxies::default() }
    }
}

/// One way to a registry.
#[derive(Clone)]
pub(crate) struct Endpoint {
    /// `host[:port]`
    pub authority: String,
    /// `None` for plain HTTP.
    pub tls: Option<Arc<ClientConfig>>,
    /// Who led there, if it is nothing that was configured or asked for.
    pub sent_by: Option<String>,
}

impl Hosts {
    /// The ways to the registry of a domain, the better ones first.
    ///
    /// # Errors
    /// Its certificates cannot be used.
    pub(crate) fn endpoints(&self, domain: &str) -> Result<Vec<Endpoint>> {
        let authority = if domain == DEFAULT_DOMAIN { HUB } else { domain }.to_owned();
        let secure = self.secure(&authority)?;
        Ok(match self.is_insecure(&authority) {
            true => vec![secure, Endpoint { authority, tls: None, sent_by: None }],
            false => vec![secure],
        })
    }

    /// The mirrors of a domain.
    ///
    /// # Errors
    /// The certificates for one cannot be used.
    pub(crate) fn mirrors_of(&self, domain: &str) -> Result<Vec<Endpoint>> {
        let mirrors = self.mirrors.get(domain).into_iter().flatten();
        mirrors
            .map(|mirror| match mirror.trim_end_matches('/').split_once("://") {
                Some(("https", authority)) => self.secure(authority),
                Some(("http", authority)) => Ok(Endpoint { authority: authority.to_owned(), tls: None, sent_by: None }),
                _ => Err(Error::Protocol(check_mirror(mirror).err().unwrap_or_default())),
            })
            .collect()
    }

    /// The way to a host by TLS.
    pub(crate) fn secure(&self, authority: &str) -> Result<Endpoint> {
        let tls = self.client_config(authority)?;
        Ok(Endpoint { authority: authority.to_owned(), tls: Some(Arc::new(tls)), sent_by: None })
    }

    /// The same, whose certificate has to be right.
    pub(crate) fn verified(&self, authority: &str) -> Result<Endpoint> {
        let tls = self.tls(authority, false)?;
        Ok(Endpoint { authority: authority.to_owned(), tls: Some(Arc::new(tls)), sent_by: None })
    }

    /// Whether a registry is trusted without a look at its certificate.
    pub fn is_insecure(&self, authority: &str) -> bool {
        let (host, _) = split(authority);
        let address = if host == "localhost" { Some(IpAddr::from([127, 0, 0, 1])) } else { host.parse::<IpAddr>().ok() };
        let in_network = |text: &str| {
            let (network, length) = text.split_once('/')?;
            Some(is_below(address?, network.parse().ok()?, length.parse().ok()?))
        };
        address.is_some_and(|address| address.is_loopback())
            || self.insecure.iter().any(|entry| entry == authority || in_network(entry) == Some(true))
    }

    /// How to speak TLS with a host.
    ///
    /// # Errors
    /// Its certificates cannot be used.
    pub fn client_config(&self, authority: &str) -> Result<ClientConfig> {
        self.tls(authority, self.is_insecure(authority))
    }

    fn tls(&self, authority: &str, insecure: bool) -> Result<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| Error::Protocol(format!("set up TLS: {error}")))?;
        let own = self.certificates.iter().map(|directory| directory.join(authority)).find(|directory| directory.is_dir());
        let builder = match insecure {
            true => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
            false => builder.with_root_certificates(roots(own.as_deref())?),
        };
        match own.as_deref().map(client_certificate).transpose()?.flatten() {
            Some((certificates, key)) => builder
                .with_client_auth_cert(certificates, key)
                .map_err(|error| Error::Protocol(format!("client certificate for {authority}: {error}"))),
            None => Ok(builder.with_no_client_auth()),
        }
    }
}

/// # Errors
/// A mirror's address is none, in dockerd's words.
pub fn check_mirror(mirror: &str) -> Result<(), String> {
    let Some((scheme, rest)) = mirror.split_once("://") else {
        return Err(format!("invalid mirror: no scheme specified for \"{mirror}\": must use either 'https://' or 'http://'"));
    };
    let host = rest.trim_end_matches('/');
    match scheme {
        "http" | "https" if host.contains(['/', '?', '#']) => {
            Err(format!("invalid mirror: path, query, or fragment at end of the URI \"{mirror}\""))
        }
        "http" | "https" if host.contains('@') => {
            Err(format!("invalid mirror: username/password not allowed in URI \"{mirror}\""))
        }
        "http" | "https" if !host.is_empty() => Ok(()),
        "http" | "https" => Err(format!("invalid mirror: \"{mirror}\" is not a valid URI")),
        _ => Err(format!(
            "invalid mirror: unsupported scheme \"{scheme}\" in \"{mirror}\": must use either 'https://' or 'http://'"
        )),
    }
}

/// The host of `host[:port]`, without brackets, and the port.
pub(crate) fn split(authority: &str) -> (&str, Option<&str>) {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) => {
            (host, Some(port))
        }
        _ => (authority, None),
    };
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}

pub(crate) fn is_below(address: IpAddr, network: IpAddr, length: u32) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let ((address, size), (network, other)) = (bits(address), bits(network));
    size == other && length <= size && (length == 0 || (address ^ network) >> (128 - length) == 0)
}

fn roots(own: Option<&Path>) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let bundle = named.or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()));
    for path in bundle.into_iter().chain(own.into_iter().flat_map(|directory| files(directory, "crt"))) {
        let failed = |why: &dyn std::fmt::Display| Error::Protocol(format!("certificates of {}: {why}", path.display()));
        let bytes = fs::read(&path).map_err(|error| failed(&error))?;
        let certificates: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|error| failed(&error))?;
        // A bundle has authorities of all times, and some that nothing can be made of.
        store.add_parsable_certificates(certificates);
    }
    Ok(store)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_certificate(directory: &Path) -> Result<Option<Identity>> {
    let Some(certificate) = files(directory, "cert").into_iter().next() else { return Ok(None) };
    let key = certificate.with_extension("key");
    let failed = |path: &Path, why: &dyn std::fmt::Display| Error::Protocol(format!("{}: {why}", path.display()));
    let certificates = CertificateDer::pem_file_iter(&certificate).and_then(Iterator::collect::<Result<_, _>>);
    let certificates = certificates.map_err(|error| failed(&certificate, &error))?;
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| failed(&key, &error))?;
    Ok(Some((certificates, key)))
}

/// The files of a directory with an extension, by name.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insecure_are_loopback_and_what_is_configured() {
        let hosts =
            Hosts { insecure: vec!["10.1.0.0/16".into(), "reg.example:5000".into(), "fd00::/8".into()], ..Hosts::default() };
        for authority in ["localhost:5000", "127.1.2.3", "[::1]:5000", "10.1.9.9:80", "reg.example:5000", "[fd12::1]:80"] {
            assert!(hosts.is_insecure(authority), "{authority}");
        }
        for authority in ["registry-1.docker.io", "10.2.0.1:80", "reg.example:5001", "reg.example", "localhost.example"] {
            assert!(!hosts.is_insecure(authority), "{authority}");
        }
    }

    #[test]
    fn mirrors_are_hosts() {
        for good in ["https://mirror.example", "http://10.0.0.1:5000/"] {
            assert_eq!(check_mirror(good), Ok(()));
        }
        for bad in
            ["mirror.example", "ftp://mirror", "https://mirror/path", "https://me:secret@mirror", "https://", "https://m?x"]
        {
            assert!(check_mirror(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_default_domain_is_served_elsewhere() {
        let endpoints = Hosts::default().endpoints("docker.io").unwrap();
        assert_eq!(endpoints.iter().map(|endpoint| endpoint.authority.as_str()).collect::<Vec<_>>(), [HUB]);
        let ways = Hosts::default().endpoints("localhost:5000").unwrap();
        assert_eq!(ways.iter().map(|way| way.tls.is_some()).collect::<Vec<_>>(), [true, false]);
    }
}
