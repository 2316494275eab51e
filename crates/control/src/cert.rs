//! `cert`: a self-signed X.509 v3 certificate for authd.
//!
//! RSA by default, since the TLS of old agents knows nothing else.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use jiff::{Span, Timestamp, civil::Date, tz::TimeZone};
use muster_proto::paths;
use muster_service::{
    command_line::{self, HOME_VARIABLE},
    exit::{DONE, Exit, FAILED},
    new_file::write_new,
};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize,
};
use zeroize::Zeroizing;

use crate::{cli, output::say};

/// The longest common name that X.509 takes.
const MAX_COMMON_NAME_LEN: usize = 64;

/// A certificate and its key, PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: Zeroizing<String>,
}

/// What kind of key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KeyKind {
    Rsa(RsaKeySize),
    EcdsaP256,
}

pub(crate) fn cert(home: Option<&Path>, arguments: &cli::Cert) -> anyhow::Result<u8> {
    let below_home = |path: &str| -> anyhow::Result<PathBuf> {
        Ok(command_line::home(home, None, env::var_os(HOME_VARIABLE))?.join(path))
    };
    let certificate = arguments
        .out_cert
        .clone()
        .map_or_else(|| below_home(paths::AUTHD_CERT), Ok)?;
    let key = arguments
        .out_key
        .clone()
        .map_or_else(|| below_home(paths::AUTHD_KEY), Ok)?;
    for path in [&certificate, &key] {
        if path.exists() {
            return Err(Exit::new(FAILED, format!("{} exists; move it away first", path.display())).into());
        }
    }
    let kind = match (arguments.ecdsa, arguments.bits.as_str()) {
        (true, _) => KeyKind::EcdsaP256,
        (false, "4096") => KeyKind::Rsa(RsaKeySize::_4096),
        (false, "3072") => KeyKind::Rsa(RsaKeySize::_3072),
        (false, _) => KeyKind::Rsa(RsaKeySize::_2048),
    };
    let names = if arguments.names.is_empty() {
        own_names()
    } else {
        arguments.names.clone()
    };
    let pair = make(&names, kind, arguments.days)?;
    write_new(&key, pair.key.as_bytes(), 0o600)?;
    write_new(&certificate, pair.certificate.as_bytes(), 0o644)?;
    say(format!(
        "{} and {} are made, valid {} days",
        certificate.display(),
        key.display(),
        arguments.days
    ));
    Ok(DONE)
}

/// The names under which this host can surely be reached.
pub(crate) fn own_names() -> Vec<String> {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let host = host.filter(|name| !name.is_empty() && name != "localhost");
    host.into_iter()
        .chain(["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()])
        .collect()
}

/// Makes a pair for these names; the first one is the subject's common name.
pub(crate) fn make(names: &[String], kind: KeyKind, days: u16) -> anyhow::Result<Pair> {
    let key = match kind {
        KeyKind::EcdsaP256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        KeyKind::Rsa(size) => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size),
    };
    let key = key.context("making a key")?;
    // Names that look like addresses become address entries.
    let mut parameters = CertificateParams::new(names.to_vec()).context("a name that no certificate can carry")?;
    let mut subject = DistinguishedName::new();
    let common_name = names.iter().find(|name| name.len() <= MAX_COMMON_NAME_LEN);
    subject.push(DnType::CommonName, common_name.map_or("muster-authd", String::as_str));
    parameters.distinguished_name = subject;
    // An agent that is given this certificate as its authority must find that it is none itself.
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // From yesterday: an agent's clock may be behind.
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let last = today.checked_add(Span::new().days(i64::from(days)))?;
    let midnight = |date: Date| -> anyhow::Result<_> {
        Ok(rcgen::date_time_ymd(
            i32::from(date.year()),
            u8::try_from(date.month())?,
            u8::try_from(date.day())?,
        ))
    };
    parameters.not_before = midnight(today.yesterday()?)?;
    parameters.not_after = midnight(last)?;
    let certificate = parameters.self_signed(&key).context("signing the certificate")?;
    Ok(Pair {
        certificate: certificate.pem(),
        key: Zeroizing::new(key.serialize_pem()),
    })
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::*;

    use super::*;

    fn check(kind: KeyKind) {
        let names = ["manager.example.org".to_owned(), "192.0.2.1".to_owned()];
        let pair = make(&names, kind, 30).expect("made");
        let (_, pem) = parse_x509_pem(pair.certificate.as_bytes()).expect("PEM");
        let certificate = pem.parse_x509().expect("DER");
        assert_eq!(certificate.version(), X509Version::V3);
        assert_eq!(certificate.subject().to_string(), "CN=manager.example.org");
        assert!(certificate.validity().is_valid());
        let days = certificate.validity().time_to_expiration().expect("valid").whole_days();
        assert!((29..=30).contains(&days), "{days}");
        assert!(!certificate.is_ca());
        let alternatives = certificate
            .subject_alternative_name()
            .expect("readable")
            .expect("there");
        let expected = [
            GeneralName::DNSName("manager.example.org"),
            GeneralName::IPAddress(&[192, 0, 2, 1]),
        ];
        assert_eq!(alternatives.value.general_names, expected);
        let usage = certificate
            .extended_key_usage()
            .expect("readable")
            .expect("there")
            .value;
        assert!(usage.server_auth && !usage.client_auth);
        KeyPair::from_pem(&pair.key).expect("the key reads back");
    }

    #[test]
    fn rsa_certificate_is_version_3_with_names_and_addresses() {
        check(KeyKind::Rsa(RsaKeySize::_2048));
    }

    #[test]
    fn ecdsa_certificate_is_version_3_with_names_and_addresses() {
        check(KeyKind::EcdsaP256);
    }
}
