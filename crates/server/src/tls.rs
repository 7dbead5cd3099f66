//! TLS of a TCP socket: both sides show a certificate of one authority. Whoever holds such a certificate is root on this
//! host, so that there is no form in which only the server shows one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::listen::ListenError;
use crate::pem;

/// Clients that show who they are at one moment. Strangers cannot use up descriptors that the Unix socket needs.
const AT_THE_GATE: usize = 64;
/// How long a client has to show who it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// PEM files, as dockerd's `--tlscacert`, `--tlscert` and `--tlskey` name them.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// Of the authorities that sign clients' certificates.
    pub authorities: PathBuf,
    /// The server's own, and what leads from it to its authority.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Lets clients in that have a certificate.
#[derive(Clone)]
pub struct Gate {
    acceptor: TlsAcceptor,
    places: Arc<Semaphore>,
}

impl Gate {
    /// # Errors
    /// A file cannot be read, holds nothing of its kind, or the key is not the certificate's.
    pub fn new(certificates: &Certificates) -> Result<Gate, ListenError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let failed = |what: &str, path: &Path, why: String| ListenError(format!("{what} {}: {why}", path.display()));
        let roots = pem::authorities(&certificates.authorities)
            .map_err(|why| failed("use the authorities of", &certificates.authorities, why))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| failed("use the authorities of", &certificates.authorities, error.to_string()))?;
        let chain = pem::certificates(&certificates.certificate)
            .map_err(|why| failed("read the certificate", &certificates.certificate, why))?;
        let key = pem::key(&certificates.key).map_err(|why| failed("read the key", &certificates.key, why))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| ListenError(format!("set up TLS: {error}")))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| failed("use the certificate", &certificates.certificate, error.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Gate { acceptor: TlsAcceptor::from(Arc::new(config)), places: Arc::new(Semaphore::new(AT_THE_GATE)) })
    }

    /// A place for the next client, until it has been admitted or turned away.
    pub(crate) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().acquire_owned().await.ok()
    }

    /// # Errors
    /// The client shows no certificate, or one of another authority, or takes too long.
    pub(crate) async fn admit(&self, connection: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        tokio::time::timeout(PATIENCE, self.acceptor.accept(connection))
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
    }
}
