use rcgen::{CertificateParams, KeyPair};

use super::*;

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Self {
            directory: tempfile::tempdir().expect("directory"),
        }
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).expect("written");
        path
    }

    fn auth(&self, certificate: &str, key: &str) -> Auth {
        Auth {
            ssl_manager_cert: self.write("cert.pem", certificate),
            ssl_manager_key: self.write("key.pem", key),
            ..Auth::default()
        }
    }
}

fn pair() -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::default().self_signed(&key).expect("a certificate");
    (certificate.pem(), key.serialize_pem())
}

fn error(auth: &Auth) -> String {
    server_config(auth).expect_err("an error").to_string()
}

#[test]
fn certificate_and_key_of_one_pair_are_taken() {
    let (certificate, key) = pair();
    let config = server_config(&Files::new().auth(&certificate, &key)).expect("a configuration");
    assert_eq!(config.send_tls13_tickets, 0);
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    assert!(error(&Files::new().auth(&pair().0, &pair().1)).starts_with("cannot use "));
}

#[test]
fn missing_and_wrong_files_are_named() {
    let files = Files::new();
    let (certificate, key) = pair();
    let auth = Auth {
        ssl_manager_cert: "nowhere/cert.pem".into(),
        ..files.auth(&certificate, &key)
    };
    assert_eq!(
        error(&auth),
        "cannot read nowhere/cert.pem; `muster-control cert` makes a certificate and a key"
    );
    assert!(error(&files.auth(&key, &key)).ends_with("holds no certificate in PEM form"));
    assert!(error(&files.auth(&certificate, &certificate)).ends_with("holds no private key in PEM form"));
    assert!(error(&files.auth("", "")).ends_with("holds no certificate in PEM form"));
}

#[test]
fn a_version_1_certificate_is_refused_with_the_cure() {
    let certificate = include_str!("tests/version1-cert.pem");

    assert!(error(&Files::new().auth(certificate, &pair().1)).contains("make a v3 one with `muster-control cert`"));
}

#[test]
fn a_ca_for_agents_must_be_a_certificate() {
    let files = Files::new();
    let (certificate, key) = pair();
    let good = Auth {
        ssl_agent_ca: Some(files.write("ca.pem", &pair().0)),
        ..files.auth(&certificate, &key)
    };
    assert!(server_config(&good).is_ok());
    let bad = Auth {
        ssl_agent_ca: Some(files.write("ca.pem", "nothing")),
        ..good
    };
    assert!(error(&bad).ends_with("ca.pem holds no certificate in PEM form"));
}
