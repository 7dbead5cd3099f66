//! Certificates for tests of TLS, made by openssl.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An authority, and the directory of what it signs: `ca.pem`; `NAME.pem` and `NAME-key.pem`.
pub struct Authority {
    directory: PathBuf,
}

impl Authority {
    /// # Panics
    /// openssl cannot be run.
    pub fn new(directory: PathBuf) -> Authority {
        std::fs::create_dir_all(&directory).expect("the authority's directory can be made");
        let authority = Authority { directory };
        let new = format!("{NEW_KEY} -x509 -days 2 -subj /CN=authority -keyout ca-key.pem -out ca.pem");
        authority.openssl(&new);
        authority
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Signs a certificate for this host, good for both ends of a connection.
    ///
    /// # Panics
    /// openssl cannot be run.
    pub fn sign(&self, name: &str) {
        let extensions = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
        std::fs::write(self.path("extensions"), extensions).expect("a file can be written");
        self.openssl(&format!("{NEW_KEY} -subj /CN={name} -keyout {name}-key.pem -out {name}.csr"));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile extensions -out {name}.pem"
        ));
    }

    /// docker's options to speak TLS as `name`.
    pub fn options(&self, name: &str) -> Vec<String> {
        let option = |option: &str, file: &str| format!("--{option}={}", self.path(file).display());
        vec![
            "--tlsverify".to_owned(),
            option("tlscacert", "ca.pem"),
            option("tlscert", &format!("{name}.pem")),
            option("tlskey", &format!("{name}-key.pem")),
        ]
    }

    fn openssl(&self, args: &str) {
        let output = Command::new("openssl").args(args.split(' ')).current_dir(Path::new(&self.directory)).output();
        let output = output.expect("openssl is needed: apt-get install openssl");
        assert!(output.status.success(), "openssl {args}: {}", crate::text(&output.stderr));
    }
}

const NEW_KEY: &str = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
