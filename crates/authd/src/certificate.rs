//! `-C`: a self-signed certificate with the properties of those that stock authd makes, for installers that ask it.

use anyhow::{Context as _, bail};
use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use muster_service::new_file::write_new;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, PKCS_RSA_SHA256, RsaKeySize,
};
use zeroize::Zeroizing;

use crate::Cli;

/// Makes what the command line asks for, if it asks. Says whether it did.
pub fn make_if_asked(cli: &Cli) -> anyhow::Result<bool> {
    let (Some(days), Some(key_file), Some(certificate_file), Some(subject)) =
        (cli.make_certificate, &cli.new_key, &cli.new_certificate, &cli.subject)
    else {
        return Ok(false);
    };
    let size = match cli.bits.as_str() {
        "4096" => RsaKeySize::_4096,
        "3072" => RsaKeySize::_3072,
        _ => RsaKeySize::_2048,
    };
    let (certificate, key) = make(subject, size, days)?;
    write_new(key_file, key.as_bytes(), 0o600)?;
    write_new(certificate_file, certificate.as_bytes(), 0o644)?;
    Ok(true)
}

/// A certificate and its key, PEM.
fn make(subject: &str, size: RsaKeySize, days: u16) -> anyhow::Result<(String, Zeroizing<String>)> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = distinguished_name(subject)?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.use_authority_key_identifier_extension = true;
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let midnight = |date: Date| -> anyhow::Result<_> {
        Ok(rcgen::date_time_ymd(
            i32::from(date.year()),
            u8::try_from(date.month())?,
            u8::try_from(date.day())?,
        ))
    };
    parameters.not_before = midnight(today)?;
    // From the beginning of today, so that it is valid for as many whole days from now on.
    parameters.not_after = midnight(today.checked_add((i32::from(days) + 1).days())?)?;
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size).context("making a key")?;
    let certificate = parameters.self_signed(&key).context("signing the certificate")?;
    Ok((certificate.pem(), Zeroizing::new(key.serialize_pem())))
}

/// `/C=US/ST=California/CN=Wazuh/`.
fn distinguished_name(subject: &str) -> anyhow::Result<DistinguishedName> {
    let mut name = DistinguishedName::new();
    for part in subject.split('/').filter(|part| !part.is_empty()) {
        let kind = match part.split_once('=') {
            Some(("C", _)) => DnType::CountryName,
            Some(("ST", _)) => DnType::StateOrProvinceName,
            Some(("L", _)) => DnType::LocalityName,
            Some(("O", _)) => DnType::OrganizationName,
            Some(("OU", _)) => DnType::OrganizationalUnitName,
            Some(("CN", _)) => DnType::CommonName,
            _ => bail!("cannot read {part:?} of the subject; it looks like /C=US/ST=California/CN=Wazuh/"),
        };
        let (_, value) = part.split_once('=').unwrap_or_default();
        name.push(kind, value);
    }
    if name.iter().next().is_none() {
        bail!("the subject is empty; it looks like /C=US/ST=California/CN=Wazuh/");
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use x509_parser::prelude::*;

    use super::*;

    #[test]
    fn certificate_has_what_installers_ask_for() {
        let directory = tempfile::tempdir().expect("directory");
        let (key, certificate) = (directory.path().join("k"), directory.path().join("c"));
        let arguments = |subject: &str| {
            let mut line = vec!["wazuh-authd".to_owned()];
            line.extend(["-C", "365", "-B", "2048", "-K"].map(str::to_owned));
            line.extend([
                key.display().to_string(),
                "-X".to_owned(),
                certificate.display().to_string(),
            ]);
            line.extend(["-S".to_owned(), subject.to_owned()]);
            Cli::try_parse_from(line).expect("parses")
        };
        assert!(make_if_asked(&arguments("/C=US/ST=California/CN=Wazuh/")).expect("made"));
        let text = std::fs::read(&certificate).expect("read");
        let (_, pem) = parse_x509_pem(&text).expect("PEM");
        let parsed = pem.parse_x509().expect("DER");
        assert_eq!(parsed.version(), X509Version::V3);
        assert_eq!(parsed.subject().to_string(), "C=US, ST=California, CN=Wazuh");
        let constraints = parsed.basic_constraints().expect("readable").expect("there");
        assert!(constraints.critical && constraints.value.ca);
        let has = |oid| parsed.get_extension_unique(&oid).expect("readable").is_some();
        assert!(has(oid_registry::OID_X509_EXT_SUBJECT_KEY_IDENTIFIER));
        assert!(has(oid_registry::OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER));
        let left = parsed.validity().time_to_expiration().expect("valid");
        assert_eq!(left.whole_days(), 365);
        let key_text = std::fs::read_to_string(&key).expect("read");
        KeyPair::from_pem(&key_text).expect("the key reads back");
        // A second time: what is there stays.
        assert!(make_if_asked(&arguments("/CN=other/")).is_err());
        assert_eq!(std::fs::read_to_string(&key).expect("read"), key_text);
    }

    #[test]
    fn subject_that_cannot_be_read_is_an_error_with_an_example() {
        for subject in ["", "/", "/CN", "/X=1/", "Wazuh"] {
            let error = distinguished_name(subject).expect_err(subject).to_string();
            assert!(error.contains("/C=US/ST=California/CN=Wazuh/"), "{error}");
        }
    }

    #[test]
    fn options_of_a_certificate_are_asked_for_together() {
        assert!(Cli::try_parse_from(["wazuh-authd", "-C", "365", "-K", "k"]).is_err());
        assert!(!make_if_asked(&Cli::try_parse_from(["muster-authd"]).expect("parses")).expect("nothing to do"));
    }
}
