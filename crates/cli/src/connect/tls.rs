//! TLS towards a daemon on a TCP socket: docker's options, files and variables.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use dhow_registry::Anybody;
use dhow_server::pem;
use rustls::ClientConfig;
use tokio_rustls::TlsConnector;

use crate::failure::{Failure, Result};

#[derive(Args, Clone, Debug, Default)]
pub struct TlsOptions {
    /// Use TLS; implied by --tlsverify
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tls: Option<bool>,
    /// Use TLS and verify the remote
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tlsverify: Option<bool>,
    /// Trust certs signed only by this CA (default "~/.docker/ca.pem")
    #[arg(long, value_name = "string")]
    pub tlscacert: Option<PathBuf>,
    /// Path to TLS certificate file (default "~/.docker/cert.pem")
    #[arg(long, value_name = "string")]
    pub tlscert: Option<PathBuf>,
    /// Path to TLS key file (default "~/.docker/key.pem")
    #[arg(long, value_name = "string")]
    pub tlskey: Option<PathBuf>,
    /// Nobody is asked who the engine is, and no authority need be known.
    #[arg(skip)]
    pub anybody: bool,
}

impl TlsOptions {
    /// These, and where they say nothing the others.
    pub fn or(self, others: TlsOptions) -> TlsOptions {
        TlsOptions {
            tls: self.tls.or(others.tls),
            tlsverify: self.tlsverify.or(others.tlsverify),
            tlscacert: self.tlscacert.or(others.tlscacert),
            tlscert: self.tlscert.or(others.tlscert),
            tlskey: self.tlskey.or(others.tlskey),
            anybody: self.anybody || others.anybody,
        }
    }

    /// Whether TLS is wanted. Docker's rule: `--tlsverify=false` too asks for TLS, without a look at who answers.
    pub fn wanted(&self) -> bool {
        self.tls.unwrap_or_else(|| is_set("DOCKER_TLS")) || self.tlsverify.is_some() || is_set("DOCKER_TLS_VERIFY")
    }

    fn verify(&self) -> bool {
        self.tlsverify.unwrap_or_else(|| is_set("DOCKER_TLS_VERIFY"))
    }

    /// # Errors
    /// A file that was named, or the authority's, cannot be read or holds nothing of its kind.
    pub fn connector(&self) -> Result<TlsConnector> {
        let failed = |path: &Path, why: String| {
            Failure::new(format!("Failed to initialize: unable to resolve docker endpoint: open {}: {why}", path.display()))
        };
        let directory = certificate_directory();
        let authority = self.tlscacert.clone().unwrap_or_else(|| directory.join("ca.pem"));
        // Files at the default places need not exist; the authority's must.
        let or_default = |given: &Option<PathBuf>, name: &str| {
            given.clone().or_else(|| Some(directory.join(name)).filter(|path| path.exists()))
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = |error: rustls::Error| Failure::new(format!("set up TLS: {error}"));
        let roots = match self.anybody {
            true => rustls::RootCertStore::empty(),
            false => pem::authorities(&authority).map_err(|why| failed(&authority, why))?,
        };
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(tls)?;
        let builder = if self.verify() {
            builder.with_root_certificates(roots)
        } else {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        };
        let config = match (or_default(&self.tlscert, "cert.pem"), or_default(&self.tlskey, "key.pem")) {
            (Some(certificate), Some(key)) => {
                let chain = pem::certificates(&certificate).map_err(|why| failed(&certificate, why))?;
                let key = pem::key(&key).map_err(|why| failed(&key, why))?;
                builder.with_client_auth_cert(chain, key).map_err(tls)?
            }
            _ => builder.with_no_client_auth(),
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Where docker keeps the files: `DOCKER_CERT_PATH`, the configuration's directory, `~/.docker`.
pub fn certificate_directory() -> PathBuf {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || named("HOME").unwrap_or_else(|| PathBuf::from("/root")).join(".docker");
    named("DOCKER_CERT_PATH").or_else(|| named("DOCKER_CONFIG")).unwrap_or_else(home)
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}
